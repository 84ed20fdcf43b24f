"""GGUF files as the source: types, metadata, splitting, merging, the vocabulary alone.

Covers convert/gguf_source.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_models import BY_NAME, write_checkpoint
from gguf_build import small_file
from test_convert_models import convert, worst_gap
from tiny_model import write_model

from pyllamacpu import Llama
from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.metadata_edits import MetadataEdits, parse_metadata
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.errors import GGUFError, OptionError, OutputError
from pyllamacpu.gguf import GGUFFile, GGUFWriter, TensorType, ValueType
from pyllamacpu.quantize.driver import run as run_quantize
from pyllamacpu.quantize.file_types import parse_file_type
from pyllamacpu.quantize.plan import Settings, make_plan
from pyllamacpu.units import parse_bytes
from pyllamacpu.weights.output import SplitLimits


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny.gguf")


def run(source: Path, target: Path, **options: object) -> list[Path]:
    plan = plan_conversion(source, ConvertOptions(outfile=str(target), **options))  # type: ignore[arg-type]
    plan.run()
    return plan.output.paths


def contents(path: Path) -> dict[str, bytes]:
    with GGUFFile.open(path) as file:
        return {name: file.data(name).tobytes() for name in file.tensors}


def test_copy_is_the_same(model: Path, tmp_path: Path) -> None:
    run(model, tmp_path / "copy.gguf")
    assert contents(tmp_path / "copy.gguf") == contents(model)
    with GGUFFile.open(model) as old, GGUFFile.open(tmp_path / "copy.gguf") as new:
        assert list(old.metadata) == list(new.metadata)
        for key in old.metadata:
            assert old.metadata.describe(key) == new.metadata.describe(key)
            assert np.array_equal(old.metadata[key], new.metadata[key])


def test_blocks_are_copied_bit_for_bit(tmp_path: Path) -> None:
    """Also those that encoding again would change."""
    rows = np.random.default_rng(2).integers(0, 256, (3, 5, 34), dtype=np.uint8)
    rows[..., 1] &= 0x7B  # scales that are finite
    with GGUFWriter(tmp_path / "in.gguf", "llama") as writer:
        writer.add_array("blk.0.ffn_up_exps.weight", rows, TensorType.Q8_0)
        writer.add_array("ids", np.arange(7, dtype=np.int32))
        writer.add("tokenizer.ggml.model", "none")
    run(tmp_path / "in.gguf", tmp_path / "out.gguf")
    assert contents(tmp_path / "out.gguf") == contents(tmp_path / "in.gguf")


def test_another_type(tmp_path: Path) -> None:
    f32 = convert(write_checkpoint(tmp_path / "gqa", BY_NAME["gqa"]), "f32")
    run(f32, tmp_path / "half.gguf", outtype="f16")
    assert worst_gap(tmp_path / "half.gguf", "gqa") <= 2e-3
    run(tmp_path / "half.gguf", tmp_path / "eight.gguf", outtype="q8_0")
    direct = convert(tmp_path / "gqa", "q8_0")
    assert contents(tmp_path / "eight.gguf") == contents(direct)  # the weights are float16 numbers
    run(tmp_path / "eight.gguf", tmp_path / "back.gguf", outtype="f32")
    with GGUFFile.open(tmp_path / "back.gguf") as file:
        assert {info.type.name for info in file.tensors.values()} == {"F32"}
        assert file.metadata["general.file_type"] == 0
    with pytest.raises(GGUFError, match="quantize --allow-requantize"):
        run(tmp_path / "eight.gguf", tmp_path / "x.gguf", outtype="q4_0")


@pytest.mark.parametrize("mix", ["q4_k_m", "q5_1", "iq4_xs"])
def test_in_one_step_or_two(tmp_path: Path, mix: str) -> None:
    """Straight to a mix of types is the same as the checkpoint's own type and then `quantize`."""
    source = write_checkpoint(tmp_path / "biases", BY_NAME["biases"])
    direct = convert(source, mix)
    with GGUFFile.open(convert(source, "f32")) as file:
        for _ in run_quantize(make_plan(file, Settings(parse_file_type(mix))), tmp_path / "two.gguf"):
            pass
    assert contents(direct) == contents(tmp_path / "two.gguf")
    with GGUFFile.open(direct) as one, GGUFFile.open(tmp_path / "two.gguf") as two:
        assert {name: info.type for name, info in one.tensors.items()} == {
            name: info.type for name, info in two.tensors.items()
        }
        assert one.metadata["general.file_type"] == two.metadata["general.file_type"]


