"""Layouts other than plain Hugging Face: Meta's and Mistral's parts, shards, quantized and BF16 weights.

Llama 4 is in test_convert_llama4.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from checkpoint_build import bf16_bits, write_index, write_safetensors
from convert_models import BY_NAME, DIM, FFN, HEADS, VOCAB, Arrays, weights, write_checkpoint
from test_convert_llama4 import values
from test_convert_models import convert, expected, logits, worst_gap
from torch_build import write_torch

from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.models.fields import Fields
from pyllamacpu.convert.models.meta_params import read_params
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.errors import CheckpointError
from pyllamacpu.gguf import GGUFFile
from pyllamacpu.weights.lazy_tensor import decode

META_NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
PARAMS = {"dim": DIM, "n_layers": 2, "n_heads": HEADS, "multiple_of": 32, "ffn_dim_multiplier": 0.5}


def meta_weights(name: str) -> Arrays:
    """The weights as Meta has them: its names, and q and k with neighbouring rows for rope."""
    config = BY_NAME[name].full_config()
    found = {}
    for theirs, array in weights(BY_NAME[name]).items():
        stem = theirs.removesuffix(".weight")
        for part, ours in META_NAMES.items():
            stem = stem.replace(part, ours)
        heads = HEADS if stem.endswith("wq") else config["num_key_value_heads"]
        if stem.endswith(("wq", "wk")):
            half = array.shape[0] // heads // 2
            array = array.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(array.shape)
        found[stem.removeprefix("model.") + ".weight"] = array
    return found


def write_meta(folder: Path, name: str, n_ranks: int, **params: Any) -> Path:
    folder.mkdir()
    for rank in range(n_ranks):
        part = {}
        for key, array in meta_weights(name).items():
            along = 1 if any(x in key for x in ("wo.", "w2.", "tok_embeddings")) else 0
            whole = "norm" in key
            part[key] = array if whole else np.ascontiguousarray(np.array_split(array, n_ranks, along)[rank])
        part["rope.freqs"] = np.ones(DIM // HEADS // 2, np.float32)
        write_torch(folder / f"consolidated.{rank:02}.pth", part)
    kv = BY_NAME[name].full_config()["num_key_value_heads"]
    stated = PARAMS | {"norm_eps": 1e-5, "vocab_size": VOCAB, "n_kv_heads": kv} | params
    (folder / "params.json").write_text(json.dumps({k: v for k, v in stated.items() if v is not None}))
    return folder


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_meta_layout(tmp_path: Path, n_ranks: int) -> None:
    """Llama 2's way of saying the size of the vocabulary: -1."""
    source = write_meta(tmp_path / "meta", "gqa", n_ranks, vocab_size=-1)
    assert worst_gap(convert(source, "f32"), "gqa") <= 2e-4


def test_meta_layout_of_llama_1(tmp_path: Path) -> None:
    source = write_meta(tmp_path / "meta", "mha", 1, norm_eps=1e-6, n_kv_heads=None)
    path = convert(source, "f16")
    assert worst_gap(path, "mha") <= 2e-3
    with GGUFFile.open(path) as file:
        assert file.metadata["llama.context_length"] == 2048


def test_scaled_rope_of_meta() -> None:
    params = PARAMS | {"use_scaled_rope": True, "rope_theta": 5e5}
    shape = read_params(Fields(Path("params.json"), params))
    assert (shape.rope.factor, shape.rope.original_context, shape.n_ctx) == (8.0, 8192, 131072)
    assert any("factor" in note for note in shape.notes)
    small = params | {"dim": 2048, "n_layers": 16, "n_heads": 32}
    assert read_params(Fields(Path("params.json"), small)).rope.factor == 32.0
    stated = read_params(Fields(Path("params.json"), params | {"rope_scaling_factor": 16}))
    assert (stated.rope.factor, len([n for n in stated.notes if "factor" in n])) == (16.0, 0)


def test_meta_params_that_change_the_result_are_refused(tmp_path: Path) -> None:
    source = write_meta(tmp_path / "meta", "gqa", 1, quantization_args={"group_size": 32})
    with pytest.raises(CheckpointError, match="quantization_args"):
        plan_conversion(source, ConvertOptions(outfile=str(tmp_path / "x.gguf")))
    wrong = write_meta(tmp_path / "wrong", "gqa", 1, ffn_dim_multiplier=1.3)
    with pytest.raises(CheckpointError, match=rf"w1.*\({FFN}, {DIM}\).*config says"):
        plan_conversion(wrong, ConvertOptions(outfile=str(tmp_path / "x.gguf")))


