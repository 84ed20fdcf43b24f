"""Every tensor of a GGUF file, known from the config: its name, its shape, and the checkpoint's name for it.

GGUF names: docs/gguf.md of the ggml project and what llama.cpp's loader asks for; for layers that attend to
images, ollama's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pyllamacpu.convert.models.shape import ModelShape

EXPERTS = "feed_forward.experts"
MIXTRAL = "block_sparse_moe."
MIXTRAL_EXPERTS = f"{MIXTRAL}experts"
_ATTENTION = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
_HF_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_HF_MLP = {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
_META_NORMS = {"attention_norm": "attn_norm", "ffn_norm": "ffn_norm"}
_META_MLP = {"w1": "ffn_gate", "w3": "ffn_up", "w2": "ffn_down"}
_CROSS_GATES = {"cross_attn_attn_gate": "gate_attn", "cross_attn_mlp_gate": "gate_ffwd"}  # Hugging Face, Meta
META_EXPERTS = {"w1": "moe_w_in_eD_F", "w3": "moe_w_swiglu_eD_F", "w2": "moe_w_out_eF_D"}


@dataclass(frozen=True)
class Slot:
    """A tensor of the result: its name and shape, the checkpoint's name for it (without its prefixes), and
    the number of heads whose rows change their order, 0 where they do not.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    heads: int = 0


def slots(shape: ModelShape) -> list[Slot]:
    """What the file holds, in its order."""
    meta = shape.layout == "meta"
    embedding, table = (shape.n_embeddings, shape.dim), (shape.vocab_size, shape.dim)
    found = [Slot("token_embd.weight", "tok_embeddings.weight" if meta else "embed_tokens.weight", embedding)]
    for layer in range(shape.n_layers):
        found += _layer(shape, layer)
    found.append(Slot("output_norm.weight", "norm.weight", (shape.dim,)))
    if not shape.tied:
        found.append(Slot("output.weight", "output.weight" if meta else "lm_head.weight", table))
    return found


def _layer(shape: ModelShape, layer: int) -> list[Slot]:
    meta = shape.layout == "meta"
    norms = _META_NORMS if meta else _HF_NORMS
    source, name = _source(shape, layer), f"blk.{layer}."
    found = [
        Slot(f"{name}{ours}.weight", f"{source}{theirs}.weight", (shape.dim,))
        for theirs, ours in norms.items()
    ]
    if layer in shape.cross_layers:
        return found + _cross_attention(shape, source, name) + _feed_forward(shape, layer)
    rows = {"attn_q": shape.n_heads, "attn_k": shape.kv_heads, "attn_v": shape.kv_heads}
    permuted = shape.layout == "hf" and shape.arch != "llama4"
    for part, ours in _ATTENTION.items():
        theirs = f"attention.w{part}" if meta else f"self_attn.{part}_proj"
        n_rows = rows[ours] * shape.head_dim if ours in rows else shape.dim
        n_cols = shape.dim if ours in rows else shape.n_heads * shape.head_dim
        heads = rows[ours] if permuted and ours in ("attn_q", "attn_k") else 0
        found.append(Slot(f"{name}{ours}.weight", f"{source}{theirs}.weight", (n_rows, n_cols), heads))
        if shape.attention_bias:
            found.append(Slot(f"{name}{ours}.bias", f"{source}{theirs}.bias", (n_rows,), heads))
    return found + _feed_forward(shape, layer)


def _source(shape: ModelShape, layer: int) -> str:
    """What the checkpoint calls a layer: Meta's count those that attend to images apart."""
    if shape.layout != "meta" or not shape.cross_layers:
        return f"layers.{layer}."
    n_before = sum(cross < layer for cross in shape.cross_layers)
    return (
        f"cross_attention_layers.{n_before}."
        if layer in shape.cross_layers
        else f"layers.{layer - n_before}."
    )


def _cross_attention(shape: ModelShape, source: str, name: str) -> list[Slot]:
    """Attention to images. Its q and k are not rotated, so their rows have one order everywhere."""
    meta = shape.layout == "meta"
    inside = f"{source}{'attention' if meta else 'cross_attn'}."
    q_rows, kv_rows = shape.n_heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = {
        "q": (q_rows, shape.dim),
        "k": (kv_rows, shape.dim),
        "v": (kv_rows, shape.dim),
        "o": (shape.dim, q_rows),
    }
    found = []
    for part, size in sizes.items():
        theirs = f"w{part}" if meta else f"{part}_proj"
        found.append(Slot(f"{name}cross_attn_{part}_proj.weight", f"{inside}{theirs}.weight", size))
    for part in ("q", "k"):
        norm = f"{inside}{part}_norm.weight"
        found.append(Slot(f"{name}cross_attn_{part}_norm.weight", norm, (shape.head_dim,)))
    for ours, metas in _CROSS_GATES.items():
        found.append(Slot(f"{name}{ours}", f"{source}{metas if meta else ours}", (1,)))
    return found


def _feed_forward(shape: ModelShape, layer: int) -> list[Slot]:
    source, name = _source(shape, layer), f"blk.{layer}."
    meta = shape.layout == "meta"
    names = _META_MLP if meta else _HF_MLP
    if not shape.has_experts(layer):
        inside = "feed_forward." if meta or shape.arch == "llama4" else "mlp."
        return _mlp(f"{source}{inside}", name, names, shape.dim, shape.ffn_dim, bias=shape.mlp_bias)
    n, ffn = shape.n_experts, shape.expert_ffn_dim
    if shape.arch == "llama":
        router = Slot(f"{name}ffn_gate_inp.weight", f"{source}{MIXTRAL}gate.weight", (n, shape.dim))
        experts = _mlp(f"{source}{MIXTRAL_EXPERTS}.", name, _META_MLP, shape.dim, ffn, "_exps")
        return [router, *(replace(slot, shape=(n, *slot.shape)) for slot in experts)]
    theirs = f"{source}feed_forward.router{'_DE' if meta else '.weight'}"
    router = Slot(f"{name}ffn_gate_inp.weight", theirs, (n, shape.dim))
    experts = _mlp(f"{source}{EXPERTS}.", name, names, shape.dim, ffn, "_exps")
    shared = _mlp(f"{source}feed_forward.shared_expert.", name, names, shape.dim, ffn, "_shexp")
    return [router, *(replace(slot, shape=(n, *slot.shape)) for slot in experts), *shared]


def _mlp(
    source: str, name: str, names: Mapping[str, str], dim: int, ffn: int, suffix: str = "", bias: bool = False
) -> list[Slot]:
    found = []
    for theirs, ours in names.items():
        size = (dim, ffn) if ours == "ffn_down" else (ffn, dim)
        found.append(Slot(f"{name}{ours}{suffix}.weight", f"{source}{theirs}.weight", size))
        if bias:
            found.append(Slot(f"{name}{ours}{suffix}.bias", f"{source}{theirs}.bias", size[:1]))
    return found