def test_big_endian(tmp_path: Path) -> None:
    (tmp_path / "big.gguf").write_bytes(small_file(big=True).bytes())
    (tmp_path / "little.gguf").write_bytes(small_file().bytes())
    run(tmp_path / "big.gguf", tmp_path / "out.gguf")
    assert contents(tmp_path / "out.gguf") == contents(tmp_path / "little.gguf")
    with GGUFFile.open(tmp_path / "out.gguf") as new, GGUFFile.open(tmp_path / "little.gguf") as old:
        assert new.byteorder == "little"
        nested = [[list(part) for part in file.metadata["test.nested"]] for file in (new, old)]
        assert nested[0] == nested[1]


def test_split_and_merge(model: Path, tmp_path: Path) -> None:
    parts = run(model, tmp_path / "part.gguf", limits=SplitLimits(max_tensors=7))
    assert [path.name for path in parts] == [f"part-{i:05}-of-00003.gguf" for i in range(1, 4)]
    assert contents(parts[2]) == contents(model)  # any part opens all
    with GGUFFile.open(parts[0]) as file:
        assert file.metadata.describe("split.no") == "uint16"
        assert file.metadata.describe("split.tensors.count") == "int32"
        assert (file.metadata["split.count"], file.metadata["split.tensors.count"]) == (3, 21)
    run(parts[1], tmp_path / "merged.gguf")
    assert contents(tmp_path / "merged.gguf") == contents(model)
    with GGUFFile.open(tmp_path / "merged.gguf") as file:
        assert not [key for key in file.metadata if key.startswith("split.")]
    again = run(parts[0], tmp_path / "new-00001-of-00009.gguf", limits=SplitLimits(max_tensors=20))
    assert [path.name for path in again] == ["new-00001-of-00002.gguf", "new-00002-of-00002.gguf"]


def test_split_by_size(model: Path, tmp_path: Path) -> None:
    limit = parse_bytes("30K")
    parts = run(model, tmp_path / "part.gguf", limits=SplitLimits(max_bytes=limit))
    for path in parts:
        with GGUFFile.open(path) as file:
            own = [info.n_bytes for info in file.tensors.values() if info.part == parts.index(path)]
        assert sum(own) <= limit or len(own) == 1
    assert contents(parts[0]) == contents(model)
    with pytest.raises(OptionError, match="500M"):
        parse_bytes("many")


def test_vocabulary_alone(model: Path, tmp_path: Path) -> None:
    run(model, tmp_path / "vocab.gguf", vocab_only=True)
    with (
        Llama(str(tmp_path / "vocab.gguf"), vocab_only=True) as vocab,
        Llama(str(model), vocab_only=True) as full,
    ):
        assert vocab.tokenize(b"hello the world") == full.tokenize(b"hello the world")
    with GGUFFile.open(tmp_path / "vocab.gguf") as file:
        assert not file.tensors


def test_edited_metadata(model: Path, tmp_path: Path) -> None:
    edits = MetadataEdits(
        tuple(
            parse_metadata(text)
            for text in (
                "general.name=str:a=b:c",
                "llama.context_length=u32:512",
                "x.small=i8:-5",
                "x.auto=int:70000",
                "x.real=float:0.5",
                "x.yes=bool:true",
                'x.words=str[]:["a", "b"]',
                "x.counts=u16[]:[1, 2]",
            )
        ),
        frozenset(["tokenizer.chat_template"]),
    )
    run(model, tmp_path / "edited.gguf", metadata_edits=edits)
    assert contents(tmp_path / "edited.gguf") == contents(model)
    with GGUFFile.open(tmp_path / "edited.gguf") as file:
        metadata = file.metadata
        assert metadata["general.name"] == "a=b:c"
        assert (metadata["llama.context_length"], metadata.value_type("x.small")) == (512, ValueType.INT8)
        assert (metadata["x.auto"], metadata["x.real"], metadata["x.yes"]) == (70000, 0.5, True)
        assert (list(metadata["x.words"]), metadata["x.counts"].tolist()) == (["a", "b"], [1, 2])
        assert "tokenizer.chat_template" not in metadata
        assert list(metadata)[1] == "general.name"  # where it was


