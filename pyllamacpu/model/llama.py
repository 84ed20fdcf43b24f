"""The Llama architecture (Llama 1 to 3.3 and everything of that shape, Mixtral too), recorded as a plan.

Sources: arXiv 2302.13971, 2307.09288, 2407.21783, and 2401.04088 for Mixtral's experts; tensor names and the
adjacent-pair rotation as in GGUF files. What an architecture's module has to define is in registry.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pyllamacpu.gguf.reader import TensorInfo
from pyllamacpu.model.config import ModelConfig
from pyllamacpu.model.experts import expert_tensors, guess_experts, mlp_shapes, route
from pyllamacpu.model.kv_space import KVSpace
from pyllamacpu.model.rope import inverse_frequencies
from pyllamacpu.model.weights import TensorSpec, Weights, padded_vector

if TYPE_CHECKING:  # models describe, the engine runs: it imports them, not the other way round
    from pyllamacpu.graph.ops import Tensor
    from pyllamacpu.graph.recorder import Recorder


def unsupported(config: ModelConfig) -> str:
    """What keeps a model of this config from being run; "" when it can be."""
    if isinstance(config.n_heads, tuple) or isinstance(config.kv_heads, tuple):
        return "layers with different numbers of heads cannot be run"
    if config.n_heads % config.kv_heads:
        return f"{config.n_heads} heads cannot share {config.kv_heads} heads of keys and values"
    return ""


def kv_spaces(config: ModelConfig) -> tuple[KVSpace, ...]:
    kv_heads = config.layer_kv_heads(0)
    return (KVSpace("causal", config.n_layers, kv_heads, config.head_dim, config.value_dim),)


def tensors(config: ModelConfig, found: Mapping[str, TensorInfo]) -> Iterator[TensorSpec]:
    """All tensors; `found` are those of the file."""
    c, embedding = config, "token_embd.weight"
    rows = found[embedding].shape[0] if embedding in found else c.vocab_size  # some have unused ones
    yield TensorSpec("rope_freqs.weight", "vector", (c.rope_dim // 2,), optional=True)
    yield TensorSpec(embedding, "table", (rows, c.dim))
    for i in range(c.n_layers):
        yield from _layer(c, i)
    yield TensorSpec("output_norm.weight", "vector", (c.dim,))
    tied = "" if "output.weight" in found else embedding
    yield TensorSpec("output.weight", "matrix", (rows, c.dim), tensor=tied)


def _layer(c: ModelConfig, i: int) -> Iterator[TensorSpec]:
    heads, kv_heads, ffn = c.layer_heads(i), c.layer_kv_heads(i), c.layer_ffn_dim(i)
    products = {
        "attn_q": (heads * c.head_dim, c.dim),
        "attn_k": (kv_heads * c.head_dim, c.dim),
        "attn_v": (kv_heads * c.value_dim, c.dim),
        "attn_output": (c.dim, heads * c.value_dim),
        **({} if c.n_experts else mlp_shapes(c, ffn)),
    }
    if c.n_experts:
        yield from expert_tensors(c, f"blk.{i}.", c.layer_expert_ffn_dim(i) or ffn)
    yield TensorSpec(f"blk.{i}.attn_norm.weight", "vector", (c.dim,))
    yield TensorSpec(f"blk.{i}.ffn_norm.weight", "vector", (c.dim,))
    for name, shape in products.items():
        yield TensorSpec(f"blk.{i}.{name}.weight", "matrix", shape)
        yield TensorSpec(f"blk.{i}.{name}.bias", "vector", shape[:1], optional=True)
    yield TensorSpec(f"blk.{i}.attn_rot_embd", "unused")  # older files repeat what follows from the config
    yield TensorSpec(f"blk.{i}.attn.rotary_emb.inv_freq", "unused")


def record(plan: Recorder, config: ModelConfig, weights: Weights) -> None:
    c = config
    (space,) = kv_spaces(c)
    divisors = weights.optional_vector("rope_freqs.weight")
    frequencies = inverse_frequencies(c, None if divisors is None else divisors.values[: divisors.size])
    x = plan.embed(weights.table("token_embd.weight"))
    rope = plan.rope_table(padded_vector("rope", frequencies), c.rope_scaling.magnitude)
    for i in range(c.n_layers):
        w = weights.under(f"blk.{i}.")
        h = plan.rms_norm(x, w.vector("attn_norm.weight"), c.norm_eps)
        q, k, v = (plan.linear(h, *w.linear(name)) for name in ("attn_q", "attn_k", "attn_v"))
        q = plan.rope_store(q, k, v, rope, space, layer=i)
        a = plan.attention(q, space, layer=i, scale=c.score_scale, window=c.sliding_window)
        if i == c.n_layers - 1:  # from here on only the rows that are asked for
            a, x = plan.select(a), plan.select(x)
        x = x + plan.linear(a, *w.linear("attn_output"))
        h = plan.rms_norm(x, w.vector("ffn_norm.weight"), c.norm_eps)
        if not c.n_experts:
            gate, up = (plan.linear(h, *w.linear(name)) for name in ("ffn_gate", "ffn_up"))
            x = x + plan.linear(plan.silu_mul(gate, up), *w.linear("ffn_down"))
            continue
        following = weights.under(f"blk.{i + 1}.") if i + 1 < c.n_layers else None
        x = _experts(plan, c, w, h, x, following)
        if following is not None:
            guess_experts(plan, c, following, x)
    h = plan.rms_norm(x, weights.vector("output_norm.weight"), c.norm_eps)
    plan.output_hidden(h)
    plan.output_logits(h, weights.matrix("output.weight"))


def _experts(
    plan: Recorder, c: ModelConfig, w: Weights, h: Tensor, x: Tensor, following: Weights | None
) -> Tensor:
    """x + the sum over a token's best experts e of p e(h), best first; p: softmax over their scores, which is
    softmax over all experts' made to add up to 1.
    """
    routing = route(plan, c, w, h, following)
    rows = plan.gather_rows(h, routing.order, c.n_experts_used)
    shares = plan.op("softmax", x=routing.best)
    return plan.scatter_rows(routing.feed_forward(plan, rows), routing.place, factors=shares, residual=x)
