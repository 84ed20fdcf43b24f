"""What a Llama model's metadata says about its shape, checked once and frozen.

Keys are those of the GGUF page (docs/gguf.md of the ggml project), prefixed by the architecture's name;
defaults are the ones that llama.cpp gives to absent keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from pyllamacpu.errors import ModelError, OptionError
from pyllamacpu.gguf.file_kinds import IMATRIX, TOWER
from pyllamacpu.gguf.metadata import architecture_of, text_of
from pyllamacpu.gguf.overrides import check_used, is_overridden
from pyllamacpu.gguf.reader import TensorInfo
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.model.architectures import DEBERTA
from pyllamacpu.model.architectures import known as known_architectures
from pyllamacpu.model.deberta_attention import DebertaAttention, read_deberta_attention
from pyllamacpu.model.llama4_attention import Llama4Attention, read_llama4_attention
from pyllamacpu.model.mllama_layers import MllamaLayers, read_mllama_layers
from pyllamacpu.model.ranges import (
    ATTENTION_FACTOR,
    MAX_DIM,
    NORM_EPS,
    ROPE_FACTOR,
    ROPE_THETA,
    YARN_BETA,
    YARN_EXTRAPOLATION,
    YARN_MULTIPLIER,
)
from pyllamacpu.native import lib
from pyllamacpu.units import exact

RopeKind: TypeAlias = Literal["none", "linear", "yarn"]
PerLayer: TypeAlias = "int | tuple[int, ...]"  # one number for all layers, or one for each

_DAMAGED = "the file is damaged or too new"
_MAX_LAYERS = 1 << 16
_MAX_CONTEXT = (1 << 31) - 1
_NORM_EPS = {DEBERTA: "attention.layer_norm_epsilon"}  # norms that take the mean away too

# Keys that would change the computation in ways no Llama needs, and the values at which they do not.
# What else GGUF files hold, and what to do with it.
_OTHER_KINDS = {
    "adapter": "is a LoRA adapter and not a model: give it beside its model, with --lora (lora_path in "
    "Python)",
    IMATRIX: "is an importance matrix and not a model: `quantize` takes it, with --imatrix",
    TOWER: "is a vision tower without its text model: give the text model's file as the model, and this one "
    "as its mmproj",
}
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "rope.scaling.alpha": (0,),
    "use_parallel_residual": (False,),
}


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for long contexts.

    linear: positions divided by `factor`. yarn (arXiv 2309.00071): frequencies are interpolated between
    positions / `factor` and the original ones, by a ramp over the dimension pairs whose rotations within
    `original_context` lie between `beta_slow` and `beta_fast`; `ext_factor` weighs the ramp. The "llama3"
    scaling of Llama 3.1 is no kind: it comes as the tensor rope_freqs.weight.
    """

    kind: RopeKind = "none"
    factor: float = 1.0
    original_context: int = 0  # tokens
    ext_factor: float = 0.0
    attn_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    log_multiplier: float = 0.0
    yarn_attn_factor: float = 0.0  # the checkpoint's own attention_factor; 0: derived from `factor`

    @property
    def magnitude(self) -> float:
        """What cosines and sines are multiplied by, attn_factor included; 1 except for yarn.

        A checkpoint's attention_factor is the whole of it, as in Hugging Face's YaRN (llama.cpp recomputes
        it).
        """
        if self.kind != "yarn" or self.ext_factor == 0.0:
            return self.attn_factor
        if self.yarn_attn_factor:
            return self.attn_factor * self.yarn_attn_factor
        grown = self.attn_factor * _yarn_magnitude(self.factor, 1.0)
        return grown / _yarn_magnitude(self.factor, self.log_multiplier)


@dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of a Llama model. Sizes are elements, contexts tokens.

    `n_heads`, `kv_heads` and `ffn_dim` are one number, or a tuple with one for each layer when they differ.
    """

    arch: str
    n_layers: int
    dim: int
    n_heads: PerLayer
    kv_heads: PerLayer
    head_dim: int  # of queries and keys
    value_dim: int  # of values, per head
    ffn_dim: PerLayer
    vocab_size: int
    n_ctx_train: int
    norm_eps: float
    rope_theta: float
    rope_dim: int  # leading elements of a head that are rotated
    rope_scaling: RopeScaling
    sliding_window: int = 0  # tokens; 0: none
    attention_scale: float = 0.0  # 0: 1 / sqrt(head_dim)
    n_experts: int = 0  # 0: dense
    n_experts_used: int = 0
    expert_ffn_dim: PerLayer = 0
    moe_layer_step: int = 0  # llama4: every n-th layer has experts
    llama4: Llama4Attention | None = None  # llama4 models only
    mllama: MllamaLayers | None = None  # mllama models only
    deberta: DebertaAttention | None = None  # deberta-v2 models only
    n_tokens: int = 0  # that the file's tokenizer names; 0: it has none. Rows after them are padding

    def layer_heads(self, layer: int) -> int:
        return _at(self.n_heads, layer)

    def layer_kv_heads(self, layer: int) -> int:
        return _at(self.kv_heads, layer)

    def layer_ffn_dim(self, layer: int) -> int:
        return _at(self.ffn_dim, layer)

    def layer_expert_ffn_dim(self, layer: int) -> int:
        return _at(self.expert_ffn_dim, layer)

    @property
    def score_scale(self) -> float:
        """What query times key is multiplied by."""
        return self.attention_scale or 1.0 / math.sqrt(self.head_dim)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> ModelConfig:
        """The config of a GGUF file. Raises ModelError that names the key and its value; OptionError for an
        overridden key that is none of the model's.
        """
        check_is_model(metadata)
        keys = _Keys.of(metadata)
        keys.refuse_unknown_computation()
        n_layers = keys.whole("block_count", 1, _MAX_LAYERS)
        dim = keys.whole("embedding_length", 1, MAX_DIM)
        heads = keys.per_layer("attention.head_count", n_layers)
        kv_heads = keys.per_layer("attention.head_count_kv", n_layers, default=heads)
        _check_heads(keys, heads, kv_heads, n_layers)
        head_dim = keys.whole("attention.key_length", 1, MAX_DIM, _default_head_dim(keys, dim, heads))
        rope_dim = keys.whole("rope.dimension_count", 1, MAX_DIM, head_dim)
        if keys.arch != DEBERTA and (rope_dim > head_dim or rope_dim % 2):  # which rotates nothing
            raise keys.error(
                "rope.dimension_count", rope_dim, f"must be even and at most {head_dim}, the head size"
            )
        n_ctx_train = keys.whole("context_length", 1, _MAX_CONTEXT)
        n_experts, n_used = _experts(keys)
        expert_ffn = keys.per_layer("expert_feed_forward_length", n_layers, default=0)
        config = cls(
            arch=keys.arch,
            n_layers=n_layers,
            dim=dim,
            n_heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=keys.whole("attention.value_length", 1, MAX_DIM, head_dim),
            ffn_dim=keys.per_layer("feed_forward_length", n_layers, default=expert_ffn or None),
            vocab_size=_vocab_size(keys, metadata, tensors),
            n_ctx_train=n_ctx_train,
            norm_eps=keys.real(_NORM_EPS.get(keys.arch, "attention.layer_norm_rms_epsilon"), *NORM_EPS),
            rope_theta=keys.real("rope.freq_base", *ROPE_THETA, 10000.0),
            rope_dim=rope_dim,
            rope_scaling=_rope_scaling(keys, n_ctx_train),
            sliding_window=keys.whole("attention.sliding_window", 0, _MAX_CONTEXT, 0),
            attention_scale=keys.real("attention.scale", 0.0, 1e6, 0.0),
            n_experts=n_experts,
            n_experts_used=n_used,
            expert_ffn_dim=expert_ffn,
            llama4=read_llama4_attention(keys, n_layers, n_experts) if keys.arch == "llama4" else None,
            mllama=read_mllama_layers(keys, n_layers, tensors) if keys.arch == "mllama" else None,
            deberta=read_deberta_attention(keys) if keys.arch == DEBERTA else None,
            moe_layer_step=keys.whole("interleave_moe_layer_step", 0, _MAX_LAYERS, 0),
            n_tokens=_named_tokens(metadata),
        )
        check_used(metadata, f"{keys.arch}.")
        return config


def kv_types() -> list[TensorType]:
    """The types that keys and values can have in the cache, most bits first."""
    found = [kind for kind in TensorType if lib.pl_kv_row_bytes(kind, 1) > 0]
    return sorted(found, key=lambda kind: -kind.bits_per_weight)


def kv_type(name: str | TensorType) -> TensorType:
    """A type for keys or values in the cache. Raises OptionError for any but those of `kv_types`."""
    kind = name if isinstance(name, TensorType) else TensorType.__members__.get(name.strip().upper())
    if kind is None or lib.pl_kv_row_bytes(kind, 1) < 0:
        known = ", ".join(kind.name.lower() for kind in kv_types())
        said = name.name.lower() if isinstance(name, TensorType) else name
        raise OptionError(f"the KV cache cannot be {said:.80}; use one of {known}")
    return kind


def check_is_model(metadata: Mapping[str, Any]) -> None:
    """Raises ModelError that says what to do with a GGUF file that holds something else, whatever the
    architecture is that it was made for.
    """
    kind = text_of(metadata, "general.type")
    if "imatrix.chunk_count" in metadata:
        kind = IMATRIX
    elif architecture_of(metadata) == "clip":
        kind = TOWER
    if said := _OTHER_KINDS.get(kind or ""):
        raise ModelError(f"{_where(metadata)}{said}")


@dataclass(frozen=True)
class _Keys:
    """The architecture's own metadata keys, read with their types and ranges checked."""

    metadata: Mapping[str, Any]
    arch: str

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> _Keys:
        arch = metadata.get("general.architecture")
        if not isinstance(arch, str) or arch not in known_architectures():
            known = ", ".join(known_architectures())
            raise ModelError(
                f"{_where(metadata)}general.architecture is {arch!r}; only {known} models can be run"
            )
        return cls(metadata, arch)

    def error(self, key: str, value: object, rule: str) -> ModelError:
        what = f"{self.arch}.{key} is {_short(value)}: {rule}"
        reason = "it was overridden" if is_overridden(self.metadata, f"{self.arch}.{key}") else _DAMAGED
        return ModelError(f"{_where(self.metadata)}{what}; {reason}")

    def get(self, key: str) -> Any:
        return self.metadata.get(f"{self.arch}.{key}")

    def whole(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number from `low` to `high`."""
        value = self.get(key)
        if value is None:
            fallback: int = self._default(key, default)
            return fallback
        return self._in_range(key, value, low, high)

    def real(self, key: str, low: float, high: float, default: float | None = None) -> float:
        value = self.get(key)
        if value is None:
            fallback: float = self._default(key, default)
            return fallback
        if isinstance(value, (bool, str)) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.error(key, value, f"must be a number from {exact(low)} to {exact(high)}")
        return float(value)

    def per_layer(self, key: str, n_layers: int, default: PerLayer | None = None) -> PerLayer:
        """One number from 1 on for all layers, or an array of `n_layers`; equal ones become one."""
        value = self.get(key)
        if value is None:
            fallback: PerLayer = self._default(key, default)
            return fallback
        if not isinstance(value, (np.ndarray, list, tuple)):
            return self._in_range(key, value, 1, MAX_DIM)
        if len(value) < n_layers:
            raise self.error(key, value, f"must have a value for each of {n_layers} layers")
        given = value.tolist() if isinstance(value, np.ndarray) else list(value)
        items = tuple(self._in_range(key, item, 1, MAX_DIM) for item in given[:n_layers])
        return items[0] if len(set(items)) == 1 else items

    def refuse_unknown_computation(self) -> None:
        for key, neutral in _NEUTRAL.items():
            value = self.get(key)
            if value is not None and (not isinstance(value, (bool, int, float)) or value not in neutral):
                raise self.error(key, value, "this kind of model is not supported")

    def _default(self, key: str, default: Any) -> Any:
        if default is None:
            raise ModelError(f"{_where(self.metadata)}{self.arch}.{key} is missing; the file is incomplete")
        return default

    def _in_range(self, key: str, value: object, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, value, f"must be a whole number from {low} to {high}")
        return value


def _where(metadata: Mapping[str, Any]) -> str:
    """The file's path in front of a message, where it is known."""
    path = getattr(metadata, "path", None)
    return f"{path}: " if path else ""


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _at(value: PerLayer, layer: int) -> int:
    return value[layer] if isinstance(value, tuple) else value


def _check_heads(keys: _Keys, heads: PerLayer, kv_heads: PerLayer, n_layers: int) -> None:
    for layer in range(n_layers if isinstance(heads, tuple) or isinstance(kv_heads, tuple) else 1):
        n_heads, n_kv = _at(heads, layer), _at(kv_heads, layer)
        if n_heads % n_kv:
            raise keys.error("attention.head_count_kv", n_kv, f"must divide the {n_heads} heads")


def _default_head_dim(keys: _Keys, dim: int, heads: PerLayer) -> int | None:
    """dim / heads; None when the file must say it itself."""
    first = _at(heads, 0)
    if keys.get("attention.key_length") is None and (dim % first or isinstance(heads, tuple)):
        raise keys.error(
            "embedding_length", dim, f"must be a multiple of {first} heads, or give attention.key_length"
        )
    return dim // first or None


def _named_tokens(metadata: Mapping[str, Any]) -> int:
    """The tokenizer's length; 0 without one."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    return 0 if isinstance(tokens, (str, bool, int, float, type(None))) else len(tokens)


def _vocab_size(keys: _Keys, metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> int:
    """The key, else the tokenizer's length, else the embedding's rows: there is one for each token."""
    embedding = tensors.get("token_embd.weight")
    rows = embedding.shape[0] if embedding is not None else None
    n_tokens = _named_tokens(metadata)
    size = keys.whole("vocab_size", 1, _MAX_CONTEXT, n_tokens or rows)
    if rows is not None and max(size, n_tokens) > rows:
        said = f"the tokenizer has {n_tokens} tokens, and " if n_tokens > size else ""
        raise keys.error("vocab_size", size, f"{said}token_embd.weight has only {rows} rows")
    return size


def _experts(keys: _Keys) -> tuple[int, int]:
    """(experts, experts used for each token); (0, 0) for dense models."""
    n_experts = keys.whole("expert_count", 0, 1 << 16, 0)
    n_used = keys.whole("expert_used_count", 0, 1 << 16, 0)
    if n_used > n_experts or (n_experts and not n_used):
        raise keys.error("expert_used_count", n_used, f"must be from 1 to expert_count, {n_experts}")
    return n_experts, n_used


def _rope_scaling(keys: _Keys, n_ctx_train: int) -> RopeScaling:
    kind = keys.get("rope.scaling.type")
    key = "rope.scale_linear" if keys.get("rope.scaling.factor") is None else "rope.scaling.factor"
    factor = keys.real(key, 0.0, ROPE_FACTOR[1], 0.0) or 1.0  # 0 means none
    if factor < ROPE_FACTOR[0]:
        raise keys.error(key, factor, f"must be {exact(ROPE_FACTOR[0])} or more")
    attn_factor = keys.real("rope.scaling.attn_factor", *ATTENTION_FACTOR, 1.0)
    if kind is None:
        kind = "none" if factor == 1.0 else "linear"
    if not isinstance(kind, str) or kind not in ("none", "linear", "yarn"):
        raise keys.error("rope.scaling.type", kind, "known kinds are none, linear and yarn")
    if kind == "none":
        return RopeScaling(attn_factor=attn_factor)
    if kind == "linear":
        return RopeScaling("linear", factor, attn_factor=attn_factor)
    return RopeScaling(
        "yarn",
        factor,
        original_context=keys.whole("rope.scaling.original_context_length", 0, _MAX_CONTEXT, 0)
        or n_ctx_train,
        ext_factor=keys.real("rope.scaling.yarn_ext_factor", *YARN_EXTRAPOLATION, 1.0),
        attn_factor=attn_factor,
        yarn_attn_factor=keys.real("rope.scaling.yarn_attn_factor", *ATTENTION_FACTOR, 0.0),
        beta_fast=keys.real("rope.scaling.yarn_beta_fast", *YARN_BETA, 32.0),
        beta_slow=keys.real("rope.scaling.yarn_beta_slow", *YARN_BETA, 1.0),
        log_multiplier=keys.real("rope.scaling.yarn_log_multiplier", *YARN_MULTIPLIER, 0.0),
    )


def _yarn_magnitude(factor: float, multiplier: float) -> float:
    """The growth of attention's temperature that YaRN fits: 0.1 m ln(factor) + 1."""
    return 1.0 if factor <= 1.0 else 0.1 * multiplier * math.log(factor) + 1.0
