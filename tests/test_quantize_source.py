"""What `quantize` refuses before the work: other files than models, values that a type cannot hold.

Covers quantize/source.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from convert_models import BY_NAME, write_checkpoint
from test_convert_lora import adapter_tensors, write_adapter
from test_convert_models import convert
from tiny_model import write_model

from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.errors import CheckpointError, ModelError, OptionError
from pyllamacpu.gguf import GGUFFile, GGUFWriter
from pyllamacpu.quantize.driver import run
from pyllamacpu.quantize.file_types import parse_file_type
from pyllamacpu.quantize.plan import Settings, make_plan
from pyllamacpu.quantize.recipes import TypeOptions
from pyllamacpu.quantize.source import check_kind, check_measurable, check_path


def test_a_folder_says_what_to_do_with_it(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"is a folder.*pyllamacpu convert"):
        check_path(tmp_path)
    write_model(tmp_path / "tiny.gguf")
    with pytest.raises(OptionError, match=r"is a folder.*tiny\.gguf"):
        check_path(tmp_path)
    check_path(tmp_path / "tiny.gguf")
    (tmp_path / "model.safetensors").write_bytes(b"\x02" + bytes(9))
    with pytest.raises(OptionError, match=r"checkpoint's file.*pyllamacpu convert"):
        check_path(tmp_path / "model.safetensors")


def test_an_adapter_says_that_it_is_one(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", BY_NAME["biases"])
    path = convert(write_adapter(tmp_path / "lora", adapter_tensors()), "f32", base=base)
    with GGUFFile.open(path) as file, pytest.raises(ModelError, match="is a LoRA adapter, not a model"):
        check_kind(file)


def test_other_kinds_of_gguf_files(tmp_path: Path) -> None:
    for kind in ("imatrix", "mmproj"):
        with GGUFWriter(tmp_path / f"{kind}.gguf", "llama") as writer:
            writer.add("general.type", kind)
            writer.add_array("a", np.ones(32, np.float32))
    with (
        GGUFFile.open(tmp_path / "imatrix.gguf") as file,
        pytest.raises(ModelError, match="importance matrix"),
    ):
        check_kind(file)
    with GGUFFile.open(tmp_path / "mmproj.gguf") as file:  # a vision tower
        check_kind(file)


def test_a_model_that_cannot_be_measured(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.gguf")
    with GGUFFile.open(path) as file:
        check_measurable(file, False)
    small = tmp_path / "small.gguf"
    with GGUFFile.open(path) as file:
        for _ in run(make_plan(file, Settings(parse_file_type("Q8_0"))), small):
            pass
    with GGUFFile.open(small) as file:
        with pytest.raises(OptionError, match="is Q8_0 already"):
            check_measurable(file, False)
        check_measurable(file, True)


@pytest.mark.parametrize(
    ("kind", "value", "fits"),
    [
        ("F16", 1e5, False),
        ("F16", 65504.0, True),
        ("Q8_0", 1e8, False),
        ("Q8_0", 1e6, True),
        ("Q4_0", 1e6, False),
        ("Q4_K", 1e8, False),
        ("Q4_K", 1e6, True),
        ("Q6_K", 1e12, False),
        ("BF16", 1e8, True),
    ],
)
@pytest.mark.parametrize("how", ["quantize", "convert"])
def test_values_that_a_type_cannot_hold(
    tmp_path: Path, kind: str, value: float, fits: bool, how: str
) -> None:
    rows = np.random.default_rng(1).standard_normal((4, 256)).astype(np.float32)
    rows[2, 77] = -value
    with GGUFWriter(tmp_path / "in.gguf", "llama") as writer:
        writer.add("llama.block_count", 1)
        writer.add_array("blk.0.ffn_up.weight", rows)
    settings = Settings(parse_file_type(kind), TypeOptions(pure=True))

    def write() -> None:
        if how == "convert":
            options = ConvertOptions(outfile=str(tmp_path / "out.gguf"), outtype=kind.lower())
            plan_conversion(tmp_path / "in.gguf", options).run()
            return
        with GGUFFile.open(tmp_path / "in.gguf") as file:
            for _ in run(make_plan(file, settings), tmp_path / "out.gguf"):
                pass

    if fits:
        write()
        return
    with pytest.raises(CheckpointError, match=rf"row 2, column 77 holds -.*{kind}.*choose BF16"):
        write()
    assert not (tmp_path / "out.gguf").exists()


def test_the_name_of_a_converted_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with GGUFWriter(tmp_path / "in.gguf", "llama") as writer:
        writer.add("general.name", "My Model")
        writer.add("llama.block_count", 1)
        writer.add_array("blk.0.ffn_up.weight", np.ones((4, 32), np.float32))
    monkeypatch.chdir(tmp_path)
    plan = plan_conversion(tmp_path / "in.gguf", ConvertOptions(outtype="f16"))
    assert [path.name for path in plan.output.paths] == ["My-Model-f16.gguf"]
