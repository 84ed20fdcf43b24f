"""Llama 4's text model (Scout, Maverick, Llama Guard 4), recorded as a plan.

Layers with rope attend in chunks, the others to all positions; q and k may be normalized; every n-th layer
has experts, of which each token takes the best few beside a shared one. Which layers, and the constants:
llama4_attention.py. Sources: models/llama4 of Meta's llama-models; tensor names as in GGUF files, whose q and
k rows rotate in adjacent pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pyllamacpu.gguf.reader import TensorInfo
from pyllamacpu.model.config import ModelConfig
from pyllamacpu.model.experts import expert_tensors, guess_experts, mlp_shapes, route
from pyllamacpu.model.kv_space import KVSpace
from pyllamacpu.model.llama4_attention import Llama4Attention
from pyllamacpu.model.rope import inverse_frequencies
from pyllamacpu.model.weights import TensorSpec, Weights, padded_vector
from pyllamacpu.native import lib

if TYPE_CHECKING:  # models describe, the engine runs: it imports them, not the other way round
    from pyllamacpu.graph.ops import Tensor
    from pyllamacpu.graph.recorder import Recorder


_VISION = ("v.", "mm.")  # of ollama's names


def unsupported(config: ModelConfig) -> str:
    """What keeps a model of this config from being run; "" when it can be."""
    if isinstance(config.n_heads, tuple) or isinstance(config.kv_heads, tuple):
        return "layers with different numbers of heads cannot be run"
    if config.n_heads % config.kv_heads:
        return f"{config.n_heads} heads cannot share {config.kv_heads} heads of keys and values"
    if config.rope_dim != config.head_dim and config.rope_scaling.magnitude != 1:
        return f"YaRN that turns {config.rope_dim} of {config.head_dim} elements of a head cannot be run"
    return ""


def has_experts(config: ModelConfig, layer: int) -> bool:
    step = config.moe_layer_step
    return config.n_experts > 0 and step > 0 and (layer + 1) % step == 0


# ---- keys and values ----


def kv_spaces(config: ModelConfig) -> tuple[KVSpace, ...]:
    """Those of layers that attend in chunks, of which past ones are let go, and of the others."""
    n_chunked = sum(_in_chunks(config, layer) for layer in range(config.n_layers))
    shape = (config.layer_kv_heads(0), config.head_dim, config.value_dim)
    found = []
    if n_chunked:
        found.append(KVSpace("chunked", n_chunked, *shape, "chunked", _constants(config).chunk_size))
    if n_chunked < config.n_layers:
        found.append(KVSpace("causal", config.n_layers - n_chunked, *shape))
    return tuple(found)


def _places(config: ModelConfig) -> list[tuple[KVSpace, int]]:
    """The space of each layer, and which of the space's layers it is."""
    spaces, inside = kv_spaces(config), [_in_chunks(config, layer) for layer in range(config.n_layers)]
    return [
        (spaces[0] if chunked else spaces[-1], inside[:layer].count(chunked))
        for layer, chunked in enumerate(inside)
    ]


def _in_chunks(config: ModelConfig, layer: int) -> bool:
    """Whether a layer's pages may go when their chunk is over: a chunk must be whole pages."""
    constants = _constants(config)
    return constants.chunked[layer] and constants.chunk_size % int(lib.PL_PAGE_POSITIONS) == 0


def _constants(config: ModelConfig) -> Llama4Attention:
    assert config.llama4 is not None
    return config.llama4


# ---- tensors ----


