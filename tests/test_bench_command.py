"""`pyllamacpu bench`: its formats, files, options and errors.

Covers cli/bench.py, bench/formats.py, bench/result.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_letters import ROOT, Result, cli_home, run  # noqa: F401
from conftest import python_path
from tiny_model import write_model

from pyllamacpu import topology
from pyllamacpu.bench.plot import check_library, check_path, series
from pyllamacpu.errors import OptionError

pytestmark = pytest.mark.usefixtures("cli_home")
Run = Callable[..., Result]
SMALL = ("-p", "8", "-n", "2", "-r", "2", "-t", "1", "--no-limits")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("bench") / "tiny.gguf", n_ctx=512))


def test_markdown_is_a_table_with_llama_benchs_columns(model: str, run: Run) -> None:
    result = run("bench", "-m", model, *SMALL, "-d", "0,4")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert head[:7] == ["model", "size", "params", "backend", "threads", "test", "t/s"]
    assert set(lines[1]) <= set("|-: ")
    tests = [line.split("|")[6].strip() for line in lines[2:]]
    assert tests == ["pp8", "tg2", "pp8 @ d4", "tg2 @ d4"]
    assert all(" ± " in line for line in lines[2:])
    assert result.err == ""


def test_limits_add_rate_and_share(model: str, run: Run) -> None:
    lines = run("bench", "-m", model, "-p", "8", "-n", "0", "-r", "1", "-t", "1").out.splitlines()
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    row = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert row[head.index("of limit")].endswith(" %")
    assert row[head.index("rate")].endswith(("B/s", "op/s fp32"))


def test_settings_that_vary_get_a_column(model: str, run: Run) -> None:
    plain = run("bench", "-m", model, *SMALL).out
    varied = run("bench", "-m", model, *SMALL, "-ctk", "f16,f32", "-ub", "4").out
    assert "type_k" not in plain and "n_ubatch" not in plain
    assert "type_k" in varied and "n_ubatch" in varied and "type_v" not in varied


def test_json_and_jsonl_have_the_same_rows(model: str, run: Run) -> None:
    rows = json.loads(run("bench", "-m", model, *SMALL, "-o", "json").out)
    lines = [json.loads(line) for line in run("bench", "-m", model, *SMALL, "-o", "jsonl").out.splitlines()]
    assert [list(row) for row in rows] == [list(line) for line in lines]
    assert [(row["n_prompt"], row["n_gen"]) for row in rows] == [(8, 0), (0, 2)]
    assert rows[0]["type_k"] == "f16" and len(rows[0]["samples_ts"]) == 2


def test_csv_is_read_by_a_csv_reader(model: str, run: Run) -> None:
    rows = list(csv.DictReader(io.StringIO(run("bench", "-m", model, *SMALL, "-o", "csv").out)))
    assert [row["n_prompt"] for row in rows] == ["8", "0"]
    assert float(rows[0]["avg_ts"]) > 0 and "samples_ts" not in rows[0]


def test_sql_is_run_by_sqlite(model: str, run: Run) -> None:
    script = run("bench", "-m", model, *SMALL, "-o", "sql").out
    base = sqlite3.connect(":memory:")
    base.executescript(script)
    base.executescript(script)  # the table is there already
    found = base.execute("SELECT n_prompt, n_gen, limit_share FROM llama_bench").fetchall()
    base.close()
    assert found == [(8, 0, None), (0, 2, None)] * 2


def test_output_err_and_output_file(model: str, run: Run, tmp_path: Path) -> None:
    target = tmp_path / "results.json"
    target.write_text("a diary")
    args = ("bench", "-m", model, *SMALL, "-o", "json", "-oe", "csv", "--output-file", str(target))
    result = run(*args)
    assert result.code == 1 and "is not a file of results" in result.err and target.read_text() == "a diary"
    result = run(*args, "--force")
    assert target.read_text() == result.out
    assert len(json.loads(result.out)) == 2
    assert len(list(csv.DictReader(io.StringIO(result.err)))) == 2
    assert os.listdir(tmp_path).count("results.json") == 1 and not list(tmp_path.glob(".*part"))


def test_several_models_and_repeated_options(model: str, run: Run) -> None:
    result = run(
        "bench", "-m", model, "-m", model, "-p", "4", "-p", "2-4*2", "-n", "0", *SMALL[4:], "-o", "jsonl"
    )
    assert [json.loads(line)["n_prompt"] for line in result.out.splitlines()] == [4, 2, 4] * 2


def test_models_between_commas(model: str, run: Run, tmp_path: Path) -> None:
    """As llama-bench takes them, where the whole is not the name of a file."""
    whole = tmp_path / "a,b.gguf"
    whole.write_bytes(Path(model).read_bytes())
    args = ("-p", "4", "-n", "0", *SMALL[4:], "-o", "jsonl")
    for given, models in (
        (f"{model},{whole}", None),
        (f"{model},{model}", [model] * 2),
        (str(whole), [str(whole)]),
    ):
        result = run("bench", "-m", given, *args)
        assert (result.code == 0) is (models is not None)
        assert (
            models is None
            or [json.loads(line)["model_filename"] for line in result.out.splitlines()] == models
        )
    result = run("bench", "-m", f"{model},", *args)
    assert result.code == 1 and "the model's name is empty" in result.err
    assert run("bench", "-m", f"{model},{model}", "--batched", "--no-limits").code == 2


@pytest.mark.parametrize("kind", ["", "--batched -npp 8 -ntg 1 -npl 1"])
def test_threads_are_those_that_run(kind: str, model: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "affinity", lambda: (0,))
    sizes = kind.split() or ["-p", "8", "-n", "0"]
    args = ("bench", "-m", model, *sizes, "-r", "1", "--no-limits", "-o", "jsonl", "-t")
    result = run(*args, "3")
    assert [json.loads(line)["n_threads"] for line in result.out.splitlines()] == [1]
    assert result.err == "note: of 3 threads 1 run, as this process may use 1 CPU\n"
    assert run(*args, "1").err == ""


@pytest.mark.parametrize("form", ["md", "csv", "json", "jsonl", "sql"])
def test_a_model_with_a_name_that_is_not_text(form: str, model: str, run: Run, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/m\xff.gguf"
    Path(os.fsdecode(odd)).write_bytes(Path(model).read_bytes())
    target = tmp_path / "results"
    args = ("-o", form, "--output-file", str(target), "--no-progress")
    result = run("bench", "-m", os.fsdecode(odd), *SMALL, *args)
    assert result.code == 0, result.err
    assert target.read_text(encoding="utf-8")


def test_results_so_far_are_whole_when_a_later_model_fails(model: str, run: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(40))
    target = tmp_path / "saved.json"
    args = ("-m", model, "-m", str(broken), *SMALL, "-o", "json", "--output-file", str(target))
    result = run("bench", *args)
    assert result.code == 1 and "broken.gguf" in result.err
    assert len(json.loads(result.out)) == 2
    assert target.read_text() == result.out


def test_profile_lists_ops_behind_the_table(model: str, run: Run) -> None:
    result = run("bench", "-m", model, *SMALL, "--profile")
    assert "matmul ffn_gate+ffn_up" in result.out and "GB/s" in result.out
    apart = run("bench", "-m", model, *SMALL, "--profile", "-o", "json")
    assert json.loads(apart.out) and "attention" in apart.err


def test_batched_has_llama_batched_benchs_columns(model: str, run: Run) -> None:
    args = ("-m", model, "--batched", "-npp", "8", "-ntg", "2", "-npl", "1,3", "-t", "1", "--no-limits")
    lines = run("bench", *args).out.splitlines()
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    names = ["PP", "TG", "B", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s", "T s", "S t/s"]
    assert head == names
    assert [line.split("|")[3].strip() for line in lines[2:]] == ["1", "3"]
    rows = [json.loads(line) for line in run("bench", *args, "-o", "jsonl").out.splitlines()]
    assert [row["n_kv"] for row in rows] == [10, 30]
    exact = run("bench", *args, "--precision", "exact", "-ctk", "q8_0").out.splitlines()
    head = [cell.strip() for cell in exact[0].strip("|").split("|")]
    assert head == [*names, "type_k", "type_v", "precision"]
    assert [cell.strip() for cell in exact[3].strip("|").split("|")][-3:] == ["q8_0", "f32", "exact"]


def test_progress_can_be_asked_for(model: str, run: Run) -> None:
    result = run("bench", "-m", model, *SMALL, "--progress")
    assert "6/6 tg2 (tiny.gguf)" in result.err


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo terminals")
def test_a_bar_on_the_terminal_leaves_stdout_alone(model: str) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pyllamacpu", "bench", "-m", model, *SMALL, "-o", "json"]
    environment = {**os.environ, "PYTHONPATH": python_path(ROOT), "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while piece := os.read(ours, 4096):
                shown += piece
        assert process.stdout is not None
        rows = json.loads(process.stdout.read())
    os.close(ours)
    assert process.returncode == 0 and len(rows) == 2
    assert b"tg2 (tiny.gguf)" in shown and b"n_prompt" not in shown


@pytest.mark.parametrize(
    "args, says",
    [
        (["-p", "x"], "-p x"),
        (["-p", "0", "-n", "0"], "nothing to measure"),
        (["-t", "0"], "-t: 0"),
        (["-ctk", "q9"], "q8_0"),
        (["-pg", "5"], "-pg 5"),
        (["-npl", "2"], "--batched"),
        (["--batched", "-p", "5"], "-npp"),
        (["--batched", "-t", "1,2"], "n_threads"),
        (["--batched", "-npl", "1000"], "-npl 1000"),
        (["--plot", "picture.txt"], ".png"),
        (["--plot", "no/such/folder.png"], "no folder"),
        (["--output-file", "no/such/folder/file"], "no folder"),
        (["-o", "xml"], "xml"),
        (["-r", "0"], "-r"),
        (["-t", "1,99999"], "from 1 to 512 is allowed"),
        (["--batched", "-t", "513"], "from 1 to 512 is allowed"),
        *((["--image", option, "8,8"], f"--image takes no {option}") for option in ("-p", "-n", "-d", "-pg")),
    ],
)
def test_wrong_usage_is_one_line_and_2(model: str, args: list[str], says: str, run: Run) -> None:
    result = run("bench", "-m", model, *args)
    assert result.code == 2 and result.out == "", result.out
    assert result.err.count("\n") == 1 and says in result.err


# The picture


ROW = {"model_type": "m", "type_k": "f16", "type_v": "f16", "n_threads": 1, "n_ubatch": 512, "n_batch": 2048}


def bench_row(n_prompt: int, n_gen: int, depth: int, speed: float, **more: Any) -> dict[str, Any]:
    test = {"n_prompt": n_prompt, "n_gen": n_gen, "n_depth": depth, "median_ts": speed, "stddev_ts": 1.0}
    return ROW | test | more


def test_depth_is_the_axis_when_it_varies() -> None:
    rows = [bench_row(8, 0, 4096, 5.0), bench_row(8, 0, 0, 9.0), bench_row(0, 2, 0, 3.0)]
    title, lines = series(rows)
    assert "before the test" in title
    assert lines == {"pp8": [(0, 9.0, 1.0), (4096, 5.0, 1.0)], "tg2": [(0, 3.0, 1.0)]}


def test_lines_are_named_by_what_differs() -> None:
    rows = [bench_row(8, 0, d, 5.0, type_k=kind) for d in (0, 9) for kind in ("f16", "q8_0")]
    assert set(series(rows)[1]) == {"pp8 f16", "pp8 q8_0"}
    title, lines = series([bench_row(n, 0, 0, 5.0) for n in (8, 16)])
    assert title == "tokens of the test" and [x for x, _, _ in lines["pp"]] == [8, 16]


def test_batched_rows_give_two_lines() -> None:
    row = {"pp": 8, "tg": 2, "speed_pp": 50.0, "speed_tg": 10.0, "n_threads": 1}
    title, lines = series([row | {"pl": n} for n in (1, 2)])
    assert title == "sequences at once"
    assert lines == {"pp8": [(1, 50.0, 0.0), (2, 50.0, 0.0)], "tg2": [(1, 10.0, 0.0), (2, 10.0, 0.0)]}


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OptionError, match=r"pip install 'pyllamacpu\[plot\]'"):
        check_library()
    monkeypatch.setitem(sys.modules, "matplotlib", types.ModuleType("matplotlib"))
    check_library()


def test_plot_writes_a_picture(model: str, run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "depth.png"
    assert run("bench", "-m", model, *SMALL, "-d", "0,8", "--plot", str(target)).code == 0
    assert target.read_bytes().startswith(b"\x89PNG") and list(tmp_path.glob(".*")) == []


def test_a_plots_path_is_checked_first(tmp_path: Path) -> None:
    check_path(tmp_path / "x.svg")
    with pytest.raises(OptionError, match="must end"):
        check_path(tmp_path / "x.jpeg2")
