"""benchmarks/compare.py: comparisons with fake peers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_scripts import FOLDER, ROOT, needs_scripts, small

from pyllamacpu.errors import OptionError

pytestmark = needs_scripts


FAKE = """
import json, sys
args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
pp, tg = map(int, args["-pg"].split(",")) if "-pg" in args else (int(args["-p"]), int(args["-n"]))
speed = {speed}
row = {{"n_prompt": pp, "n_gen": tg, "n_depth": int(args.get("-d", 0))}}
row["samples_ts"] = [speed] * int(args["-r"])
print("some chatter [here]")
print(json.dumps([row], indent=2))
"""


@pytest.fixture
def compare(script: Any) -> ModuleType:
    return script("compare")  # type: ignore[no-any-return]


@pytest.fixture
def synthetic(script: Any) -> ModuleType:
    return script("synthetic")  # type: ignore[no-any-return]


@pytest.fixture
def fake(tmp_path: Path) -> Any:
    """Makes a program with llama-bench's options that always has the same speed."""

    def make(name: str, speed: float, code: str = FAKE) -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(code.format(speed=speed))
        return f"{sys.executable} {path}"

    return make


def job(compare: ModuleType, tests: list[Any], rounds: int = 2) -> Any:
    return compare.Job((Path("model.gguf"),), tuple(tests), (), 2, rounds, 60.0)


def test_programs_run_in_turn_and_ratios_are_ours_over_theirs(compare: ModuleType, fake: Any) -> None:
    ours = compare.Program("pyllamacpu", tuple(fake("ours", 30.0).split()))
    peer = compare.parse_program("peer=" + fake("peer", 20.0))
    said: list[str] = []
    work = job(compare, [compare.Test(8, 0, 0), compare.Test(4, 2, 16)])
    cells = compare.compare([ours, peer], work, said.append)
    assert [line.rpartition(" ")[2] for line in said[:4]] == ["pyllamacpu", "peer", "peer", "pyllamacpu"]
    text = compare.table(cells, [ours, peer], work)
    assert "ratio to peer" in text and text.count(" 1.50 ") == 2
    assert "pp4+tg2 @ d16" in text
    results = compare.as_json(cells, [ours, peer], work)["results"]
    assert [r["samples_ts"] for r in results] == [[30.0] * 4, [20.0] * 4] * 2


def test_a_failing_peer_is_shown_and_does_not_end_the_comparison(compare: ModuleType, fake: Any) -> None:
    ours = compare.Program("pyllamacpu", tuple(fake("ours", 30.0).split()))
    bad = compare.parse_program("bad=" + fake("bad", 0, "import sys; sys.exit('no such model')"))
    mute = compare.parse_program("mute=" + fake("mute", 0, "print('hello')"))
    gone = compare.parse_program("gone=/no/such/program")
    work = job(compare, [compare.Test(8, 0, 0)])
    programs = [ours, bad, mute, gone]
    cells = compare.compare(programs, work)
    failures = {name: cell.failure for (_, _, name), cell in cells.items()}
    assert "no such model" in failures["bad"] and "no JSON" in failures["mute"] and failures["gone"]
    assert failures["pyllamacpu"] == ""
    assert compare.table(cells, programs, work).count("failed") == 3


def test_spread_is_the_quartiles(compare: ModuleType) -> None:
    assert compare.Cell([10.0, 20.0, 30.0, 40.0, 50.0], []).spread == pytest.approx(10 / 30)
    assert compare.Cell([10.0, 20.0], []).spread == 0.0


def test_a_share_is_of_the_limit_in_the_same_run(compare: ModuleType) -> None:
    work = job(compare, [compare.Test(8, 0, 0)])
    limits = {
        "limit_int8_ops_per_second": 2e12,
        "limit_fp32_ops_per_second": 5e11,
        "int8_ops_per_second": 0.0,
    }
    rows = [
        {"limited_by": "read", "read_bytes_per_second": rate, "limit_read_bytes_per_second": limit, **limits}
        for rate, limit in ((40e9, 50e9), (80e9, 100e9), (45e9, 50e9))
    ]
    cells = {(work.models[0], work.tests[0], "pyllamacpu"): compare.Cell([1.0], rows)}
    ours = compare.Program("pyllamacpu", ("true",))
    assert "| 45.0 GB/s |   80.0 % |" in compare.table(cells, [ours], work)
    assert "reading 50.00 to 100.00 GB/s, int8 2.00 to 2.00 Top/s" in compare.limits_line(cells)


@pytest.mark.parametrize("text", ["peer", "=x", "peer=", "pyllamacpu=x"])
def test_bad_peers_are_refused(compare: ModuleType, text: str) -> None:
    with pytest.raises(OptionError, match="--peer"):
        compare.parse_program(text)


def test_our_own_bench_runs_from_compare(
    compare: ModuleType, synthetic: ModuleType, fake: Any, tmp_path: Path
) -> None:
    model = tmp_path / "model.gguf"
    synthetic.write(model, small(synthetic), "Q8_0")
    command = [sys.executable, str(FOLDER / "compare.py"), "-m", str(model), "-p", "8", "-n", "2", "-r", "1"]
    command += [
        "--peer",
        "peer=" + fake("peer", 20.0),
        "--rounds",
        "1",
        "-t",
        "1",
        "--json",
        str(tmp_path / "out"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "pp8" in done.stdout and "tg2" in done.stdout and "Limits of this machine" in done.stdout
    results = json.loads((tmp_path / "out").read_text())["results"]
    assert [r["program"] for r in results] == ["pyllamacpu", "peer"] * 2
    assert results[0]["row"]["limit_int8_ops_per_second"] > 0
