"""The fields of a config file, read with their types checked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyllamacpu.errors import CheckpointError

# What work and memory grow with; far beyond any model.
_HIGHEST = {
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_local_experts", "num_experts"), 1 << 12),
    **dict.fromkeys(("head_dim", "num_attention_heads", "n_heads"), 1 << 16),
    **dict.fromkeys(("hidden_size", "dim", "vocab_size"), 1 << 24),
}
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
        value = self.get(key, default)
        if value is None:
            raise CheckpointError(self.path, f"{self.prefix}{key} is missing")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.error(key, value, "must be a number")
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
