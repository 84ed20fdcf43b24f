"""The commands perplexity and imatrix: options, what they print, and their files.

Covers cli/perplexity.py, cli/imatrix.py, cli/evaluation.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_letters import Result, cli_home, run  # noqa: F401
from tiny_model import write_model

from pyllamacpu import topology
from pyllamacpu.quantize.imatrix import read_imatrix

pytestmark = pytest.mark.usefixtures("cli_home")

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, a text and tasks."""
    folder = tmp_path_factory.mktemp("commands")
    write_model(folder / "a.gguf", seed=0)
    write_model(folder / "b.gguf", seed=1)
    write_model(folder / "mute.gguf", text=False)
    words = np.random.default_rng(0).choice(["the", "hello", "world", "a", "he", "h\n", "日"], 500)
    (folder / "text.txt").write_text(" ".join(words) + "\n")
    (folder / "swag.txt").write_text("the hello\n2\nworld\na the\nhello a\nthe the\n" * 5)
    (folder / "wino.csv").write_text("0,the _ is hello to the world.,hello,world,2\nindex,no\n" * 3)
    return folder


def text(folder: Path, model: str = "a") -> list[str]:
    return ["-m", str(folder / f"{model}.gguf"), "-f", str(folder / "text.txt"), "-c", "64", "-t", "2"]


def test_text_and_json_agree(folder: Path, run: Run) -> None:
    told = run("perplexity", *text(folder), "--chunks", "3")
    assert told.code == 0
    running = re.findall(r"\[(\d)\](\d+\.\d{4}),", told.out)
    assert [n for n, _ in running] == ["1", "2", "3"]
    final = re.search(r"Final estimate: PPL = (\d+\.\d{4}) \+/- (\d+\.\d{5})\n", told.out)
    assert final is not None and final[1] == running[-1][1]
    row = json.loads(run("perplexity", *text(folder), "--chunks", "3", "-o", "json").out)
    assert f"{row['ppl']:.4f}" == final[1] and f"{row['ppl_error']:.5f}" == final[2]
    assert row["model"] == str(folder / "a.gguf")
    assert (row["n_chunks"], row["n_ctx"], row["n_tokens"]) == (3, 64, 192)
    assert row["tokens_per_second"] > 0
    assert row["ppl"] == pytest.approx(np.exp(row["nll"]))


def test_a_newline_at_the_end_of_the_text_does_not_count(folder: Path, run: Run, tmp_path: Path) -> None:
    content = (folder / "text.txt").read_text().removesuffix("\n")
    sizes = {}
    for end in ("", "\n", "\n\n"):
        (tmp_path / "text.txt").write_text(content + end)
        result = run("perplexity", *text(folder)[:2], "-f", str(tmp_path / "text.txt"), "-c", "250")
        sizes[end] = re.findall(r"PPL = \S+", result.out)
    assert sizes[""] == sizes["\n"]


def test_strides(folder: Path, run: Run) -> None:
    row = json.loads(
        run("perplexity", *text(folder), "--ppl-stride", "32", "--chunks", "2", "-o", "json").out
    )
    assert (row["n_ctx"], row["n_scored"], row["stride"]) == (256, 64, 32)


def test_divergence_from_a_base_model(folder: Path, run: Run) -> None:
    compare = ["--kl-divergence", "--base-model", str(folder / "b.gguf")]
    row = json.loads(run("perplexity", *text(folder), *compare, "-o", "json").out)
    assert row["base_model"] == str(folder / "b.gguf") and row["kld"] > 0.1
    told = run("perplexity", *text(folder), *compare)
    assert f"Mean    KLD: {row['kld']:10.6f} ±" in told.out
    assert f"Same top p: {100 * row['same_top']:6.3f} ±" in told.out
    alone = json.loads(run("perplexity", *text(folder), "-o", "json").out)
    assert row["ppl"] == alone["ppl"]