@pytest.mark.parametrize(
    "text",
    ["name", "name=5", "a=u8:256", "a=i8:-129", "a=u32:-1", "a=bool:maybe", "a=int:1.5", "a=str[]:x",
     "a=u8[]:[-1]", "a=what:1", "=int:1", "split.count=u16:2", "a=int:99999999999999999999",
     *(f"a={kind}[]:[{item}]" for kind in ("float", "f64", "int", "u8", "bool", "str")
       for item in ("null", "[1]", "{}", '[["a"]]', "[" * 100_000)),
     'a=float[]:["1"]', "a=f32[]:[true]", "a=f32:1e39", "a=f32[]:[1e39]", "a=f64[]:[1" + 400 * "0" + "]",
     "a=int[]:[-1, 18446744073709551615]", "a=int[]:[18446744073709551616]", "a=str[]:[\"\\ud800\"]",
     "a=int[]:1", "a=int[]:{}", "a\ud800=int:1"],
    ids=lambda text: ascii(text)[:30],
)  # fmt: skip
def test_edits_that_mean_nothing(text: str) -> None:
    with pytest.raises(OptionError, match="--metadata"):
        parse_metadata(text)


def test_lists_of_whole_numbers_have_a_type_that_all_fit_in(model: Path, tmp_path: Path) -> None:
    ends = {
        ValueType.INT32: [-(1 << 31), (1 << 31) - 1],
        ValueType.UINT32: [0, (1 << 32) - 1],
        ValueType.INT64: [-1, 1 << 32],
        ValueType.UINT64: [0, (1 << 64) - 1],
    }
    edits = MetadataEdits(tuple(parse_metadata(f"x.{kind.name}=int[]:{ends[kind]}") for kind in ends))
    run(model, tmp_path / "edited.gguf", metadata_edits=edits)
    with GGUFFile.open(tmp_path / "edited.gguf") as file:
        for kind, numbers in ends.items():
            array = file.metadata[f"x.{kind.name}"]
            assert array.tolist() == numbers and array.dtype.name == kind.name.lower()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mmproj": True}, "is a GGUF file, for which --mmproj has no meaning"),
        ({"drop_extra_tokens": True}, "--drop-extra-tokens has no meaning"),
        ({"ignored_config": frozenset(["a"])}, "--ignore-config has no meaning"),
        ({"base": Path(".")}, "--base has no meaning"),
    ],
)
def test_options_of_other_sources(model: Path, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        run(model, tmp_path / "x.gguf", **options)
    assert not (tmp_path / "x.gguf").exists()


def test_removing_what_is_not_there(model: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no such key"):
        run(model, tmp_path / "x.gguf", metadata_edits=MetadataEdits(removed=frozenset(["general.nothing"])))


def test_the_source_is_never_written_to(model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    with pytest.raises(OutputError, match="is an input too"):
        run(model, model, outtype="f16")
    parts = run(model, tmp_path / "part.gguf", limits=SplitLimits(max_tensors=12))
    with pytest.raises(OutputError, match="is an input too"):
        run(parts[0], tmp_path / "part.gguf", limits=SplitLimits(max_tensors=12))
    assert model.read_bytes() == before


def test_leftovers_of_a_killed_run_go_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    dead = tmp_path / ".out.gguf.0badcafe.part"
    dead.write_bytes(b"half a file")
    living = GGUFWriter(tmp_path / "out.gguf", "llama")
    living.add_array("a", np.ones(4, np.float32))
    living.finish()
    assert not dead.exists()
    with GGUFWriter(tmp_path / "out.gguf", "llama") as another:
        another.add_array("b", np.ones(4, np.float32))
    assert list(contents(tmp_path / "out.gguf")) == ["b"]
    living.close()
    assert list(contents(tmp_path / "out.gguf")) == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
