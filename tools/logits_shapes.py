"""The tiny models of `make_logits_fixtures.py`: one per dense Llama shape, and one per tensor type."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gguf import GGMLQuantizationType as QType


@dataclass(frozen=True)
class Shape:
    """One tiny Llama. `head_dim` is written to the file only where it is given, as converters do."""

    name: str
    dim: int = 48
    n_layers: int = 2
    n_heads: int = 3
    n_kv: int = 1
    ffn: int = 36
    vocab: int = 115
    head_dim: int | None = None
    tied: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    eps: float = 1e-5
    theta: float = 10000.0
    context: int = 2048
    rope: dict[str, Any] = field(default_factory=dict)  # Hugging Face's rope_parameters, without theta
    qtype: QType = QType.F32
    mixed: dict[str, QType] = field(default_factory=dict)  # tensor stem -> type, where it is not `qtype`
    leave_out: tuple[str, ...] = ()  # metadata keys that older converters did not write
    lengths: tuple[int, ...] = (1, 5, 33, 700)

    @property
    def head(self) -> int:
        return self.head_dim or self.dim // self.n_heads


def llama3(factor: float, original: int) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original,
    }


def yarn(factor: float, original: int, **more: float) -> dict[str, Any]:
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **more}


# One shape each; sizes are mixed so that no two odd sizes are taken for each other.
FLOAT_SHAPES = (
    Shape("mha", n_heads=3, n_kv=3, ffn=52, tied=False, eps=1e-6, leave_out=("rope.freq_base", "vocab_size")),
    Shape("gqa4", n_heads=8, n_kv=2, head_dim=8, ffn=40, vocab=160, tied=False, eps=0.02),
    Shape("gqa3", dim=72, n_heads=9, n_kv=3, vocab=163),
    Shape("mqa", n_heads=6, n_kv=1),
    Shape("biases", n_heads=6, n_kv=2, n_layers=3, attention_bias=True, mlp_bias=True),
    Shape("wide_heads", dim=48, n_heads=4, n_kv=2, head_dim=24, vocab=161),
    Shape("narrow_heads", n_heads=4, n_kv=2, head_dim=8, attention_bias=True),
    Shape("head24", dim=72, n_heads=3, n_kv=1, ffn=92, vocab=163, n_layers=1),
    Shape("head40", n_heads=2, n_kv=1, head_dim=40),
    Shape("head64", n_heads=2, n_kv=1, head_dim=64, n_layers=1),
    Shape("head128", n_heads=2, n_kv=1, head_dim=128, n_layers=1),
    Shape("theta500k", n_kv=3, theta=500000.0, n_layers=1),
    Shape("llama31", n_heads=2, theta=500000.0, rope=llama3(8.0, 256), n_layers=1),
    Shape("llama32", n_heads=2, theta=500000.0, context=131072, rope=llama3(32.0, 8192), n_layers=1),
    Shape("linear4", rope={"rope_type": "linear", "factor": 4.0}, n_layers=1),
    Shape(
        "linear_old_key",
        rope={"rope_type": "linear", "factor": 2.0},
        n_layers=1,
        leave_out=("rope.scaling.type",),
    ),
    Shape("yarn4", n_heads=2, context=512, rope=yarn(4.0, 128), n_layers=1),
    Shape(
        "yarn8_betas",
        48,
        1,
        2,
        theta=500000.0,
        context=16384,
        rope=yarn(8.0, 2048, beta_fast=8.0, beta_slow=2.0),
    ),
    Shape("yarn_attention", 48, 1, 2, context=1024, rope=yarn(4.0, 256, attention_factor=0.85)),
    Shape("f16_gqa", dim=72, n_heads=9, n_kv=3, ffn=44, tied=False, qtype=QType.F16),
    Shape(
        "f16_head40", dim=80, n_heads=2, n_kv=1, ffn=60, qtype=QType.F16, rope=llama3(8.0, 256), n_layers=1
    ),
    Shape("bf16_gqa", dim=72, n_heads=6, n_kv=2, ffn=60, qtype=QType.BF16),
    Shape("bf16_biases", attention_bias=True, mlp_bias=True, qtype=QType.BF16),
)

WIDE32 = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4")
WIDE256 = (
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"),
)  # fmt: skip


def of_type(name: str) -> Shape:
    """All matrices in one type: one layer; two for the 32-wide types, whose rows are not multiples of 256."""
    if name in WIDE32:
        return Shape(name.lower(), 96, 2, 3, 1, ffn=160, vocab=72, qtype=QType[name], lengths=(1, 33))
    return Shape(name.lower(), 256, 1, 4, 1, ffn=256, vocab=72, qtype=QType[name], lengths=(1, 33))


# The mixtures that published files use: better types for v, down, the embedding and the output.
MIXED_SHAPES = (
    Shape(
        *("mixed_q4_k_m", 256, 1, 4, 1, 256, 72),
        tied=False,
        qtype=QType.Q4_K,
        mixed={"attn_v": QType.Q6_K, "ffn_down": QType.Q6_K, "output": QType.Q6_K},
        lengths=(1, 33, 700),
    ),
    Shape(
        *("mixed_q4_1", 96, 2, 3, 1, 160, 100),
        qtype=QType.Q4_1,
        mixed={"token_embd": QType.Q8_0, "ffn_down": QType.F16, "attn_v": QType.F32},
        attention_bias=True,
        lengths=(1, 33, 700),
    ),
)
QUANT_SHAPES = (*(of_type(name) for name in WIDE32 + WIDE256), *MIXED_SHAPES)