MISTRAL_PARAMS = {
    **{"dim": DIM, "n_layers": 2, "n_heads": HEADS, "head_dim": DIM // HEADS, "hidden_dim": FFN},
    **{"n_kv_heads": 2, "norm_eps": 1e-5, "vocab_size": VOCAB, "rope_theta": 10000.0, "use_biases": False},
}


@pytest.mark.parametrize("n_files", [1, 3])
@pytest.mark.parametrize("name", ["gqa", "window"])
def test_mistral_consolidated(tmp_path: Path, n_files: int, name: str) -> None:
    """Meta's names in safetensors, whole or numbered, with a window and a context in params.json."""
    folder = tmp_path / "mistral"
    folder.mkdir()
    tensors = meta_weights(name)
    names = list(tensors)
    for i in range(n_files):
        file = (
            "consolidated.safetensors"
            if n_files == 1
            else f"consolidated-{i + 1:05}-of-{n_files:05}.safetensors"
        )
        write_safetensors(folder / file, {key: tensors[key] for key in names[i::n_files]})
    window = {"sliding_window": 16} if name == "window" else {"sliding_window": None}
    params = MISTRAL_PARAMS | window | {"max_position_embeddings": 128}
    (folder / "params.json").write_text(json.dumps(params))
    path = convert(folder, "f32")
    assert worst_gap(path, name) <= 2e-4
    with GGUFFile.open(path) as file:
        assert file.metadata["llama.context_length"] == 128
        assert file.metadata.get("llama.attention.sliding_window") == (16 if name == "window" else None)
    if n_files > 1:
        (folder / "consolidated-00002-of-00003.safetensors").unlink()
        with pytest.raises(CheckpointError, match="1 of 3 files missing"):
            plan_conversion(folder, ConvertOptions(outfile=str(tmp_path / "x.gguf")))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_of_16_bits(tmp_path: Path, kind: str) -> None:
    folder = write_checkpoint(tmp_path / "sharded", BY_NAME["gqa"])
    (folder / "model.safetensors").unlink()
    halves = {name: array.astype(np.float16) for name, array in weights(BY_NAME["gqa"]).items()}
    names, where = list(halves), {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        stem = "model" if kind == "safetensors" else "pytorch_model"
        file = f"{stem}-{i:05}-of-00002.{kind}"
        write = write_safetensors if kind == "safetensors" else write_torch
        write(folder / file, {name: halves[name] for name in part})
        where |= dict.fromkeys(part, file)
    write_index(
        folder / ("model.safetensors.index.json" if stem == "model" else f"{stem}.bin.index.json"), where
    )
    path = convert(folder, "auto")
    assert worst_gap(path, "gqa") <= 2e-3
    with GGUFFile.open(path) as file:
        assert file.tensors["blk.0.ffn_up.weight"].type.name == "F16"
        assert file.metadata["general.file_type"] == 1


def test_prefixes_and_useless_tensors(tmp_path: Path) -> None:
    """A text model inside a larger class, with rotary tables and scales of a cache."""
    folder = write_checkpoint(tmp_path / "inside", BY_NAME["gqa"])
    tensors = {f"language_model.{name}": array for name, array in weights(BY_NAME["gqa"]).items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    tensors["model.layers.0.self_attn.k_scale"] = np.ones(1, np.float32)
    write_safetensors(folder / "model.safetensors", tensors)
    assert worst_gap(convert(folder, "f32"), "gqa") <= 2e-4


def test_a_quantized_checkpoint(tmp_path: Path) -> None:
    """FP8 with a scale for each row (compressed-tensors): the plain values, in GGUF's order of rows."""
    rng = np.random.default_rng(8)
    folder = write_checkpoint(tmp_path / "fp8", BY_NAME["gqa"])
    tensors: dict[str, npt.NDArray[Any]] = {}
    kinds, plain = {}, {}
    for name, array in weights(BY_NAME["gqa"]).items():
        if "_proj" not in name:
            tensors[name] = array
            continue
        codes = rng.integers(0, 0x78, array.shape).astype(np.uint8) | rng.choice(
            [0, 0x80], array.shape
        ).astype(np.uint8)
        scales = rng.uniform(0.001, 0.01, (array.shape[0], 1)).astype(np.float32)
        tensors[name], kinds[name] = codes, "F8_E4M3"
        tensors[name.replace(".weight", ".weight_scale")] = scales
        plain[name] = decode(codes, "F8_E4M3") * scales
    write_safetensors(folder / "model.safetensors", tensors, kinds)
    config = json.loads((folder / "config.json").read_text())
    group = {"targets": ["Linear"], "weights": {"type": "float", "num_bits": 8, "strategy": "channel"}}
    config["quantization_config"] = {
        **{"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"]},
        "config_groups": {"group_0": group},
    }
    (folder / "config.json").write_text(json.dumps(config))
    plan = plan_conversion(folder, ConvertOptions(outfile=str(tmp_path / "fp8.gguf"), outtype="f32"))
    assert any("compressed-tensors" in note for note in plan.notes)
    plan.run()
    with GGUFFile.open(tmp_path / "fp8.gguf") as file:
        assert np.array_equal(
            values(file, "blk.1.ffn_down.weight"), plain["model.layers.1.mlp.down_proj.weight"]
        )
        k = plain["model.layers.0.self_attn.k_proj.weight"].reshape(2, 2, 8, DIM)
        assert np.array_equal(values(file, "blk.0.attn_k.weight"), k.swapaxes(1, 2).reshape(32, DIM))


def test_bf16_is_copied_bit_for_bit(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "bf16", BY_NAME["gqa"])
    bits = {name: bf16_bits(array) for name, array in weights(BY_NAME["gqa"]).items()}
    write_safetensors(folder / "model.safetensors", bits, dict.fromkeys(bits, "BF16"))
    path = convert(folder, "auto")
    with GGUFFile.open(path) as file:
        assert file.tensors["output.weight"].type.name == "BF16"
        assert np.array_equal(file.data("output.weight").view(np.uint16), bits["lm_head.weight"].reshape(-1))
        norm = (bits["model.norm.weight"].astype(np.uint32) << 16).view(np.float32)
        assert np.array_equal(file.data("output_norm.weight").view(np.float32), norm)
    assert logits(path, "gqa").shape == expected("gqa").shape