def tensors(config: ModelConfig, found: Mapping[str, TensorInfo]) -> Iterator[TensorSpec]:
    """All tensors; `found` are those of the file."""
    c, embedding = config, "token_embd.weight"
    rows = found[embedding].shape[0] if embedding in found else c.vocab_size  # some have unused ones
    yield TensorSpec("rope_freqs.weight", "vector", (c.rope_dim // 2,), optional=True)
    yield TensorSpec(embedding, "table", (rows, c.dim))
    for i in range(c.n_layers):
        yield from _attention_tensors(c, f"blk.{i}.", i)
        yield from (
            _expert_tensors(c, f"blk.{i}.", i)
            if has_experts(c, i)
            else _mlp_tensors(c, f"blk.{i}.", "", c.layer_ffn_dim(i))
        )
    yield TensorSpec("output_norm.weight", "vector", (c.dim,))
    tied = "" if "output.weight" in found else embedding
    yield TensorSpec("output.weight", "matrix", (rows, c.dim), tensor=tied)
    for name in found:  # ollama's files have the vision tower too: images are another plan's
        if name.startswith(_VISION):
            yield TensorSpec(name, "unused")


def _attention_tensors(c: ModelConfig, prefix: str, i: int) -> Iterator[TensorSpec]:
    heads, kv_heads = c.layer_heads(i), c.layer_kv_heads(i)
    products = {
        "attn_q": (heads * c.head_dim, c.dim),
        "attn_k": (kv_heads * c.head_dim, c.dim),
        "attn_v": (kv_heads * c.value_dim, c.dim),
        "attn_output": (c.dim, heads * c.value_dim),
    }
    yield TensorSpec(f"{prefix}attn_norm.weight", "vector", (c.dim,))
    yield TensorSpec(f"{prefix}ffn_norm.weight", "vector", (c.dim,))
    for name, shape in products.items():
        yield TensorSpec(f"{prefix}{name}.weight", "matrix", shape)
        yield TensorSpec(f"{prefix}{name}.bias", "vector", shape[:1], optional=True)


def _mlp_tensors(c: ModelConfig, prefix: str, suffix: str, ffn: int) -> Iterator[TensorSpec]:
    for name, shape in mlp_shapes(c, ffn).items():
        yield TensorSpec(f"{prefix}{name}{suffix}.weight", "matrix", shape)


def _expert_tensors(c: ModelConfig, prefix: str, i: int) -> Iterator[TensorSpec]:
    ffn = c.layer_expert_ffn_dim(i)
    yield from expert_tensors(c, prefix, ffn)
    yield from _mlp_tensors(c, prefix, "_shexp", ffn)


# ---- layers ----


def record(plan: Recorder, config: ModelConfig, weights: Weights) -> None:
    c, places = config, _places(config)
    x = plan.embed(weights.table("token_embd.weight"))
    rope = _rope(plan, c, weights)
    for i in range(c.n_layers):
        w = weights.under(f"blk.{i}.")
        h = plan.rms_norm(x, w.vector("attn_norm.weight"), c.norm_eps)
        a = _attention(plan, c, w, h, rope if _constants(c).roped[i] else None, i, *places[i])
        if i == c.n_layers - 1:  # from here on only the rows that are asked for
            a, x = plan.select(a), plan.select(x)
        x = x + plan.linear(a, *w.linear("attn_output"))
        h = plan.rms_norm(x, w.vector("ffn_norm.weight"), c.norm_eps)
        following = weights.under(f"blk.{i + 1}.") if i + 1 < c.n_layers and has_experts(c, i + 1) else None
        x = _experts(plan, c, w, h, x, following) if has_experts(c, i) else x + _mlp(plan, w, h)
        if following is not None:
            guess_experts(plan, c, following, x)
    h = plan.rms_norm(x, weights.vector("output_norm.weight"), c.norm_eps)
    plan.output_hidden(h)
    plan.output_logits(h, weights.matrix("output.weight"))


def _rope(plan: Recorder, c: ModelConfig, weights: Weights) -> Tensor:
    divisors = weights.optional_vector("rope_freqs.weight")
    frequencies = inverse_frequencies(c, None if divisors is None else divisors.values[: divisors.size])
    magnitude = 1.0 if _constants(c).qk_norm else c.rope_scaling.magnitude
    return plan.rope_table(padded_vector("rope", frequencies), magnitude)


def _attention(
    plan: Recorder,
    c: ModelConfig,
    w: Weights,
    h: Tensor,
    rope: Tensor | None,
    layer: int,
    space: KVSpace,
    layer_in_space: int,
) -> Tensor:
    constants = _constants(c)
    q, k, v = (plan.linear(h, *w.linear(name)) for name in ("attn_q", "attn_k", "attn_v"))
    if rope is not None and constants.qk_norm:
        # The model rotates first. That keeps the length of a head, times the rope's magnitude m, so
        # m q / sqrt(mean(m^2 q^2) + eps) is q / sqrt(mean(q^2) + eps / m^2), rotated.
        eps = c.norm_eps / c.rope_scaling.magnitude**2
        q, k = (plan.op("l2_norm", x=x, size=c.head_dim, mean=1, eps=eps) for x in (q, k))
    if rope is None and constants.temperature_length:
        span, slope = float(constants.temperature_length), constants.temperature_scale
        q = plan.op("scale_by_position", x=q, span=span, slope=slope)
    q = plan.rope_store(q, k, v, rope, space, layer=layer_in_space)
    chunk = constants.chunk_size if constants.chunked[layer] else 0
    return plan.attention(q, space, layer=layer_in_space, scale=c.score_scale, chunk=chunk)


def _mlp(plan: Recorder, w: Weights, h: Tensor, suffix: str = "") -> Tensor:
    gate, up = (plan.linear(h, *w.linear(f"{name}{suffix}")) for name in ("ffn_gate", "ffn_up"))
    return plan.linear(plan.silu_mul(gate, up), *w.linear(f"ffn_down{suffix}"))


def _experts(
    plan: Recorder, c: ModelConfig, w: Weights, h: Tensor, x: Tensor, following: Weights | None
) -> Tensor:
    """x + shared(h) + the sum over a token's best experts e of e(sigmoid(score) h), best first. While experts
    that stay in the file are read, the shared one is computed.
    """
    routing = route(plan, c, w, h, following)
    x = x + _mlp(plan, w, h, "_shexp")
    rows = plan.gather_rows(h, routing.order, c.n_experts_used, plan.op("sigmoid", x=routing.best))
    return plan.scatter_rows(routing.feed_forward(plan, rows), routing.place, residual=x)