def test_json_has_null_where_a_number_is_none(folder: Path, run: Run) -> None:
    """A window of 4 tokens has one that is scored: no errors, no correlation."""
    options = ["--kl-divergence", "--base-model", str(folder / "b.gguf"), "--chunks", "1", "-o", "json"]
    result = run("perplexity", *text(folder)[:4], "-c", "4", *options)
    row = json.loads(result.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert row["ppl_correlation"] is None and row["n_scored"] == 1 and row["kld_error"] == 0


def test_divergence_from_a_file(folder: Path, run: Run, tmp_path: Path) -> None:
    base = tmp_path / "base.bin"
    saved = run("perplexity", *text(folder, "b"), "--kl-divergence-base", str(base))
    assert saved.code == 0 and "Final estimate" in saved.out
    model = ["-m", str(folder / "a.gguf"), "--kl-divergence", "--kl-divergence-base", str(base)]
    row = json.loads(run("perplexity", *model, "-o", "json").out)
    compare = ["--kl-divergence", "--base-model", str(folder / "b.gguf"), "-o", "json"]
    beside = json.loads(run("perplexity", *text(folder), *compare).out)
    assert row["ppl"] == beside["ppl"] and row["kld"] == pytest.approx(beside["kld"], rel=0.01)


@pytest.mark.parametrize(
    "tasks, pattern",
    [
        (["--hellaswag", "-f", "swag.txt"], r"^5\t\d+\.\d{8}%\t\[\d+\.\d{4}%, \d+\.\d{4}%\]$"),
        (["--winogrande", "-f", "wino.csv"], r"^3\t\d+\.\d{4}\t *-\d+\.\d{6} +-\d+\.\d{6}  [12]  2$"),
    ],
)
def test_tasks(folder: Path, run: Run, tasks: list[str], pattern: str) -> None:
    arguments = ["-m", str(folder / "a.gguf"), tasks[0], "-f", str(folder / tasks[2])]
    told = run("perplexity", *arguments)
    assert told.code == 0
    assert re.search(pattern, told.out, re.MULTILINE), told.out
    assert "95 % within" in told.out
    row = json.loads(run("perplexity", *arguments, "-o", "json").out)
    assert row["n_tasks"] == (5 if "--hellaswag" in tasks else 3) and row["tasks"] == tasks[0][2:]
    assert 0 <= row["accuracy"] <= 1
    assert ("line 2 is not a Winogrande task" in told.err) == ("--winogrande" in tasks)


@pytest.mark.parametrize(
    "args, code, says",
    [
        (["--hellaswag", "--winogrande"], 2, "one at a time"),
        (["--base-model", "x.gguf"], 2, "--kl-divergence"),
        (["--kl-divergence"], 2, "one of --base-model and --kl-divergence-base"),
        (["--ppl-stride", "3", "--kl-divergence-base", "x"], 2, "perplexity alone"),
        (["-o", "xml"], 2, "xml"),
        (["--chunks", "0"], 2, "--chunks"),
        (["--chunks", "-2"], 2, "--chunks"),
        (["-c", "9" * 21], 2, "-c"),
        (["-b", "9" * 21], 2, "-b"),
        (["-t", "513"], 2, "512"),
        (["--hellaswag-tasks", "3"], 2, "is for --hellaswag; add that"),
        (["--winogrande", "--hellaswag-tasks", "400"], 2, "is for --hellaswag; add that"),
        (["--hellaswag", "--winogrande-tasks", "0"], 2, "is for --winogrande; add that"),
        (["--multiple-choice-tasks", "0"], 2, "is for --multiple-choice; add that"),
        (["--hellaswag", "--ppl-stride", "8"], 2, "--ppl-stride is for perplexity alone"),
        (["--winogrande", "--chunks", "-1"], 2, "--chunks is for windows"),
        (["-bf", "x"], 2, "-bf is for --multiple-choice"),
        (["--multiple-choice", "-bf", "x"], 2, "give one"),
        (["--force"], 2, "--force is for the file"),
        (["--kl-divergence", "--kl-divergence-base", "/dev/null"], 2, "-f goes with no"),
        (["-c", "100000"], 1, "100000"),
        (["-f", "/no/such/file"], 1, "/no/such/file: no such file"),
        (["-f", "/dev/null"], 1, "has 1 tokens and a window takes 64"),
        (["--ppl-stride", "64"], 1, "--ppl-stride 64"),
        (["--multiple-choice"], 1, "multiple-choice tasks"),
        (["--hellaswag"], 1, "6 lines"),
    ],
)
def test_wrong_usage_is_one_line(folder: Path, run: Run, args: list[str], code: int, says: str) -> None:
    result = run("perplexity", *text(folder), *args)
    assert result.code == code
    assert result.err.strip().splitlines()[-1].startswith("error: ") and says in result.err


def test_stored_windows_need_no_text(folder: Path, run: Run) -> None:
    stored = ["-m", str(folder / "a.gguf"), "--kl-divergence", "--kl-divergence-base", "/dev/null"]
    result = run("perplexity", *stored)
    assert result.code == 1 and "/dev/null: not a regular file" in result.err
    for option in (["-c", "512"], ["--chunks", "-1"], ["--force"]):  # the defaults, but given
        result = run("perplexity", *stored, *option)
        assert result.code == 2 and option[0] in result.err


@pytest.mark.parametrize("command", ["perplexity", "imatrix"])
@pytest.mark.parametrize("option", ["-c", "-b", "-ub", "--chunks", "-t"])
def test_numbers_that_nothing_can_have_are_wrong_usage(
    command: str, option: str, folder: Path, run: Run
) -> None:
    result = run(command, *text(folder)[:4], option, "9" * 21)
    assert result.code == 2 and option in result.err and result.err.count("\n") == 1


def test_threads_are_those_that_run(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "affinity", lambda: (0, 1))
    result = run("perplexity", *text(folder), "-t", "8", "--chunks", "1", "-o", "json")
    assert json.loads(result.out)["n_threads"] == 2
    assert "note: of 8 threads 2 run, as this process may use 2 CPUs\n" in result.err
    result = run("perplexity", *text(folder), "-t", "2", "--chunks", "1", "-o", "json")
    assert json.loads(result.out)["n_threads"] == 2 and "note" not in result.err


def test_without_a_text_or_a_tokenizer(folder: Path, run: Run) -> None:
    for command in ("perplexity", "imatrix"):
        result = run(command, "-m", str(folder / "a.gguf"))
        assert result.code == 1 and "give one with -f" in result.err
        result = run(command, *text(folder, "mute"))
        assert result.code == 1 and "no tokenizer" in result.err


# imatrix


def test_collecting(folder: Path, run: Run, tmp_path: Path) -> None:
    target = tmp_path / "i.gguf"
    told = run("imatrix", *text(folder), "-o", str(target), "--chunks", "3")
    assert told.code == 0 and "Final estimate: PPL" in told.out
    ppl = json.loads(run("perplexity", *text(folder), "--chunks", "3", "-o", "json").out)["ppl"]
    assert f"PPL = {ppl:.4f}" in told.out
    found = read_imatrix(target)
    assert (found.chunk_count, found.chunk_size, len(found.entries)) == (3, 64, 14)
    assert found.datasets == (str(folder / "text.txt"),)
    assert found.entries["blk.0.attn_q.weight"].counts.tolist() == [192]


def test_copies_formats_and_merging(folder: Path, run: Run, tmp_path: Path) -> None:
    dat, both = tmp_path / "i.dat", tmp_path / "both.gguf"
    options = ["--no-ppl", "--process-output", "--save-frequency", "2", "--output-format", "dat"]
    told = run("imatrix", *text(folder), "-o", str(dat), "--chunks", "5", *options)
    assert told.code == 0 and "PPL" not in told.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i.dat", "i.dat.at_2", "i.dat.at_4"]
    found = read_imatrix(dat)
    assert found.legacy and found.chunk_count == 5 and "output.weight" in found.entries
    assert read_imatrix(tmp_path / "i.dat.at_2").chunk_count == 2
    again = run("imatrix", "--in-file", str(dat), "--in-file", str(dat), "-c", "64", "-o", str(both))
    assert again.code == 0
    assert read_imatrix(both).chunk_count == 10
    twice = tmp_path / "twice.gguf"  # of files that say how long their windows are
    assert run("imatrix", "--in-file", str(both), "--in-file", str(both), "-o", str(twice)).code == 0
    assert (read_imatrix(twice).chunk_count, read_imatrix(twice).chunk_size) == (20, 64)
    more = ["imatrix", *text(folder), "--chunks", "1", "--in-file", str(both), "-o"]
    assert run(*more, str(both)).code == 1 and read_imatrix(both).chunk_count == 10
    assert run(*more, str(tmp_path / "more.gguf")).code == 0
    assert read_imatrix(tmp_path / "more.gguf").chunk_count == 11


def test_no_more_windows_can_be_left_out_than_there_are(folder: Path, run: Run, tmp_path: Path) -> None:
    result = run("imatrix", *text(folder), "--chunk", "10000", "-o", str(tmp_path / "i.gguf"))
    assert result.code == 1 and "--chunk 10000: the text has " in result.err
    assert "windows of 64 tokens" in result.err and not (tmp_path / "i.gguf").exists()


def test_the_first_windows_can_be_left_out(folder: Path, run: Run, tmp_path: Path) -> None:
    whole, rest, first = (tmp_path / f"{name}.gguf" for name in ("whole", "rest", "first"))
    run("imatrix", *text(folder), "-o", str(whole), "--chunks", "3")
    run("imatrix", *text(folder), "-o", str(first), "--chunks", "1")
    run("imatrix", *text(folder), "-o", str(rest), "--chunks", "2", "--from-chunk", "1")
    name = "blk.1.ffn_up.weight"
    sums = [read_imatrix(path).entries[name].sums for path in (whole, first, rest)]
    assert sums[0] == pytest.approx(sums[1] + sums[2], rel=1e-5)


def test_nothing_is_left_of_a_run_that_fails(folder: Path, run: Run, tmp_path: Path) -> None:
    result = run("imatrix", *text(folder), "-o", str(tmp_path / "no" / "i.gguf"))
    assert result.code == 1 and "there is no such folder" in result.err
    result = run("imatrix", *text(folder)[:4], "-c", "300", "-o", str(tmp_path / "i.gguf"))
    assert result.code == 1 and "trained with 256" in result.err
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF\3\0\0\0")
    result = run("imatrix", "--in-file", str(damaged), "-o", str(tmp_path / "i.gguf"))
    assert result.code == 1 and "damaged.gguf" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.gguf"]
