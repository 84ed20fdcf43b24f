"""DeBERTa-v2 and v3 classifiers (Prompt Guard): config.json and tensors, as GGUF keys and names.

Tensor names are those of BERT models in GGUF files (docs of llama.cpp's converter); those of relative
positions are our own (model/deberta.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyllamacpu.convert.models.config import HARMLESS
from pyllamacpu.convert.models.fields import Fields, words
from pyllamacpu.errors import CheckpointError
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.model.architectures import DEBERTA
from pyllamacpu.model.deberta_attention import DebertaAttention
from pyllamacpu.weights.lazy_tensor import Array, LazyTensor, computed

CLASSIFIER = "DebertaV2ForSequenceClassification"
_READ = words(
    """
    hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings vocab_size
    layer_norm_eps relative_attention max_relative_positions position_buckets norm_rel_ebd share_att_key
    pos_att_type position_biased_input type_vocab_size hidden_act pooler_hidden_act pooler_hidden_size
    pooler_dropout embedding_size attention_head_size conv_kernel_size conv_act legacy
    pooling tie_word_embeddings cls_dropout
    """
)
_HARMLESS = HARMLESS | words("tokenizer_type language padding_idx head_hidden_size")
_ENCODER = "deberta.encoder."
_LAYER = {  # theirs: ours
    "attention.self.query_proj": "attn_q",
    "attention.self.key_proj": "attn_k",
    "attention.self.value_proj": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_OUTSIDE = {
    "deberta.embeddings.LayerNorm": "token_embd_norm",
    "pooler.dense": "cls",
    "classifier": "cls.output",
}
# What the classifier does not use: the heads of pretraining, and numbers that are computed anew.
_USELESS = re.compile(
    r"(deberta\.embeddings\.position_ids|deberta\.embeddings\.position_embeddings\.weight"
    r"|(lm_predictions|mask_predictions|cls\.predictions)\..*)"
)


@dataclass(frozen=True)
class DebertaShape:
    """Sizes in elements, the context in tokens."""

    path: Path
    n_layers: int
    dim: int
    n_heads: int
    head_dim: int
    ffn_dim: int
    pooled_dim: int
    vocab_size: int
    n_ctx: int
    norm_eps: float
    attention: DebertaAttention
    shared_keys: bool  # positions go through the projections of contents
    positions_normed: bool

    def keys(self) -> list[KeyValue]:
        """The architecture's own metadata."""
        whole = ValueType.UINT32
        found = [
            KeyValue("block_count", self.n_layers, whole),
            KeyValue("context_length", self.n_ctx, whole),
            KeyValue("embedding_length", self.dim, whole),
            KeyValue("feed_forward_length", self.ffn_dim, whole),
            KeyValue("attention.head_count", self.n_heads, whole),
            KeyValue("attention.layer_norm_epsilon", self.norm_eps, ValueType.FLOAT32),
            KeyValue("vocab_size", self.vocab_size, whole),
            *self.attention.keys(),
        ]
        if self.head_dim * self.n_heads != self.dim:
            found += [KeyValue(f"attention.{n}_length", self.head_dim, whole) for n in ("key", "value")]
        return [KeyValue(f"{DEBERTA}.{name}", value, kind) for name, value, kind in found]


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a DeBERTa classifier."""
    names = config.get("architectures")
    return isinstance(names, list) and names[:1] == [CLASSIFIER]


def read_deberta(path: Path, values: Mapping[str, Any], ignored: frozenset[str]) -> DebertaShape:
    """The shape that the config.json at `path` states. Raises CheckpointError that names the key."""
    config = Fields(path, {key: value for key, value in values.items() if key not in ignored})
    config.only(_READ, _HARMLESS)
    dim, n_heads = config.whole("hidden_size", low=1), config.whole("num_attention_heads", low=1)
    _check_kind(config, dim)
    if dim % n_heads and config.get("attention_head_size") is None:
        raise config.error("hidden_size", dim, f"must be a multiple of {n_heads} heads")
    n_ctx = config.whole("max_position_embeddings", low=1)
    return DebertaShape(
        path=path,
        n_layers=config.whole("num_hidden_layers", low=1),
        dim=dim,
        n_heads=n_heads,
        head_dim=config.whole("attention_head_size", dim // n_heads, low=1),
        ffn_dim=config.whole("intermediate_size", low=1),
        pooled_dim=config.whole("pooler_hidden_size", dim, low=1),
        vocab_size=config.whole("vocab_size", low=1),
        n_ctx=n_ctx,
        norm_eps=config.real("layer_norm_eps", 1e-7),
        attention=_attention(config, n_ctx),
        shared_keys=config.flag("share_att_key"),
        positions_normed="layer_norm" in _listed(config.get("norm_rel_ebd", "none")),
    )


def _listed(value: Any) -> list[str]:
    """`a|b`, or a list of texts."""
    return value.lower().split("|") if isinstance(value, str) else [str(item) for item in value]


def _check_kind(config: Fields, dim: int) -> None:
    """Raises CheckpointError for what other models of the class may have and these have not."""
    if not config.flag("relative_attention"):
        raise config.error("relative_attention", False, "models without relative positions are not supported")
    if sorted(_listed(config.get("pos_att_type", []))) != ["c2p", "p2c"]:
        raise config.error("pos_att_type", config.get("pos_att_type"), "only c2p with p2c is supported")
    wanted: dict[str, Any] = {
        "position_biased_input": False,
        "type_vocab_size": 0,
        "conv_kernel_size": 0,
        "embedding_size": dim,
        "hidden_act": "gelu",
        "pooler_hidden_act": "gelu",
    }
    defaults = {"position_biased_input": True}
    for key, value in wanted.items():
        found = config.get(key, defaults.get(key, value))
        if found != value:
            raise config.error(key, found, f"only {value} is supported")


def _attention(config: Fields, n_ctx: int) -> DebertaAttention:
    stated = config.get("max_relative_positions", -1)
    max_distance = stated if isinstance(stated, int) and stated > 0 else n_ctx
    given = config.get("position_buckets", -1)
    logarithmic = isinstance(given, int) and given > 0
    n_buckets = given if logarithmic else max_distance
    if not 4 <= n_buckets <= 1 << 14 or not n_buckets // 2 + 2 <= max_distance <= 1 << 16:
        raise config.error("position_buckets", given, f"does not fit distances of {max_distance}")
    return DebertaAttention(n_buckets, max_distance, logarithmic, _labels(config))


def _labels(config: Fields) -> tuple[str, ...]:
    """In the order of the logits."""
    named = config.get("id2label")
    if named is None:
        return tuple(f"LABEL_{i}" for i in range(config.whole("num_labels", 2, low=2)))
    wanted = [str(i) for i in range(len(named))] if isinstance(named, dict) else []
    if len(wanted) < 2 or set(named) != set(wanted):
        raise config.error("id2label", named, "must name two labels or more by 0, 1 ...")
    return tuple(str(named[key]) for key in wanted)


# ---- tensors ----


def map_deberta(
    shape: DebertaShape, tensors: Mapping[str, LazyTensor]
) -> tuple[dict[str, LazyTensor], list[str]]:
    """The tensors of the result in the order of the file, and what must be said. Raises CheckpointError for
    what is missing, misshapen or not understood.
    """
    source = _Source(shape, tensors)
    result = {"token_embd.weight": source.take("deberta.embeddings.word_embeddings.weight", None, shape.dim)}
    result |= source.pair("token_embd_norm", "deberta.embeddings.LayerNorm", shape.dim)
    for i in range(shape.n_layers):
        result |= _layer(source, shape, i)
    result |= source.linear("cls", "pooler.dense", shape.pooled_dim, shape.dim)
    result |= source.linear("cls.output", "classifier", len(shape.attention.labels), shape.pooled_dim)
    left = sorted(set(tensors) - source.taken)
    if unknown := [name for name in left if not _USELESS.fullmatch(name)]:
        shown = ", ".join(unknown[:4]) + (f" and {len(unknown) - 4} more" if len(unknown) > 4 else "")
        raise CheckpointError(shape.path.parent, f"has tensors that are not understood: {shown}")
    return result, [f"{len(left)} tensors that classifying does not use are left out"] if left else []


def _layer(source: _Source, shape: DebertaShape, i: int) -> dict[str, LazyTensor]:
    inner = shape.n_heads * shape.head_dim
    sizes = {
        "attn_output": (shape.dim, inner),
        "ffn_up": (shape.ffn_dim, shape.dim),
        "ffn_down": (shape.dim, shape.ffn_dim),
    }
    found: dict[str, LazyTensor] = {}
    for theirs, ours in _LAYER.items():
        name, prefix = f"blk.{i}.{ours}", f"{_ENCODER}layer.{i}.{theirs}"
        if ours.endswith("_norm"):
            found |= source.pair(name, prefix, shape.dim)
        else:
            found |= source.linear(name, prefix, *sizes.get(ours, (inner, shape.dim)))
    for ours, theirs in (("attn_rel_k", "key"), ("attn_rel_q", "query")):
        found[f"blk.{i}.{ours}.weight"] = source.positions(i, theirs)
    return found


class _Source:
    """Takes a checkpoint's tensors, checking their shapes."""

    def __init__(self, shape: DebertaShape, tensors: Mapping[str, LazyTensor]) -> None:
        self.shape, self.tensors = shape, tensors
        self.taken: set[str] = set()

    def take(self, name: str, *sizes: int | None) -> LazyTensor:
        """sizes: None is any number that holds the vocabulary."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise CheckpointError(
                self.shape.path.parent, f"the tensor {name} is missing; the checkpoint is incomplete"
            )
        wanted = tuple(self.shape.vocab_size if size is None else size for size in sizes)
        if tensor.shape != wanted or not tensor.is_float:
            raise CheckpointError(
                self.shape.path.parent,
                f"the tensor {name} is {tensor.dtype} of {tensor.shape}, and not floats of {wanted} as the "
                "config says",
            )
        self.taken.add(name)
        return tensor

    def linear(self, ours: str, theirs: str, rows: int, cols: int) -> dict[str, LazyTensor]:
        weight, bias = self.take(f"{theirs}.weight", rows, cols), self.take(f"{theirs}.bias", rows)
        return {f"{ours}.weight": weight, f"{ours}.bias": bias}

    def pair(self, ours: str, theirs: str, size: int) -> dict[str, LazyTensor]:
        return {f"{ours}.{part}": self.take(f"{theirs}.{part}", size) for part in ("weight", "bias")}

    def positions(self, layer: int, projection: str) -> LazyTensor:
        """Keys or queries of relative positions: (heads, positions, head_dim), computed when they are
        written.
        """
        s, prefix = self.shape, f"{_ENCODER}layer.{layer}.attention.self."
        inner, n = s.n_heads * s.head_dim, s.attention.n_positions
        own = f"{prefix}{projection}_proj" if s.shared_keys else f"{prefix}pos_{projection}_proj"
        weight, bias = self.take(f"{own}.weight", inner, s.dim), self.take(f"{own}.bias", inner)
        table = self.take(f"{_ENCODER}rel_embeddings.weight", n, s.dim)
        norm = list(self._table_norm())

        def rows(start: int, stop: int) -> Array:
            x = table.read().astype(np.float64)
            if norm:
                x -= x.mean(-1, keepdims=True)
                x /= np.sqrt((x * x).mean(-1, keepdims=True) + s.norm_eps)
                x = x * norm[0].read() + norm[1].read()
            first, last = start * s.head_dim, stop * s.head_dim
            y = x @ weight.read(first, last).astype(np.float64).T + bias.read(first, last)
            heads = y.reshape(n, stop - start, s.head_dim).swapaxes(0, 1)
            return np.ascontiguousarray(heads, np.float32)

        return computed((s.n_heads, n, s.head_dim), f"{table.source} x {own}", rows)

    def _table_norm(self) -> Iterator[LazyTensor]:
        for part in ("weight", "bias") if self.shape.positions_normed else ():
            yield self.take(f"{_ENCODER}LayerNorm.{part}", self.shape.dim)
