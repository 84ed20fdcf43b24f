"""An architecture that is none of ours: what a new one takes, in one module (and a line in the registry).

Layer norms with biases, no rotation, GELU, two KV spaces: the first layer attends in chunks, the others to
all that came before. A small GPT, whose output is its embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pyllamacpu.gguf.reader import TensorInfo
from pyllamacpu.graph.recorder import Recorder
from pyllamacpu.model.config import ModelConfig
from pyllamacpu.model.kv_space import KVSpace
from pyllamacpu.model.weights import TensorSpec, Weights

CHUNK = 32


def unsupported(config: ModelConfig) -> str:
    return ""


def kv_spaces(config: ModelConfig) -> tuple[KVSpace, ...]:
    heads = config.layer_kv_heads(0)
    shape = (heads, config.head_dim, config.value_dim)
    return (KVSpace("chunks", 1, *shape, "chunked", CHUNK), KVSpace("all", config.n_layers - 1, *shape))


def tensors(config: ModelConfig, found: Mapping[str, TensorInfo]) -> Iterator[TensorSpec]:
    c, dim = config, (config.dim,)
    yield TensorSpec("token_embd.weight", "table", (c.vocab_size, c.dim))
    yield TensorSpec("output.weight", "matrix", (c.vocab_size, c.dim), tensor="token_embd.weight")
    for i in range(c.n_layers):
        for name in ("attn_norm.weight", "attn_norm.bias", "ffn_norm.weight", "ffn_norm.bias"):
            yield TensorSpec(f"blk.{i}.{name}", "vector", dim)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield TensorSpec(f"blk.{i}.{name}.weight", "matrix", (c.dim, c.dim))
        yield TensorSpec(f"blk.{i}.ffn_up.weight", "matrix", (c.layer_ffn_dim(i), c.dim))
        yield TensorSpec(f"blk.{i}.ffn_down.weight", "matrix", (c.dim, c.layer_ffn_dim(i)))


def record(plan: Recorder, config: ModelConfig, weights: Weights) -> None:
    chunks, whole = kv_spaces(config)
    x = plan.embed(weights.table("token_embd.weight"))
    for i in range(config.n_layers):
        w = weights.under(f"blk.{i}.")
        norm = {"weight": w.vector("attn_norm.weight"), "bias": w.vector("attn_norm.bias")}
        h = plan.op("layer_norm", x=x, eps=config.norm_eps, **norm)
        q, k, v = (plan.linear(h, *w.linear(name)) for name in ("attn_q", "attn_k", "attn_v"))
        space, layer, chunk = (whole, i - 1, 0) if i else (chunks, 0, CHUNK)
        q = plan.rope_store(q, k, v, None, space, layer=layer)
        a = plan.attention(q, space, layer=layer, scale=config.score_scale, chunk=chunk)
        x = x + plan.linear(a, *w.linear("attn_output"))
        norm = {"weight": w.vector("ffn_norm.weight"), "bias": w.vector("ffn_norm.bias")}
        h = plan.op("layer_norm", x=x, eps=config.norm_eps, **norm)
        x = x + plan.linear(
            plan.op("gelu", x=plan.linear(h, *w.linear("ffn_up")), tanh=1), *w.linear("ffn_down")
        )
    x = plan.select(x)
    plan.output_hidden(x)
    plan.output_logits(x, weights.matrix("output.weight"))
