"""A short run of tools/fuzz_readers.py over every kind of file: nothing but typed errors, nothing slow."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"
sys.path.insert(0, str(TOOLS))

import fuzz_readers  # noqa: E402
from fuzz_targets import TARGETS  # noqa: E402

ITERATIONS = 40


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run(name: str, tmp_path: Path) -> None:
    findings = fuzz_readers.Findings()
    accepted, refused = fuzz_readers.fuzz(name, ITERATIONS, 11, tmp_path, findings)
    assert findings.kinds == {} and accepted + refused == ITERATIONS and refused


def test_bugs_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise KeyError("x")

    monkeypatch.setitem(TARGETS, "broken", lambda _: broken)
    findings = fuzz_readers.Findings()
    fuzz_readers.fuzz("broken", 3, 1, tmp_path, findings)
    assert sum(findings.kinds.values()) == 3 and len(findings.kinds) == 1
