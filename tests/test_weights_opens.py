"""Files that could not be opened are not written. Covers weights/opens.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from quantize_model import write_model as write_small
from tiny_model import write_model

from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.metadata_edits import MetadataEdits, parse_metadata
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.errors import OptionError
from pyllamacpu.gguf import GGUFFile
from pyllamacpu.gguf.keys import metadata_keys
from pyllamacpu.quantize.driver import run
from pyllamacpu.quantize.file_types import parse_file_type
from pyllamacpu.quantize.plan import Settings, make_plan, parse_override
from pyllamacpu.weights.opens import why_it_would_not_open

# What is set, and what the error says. "KEY=int:N" is a spelling of both commands.
BAD = {
    "llama.attention.head_count=int:7": "head",
    "llama.block_count=int:1": "no use for",
    "llama.embedding_length=int:99": "embedding_length|shape|dimension_count",
    "llama.attention.layer_norm_rms_epsilon=float:-1": "epsilon",
    "llama.rope.scaling.type=str:spiral": "spiral",
    "llama.attention.causal=bool:false": "causal",
    "general.architecture=str:gpt9": "gpt9|architecture|block_count",
    "tokenizer.ggml.model=str:foo": "foo",
}
FINE = ["general.name=str:another", "llama.rope.freq_base=float:50000", "llama.context_length=int:32"]


@pytest.mark.parametrize("text", BAD)
def test_quantize_refuses(text: str, tmp_path: Path) -> None:
    source = write_small(tmp_path / "in.gguf")
    with GGUFFile.open(source) as file, pytest.raises(OptionError, match=BAD[text]) as error:
        make_plan(file, Settings(parse_file_type("Q8_0"), overrides=(parse_override(text),)))
    assert "pyllamacpu-" not in str(error.value)  # where it was tried


@pytest.mark.parametrize("text", BAD)
def test_convert_refuses(text: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "in.gguf")
    edits = MetadataEdits((parse_metadata(text),))
    with pytest.raises(OptionError, match=BAD[text]):
        plan_conversion(source, ConvertOptions(outfile=str(tmp_path / "o.gguf"), metadata_edits=edits))
    assert not (tmp_path / "o.gguf").exists()


def test_convert_refuses_to_remove_what_is_needed(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in.gguf")
    edits = MetadataEdits(removed=frozenset({"llama.block_count"}))
    with pytest.raises(OptionError, match="block_count is missing"):
        plan_conversion(source, ConvertOptions(outfile=str(tmp_path / "o.gguf"), metadata_edits=edits))


@pytest.mark.parametrize("text", FINE)
def test_what_opens_is_written(text: str, tmp_path: Path) -> None:
    source = write_small(tmp_path / "in.gguf")
    with GGUFFile.open(source) as file:
        settings = Settings(parse_file_type("Q8_0"), overrides=(parse_override(text),))
        list(run(make_plan(file, settings), tmp_path / "q.gguf"))
    edits = MetadataEdits((parse_metadata(text),))
    plan_conversion(source, ConvertOptions(outfile=str(tmp_path / "c.gguf"), metadata_edits=edits)).run()
    for name in ("q.gguf", "c.gguf"):
        with GGUFFile.open(tmp_path / name) as out:
            declared = [(info.name, info.shape, info.type) for info in out.tensors.values()]
            assert not why_it_would_not_open(list(metadata_keys(out.metadata)), declared)


def test_files_that_cannot_be_run_anyway_may_be_edited(tmp_path: Path) -> None:
    """Of which nothing here knows what would be wrong: models of other programs, towers."""
    source = write_small(tmp_path / "in.gguf", llama__attention__causal=False)
    with GGUFFile.open(source) as file:
        settings = Settings(parse_file_type("Q8_0"), overrides=(parse_override("general.name=str:x"),))
        list(run(make_plan(file, settings), tmp_path / "out.gguf"))
    assert (tmp_path / "out.gguf").exists()
