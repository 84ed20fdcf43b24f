"""Rope scaling as checkpoints state it (`rope_scaling`, `rope_parameters`) and as GGUF files do.

GGUF knows linear and YaRN scaling by keys, and Llama 3.1's by the tensor rope_freqs.weight. What it cannot
say is an error. The meanings of the fields are those of transformers' modeling_rope_utils.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from pyllamacpu.convert.models.fields import Fields
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.model.ranges import ATTENTION_FACTOR
from pyllamacpu.units import exact

RopeKind = Literal["none", "linear", "yarn", "llama3"]

_COMMON = {"type", "rope_type", "rope_theta", "partial_rotary_factor", "factor", "finetuned"}
_FIELDS: dict[str, set[str]] = {
    "none": {"original_max_position_embeddings"},
    "linear": {"original_max_position_embeddings"},
    "dynamic": {"original_max_position_embeddings", "alpha"},
    "llama3": {"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        *("original_max_position_embeddings", "attention_factor", "attn_factor", "beta_fast", "beta_slow"),
        *("extrapolation_factor", "mscale", "mscale_all_dim", "truncate"),
    },
}
_SAME = {"default": "none", "su": "longrope"}


@dataclass(frozen=True)
class Rope:
    """How positions turn queries and keys. `values`: metadata below `rope.scaling.`, without the kind."""

    theta: float
    kind: RopeKind = "none"
    values: Mapping[str, float] = field(default_factory=dict)
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0  # tokens
    notes: tuple[str, ...] = ()

    def keys(self) -> list[KeyValue]:
        """Metadata without the architecture's prefix."""
        if self.kind not in ("linear", "yarn"):
            return []
        found = [
            KeyValue("rope.scaling.type", self.kind),
            KeyValue("rope.scaling.factor", self.factor, ValueType.FLOAT32),
        ]
        if self.kind == "yarn":
            found.append(
                KeyValue("rope.scaling.original_context_length", self.original_context, ValueType.UINT32)
            )
        found += [
            KeyValue(f"rope.scaling.{key}", value, ValueType.FLOAT32) for key, value in self.values.items()
        ]
        return found

    def divisors(self, head_dim: int) -> npt.NDArray[np.float32] | None:
        """rope_freqs.weight, (head_dim / 2,): what each frequency is divided by; None where there is none.

        Llama 3.1: long wavelengths are slowed by `factor`, short ones kept, those between interpolated.
        """
        if self.kind != "llama3":
            return None
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        frequencies = 1.0 / np.power(np.float32(self.theta), exponents, dtype=np.float32)
        wavelengths = 2 * math.pi / frequencies.astype(np.float64)
        span = self.high_freq_factor - self.low_freq_factor
        smooth = (self.original_context / wavelengths - self.low_freq_factor) / (span or 1.0)
        between = 1.0 / ((1.0 - smooth) / self.factor + smooth)
        divisors = np.where(wavelengths > self.original_context / self.low_freq_factor, self.factor, between)
        short = wavelengths < self.original_context / self.high_freq_factor
        return np.where(short, 1.0, divisors).astype(np.float32)


def read_rope(config: Fields, n_ctx: int, default_theta: float = 10000.0) -> tuple[Rope, int]:
    """The rope of a config.json, and the context that the file may claim. Raises CheckpointError."""
    given = _parameters(config)
    theta = given.real("rope_theta", config.real("rope_theta", default_theta))
    for where in (given, config):
        if where.real("partial_rotary_factor", 1.0) != 1.0:
            raise where.error("partial_rotary_factor", where.get("partial_rotary_factor"), "must be 1")
    name = str(given.get("rope_type") or given.get("type") or "none").lower()
    kind = _SAME.get(name, name)
    if kind not in _FIELDS:
        known = ", ".join(sorted(_FIELDS))
        raise given.error("rope_type", name, f"GGUF files can state {known}")
    given.only({*_COMMON, *_FIELDS[kind]}, ignorable=False)
    if kind == "none":
        return Rope(theta), n_ctx
    outer = config.whole("original_max_position_embeddings", 0)
    original = outer or given.whole("original_max_position_embeddings", 0) or n_ctx
    if kind == "dynamic":
        return _dynamic(given, theta, original), original
    factor = given.real("factor", n_ctx / original if kind == "yarn" else None)
    if kind == "linear":
        return Rope(theta, "linear", factor=factor), n_ctx
    if kind == "llama3":
        low, high = given.real("low_freq_factor", 1.0), given.real("high_freq_factor", 4.0)
        if low <= 0 or high < low:
            raise given.error("high_freq_factor", high, f"must be at least low_freq_factor, {exact(low)}")
        return Rope(theta, "llama3", {}, factor, low, high, original), n_ctx
    return Rope(theta, "yarn", _yarn_values(given, factor), factor, original_context=original), n_ctx


