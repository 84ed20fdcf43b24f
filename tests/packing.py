"""What tests of packed weights share: a small model, the folder where its panels are kept, and its bits."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from tiny_model import write_model

from pyllamacpu.engine.engine import Engine
from pyllamacpu.model import pack_cache, panel_file

TOKENS = [7 * i + 5 for i in range(24)]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' models have just been written."""
    monkeypatch.setattr(pack_cache, "FRESH", 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "panels"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny.gguf")


def bits(path: Path, folder: Path | None, **options: Any) -> bytes:
    """Of the logits of some tokens."""
    engine = Engine.open(path, n_ctx=64, n_threads=2, pack_cache=folder, **options)
    try:
        ids = [token % engine.n_vocab for token in TOKENS]
        return engine.eval(engine.sequence(), ids, logits="all").tobytes()
    finally:
        engine.close()


def panels(folder: Path) -> Path:
    (found,) = folder.glob("*.panels")
    return found


def made(folder: Path) -> int:
    """When it was made."""
    return panels(folder).stat().st_mtime_ns


def packing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing is packed, neither into memory nor into a file."""

    def fail(*_: Any) -> None:
        raise AssertionError("packed")

    monkeypatch.setattr("pyllamacpu.model.weights._Packed.__init__", fail)
    monkeypatch.setattr(panel_file.PanelWriter, "add", fail)


def run(code: str, *arguments: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments), str(Path(__file__).parent)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done


def damage(path: Path, at: int, keep_times: bool = False) -> None:
    """Another byte at `at` (from the end, if negative)."""
    old = path.stat()
    path.chmod(0o600)
    with open(path, "r+b") as file:
        file.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    path.chmod(0o400)
    if keep_times:
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
