"""The text model of Llama 3.2 Vision as a plan: a dense Llama, some of whose layers attend to images.

Such a layer has q and k normalized by head, no rotation, and what it adds is scaled by the tanh of a learned
gate. Its keys and values are those of an image's states, the same for all tokens that see the image: they are
computed once, by a plan of their own, into pages of the space "image". Rows of sequences that see no image
get nothing from it, and a step in which nobody sees one runs a plan without these layers. Sources:
multimodal/model.py of Meta's llama-models; tensor names as in ollama's files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from pyllamacpu.gguf.reader import TensorInfo
from pyllamacpu.model.config import ModelConfig
from pyllamacpu.model.kv_space import KVSpace
from pyllamacpu.model.mllama_layers import MllamaLayers
from pyllamacpu.model.rope import inverse_frequencies
from pyllamacpu.model.weights import TensorSpec, Vector, Weights, padded_vector

if TYPE_CHECKING:  # models describe, the engine runs: it imports them, not the other way round
    from pyllamacpu.graph.ops import Tensor
    from pyllamacpu.graph.recorder import Recorder

_VISION = ("v.", "mm.")


def unsupported(config: ModelConfig) -> str:
    """What keeps a model of this config from being run; "" when it can be."""
    if isinstance(config.n_heads, tuple) or isinstance(config.kv_heads, tuple):
        return "layers with different numbers of heads cannot be run"
    if len(_layers(config).cross) == config.n_layers:
        return "a model whose layers all attend to images cannot be run"
    return ""


def _layers(config: ModelConfig) -> MllamaLayers:
    assert config.mllama is not None
    return config.mllama


def kv_spaces(config: ModelConfig) -> tuple[KVSpace, ...]:
    n_cross, shape = len(_layers(config).cross), (config.layer_kv_heads(0), config.head_dim, config.value_dim)
    return (
        KVSpace("causal", config.n_layers - n_cross, *shape),
        KVSpace("image", n_cross, *shape, "image"),
    )


# ---- tensors ----


def tensors(config: ModelConfig, found: Mapping[str, TensorInfo]) -> Iterator[TensorSpec]:
    """All tensors; `found` are those of the file."""
    c, embedding = config, "token_embd.weight"
    rows = found[embedding].shape[0] if embedding in found else c.vocab_size  # those of images at the end
    yield TensorSpec("rope_freqs.weight", "vector", (c.rope_dim // 2,), optional=True)
    yield TensorSpec(embedding, "table", (rows, c.dim))
    for i in range(c.n_layers):
        yield from _layer(c, i)
    yield TensorSpec("output_norm.weight", "vector", (c.dim,))
    output = "output.weight" if "output.weight" in found else ""
    n_outputs = found[output].shape[0] if output else rows
    yield TensorSpec("output.weight", "matrix", (n_outputs, c.dim), tensor="" if output else embedding)
    for name in found:  # the tower's are another plan's
        if name.startswith(_VISION):
            yield TensorSpec(name, "unused")


def _layer(c: ModelConfig, i: int) -> Iterator[TensorSpec]:
    cross = i in _layers(c).cross
    name = "cross_attn_{}_proj" if cross else "attn_{}"
    q, kv, value = c.layer_heads(i), c.layer_kv_heads(i), c.value_dim
    ffn = c.layer_ffn_dim(i)
    products = {
        name.format("q"): (q * c.head_dim, c.dim),
        name.format("k"): (kv * c.head_dim, c.dim),
        name.format("v"): (kv * value, c.dim),
        "cross_attn_o_proj" if cross else "attn_output": (c.dim, q * value),
        "ffn_gate": (ffn, c.dim),
        "ffn_up": (ffn, c.dim),
        "ffn_down": (c.dim, ffn),
    }
    for norm in ("attn_norm", "ffn_norm"):
        yield TensorSpec(f"blk.{i}.{norm}.weight", "vector", (c.dim,))
    for name, shape in products.items():
        yield TensorSpec(f"blk.{i}.{name}.weight", "matrix", shape)
    if cross:
        for part in ("q", "k"):
            yield TensorSpec(f"blk.{i}.cross_attn_{part}_norm.weight", "vector", (c.head_dim,))
        for part in ("attn", "mlp"):
            yield TensorSpec(f"blk.{i}.cross_attn_{part}_gate", "vector", (1,))


# ---- layers ----


def record(plan: Recorder, config: ModelConfig, weights: Weights) -> None:
    _record(plan, config, weights, images=True)


def record_without_images(plan: Recorder, config: ModelConfig, weights: Weights) -> None:
    """What `record` computes for sequences that see no image."""
    _record(plan, config, weights, images=False)


def _record(plan: Recorder, c: ModelConfig, weights: Weights, images: bool) -> None:
    divisors = weights.optional_vector("rope_freqs.weight")
    frequencies = inverse_frequencies(c, None if divisors is None else divisors.values[: divisors.size])
    x = plan.embed(weights.table("token_embd.weight"))
    rope = plan.rope_table(padded_vector("rope", frequencies), c.rope_scaling.magnitude)
    cross, selected = _layers(c).cross, False
    own = [i for i in range(c.n_layers) if i not in cross]
    for i in range(c.n_layers):
        w = weights.under(f"blk.{i}.")
        if i in cross:
            x = _cross_layer(plan, c, w, x, cross.index(i)) if images else x
            continue
        a = _self_attention(plan, c, w, x, rope, own.index(i))
        if i == c.n_layers - 1:  # from here on only the rows that are asked for
            a, x, selected = plan.select(a), plan.select(x), True
        x = x + plan.linear(a, w.matrix("attn_output.weight"))
        x = x + _feed_forward(plan, c, w, x)
    x = x if selected else plan.select(x)
    h = plan.rms_norm(x, weights.vector("output_norm.weight"), c.norm_eps)
    plan.output_hidden(h)
    plan.output_logits(h, weights.matrix("output.weight"))


def _self_attention(
    plan: Recorder, c: ModelConfig, w: Weights, x: Tensor, rope: Tensor, layer: int
) -> Tensor:
    space, _ = kv_spaces(c)
    h = plan.rms_norm(x, w.vector("attn_norm.weight"), c.norm_eps)
    q, k, v = (plan.linear(h, w.matrix(f"attn_{part}.weight")) for part in "qkv")
    q = plan.rope_store(q, k, v, rope, space, layer=layer)
    return plan.attention(q, space, layer=layer, scale=c.score_scale)


def _feed_forward(plan: Recorder, c: ModelConfig, w: Weights, x: Tensor) -> Tensor:
    h = plan.rms_norm(x, w.vector("ffn_norm.weight"), c.norm_eps)
    gate, up = (plan.linear(h, w.matrix(f"{name}.weight")) for name in ("ffn_gate", "ffn_up"))
    return plan.linear(plan.silu_mul(gate, up), w.matrix("ffn_down.weight"))


def _cross_layer(plan: Recorder, c: ModelConfig, w: Weights, x: Tensor, layer: int) -> Tensor:
    """Attention to the image; without one, attention gives zeros, and what follows is left out."""
    _, space = kv_spaces(c)
    h = plan.rms_norm(x, w.vector("attn_norm.weight"), c.norm_eps)
    q = _normed(
        plan, c, plan.linear(h, w.matrix("cross_attn_q_proj.weight")), w.vector("cross_attn_q_norm.weight")
    )
    a = plan.attention(q, space, layer=layer, scale=c.score_scale, causal=False)
    a = plan.linear(a, w.matrix("cross_attn_o_proj.weight"))
    x = x + plan.op("scale", x=a, factor=_gate(w, "attn"))
    h = plan.op("mask_rows", x=_feed_forward(plan, c, w, x), space=plan.spaces.index(space))
    return x + plan.op("scale", x=h, factor=_gate(w, "mlp"))


def _normed(plan: Recorder, c: ModelConfig, x: Tensor, norm: Vector) -> Tensor:
    """Each head of x, normalized and scaled."""
    weight = padded_vector(norm.name, _layers(c).in_row_order(norm.values[: norm.size]))
    return plan.op("l2_norm", x=x, weight=weight, size=c.head_dim, mean=1, eps=c.norm_eps)


def _gate(w: Weights, part: str) -> float:
    return math.tanh(float(w.vector(f"cross_attn_{part}_gate").values[0]))


def record_image(plan: Recorder, config: ModelConfig, weights: Weights) -> None:
    """Keys and values of an image's states, given as embeddings, into pages of the space "image"."""
    c, (_, space) = config, kv_spaces(config)
    states = plan.embed(weights.table("token_embd.weight"))
    for layer, i in enumerate(_layers(c).cross):
        w = weights.under(f"blk.{i}.")
        k, v = (plan.linear(states, w.matrix(f"cross_attn_{part}_proj.weight")) for part in "kv")
        plan.store(_normed(plan, c, k, w.vector("cross_attn_k_norm.weight")), v, space, layer=layer)
