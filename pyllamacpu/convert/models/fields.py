"""The fields of a config file, read with their types checked."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyllamacpu.errors import CheckpointError
from pyllamacpu.model.ranges import (
    ATTENTION_FACTOR,
    MAX_DIM,
    NORM_EPS,
    ROPE_FACTOR,
    ROPE_THETA,
    SHUFFLE_RATIO,
    YARN_BETA,
    YARN_EXTRAPOLATION,
    YARN_MULTIPLIER,
)
from pyllamacpu.units import exact

# What work and memory grow with; far beyond any model.
_HIGHEST = {
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_local_experts", "num_experts"), 1 << 12),
    **dict.fromkeys(("head_dim", "num_attention_heads", "n_heads"), 1 << 16),
    **dict.fromkeys(("hidden_size", "dim", "vocab_size"), MAX_DIM),
    **dict.fromkeys(("intermediate_size", "intermediate_size_mlp", "hidden_dim"), MAX_DIM),
}
_RANGES = {
    **dict.fromkeys(("rms_norm_eps", "norm_eps", "layer_norm_eps"), NORM_EPS),
    **dict.fromkeys(("rope_theta", "rope_freq_base"), ROPE_THETA),
    **dict.fromkeys(("factor", "rope_scaling_factor"), ROPE_FACTOR),
    **dict.fromkeys(("attention_factor", "attn_factor"), (0.0, ATTENTION_FACTOR[1])),  # 0: not stated
    **dict.fromkeys(("beta_fast", "beta_slow"), YARN_BETA),
    **dict.fromkeys(("mscale", "mscale_all_dim"), YARN_MULTIPLIER),
    "extrapolation_factor": YARN_EXTRAPOLATION,
    "pixel_shuffle_ratio": SHUFFLE_RATIO,
}
_LARGEST = (2 - 2**-23) * 2.0**127  # float32, as which they are written
_NOTHING: tuple[Any, ...] = (None, False, "", {}, [])


@dataclass(frozen=True)
class Fields:
    """An object of a JSON file; `prefix` is put before names in messages. null counts as absent."""

    path: Path
    values: Mapping[str, Any]
    prefix: str = ""

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def inside(self, key: str, ignored: Iterable[str] = ()) -> Fields | None:
        """The fields of an object that is the value of a key, without those `ignored`; None for others."""
        found, left_out = self.get(key), set(ignored)
        if not isinstance(found, dict):
            return None
        return Fields(self.path, {k: v for k, v in found.items() if k not in left_out}, f"{key}.")

    def error(self, key: str, value: object, rule: str) -> CheckpointError:
        return CheckpointError(self.path, f"{self.prefix}{key} is {short(value)}: {rule}")

    def whole(self, key: str, default: int | None = None, low: int = 0) -> int:
        """A whole number from `low` on; without a `default` it must be there."""
        value = self.get(key, default)
        if value is None:
            raise CheckpointError(self.path, f"{self.prefix}{key} is missing")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        high = _HIGHEST.get(key, (1 << 31) - 1)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, value, f"must be a whole number from {low} to {high}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A number that the file's readers take; without a `default` it must be there."""
        value = self.get(key, default)
        if value is None:
            raise CheckpointError(self.path, f"{self.prefix}{key} is missing")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST:
            raise self.error(key, value, "must be a number")
        if key in _RANGES:
            low, high = _RANGES[key]
            (written,) = struct.unpack("<f", struct.pack("<f", value))
            if not low <= written <= high:
                raise self.error(key, value, f"must be a number from {exact(low)} to {exact(high)}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key, default)
        if not isinstance(value, (bool, int)):
            raise self.error(key, value, "must be true or false")
        return bool(value)

    def only(self, known: Iterable[str], allowed: Iterable[str] = (), ignorable: bool = True) -> None:
        """Raises CheckpointError that names the keys that could change the result and are not understood.
        `ignorable`: --ignore-config reaches these keys.

        Keys that are off (null, false, empty) change nothing; names with a leading underscore are a library's
        own.
        """
        fine = {*known, *allowed}
        unknown = [
            f"{self.prefix}{key} = {short(value)}"
            for key, value in self.values.items()
            if key not in fine
            and not key.startswith("_")
            and not any(value is x or (value == x and type(value) is type(x)) for x in _NOTHING)
        ]
        if unknown:
            way_out = "; if they change nothing, say so with --ignore-config KEY" if ignorable else ""
            said = "has keys that are not understood and could change the result: " + ", ".join(unknown)
            raise CheckpointError(self.path, said + way_out)


def words(text: str) -> frozenset[str]:
    """The words of a text: a long list of names, easier to read than one of literals."""
    return frozenset(text.split())


def short(value: object) -> str:
    """A value as JSON for a message, cut to 60 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