def _parameters(config: Fields) -> Fields:
    """The scaling's fields: `rope_parameters` (transformers 5) or `rope_scaling` (before)."""
    both = [config.get(key) for key in ("rope_parameters", "rope_scaling")]
    if all(both) and _meaning(both[0]) != _meaning(both[1]):
        raise config.error("rope_scaling", both[1], f"rope_parameters says otherwise: {both[0]}; keep one")
    for key in ("rope_parameters", "rope_scaling"):
        value = config.get(key)
        if not value:
            continue
        if not isinstance(value, dict):
            raise config.error(key, value, "must be an object")
        inner = value.get("full_attention", value)
        if not isinstance(inner, dict):
            raise config.error(f"{key}.full_attention", inner, "must be an object")
        if any(isinstance(other, dict) and other is not inner for other in value.values()):
            raise config.error(
                key, value, "scaling that differs between layers cannot be stated in a GGUF file"
            )
        return Fields(config.path, inner, f"{key}.")
    return Fields(config.path, {}, "rope_parameters.")


def _meaning(value: object) -> object:
    """Of a scaling, what its two spellings share; the base of the rope may be outside."""
    if not isinstance(value, dict):
        return value
    kind = value.get("rope_type") or value.get("type") or "default"
    rest = {k: v for k, v in value.items() if k not in ("type", "rope_type", "rope_theta") and v is not None}
    return {"rope_type": kind, **rest}


def _dynamic(given: Fields, theta: float, original: int) -> Rope:
    """Dynamic NTK scaling changes nothing up to the original context, and cannot be stated beyond it."""
    factor = given.real("factor", 1.0)
    note = (
        f"rope scaling 'dynamic' (factor {exact(factor)}) begins beyond {original} tokens and cannot be "
        f"stated in a "
        f"GGUF file: the context length is {original}"
    )
    return Rope(theta, notes=(note,))


def _yarn_values(given: Fields, factor: float) -> dict[str, float]:
    if given.get("truncate") is False:
        raise given.error("truncate", False, "YaRN without truncation cannot be stated in a GGUF file")
    values: dict[str, float] = {}
    if given.get("extrapolation_factor") is not None:
        values["yarn_ext_factor"] = given.real("extrapolation_factor", 1.0)
    attention = given.real("attention_factor", given.real("attn_factor", 0.0))
    if not attention and given.get("mscale") and given.get("mscale_all_dim"):
        grown, all_dims = (_magnitude(factor, given.real(k, 1.0)) for k in ("mscale", "mscale_all_dim"))
        attention = grown / all_dims
    if attention:  # readers multiply this by what they derive from the factor
        values["attn_factor"] = grown = attention / _magnitude(factor, 1.0)
        if not ATTENTION_FACTOR[0] <= grown <= ATTENTION_FACTOR[1]:
            raise given.error("attention_factor", attention, f"is far from what factor {exact(factor)} gives")
    for key in ("beta_fast", "beta_slow"):
        if given.get(key) is not None:
            values[f"yarn_{key}"] = given.real(key, 1.0)
    return values


def _magnitude(factor: float, multiplier: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0
