"""DeBERTa-v2 and v3 with a classifier (Prompt Guard 1 and 2), recorded as a plan without KV spaces.

An encoder: all tokens of a sequence see each other, by content and by relative position (disentangled
attention, arXiv 2006.03654 and 2111.09543). The logits are those of the labels, at the sequence's first
token. The keys and queries of positions, which the weights alone decide, are in the file, in place of the
table that they are products of: `blk.N.attn_rel_k`, `attn_rel_q` (heads, positions, head_dim), names of our
own. The others are those of BERT models in GGUF files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from pyllamacpu.gguf.reader import TensorInfo
from pyllamacpu.model.config import ModelConfig
from pyllamacpu.model.deberta_attention import DebertaAttention
from pyllamacpu.model.kv_space import KVSpace
from pyllamacpu.model.layer_norm import layer_norm
from pyllamacpu.model.weights import TensorSpec, Vector, Weights, padded_vector
from pyllamacpu.native import lib

if TYPE_CHECKING:  # models describe, the engine runs: it imports them, not the other way round
    from pyllamacpu.graph.ops import Tensor
    from pyllamacpu.graph.recorder import Recorder

_PRODUCTS = ("attn_q", "attn_k", "attn_v", "attn_output")
_NORMS = ("attn_output_norm", "layer_output_norm")
_MAX_CONTEXT = 1 << 14  # there is a bucket for each distance
_SCORES = 3  # content to content, content to position, position to content: each a share of the scale


def unsupported(config: ModelConfig) -> str:
    """What keeps a model of this config from being run; "" when it can be."""
    if isinstance(config.n_heads, tuple) or config.n_heads != config.kv_heads:
        return "DeBERTa models have as many heads of keys as of queries, the same in all layers"
    if config.value_dim != config.head_dim:
        return "DeBERTa models have values as wide as keys"
    if config.n_ctx_train > _MAX_CONTEXT:
        return f"DeBERTa models of {config.n_ctx_train} positions cannot be run; {_MAX_CONTEXT} is the limit"
    return ""


def kv_spaces(config: ModelConfig) -> tuple[KVSpace, ...]:
    """None: an encoder keeps nothing."""
    return ()


def tensors(config: ModelConfig, found: Mapping[str, TensorInfo]) -> Iterator[TensorSpec]:
    """All tensors; `found` are those of the file."""
    c, embedding = config, "token_embd.weight"
    rows = found[embedding].shape[0] if embedding in found else c.vocab_size
    yield TensorSpec(embedding, "table", (rows, c.dim))
    yield from _pair("token_embd_norm", c.dim)
    kind = _matrix_kind(found)
    for i in range(c.n_layers):
        yield from _layer(c, f"blk.{i}.", c.layer_ffn_dim(i), kind)
    pooled = found["cls.weight"].shape[0] if "cls.weight" in found else c.dim
    yield from _linear("cls", pooled, c.dim)
    yield from _linear("cls.output", len(_attention(c).labels), pooled)


_MatrixKind = Literal["matrix", "int16_matrix"]
_PositionsKind = Literal["float_matrices", "int16_matrices"]


def _matrix_kind(found: Mapping[str, TensorInfo]) -> _MatrixKind:
    """Files of floats are computed in float32, those with quantized matrices may be in 16 bits."""
    of_layers = (info for name, info in found.items() if name.startswith("blk.") and len(info.shape) == 2)
    return "matrix" if all(info.type.is_float for info in of_layers) else "int16_matrix"


def _layer(c: ModelConfig, prefix: str, ffn: int, kind: _MatrixKind) -> Iterator[TensorSpec]:
    heads, inner = c.layer_heads(0), c.layer_heads(0) * c.head_dim
    for name in _PRODUCTS:
        shape = (c.dim, inner) if name == "attn_output" else (inner, c.dim)
        yield from _linear(prefix + name, *shape, kind)
    for name in ("attn_rel_k", "attn_rel_q"):
        shape3 = (heads, _attention(c).n_positions, c.head_dim)
        positions: _PositionsKind = "float_matrices" if kind == "matrix" else "int16_matrices"
        yield TensorSpec(f"{prefix}{name}.weight", positions, shape3)
    yield from _linear(f"{prefix}ffn_up", ffn, c.dim, kind)
    yield from _linear(f"{prefix}ffn_down", c.dim, ffn, kind)
    for name in _NORMS:
        yield from _pair(prefix + name, c.dim)


def _linear(name: str, rows: int, cols: int, kind: _MatrixKind = "matrix") -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", kind, (rows, cols))
    yield TensorSpec(f"{name}.bias", "vector", (rows,))


def _pair(name: str, size: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", "vector", (size,))
    yield TensorSpec(f"{name}.bias", "vector", (size,))


def _attention(config: ModelConfig) -> DebertaAttention:
    assert config.deberta is not None
    return config.deberta


# ---- layers ----


def record(plan: Recorder, config: ModelConfig, weights: Weights) -> None:
    c = config
    buckets = padded_vector("buckets", _attention(c).bucket_table(c.n_ctx_train))
    x = layer_norm(
        plan, weights, "token_embd_norm", plan.embed(weights.table("token_embd.weight")), c.norm_eps
    )
    for i in range(c.n_layers):
        w = weights.under(f"blk.{i}.")
        a = _attend(plan, c, w, x, buckets, wanted=i == c.n_layers - 1)
        if i == c.n_layers - 1:  # from here on only the rows that are asked for
            a, x = plan.select(a), plan.select(x)
        x = layer_norm(plan, w, "attn_output_norm", x + plan.linear(a, *w.linear("attn_output")), c.norm_eps)
        h = plan.op("gelu", x=plan.linear(x, *w.linear("ffn_up")), tanh=0)
        x = layer_norm(plan, w, "layer_output_norm", x + plan.linear(h, *w.linear("ffn_down")), c.norm_eps)
    pooled = plan.op("gelu", x=plan.linear(x, *weights.linear("cls")), tanh=0)
    matrix, bias = weights.linear("cls.output")
    plan.op("matmul", x=pooled, matrix=[matrix], bias=[bias], out=[lib.PL_LOGITS], rows=lib.PL_ROWS_LOGITS)


def _attend(plan: Recorder, c: ModelConfig, w: Weights, x: Tensor, buckets: Vector, wanted: bool) -> Tensor:
    q, k, v = (plan.linear(x, *w.linear(name)) for name in ("attn_q", "attn_k", "attn_v"))
    positions = [*w.experts("attn_rel_k.weight"), *w.experts("attn_rel_q.weight")]
    return plan.op(
        "disentangled_attention",
        q=q,
        k=k,
        v=v,
        n_heads=c.layer_heads(0),
        positions=positions,
        n_positions=_attention(c).n_positions,
        buckets=buckets,
        scale=1.0 / math.sqrt(_SCORES * c.head_dim),
        wanted=int(wanted),
    )
