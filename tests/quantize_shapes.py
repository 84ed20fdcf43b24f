"""Models as far as the mixes of types look at them: for the tests and for tools/make_recipe_fixtures.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from pyllamacpu.gguf.types import TensorType
from pyllamacpu.quantize.recipes import SourceTensor, file_order


@dataclass(frozen=True)
class Shape:
    """Row lengths are real modulo 256, and everything else is as small as it can be."""

    n_layers: int
    dim: int
    n_heads: int
    kv_heads: int
    ffn: int
    tied: bool = False
    n_experts: int = 0
    shared: bool = False  # an expert that all tokens go through
    fused: bool = False  # one matrix for queries, keys and values
    arch: str = "llama"
    keys: dict[str, Any] = field(default_factory=dict)

    def metadata(self) -> dict[str, Any]:
        values = {
            "context_length": 256,
            "embedding_length": self.dim,
            "block_count": self.n_layers,
            "feed_forward_length": self.ffn,
            "attention.head_count": self.n_heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.dimension_count": 2,
            "attention.key_length": 2,
            "attention.value_length": 2,
            "vocab_size": 64,
        }
        if self.n_experts:
            values |= {"expert_count": self.n_experts, "expert_used_count": 1}
        values |= self.keys
        return {"general.architecture": self.arch} | {f"{self.arch}.{key}": values[key] for key in values}

    def tensors(self) -> list[SourceTensor]:
        """In the order of the file that llama-quantize writes."""
        shapes: dict[str, tuple[int, ...]] = {
            "token_embd.weight": (64, self.dim),
            "output_norm.weight": (self.dim,),
        }
        if not self.tied:
            shapes["output.weight"] = (64, self.dim)
        for layer in range(self.n_layers):
            shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in self._layer().items()}
        floats = {name: len(shape) == 1 or "gate_inp" in name for name, shape in shapes.items()}
        return [
            SourceTensor(name, shapes[name], TensorType.F32 if floats[name] else TensorType.F16)
            for name in file_order(shapes)
        ]

    def _layer(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {"attn_norm": (self.dim,), "ffn_norm": (self.dim,)}
        names = ("attn_qkv",) if self.fused else ("attn_q", "attn_k", "attn_v")
        found |= dict.fromkeys((*names, "attn_output"), (2, self.dim))
        if self.n_experts:
            found["ffn_gate_inp"] = (self.n_experts, self.dim)
            found |= {f"ffn_{name}_exps": (self.n_experts, 2, self.dim) for name in ("gate", "up")}
            found["ffn_down_exps"] = (self.n_experts, 2, self.ffn)
        if self.shared or not self.n_experts:
            suffix = "_shexp" if self.shared else ""
            found |= {f"ffn_{name}{suffix}": (2, self.dim) for name in ("gate", "up")}
            found[f"ffn_down{suffix}"] = (2, self.ffn)
        return found


SCOUT = {
    "expert_feed_forward_length": 256,
    "interleave_moe_layer_step": 1,
}
SHAPES: dict[str, Shape] = {
    "SmolLM2-135M": Shape(30, 576, 9, 3, 1536, tied=True),
    "Llama-3.2-1B": Shape(16, 256, 32, 8, 256, tied=True),
    "Llama-3.2-3B": Shape(28, 256, 24, 8, 256, tied=True),
    "Llama-3.1-8B": Shape(32, 256, 32, 8, 512),
    "Llama-2-7B": Shape(32, 256, 32, 32, 11008),
    "Llama-1-65B": Shape(80, 256, 64, 64, 256),
    "Llama-3.3-70B": Shape(80, 256, 64, 8, 256),
    "Mixtral-8x7B": Shape(32, 256, 32, 8, 256, n_experts=8),
    "Llama-4-Scout": Shape(48, 256, 40, 8, 256, n_experts=16, shared=True, arch="llama4", keys=SCOUT),
    "rows-of-96": Shape(9, 96, 4, 1, 80),
    "rows-of-64": Shape(9, 64, 4, 2, 96, tied=True),
    "fused": Shape(12, 256, 4, 1, 256, fused=True),
}


def compressed(types: dict[str, str]) -> dict[str, str]:
    """Types by kind of tensor, layers in order (`q6_k*2 q4_k*3`); what most have stands behind `*`."""
    kinds: dict[str, list[str]] = {}
    for name, kind in types.items():
        parts = name.split(".")
        kinds.setdefault(".".join(parts[2:]) if parts[0] == "blk" else name, []).append(kind)
    found = {name: _runs(kinds[name]) for name in kinds}
    most = max(sorted(set(found.values())), key=[*found.values()].count)
    return {"*": most} | {name: text for name, text in sorted(found.items()) if text != most}


def _runs(kinds: list[str]) -> str:
    runs = [(kind, len([*group])) for kind, group in groupby(kinds)]
    return runs[0][0] if len(runs) == 1 else " ".join(f"{kind}*{n}" for kind, n in runs)
