"""LoRA adapters of PEFT's form for the tiny models of convert_models.py, drawn from a seed.

tools/make_lora_fixtures.py gives them to PEFT and keeps the logits; the tests convert them and apply them.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_build import write_safetensors
from convert_models import BY_NAME, LAYERS, Arrays, weights

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@dataclass(frozen=True)
class LoraCase:
    """An adapter of the model `base` for some of its modules, of layers and outside of them."""

    name: str
    base: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    outer: tuple[str, ...] = ()
    more: dict[str, Any] = field(default_factory=dict)
    layers: tuple[int, ...] = tuple(range(LAYERS))

    def config(self) -> dict[str, Any]:
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "target_modules": [target.split(".")[-1] for target in (*self.targets, *self.outer)],
            "layers_to_transform": list(self.layers) if len(self.layers) < LAYERS else None,
            "bias": "none",
            "base_model_name_or_path": self.base,
        } | self.more


CASES = (
    LoraCase("attention", "gqa", 4, 8, ("self_attn.q_proj", "self_attn.v_proj")),
    LoraCase("all", "gqa", 24, 12, ATTENTION + MLP, ("embed_tokens", "lm_head"), {"use_rslora": True}),
    LoraCase("layer", "gqa", 40, 20, ("self_attn.o_proj", *MLP), layers=(1,)),
    LoraCase("tied", "tied", 3, 6, ATTENTION, ("embed_tokens",)),
)
BY_CASE = {case.name: case for case in CASES}
# What is run: adapters with their scales.
RUNS: dict[str, tuple[tuple[str, float], ...]] = {
    "attention": (("attention", 1.0),),
    "all": (("all", 1.0),),
    "half": (("all", 0.5),),
    "mixed": (("attention", 0.75), ("all", -0.5), ("layer", 2.0)),
    "tied": (("tied", 1.0),),
}


def adapter_tensors(case: LoraCase) -> Arrays:
    """A and B under PEFT's names, float16 numbers, so large that logits differ clearly from the base's."""
    rng = np.random.default_rng(zlib.crc32(f"lora {case.name}".encode()))
    base = weights(BY_NAME[case.base])
    shapes = {
        f"layers.{i}.{target}": base[f"model.layers.{i}.{target}.weight"].shape
        for i in case.layers
        for target in case.targets
    }
    found: Arrays = {}
    for module, (n_out, n_in) in shapes.items():
        prefix = f"base_model.model.model.{module}"
        found[f"{prefix}.lora_A.weight"] = _values(rng, (case.rank, n_in), n_in**-0.5)
        found[f"{prefix}.lora_B.weight"] = _values(rng, (n_out, case.rank), 0.25)
    if "embed_tokens" in case.outer:
        rows, dim = base["model.embed_tokens.weight"].shape
        prefix = "base_model.model.model.embed_tokens"
        found[f"{prefix}.lora_embedding_A"] = _values(rng, (case.rank, rows), 0.3)
        found[f"{prefix}.lora_embedding_B"] = _values(rng, (dim, case.rank), 0.3)
    if "lm_head" in case.outer:
        rows, dim = base["lm_head.weight"].shape
        found["base_model.model.lm_head.lora_A.weight"] = _values(rng, (case.rank, dim), dim**-0.5)
        found["base_model.model.lm_head.lora_B.weight"] = _values(rng, (rows, case.rank), 0.1)
    return found


def _values(rng: np.random.Generator, shape: tuple[int, ...], std: float) -> Any:
    return (rng.standard_normal(shape) * std).astype(np.float16).astype(np.float32)


def write_case(folder: Path, case: LoraCase) -> Path:
    """The adapter as PEFT saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(case.config()))
    write_safetensors(folder / "adapter_model.safetensors", adapter_tensors(case))
    return folder
