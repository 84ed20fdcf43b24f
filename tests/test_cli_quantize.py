"""`pyllamacpu quantize`, against files that llama-quantize wrote (tools/make_quantize_fixtures.py).

Covers cli/quantize.py, cli/quantize_output.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_letters import Result, cli_home, run  # noqa: F401
from conftest import FIXTURES
from quantize_model import arrays, write_matrix, write_model

from pyllamacpu.gguf import GGUFFile, TensorType
from pyllamacpu.quantize.imatrix import read_imatrix, write_imatrix

T = TensorType
QUANTIZED: dict[str, dict[str, str]] = json.loads((FIXTURES / "quantized.json").read_text())
del QUANTIZED["made_by"]
Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model, the same in three parts, and an importance matrix."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "model.gguf")
    write_model(tmp_path / "parts.gguf", n_parts=3)
    write_matrix(tmp_path / "matrix.gguf")
    return tmp_path


def kinds(path: Path) -> dict[str, TensorType]:
    with GGUFFile.open(path) as file:
        return {name: info.type for name, info in file.tensors.items()}


@pytest.mark.parametrize("case", QUANTIZED)
def test_files_are_those_of_llama_quantize(case: str, folder: Path, run: Run) -> None:
    before = {*folder.iterdir()}
    result = run("quantize", *case.split())
    assert (result.code, result.out.count("type = ")) == (0, result.out.count("\n[") + 1)
    new = sorted({*folder.iterdir()} - before)
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in new} == QUANTIZED[case]


def test_output_is_a_line_per_tensor_and_the_sizes(folder: Path, run: Run) -> None:
    result = run("quantize", "model.gguf", "out.gguf", "Q8_0", "1")
    lines = result.out.splitlines()
    assert lines[0].startswith("[   1/  39] output.weight ") and lines[0].endswith("(q8_0)")
    assert "type =    f32, size =     0.005 MiB" in lines[0]
    assert lines[-3].startswith("model size = ") and lines[-3].endswith("(32.00 BPW)")
    assert lines[-2].startswith("quant size = ") and " BPW)" in lines[-2]
    assert lines[-1].startswith("written to out.gguf in ") and result.err == ""


def test_dry_run_writes_nothing(folder: Path, run: Run) -> None:
    before = {*folder.iterdir()}
    result = run("quantize", "--dry-run", "model.gguf", "Q4_0")
    assert result.code == 0 and {*folder.iterdir()} == before
    assert result.out.count("(q4_0)") == 4 * 7 + 1 and "(q8_0)" in result.out
    assert result.out.splitlines()[-1].startswith("quant size")


def test_fallbacks_are_said(folder: Path, run: Run) -> None:
    result = run("quantize", "--dry-run", "model.gguf", "Q4_K_M")
    rows = "rows of 32 are not a multiple of 256, which Q4_K takes"
    assert f"note: blk.*.attn_q.weight (4 tensors): {rows}; falling back to Q5_0\n" in result.err
    assert "warning: 29 of 39 tensors fell back to another type\n" in result.err


def test_what_needs_importance(folder: Path, run: Run) -> None:
    wide = arrays(256, 256, 1)
    write_model(folder / "wide.gguf", wide, llama__block_count=1)
    dry = run("quantize", "--dry-run", "wide.gguf", "IQ2_XS")
    assert dry.code == 0 and "6 tensors need an importance matrix" in dry.err
    refused = run("quantize", "wide.gguf", "IQ2_XS")
    assert refused.code == 1 and "needs an importance matrix" in refused.err and "--imatrix" in refused.err
    assert not (folder / "ggml-model-IQ2_XS.gguf").exists()
    write_matrix(folder / "wide-matrix.gguf", 256, 256, 1)
    partly = run(
        "quantize", "--imatrix", "wide-matrix.gguf", "--exclude-weights", "up", "wide.gguf", "IQ2_XS"
    )
    assert partly.code == 1 and "blk.0.ffn_up.weight" in partly.err and "nothing about it" in partly.err


def test_importance_of_another_model_is_refused(folder: Path, run: Run) -> None:
    write_matrix(folder / "wide.gguf", 256, 256, 1)
    result = run("quantize", "--imatrix", "wide.gguf", "model.gguf", "Q8_0")
    assert result.code == 1 and "made for another model" in result.err and "wide.gguf" in result.err
    assert not list(folder.glob("ggml-*"))


def test_types_by_name_from_files(folder: Path, run: Run) -> None:
    (folder / "types.txt").write_text("ffn_(up|gate)=f16\n  attn_v=bf16 output.weight=q8_0\n")
    assert run("quantize", "--tensor-type-file", "types.txt", "model.gguf", "o.gguf", "Q8_0").code == 0
    found = kinds(folder / "o.gguf")
    assert (found["blk.1.ffn_up.weight"], found["blk.3.attn_v.weight"]) == (T.F16, T.BF16)
    assert found["blk.1.ffn_down.weight"] == T.Q8_0


@pytest.mark.parametrize(
    ("content", "says"), [(b"ffn_up=f16 \xff", "types.txt is not UTF-8"), (None, "types.txt: no such file")]
)
def test_files_of_types_that_cannot_be_read(content: bytes | None, says: str, folder: Path, run: Run) -> None:
    if content is not None:
        (folder / "types.txt").write_bytes(content)
    result = run("quantize", "--tensor-type-file", "types.txt", "model.gguf", "o.gguf", "Q8_0")
    assert result.code == 2 and says in result.err and not (folder / "o.gguf").exists()


def test_quantized_tensors_are_taken_only_when_told(folder: Path, run: Run) -> None:
    assert run("quantize", "model.gguf", "q.gguf", "Q8_0").code == 0
    refused = run("quantize", "q.gguf", "again.gguf", "F16")
    assert refused.code == 1 and "--allow-requantize" in refused.err and not Path("again.gguf").exists()
    assert run("quantize", "q.gguf", "same.gguf", "Q8_0").code == 0  # nothing changes
    assert run("quantize", "--allow-requantize", "q.gguf", "again.gguf", "F16").code == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "IN.gguf"),
        (["model.gguf"], "TYPE"),
        (["model.gguf", "Q9_K"], "'Q9_K' is not a type, and none follows it"),
        (["model.gguf", "out.gguf", "Q9_K"], "unknown type 'Q9_K'; known types: Q4_0"),
        (["model.gguf", "Q8_0", "many"], "'many' is not a number of threads"),
        (["model.gguf", "Q8_0", "1", "2"], "'1 2' is not a number of threads"),
        (["--tensor-type", "attn", "model.gguf", "Q8_0"], "REGEX=TYPE"),
        (["--tensor-type", "(=q8_0", "model.gguf", "Q8_0"], "is not a regular expression"),
        (["--tensor-type", "attn=q9", "model.gguf", "Q8_0"], "unknown tensor type 'q9'"),
        (["--output-tensor-type", "q9", "model.gguf", "Q8_0"], "unknown tensor type 'q9'"),
        (["--prune-layers", "1,x", "model.gguf", "Q8_0"], "--prune-layers"),
        (["--override-kv", "a=int:x", "model.gguf", "Q8_0"], "KEY=TYPE:VALUE"),
        (["--override-kv", "a=bool:1", "model.gguf", "Q8_0"], "KEY=TYPE:VALUE"),
        (["--override-kv", "a", "model.gguf", "Q8_0"], "KEY=TYPE:VALUE"),
        (["--override-kv", "general.alignment=int:64", "model.gguf", "Q8_0"], "cannot be set"),
        (["--override-kv", "split.count=int:2", "model.gguf", "Q8_0"], "cannot be set"),
        (["--include-weights", "a", "model.gguf", "Q8_0"], "give one"),
        (["--include-weights", "a", "--exclude-weights", "b", "model.gguf", "Q8_0"], "together"),
        (["--imatrix", "matrix.gguf", "--include-weights", "?", "model.gguf", "Q8_0"], "leave nothing"),
    ],
)
def test_wrong_usage(args: list[str], says: str, folder: Path, run: Run) -> None:
    before = {*folder.iterdir()}
    result = run("quantize", *args)
    assert result.code == 2 and says in result.err and {*folder.iterdir()} == before


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["none.gguf", "Q8_0"], "none.gguf: no such file"),
        (["model.gguf", "model.gguf", "Q8_0"], "is an input too"),
        (["model.gguf", "link.gguf", "Q8_0"], "is an input too"),
        (["--keep-split", "parts-00002-of-00003.gguf", "parts.gguf", "Q8_0"], "is an input too"),
        (["model.gguf", "nowhere/out.gguf", "Q8_0"], "nowhere/out.gguf: cannot be written"),
        (["--prune-layers", "4", "model.gguf", "Q8_0"], "layers 0 to 3"),
        (["--prune-layers", "0,1,2,3", "model.gguf", "Q8_0"], "one must stay"),
        (["matrix.gguf", "Q8_0"], "is an importance matrix, not a model"),
        (["folder", "Q8_0"], "is a folder, not a GGUF file; a checkpoint becomes"),
        (["--imatrix", "model.gguf", "model.gguf", "Q8_0"], "not an importance matrix"),
        (["--tensor-type", "attn=i8", "model.gguf", "Q8_0"], "cannot be written as I8"),
    ],
)
def test_errors(args: list[str], says: str, folder: Path, run: Run) -> None:
    (folder / "link.gguf").symlink_to(folder / "model.gguf")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    (folder / "folder").mkdir()
    result = run("quantize", *args)
    (folder / "folder").rmdir()
    assert result.code == 1 and says in result.err and result.err.count("error:") == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_weights_that_are_no_numbers(folder: Path, run: Run) -> None:
    tensors = arrays()
    tensors["blk.2.ffn_down.weight"][7, 3] = np.inf
    write_model(folder / "bad.gguf", tensors)
    for kind in ("Q8_0", "COPY"):
        result = run("quantize", "bad.gguf", "out.gguf", kind)
        assert result.code == 1 and result.err.count("error:") == 1
        assert "blk.2.ffn_down.weight: row 7, column 3 holds inf" in result.err
        assert not [path for path in folder.iterdir() if "out" in path.name]


def test_an_option_without_effect_says_so(folder: Path, run: Run) -> None:
    result = run("quantize", "--max-buffer-size", "100", "model.gguf", "Q8_0")
    assert result.code == 0 and "--max-buffer-size has no effect" in result.err


def test_types_by_name_that_have_no_effect_are_warned_of(folder: Path, run: Run) -> None:
    args = ("--tensor-type", "ffn_dwn=q6_k", "--tensor-type", "ffn_=q4_0", "--tensor-type", "ffn_down=q8_0")
    said = run("quantize", *args, "--tensor-type", "norm=q8_0", "--dry-run", "model.gguf", "Q4_0").err
    assert "warning: --tensor-type ffn_dwn=q6_k has no effect: it matches no tensor that is quantized" in said
    assert "warning: --tensor-type ffn_down=q8_0 has no effect: patterns before it match first" in said
    assert "norm=q8_0 has no effect" in said and "ffn_=q4_0 has no effect" not in said
    said = run("quantize", *args[2:4], "--dry-run", "model.gguf", "F16").err
    assert "ffn_=q4_0 has no effect" in said


def test_importance_that_misses_layers_is_warned_of(folder: Path, run: Run) -> None:
    whole = read_imatrix(folder / "matrix.gguf")
    write_imatrix(folder / "partial.gguf", whole.select(lambda name: ".2." not in name and ".3." not in name))
    said = run("quantize", "--imatrix", "partial.gguf", "--dry-run", "model.gguf", "Q4_0").err
    assert "the importance matrix has nothing about 14 tensors of layers 2, 3, such as blk.2." in said
    for quiet in (("--imatrix", "matrix.gguf"), ("--imatrix", "matrix.gguf", "--exclude-weights", "ffn")):
        assert "has nothing about" not in run("quantize", *quiet, "--dry-run", "model.gguf", "Q4_0").err


def test_a_part_becomes_one_file_under_its_name(folder: Path, run: Run) -> None:
    (folder / "other").mkdir()
    name = "parts-00001-of-00003.gguf"
    result = run("quantize", name, f"other/{name}", "Q8_0")
    assert result.code == 0 and f"note: {name} is named as part 1 of 3" in result.err
    assert len(kinds(folder / "other" / name)) == len(kinds(folder / name)) == 39
    converted = run("convert", name, "-o", f"other/new-{name}")
    assert converted.code == 0 and f"note: new-{name} is named as part 1 of 3" in converted.err
    assert len(kinds(folder / "other" / f"new-{name}")) == 39
