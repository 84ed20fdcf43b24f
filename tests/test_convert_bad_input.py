"""What can be wrong with a checkpoint: one clear error, before or while writing, and never half a file.

Covers convert/unused_options.py.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_build import bf16_bits, write_index, write_safetensors
from convert_models import BY_NAME, DIM, FFN, VOCAB, Arrays, weights, write_checkpoint

from pyllamacpu import Llama
from pyllamacpu.convert.conversion import Conversion, ConvertOptions
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.convert.target_path import target_path
from pyllamacpu.convert.types import tensor_types
from pyllamacpu.errors import CheckpointError, OptionError, PyllamacpuError
from pyllamacpu.gguf import GGUFFile
from pyllamacpu.quantize.file_types import parse_file_type
from pyllamacpu.weights import stream
from pyllamacpu.weights.lazy_tensor import from_array

GQA = BY_NAME["gqa"]


def plan(source: Path, outtype: str = "f32", **options: Any) -> Conversion:
    target = source.parent / f"out-{outtype}.gguf"
    return plan_conversion(source, ConvertOptions(outfile=str(target), outtype=outtype, **options))


def nothing_was_written(folder: Path) -> bool:
    return not [path for path in folder.iterdir() if ".gguf" in path.name]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", GQA)


def change_config(source: Path, **values: Any) -> None:
    (source / "config.json").write_text(json.dumps(GQA.full_config() | values))


def change_tensors(source: Path, change: Callable[[Arrays], object], kind: str | None = None) -> None:
    tensors = dict(weights(GQA))
    change(tensors)
    kinds = dict.fromkeys(tensors, kind) if kind else {}
    write_safetensors(source / "model.safetensors", tensors, kinds)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"attention_multiplier": 0.5}, "attention_multiplier = 0.5"),
        ({"qk_norm": True, "logit_softcap": 30.0}, "qk_norm = true, logit_softcap = 30.0"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"architectures": None, "model_type": "gpt2"}, "gpt2"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "strange": 3}}, "rope_scaling.strange = 3"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}}, "truncate"),
        ({"rope_scaling": 4}, "rope_scaling"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        (
            {"intermediate_size": FFN + 32},
            rf"mlp.* has shape \({FFN}, {DIM}\), the config says \({FFN + 32}, {DIM}\)",
        ),
        ({"vocab_size": VOCAB - 1}, "embed_tokens.*config says"),
        ({"num_hidden_layers": 3}, "layers.2.*missing"),
        ({"num_hidden_layers": 1}, "not understood: layers.1"),
        ({"tie_word_embeddings": False, "attention_bias": True}, r"bias is missing"),
    ],
)
def test_configs(source: Path, values: dict[str, Any], says: str) -> None:
    change_config(source, **values)
    with pytest.raises(CheckpointError, match=says):
        plan(source)


def test_a_key_can_be_said_to_change_nothing(source: Path) -> None:
    change_config(source, my_note="hello", off=None, empty={}, no=False)
    with pytest.raises(CheckpointError, match="--ignore-config KEY"):
        plan(source)
    assert plan(source, ignored_config=frozenset(["my_note"])).output.tensors


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"layers\.1\.mlp\.up_proj\.weight is missing"),
        (
            lambda t: t.update({"model.layers.0.extra.weight": np.ones(3)}),
            r"not understood: layers\.0\.extra",
        ),
        (lambda t: t.update({"norm.weight": t["model.norm.weight"]}), "two tensors are called norm.weight"),
        (lambda t: t.update({"lm_head.weight": t["lm_head.weight"].T.copy()}), "lm_head.*shape"),
        (lambda t: t.update({"lm_head.weight": np.ones((VOCAB, DIM), np.int8)}), "lm_head.*I8"),
    ],
)
def test_tensors(source: Path, change: Callable[[Arrays], object], says: str) -> None:
    change_tensors(source, change)
    with pytest.raises(CheckpointError, match=says):
        plan(source)


@pytest.mark.parametrize(
    ("kind", "outtype"), [("BF16", "bf16"), ("F16", "f16"), ("BF16", "f16"), ("BF16", "q8_0")]
)
def test_16_bit_weights_that_are_no_numbers(
    source: Path, kind: str, outtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SLAB", 640)  # ten rows

    def spoil(tensors: Arrays) -> None:
        tensors["lm_head.weight"][123, 63] = np.inf
        for name, array in tensors.items():
            tensors[name] = array.astype(np.float16).view(np.uint16) if kind == "F16" else bf16_bits(array)

    change_tensors(source, spoil, kind)
    with pytest.raises(CheckpointError, match=r"lm_head.*row 123, column 63 holds inf"):
        plan(source, outtype).run()
    assert nothing_was_written(source.parent)


def test_a_missing_shard(source: Path) -> None:
    change_tensors(source, lambda t: t.pop("lm_head.weight"))
    (source / "model.safetensors").rename(source / "model-00001-of-00002.safetensors")
    names = dict.fromkeys(weights(GQA), "model-00001-of-00002.safetensors")
    names["lm_head.weight"] = "model-00002-of-00002.safetensors"
    write_index(source / "model.safetensors.index.json", names)
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        plan(source)


def test_types_that_need_importance_are_refused(source: Path) -> None:
    tensors = {"blk.0.ffn_up.weight": from_array(np.ones((256, 256), np.float32), "a test")}
    described = {"general.architecture": "llama", "llama.block_count": 1}
    with pytest.raises(OptionError, match="importance matrix"):
        tensor_types(tensors, parse_file_type("iq2_xxs"), described)
    assert tensor_types(tensors, parse_file_type("q4_k"), described)[0]["blk.0.ffn_up.weight"].name == "Q4_K"
    with pytest.raises(OptionError, match="known types"):
        plan(source, "q9_9")


def test_types_fall_back_and_say_so(source: Path) -> None:
    conversion = plan(source, "q4_k_m")
    assert any("cannot be Q4_K" in note for note in conversion.notes)
    conversion.run()
    with GGUFFile.open(conversion.output.paths[0]) as file:
        assert file.metadata["general.file_type"] == 15
        assert "F32" in {info.type.name for info in file.tensors.values()}


def test_no_tokenizer_serves_ids(source: Path) -> None:
    conversion = plan(source)
    assert any("token ids" in note for note in conversion.notes)
    conversion.run()
    with Llama(str(conversion.output.paths[0]), verbose=False) as llm:
        assert len(list(zip(range(3), llm.generate([1, 2, 3]), strict=False))) == 3
        with pytest.raises(PyllamacpuError):
            llm("text")


@pytest.mark.parametrize(
    ("outfile", "expected"),
    [
        ("{name}-{ftype}.gguf", "My-Model-q4_k_m.gguf"),
        ("{FTYPE}.gguf", "Q4_K_M.gguf"),
        ("plain.gguf", "plain.gguf"),
        ("", "My-Model-q4_k_m.gguf"),
    ],
)
def test_names_of_outputs(tmp_path: Path, outfile: str, expected: str) -> None:
    assert target_path(str(tmp_path / outfile), "My Model", "Q4_K_M") == tmp_path / expected


@pytest.mark.parametrize(
    "outfile", ["{what}.gguf", "{name", "{name.x}.gguf", "no/such/folder/x.gguf", "{0.real}"]
)
def test_outputs_that_cannot_be(tmp_path: Path, outfile: str) -> None:
    with pytest.raises(OptionError, match="--outfile"):
        target_path(str(tmp_path / outfile), "model", "F16")


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        plan(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        plan(tmp_path / "empty")


def test_a_vocabulary_needs_no_weights(source: Path) -> None:
    (source / "model.safetensors").unlink()
    ranks = b"\n".join(b"%s %d" % (base64.b64encode(bytes([i])), i) for i in range(VOCAB))
    (source / "tokenizer.model").write_bytes(ranks)
    conversion = plan(source, vocab_only=True)
    conversion.run()
    with Llama(str(conversion.output.paths[0]), vocab_only=True) as llm:
        assert llm.tokenize(b"abc", add_bos=False) == [97, 98, 99]
    with GGUFFile.open(conversion.output.paths[0]) as file:
        assert not file.tensors
        assert file.metadata["llama.block_count"] == 2
    said = "--outtype q4_0 has no effect with --vocab-only, which writes no tensors"
    assert said in plan(source, vocab_only=True, outtype="q4_0").notes
    assert said in plan(conversion.output.paths[0], vocab_only=True, outtype="q4_0").notes
    with pytest.raises(OptionError, match="q4_9"):
        plan(source, vocab_only=True, outtype="q4_9")
    (source / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        plan(source, vocab_only=True)


def test_files_that_cannot_be_read(source: Path) -> None:
    """Whichever it is, and whatever the reason."""
    (source / "vocab.json").write_text(json.dumps({"<unk>": 0, "<0x00>": 1, "a": 2}))
    (source / "merges.txt").write_text("")
    templates = source / "additional_chat_templates"
    templates.mkdir()
    (templates / "rag.jinja").mkdir()
    with pytest.raises(CheckpointError, match=r"rag\.jinja: cannot be read: Is a directory"):
        plan(source)
    (templates / "rag.jinja").rmdir()
    (templates / "rag.jinja").symlink_to("nothing")
    with pytest.raises(CheckpointError, match=r"rag\.jinja: no such file"):
        plan(source)
    with pytest.raises(CheckpointError, match="name too long"):
        plan(source / ("x" * 300))
    assert nothing_was_written(source.parent)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"base": Path(".")}, "is a whole model, for which --base has no meaning"),
        (
            {"mmproj": True, "vocab_only": True},
            "--vocab-only is about the tokenizer, and --mmproj writes none",
        ),
        ({"mmproj": True, "drop_extra_tokens": True}, "--drop-extra-tokens is about the tokenizer"),
        (
            {"ignored_config": frozenset(["hidden_siz"])},
            "--ignore-config hidden_siz: .*config.json has no such",
        ),
        ({"ignored_config": frozenset(["x"]), "vocab_only": True}, "--ignore-config x: .*has no such key"),
    ],
)
def test_options_that_would_do_nothing(source: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        plan(source, **options)


def test_ignored_keys_of_an_inner_config_are_there(source: Path) -> None:
    change_config(source, text_config={"my_note": 1})
    with pytest.raises(CheckpointError, match="text_config"):
        plan(source, ignored_config=frozenset(["my_note"]))
