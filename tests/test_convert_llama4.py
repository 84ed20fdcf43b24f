"""Llama 4: its experts, attention in chunks and layers without rope, from Hugging Face's layout and Meta's.

Covers convert/models/llama4.py, model/llama4_attention.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from checkpoint_build import write_safetensors
from convert_models import DIM, FFN, HEADS, VOCAB, Arrays
from test_convert_models import convert
from torch_build import write_torch

from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.models.fields import Fields
from pyllamacpu.convert.models.meta_params import read_params
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.errors import CheckpointError
from pyllamacpu.gguf import GGUFFile
from pyllamacpu.model.config import ModelConfig
from pyllamacpu.model.dequantize import dequantize

EXPERTS, EXPERT_FFN = 4, 32
LLAMA4 = {
    "architectures": ["Llama4ForCausalLM"],
    "model_type": "llama4_text",
    "vocab_size": VOCAB,
    "hidden_size": DIM,
    "intermediate_size": EXPERT_FFN,
    "intermediate_size_mlp": FFN,
    "num_hidden_layers": 4,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 2,
    "no_rope_layers": [1, 1, 1, 0],
    "use_qk_norm": True,
    "attn_temperature_tuning": 4,
    "attention_chunk_size": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "hidden_act": "silu",
    "router_aux_loss_coef": 0.001,
}


def llama4_weights(stacked: bool = True) -> Arrays:
    rng = np.random.default_rng(4)

    def random(*shape: int) -> npt.NDArray[np.float32]:
        return rng.standard_normal(shape).astype(np.float32)

    found = {"model.embed_tokens.weight": random(VOCAB, DIM), "model.norm.weight": random(DIM)}
    found["lm_head.weight"] = random(VOCAB, DIM)
    for layer in range(4):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{prefix}{name}.weight"] = random(DIM)
        for name, rows in (("q", 64), ("k", 32), ("v", 32), ("o", 64)):
            found[f"{prefix}self_attn.{name}_proj.weight"] = random(rows, DIM)
        feed = f"{prefix}feed_forward."
        if layer % 2:
            found[f"{feed}router.weight"] = random(EXPERTS, DIM)
            found |= _mlp(f"{feed}shared_expert.", EXPERT_FFN, random)
            found[f"{feed}experts.gate_up_proj"] = random(EXPERTS, DIM, 2 * EXPERT_FFN)
            found[f"{feed}experts.down_proj"] = random(EXPERTS, EXPERT_FFN, DIM)
        else:
            found |= _mlp(feed, FFN, random)
    return found if stacked else _unstacked(found)


def _mlp(prefix: str, ffn: int, random: Any) -> Arrays:
    shapes = {"gate_proj": (ffn, DIM), "up_proj": (ffn, DIM), "down_proj": (DIM, ffn)}
    return {f"{prefix}{name}.weight": random(*shape) for name, shape in shapes.items()}


def _unstacked(tensors: Arrays) -> Arrays:
    """Experts one by one, as quantized releases have them."""
    found = {}
    for name, array in tensors.items():
        stem, part = name.rsplit(".", 1)
        if part not in ("gate_up_proj", "down_proj"):
            found[name] = array
            continue
        for i, expert in enumerate(array):
            turned = np.ascontiguousarray(expert.T)
            if part == "down_proj":
                found[f"{stem}.{i}.down_proj.weight"] = turned
            else:
                found[f"{stem}.{i}.gate_proj.weight"] = turned[:EXPERT_FFN].copy()
                found[f"{stem}.{i}.up_proj.weight"] = turned[EXPERT_FFN:].copy()
    return found


def write_llama4(folder: Path, tensors: Arrays, config: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def values(file: GGUFFile, name: str) -> npt.NDArray[np.float32]:
    info = file.tensors[name]
    rows = (info.n_elements // info.shape[-1], info.shape[-1])
    return np.asarray(dequantize(file.data(name), info.type, rows)).reshape(info.shape)


@pytest.mark.parametrize("stacked", [True, False])
def test_llama4_experts(tmp_path: Path, stacked: bool) -> None:
    path = convert(write_llama4(tmp_path / "llama4", llama4_weights(stacked), LLAMA4), "f32")
    tensors = llama4_weights()
    with GGUFFile.open(path) as file:
        for layer in range(4):
            ours, theirs = f"blk.{layer}.", f"model.layers.{layer}."
            q = tensors[f"{theirs}self_attn.q_proj.weight"]
            assert np.array_equal(values(file, f"{ours}attn_q.weight"), q)  # rope on neighbours already
            if layer % 2 == 0:
                up = tensors[f"{theirs}feed_forward.up_proj.weight"]
                assert np.array_equal(values(file, f"{ours}ffn_up.weight"), up)
                continue
            both = tensors[f"{theirs}feed_forward.experts.gate_up_proj"].swapaxes(1, 2)
            assert np.array_equal(values(file, f"{ours}ffn_gate_exps.weight"), both[:, :EXPERT_FFN])
            assert np.array_equal(values(file, f"{ours}ffn_up_exps.weight"), both[:, EXPERT_FFN:])
            down = tensors[f"{theirs}feed_forward.experts.down_proj"].swapaxes(1, 2)
            assert np.array_equal(values(file, f"{ours}ffn_down_exps.weight"), down)
            shared = tensors[f"{theirs}feed_forward.shared_expert.down_proj.weight"]
            assert np.array_equal(values(file, f"{ours}ffn_down_shexp.weight"), shared)
            assert file.tensors[f"{ours}ffn_gate_inp.weight"].type.name == "F32"
        metadata = {key: file.metadata[key] for key in file.metadata if key.startswith("llama4.")}
    assert metadata["llama4.expert_count"] == EXPERTS
    assert metadata["llama4.expert_used_count"] == 1
    assert metadata["llama4.interleave_moe_layer_step"] == 2
    assert metadata["llama4.expert_feed_forward_length"] == EXPERT_FFN
    assert metadata["llama4.feed_forward_length"] == FFN


def test_llama4_inside_a_model_with_a_vision_tower(tmp_path: Path) -> None:
    tensors = {f"language_model.{name}": array for name, array in llama4_weights().items()}
    tensors["vision_model.class_embedding"] = np.ones(8, np.float32)
    tensors["multi_modal_projector.linear_1.weight"] = np.ones((8, 8), np.float32)
    outer = {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "text_config": LLAMA4,
        "boi_token_index": 1,
    }
    source = write_llama4(tmp_path / "llama4", tensors, outer)
    plan = plan_conversion(source, ConvertOptions(outfile=str(tmp_path / "x.gguf"), outtype="bf16"))
    assert any("2 tensors of the vision tower" in note for note in plan.notes)
    assert not any("vision" in item.name for item in plan.output.tensors)
    outer["vision_config"] = {"hidden_size": 64}
    source = write_llama4(tmp_path / "half a tower", tensors, outer)
    with pytest.raises(CheckpointError, match=r"patch_embedding\.linear\.weight is missing"):
        plan_conversion(source, ConvertOptions(outfile=str(tmp_path / "x.gguf"), outtype="bf16"))
    outer["text_config"] = LLAMA4 | {"hidden_act": "gelu"}
    source = write_llama4(tmp_path / "gelu", tensors, outer)
    with pytest.raises(CheckpointError, match=r"text_config\.hidden_act is"):
        plan_conversion(source, ConvertOptions(outfile=str(tmp_path / "x.gguf"), outtype="bf16"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("no_rope_layers", [1, 0, 1]),
        ("no_rope_layers", 3),
        ("layer_types", {"a": 1}),
        ("layer_types", ["sliding_attention"] * 4),
        ("attn_scale", "0.2"),
        ("moe_layers", [0, 1]),
        ("mixture_of_depths", 2),
    ],
)
def test_llama4_constants_that_files_cannot_state(tmp_path: Path, key: str, value: object) -> None:
    source = write_llama4(tmp_path / "llama4", llama4_weights(), LLAMA4 | {key: value})
    with pytest.raises(CheckpointError, match=key):
        plan_conversion(source, ConvertOptions(outfile=str(tmp_path / "x.gguf")))


LLAMA4_VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "guard": ({"attention_chunk_size": None}, {"attention.chunk_size": 0}),
    "guard_listed": (
        {"attention_chunk_size": None, "no_rope_layers": [1, 1, 1, 0]},
        {"attention.chunk_size": 0},
    ),
    "chunk": ({"attention_chunk_size": 4096}, {"attention.chunk_size": 4096}),
    "interval": (
        {"no_rope_layer_interval": 2, "no_rope_layers": None},
        {"attention.sliding_window_pattern": 2, "rope.pattern": 2},
    ),
    "irregular": (
        {"no_rope_layers": [0, 1, 1, 0], "attention_chunk_size": None},
        {"attention.chunk_size": 0, "rope.pattern": [False, True, True, False]},
    ),
    "temperature": (
        {"floor_scale": 4096, "attn_scale": 0.25},
        {"attention.temperature_length": 4096, "attention.temperature_scale": 0.25},
    ),
    "no_temperature": ({"attn_temperature_tuning": False}, {"attention.temperature_length": 0}),
    "no_norm": ({"use_qk_norm": False}, {"use_qk_norm": False}),
    "roped": ({"no_rope_layers": [1] * 4, "attention_chunk_size": None}, {"attention.sliding_window": 0}),
    "roped_chunks": (
        {"no_rope_layers": [1] * 4},
        {"attention.sliding_window_pattern": [True] * 4, "rope.pattern": 0},
    ),
}


@pytest.mark.parametrize("name", LLAMA4_VARIANTS)
def test_llama4_that_differs_from_what_loaders_have_built_in(tmp_path: Path, name: str) -> None:
    """The keys say what the config says, and reading them gives it back."""
    change, wanted = LLAMA4_VARIANTS[name]
    source = write_llama4(tmp_path / "llama4", llama4_weights(), LLAMA4 | change)
    plan = plan_conversion(source, ConvertOptions(outfile=str(tmp_path / "x.gguf"), outtype="f32"))
    plan.run()
    names = ("attention.chunk", "attention.sliding", "attention.temp", "rope.pattern", "use_qk")
    with GGUFFile.open(tmp_path / "x.gguf") as file:
        found = {key.removeprefix("llama4."): file.metadata[key] for key in file.metadata}
        stated = {key: found[key] for key in found if key.startswith(names)}
        stated = {key: np.asarray(value).tolist() for key, value in stated.items()}
        config = ModelConfig.from_metadata(file.metadata, file.tensors)
    assert stated == wanted
    assert any("llama.cpp does not read" in note for note in plan.notes) == (name != "roped")
    read, facts = config.llama4, LLAMA4 | change
    assert read is not None
    interval = facts.get("no_rope_layer_interval", 4)
    listed = facts.get("no_rope_layers") or [(i + 1) % interval for i in range(4)]
    assert read.roped == tuple(bool(x) for x in listed)
    chunk = facts["attention_chunk_size"] or 0
    assert read.chunk_size == chunk and read.chunked == tuple(bool(x and chunk) for x in listed)
    assert read.qk_norm == facts.get("use_qk_norm", True)
    if not all(read.roped):
        tuned = facts.get("attn_temperature_tuning", True)
        assert read.temperature_length == (facts.get("floor_scale", 8192) if tuned else 0)
        assert read.temperature_scale == pytest.approx(facts.get("attn_scale", 0.1))


@pytest.mark.parametrize(
    ("key", "value"),
    [("attention_chunk_size", 1 << 31), ("floor_scale", 1 << 31), ("attn_scale", -1.0), ("attn_scale", 1e4)],
)
def test_numbers_that_no_reader_takes_are_not_written(tmp_path: Path, key: str, value: float) -> None:
    source = write_llama4(tmp_path / "llama4", llama4_weights(), LLAMA4 | {key: value})
    with pytest.raises(CheckpointError, match=f"{key} is"):
        plan_conversion(source, ConvertOptions(outfile=str(tmp_path / "x.gguf")))


def meta_llama4() -> Arrays:
    """The same model as Meta has it: fused matrices on one rank."""
    theirs = llama4_weights()
    found: Arrays = {"tok_embeddings.weight": theirs["model.embed_tokens.weight"]}
    found |= {"norm.weight": theirs["model.norm.weight"], "output.weight": theirs["lm_head.weight"]}
    for layer in range(4):
        p, m = f"layers.{layer}.", f"model.layers.{layer}."
        parts = [theirs[f"{m}self_attn.{x}_proj.weight"] for x in "qkv"]
        found[f"{p}attention.wqkv.weight"] = np.concatenate(parts)
        found[f"{p}attention.wqkv.layer_norm_weight"] = theirs[f"{m}input_layernorm.weight"]
        found[f"{p}attention.wo.weight"] = theirs[f"{m}self_attn.o_proj.weight"]
        norm, feed, into = (
            theirs[f"{m}post_attention_layernorm.weight"],
            f"{p}feed_forward.",
            f"{m}feed_forward.",
        )
        if layer % 2 == 0:
            both = [theirs[f"{into}{x}_proj.weight"] for x in ("gate", "up")]
            found[f"{feed}mlp.fc1_weight"] = np.concatenate(both)
            found[f"{feed}mlp.fc2_weight"] = theirs[f"{into}down_proj.weight"]
            found[f"{feed}mlp.layer_norm_weight"] = norm
            continue
        found[f"{feed}norm.weight"] = norm
        found[f"{feed}router_DE"] = theirs[f"{into}router.weight"].T.copy()
        for ours, name in (("w_in_shared_FD", "gate"), ("w_swiglu_FD", "up"), ("w_out_shared_DF", "down")):
            found[f"{feed}{ours}.weight"] = theirs[f"{into}shared_expert.{name}_proj.weight"]
        gate_up, down = theirs[f"{into}experts.gate_up_proj"], theirs[f"{into}experts.down_proj"]
        halves = {"moe_w_in_eD_F": gate_up[..., :EXPERT_FFN], "moe_w_swiglu_eD_F": gate_up[..., EXPERT_FFN:]}
        for ours, stack in {**halves, "moe_w_out_eF_D": down}.items():
            found[f"{feed}experts.{ours}"] = np.ascontiguousarray(stack).reshape(-1, stack.shape[-1])
    return found


def test_llama4_of_meta(tmp_path: Path) -> None:
    folder = tmp_path / "meta"
    folder.mkdir()
    write_torch(folder / "consolidated.00.pth", meta_llama4())
    params = {
        **{"dim": DIM, "n_layers": 4, "n_heads": HEADS, "n_kv_heads": 2, "head_dim": 16, "norm_eps": 1e-5},
        **{"vocab_size": VOCAB, "ffn_dim_multiplier": 1.2, "ffn_exp": 4.0, "multiple_of": 2048},
        **{"use_scaled_rope": True, "rope_theta": 5e5, "use_qk_norm": True, "nope_layer_interval": 4},
        **{"attention_chunk_size": 8192, "attn_temperature_tuning": True},
        "moe_args": {
            "num_experts": EXPERTS,
            "top_k": 1,
            "interleave_moe_layer_step": 2,
            "auto_scale_F": True,
        },
    }
    (folder / "params.json").write_text(json.dumps(params))
    scaled = {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0}
    scaled["original_max_position_embeddings"] = 8192
    other = write_llama4(tmp_path / "hf", llama4_weights(), LLAMA4 | {"rope_scaling": scaled})
    with GGUFFile.open(convert(folder, "f32")) as ours, GGUFFile.open(convert(other, "f32")) as theirs:
        assert set(ours.tensors) == set(theirs.tensors)
        for name in ours.tensors:
            assert np.array_equal(values(ours, name), values(theirs, name)), name
        for key in theirs.metadata:
            if key.startswith("llama4.") and "context" not in key:
                assert ours.metadata[key] == theirs.metadata[key], key


@pytest.mark.parametrize("odd", [3, "x", [1], True])
def test_experts_of_meta_that_are_not_an_object(odd: object) -> None:
    params = {"dim": DIM, "n_layers": 2, "n_heads": HEADS, "moe_args": odd}
    with pytest.raises(CheckpointError, match="moe_args"):
        read_params(Fields(Path("params.json"), params))
