"""Tiny models of every kind that can be converted: configs as they are found, and weights drawn from a seed.

tools/make_convert_fixtures.py gives them to transformers and keeps the logits; the tests write them as
checkpoints again.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from checkpoint_build import write_safetensors

Arrays = dict[str, npt.NDArray[np.float32]]
VOCAB, DIM, FFN, LAYERS, HEADS = 256, 64, 96, 2, 4
N_TOKENS = 48
ROWS = (0, 1, 15, 16, 17, 31, 47)  # the positions whose logits are kept
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}


@dataclass(frozen=True)
class Model:
    """A config.json, and whose logits it must give: those of `like`, or its own."""

    name: str
    config: dict[str, Any]
    like: str = ""
    leave_out: tuple[str, ...] = field(default=())

    @property
    def fixture(self) -> str:
        return self.like or self.name

    def full_config(self) -> dict[str, Any]:
        base = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": VOCAB,
            "hidden_size": DIM,
            "intermediate_size": FFN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "rope_theta": 10000.0,
            "torch_dtype": "float32",
            "transformers_version": "4.40.0",
        }
        merged = base | self.config
        return {key: value for key, value in merged.items() if key not in self.leave_out}


def _new(kind: str, theta: float = 10000.0, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}, "rope_scaling": None}


MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
MODELS = (
    Model("mha", {"num_key_value_heads": 4, "rms_norm_eps": 1e-6}),
    Model("gqa", {}),
    Model("mqa", {"num_key_value_heads": 1, "rope_theta": 500000.0}),
    Model("tied", {"tie_word_embeddings": True, "is_llama_config": True, "rope_interleaved": False}),
    Model("biases", {"attention_bias": True, "mlp_bias": True}),
    Model("head_dim", {"head_dim": 24}),
    Model("old_linear", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    Model("new_linear", _new("linear", factor=4.0), like="old_linear", leave_out=("rope_theta",)),
    Model("old_yarn", {"rope_scaling": {"type": "yarn", **YARN}}),
    Model("new_yarn", _new("yarn", **YARN), like="old_yarn", leave_out=("rope_theta",)),
    Model("yarn_mscale", _new("yarn", **YARN, mscale=0.7, mscale_all_dim=0.4, beta_fast=16.0, beta_slow=2.0)),
    Model("yarn_attention", {"rope_scaling": {"rope_type": "yarn", **YARN, "attention_factor": 0.9}}),
    Model("old_llama3", {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_theta": 500000.0}),
    Model("new_llama3", _new("llama3", 500000.0, **LLAMA3), like="old_llama3", leave_out=("rope_theta",)),
    Model("dynamic", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, like="gqa"),
    Model("mistral", {**MISTRAL, "sliding_window": None, "head_dim": None}, like="gqa"),
    Model("window", {**MISTRAL, "sliding_window": 16}),
    Model(
        "sparse_config",
        {"rms_norm_eps": 1e-6, "num_key_value_heads": 4},
        like="mha",
        leave_out=("num_key_value_heads", "rope_theta", "hidden_act", "rms_norm_eps", "architectures"),
    ),
)
BY_NAME = {model.name: model for model in MODELS}


def token_ids(name: str) -> npt.NDArray[np.int32]:
    """(N_TOKENS,) ids."""
    return (
        np.random.default_rng(zlib.crc32(f"{name} ids".encode()))
        .integers(0, VOCAB, N_TOKENS)
        .astype(np.int32)
    )


def weights(model: Model) -> Arrays:
    """Weights under Hugging Face's names, float32, wide enough that logits differ clearly.

    All are float16 numbers, so that a file of that type must give the same logits.
    """
    config = model.full_config()
    rng = np.random.default_rng(zlib.crc32(model.fixture.encode()))
    heads, kv = HEADS, config.get("num_key_value_heads") or HEADS
    head_dim = config.get("head_dim") or DIM // HEADS
    sizes = {
        "self_attn.q_proj": (heads * head_dim, DIM),
        "self_attn.k_proj": (kv * head_dim, DIM),
        "self_attn.v_proj": (kv * head_dim, DIM),
        "self_attn.o_proj": (DIM, heads * head_dim),
        "mlp.gate_proj": (FFN, DIM),
        "mlp.up_proj": (FFN, DIM),
        "mlp.down_proj": (DIM, FFN),
    }
    found: Arrays = {"model.embed_tokens.weight": _matrix(rng, (VOCAB, DIM), 1.0)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name, shape in sizes.items():
            found[f"{prefix}.{name}.weight"] = _matrix(rng, shape, 1.3 / shape[1] ** 0.5)
            if config.get("attention_bias" if "attn" in name else "mlp_bias"):
                found[f"{prefix}.{name}.bias"] = _matrix(rng, shape[:1], 0.3)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{prefix}.{name}.weight"] = (
                rng.uniform(0.5, 1.5, DIM).astype(np.float16).astype(np.float32)
            )
    found["model.norm.weight"] = rng.uniform(0.5, 1.5, DIM).astype(np.float16).astype(np.float32)
    if not config.get("tie_word_embeddings"):
        found["lm_head.weight"] = _matrix(rng, (VOCAB, DIM), 0.25)
    return found


def _matrix(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> npt.NDArray[np.float32]:
    return (rng.standard_normal(shape) * std).astype(np.float16).astype(np.float32)


def write_checkpoint(folder: Path, model: Model) -> Path:
    """The model as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.full_config(), indent=1))
    write_safetensors(folder / "model.safetensors", weights(model))
    return folder
