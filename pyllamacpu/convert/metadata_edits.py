"""Metadata that the user sets or removes by hand."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyllamacpu.errors import OptionError
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.gguf.values import SCALAR_DTYPE, SCALAR_FORMAT, ValueType
from pyllamacpu.weights.output import SPLIT_KEYS

_TYPES: dict[str, ValueType | None] = {
    "str": ValueType.STRING,
    "bool": ValueType.BOOL,
    "int": None,  # the writer's choice for a number; _LIST_TYPES for a list
    "float": ValueType.FLOAT32,
    "u8": ValueType.UINT8,
    "i8": ValueType.INT8,
    "u16": ValueType.UINT16,
    "i16": ValueType.INT16,
    "u32": ValueType.UINT32,
    "i32": ValueType.INT32,
    "u64": ValueType.UINT64,
    "i64": ValueType.INT64,
    "f32": ValueType.FLOAT32,
    "f64": ValueType.FLOAT64,
}
_ALIASES = {kind.name.lower(): name for name, kind in _TYPES.items() if kind is not None and len(name) < 4}
# Of a list of "int", the first that all fit in: readers expect int32 of lists.
_LIST_TYPES = (ValueType.INT32, ValueType.UINT32, ValueType.INT64, ValueType.UINT64)
_PROTECTED = (*SPLIT_KEYS, "general.alignment")


@dataclass(frozen=True)
class MetadataEdits:
    """`changed`: keys that are set, in place of those of the same name or after all others; `removed`:
    names.
    """

    changed: tuple[KeyValue, ...] = ()
    removed: frozenset[str] = frozenset()

    def apply(self, keys: Sequence[KeyValue]) -> list[KeyValue]:
        """The keys after the edits. Raises OptionError when a key to remove is not there."""
        known = {key.name for key in keys}
        missing = sorted(self.removed - known)
        if missing:
            raise OptionError(f"--remove-metadata {missing[0]}: there is no such key")
        changed = {key.name: key for key in self.changed}
        kept = [changed.get(key.name, key) for key in keys if key.name not in self.removed]
        return kept + [key for key in changed.values() if key.name not in known]

    def text(self, name: str) -> str | None:
        """The text that a key is set to, if it is set."""
        found = next((key.value for key in self.changed if key.name == name), None)
        return found if isinstance(found, str) else None


def parse_metadata(text: str) -> KeyValue:
    """`KEY=TYPE:VALUE`. TYPE: str, bool, int, float, u8 … f64, or one of them with [] and a JSON list as
    VALUE.

    Raises OptionError.
    """
    name, equals, typed = text.partition("=")
    word, colon, value = typed.partition(":")
    array = word.endswith("[]")
    word = word.removesuffix("[]").lower()
    word = _ALIASES.get(word, word)
    if not (name and equals and colon and word in _TYPES):
        known = ", ".join(_TYPES)
        raise OptionError(
            f"--metadata {text!r} is not KEY=TYPE:VALUE with a TYPE of {known} (with [] for a list)"
        )
    if name in _PROTECTED:
        raise OptionError(f"--metadata: {name} follows from how the file is written and cannot be set")
    kind = _TYPES[word]
    try:
        _check_text(name)
        if array:
            items = [_checked(item, kind) for item in _list(value)]
            return KeyValue(name, items, kind or _list_type(items))
        return KeyValue(name, _checked(_scalar(value, kind), kind), kind)
    except (ValueError, OverflowError) as error:
        raise OptionError(f"--metadata {_short(name)}: {_short(value)} is no {word}: {error}") from None


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _list(value: str) -> list[Any]:
    """Raises ValueError."""
    try:
        items = json.loads(value)
    except RecursionError:
        raise ValueError("is nested too deep") from None
    if not isinstance(items, list):
        raise ValueError("is not a JSON list")
    return items


def _list_type(numbers: Sequence[int]) -> ValueType:
    """Raises ValueError."""
    for kind in _LIST_TYPES:
        low, high = _range(kind)
        if all(low <= number < high for number in numbers):
            return kind
    raise ValueError("its numbers fit no type together")


def _check_text(text: str) -> None:
    """Raises ValueError for what no file can hold. Bytes that are not UTF-8 are kept as they were given."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError(f"{_short(text)} is not text") from None


def _scalar(value: str, kind: ValueType | None) -> Any:
    if kind == ValueType.STRING:
        return value
    if kind == ValueType.BOOL:
        if value.lower() not in ("true", "false", "1", "0"):
            raise ValueError("write true or false")
        return value.lower() in ("true", "1")
    return float(value) if kind in (ValueType.FLOAT32, ValueType.FLOAT64) else int(value, 0)


def _checked(value: Any, kind: ValueType | None) -> Any:
    """The value, if it has the type. Raises ValueError, OverflowError."""
    if kind == ValueType.STRING or kind == ValueType.BOOL:
        if not isinstance(value, str if kind == ValueType.STRING else bool):
            raise ValueError(f"{value!r:.60} has another type")
        if isinstance(value, str):
            _check_text(value)
        return value
    if kind in (ValueType.FLOAT32, ValueType.FLOAT64):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{value!r:.60} is not a number")
        struct.pack("<" + SCALAR_FORMAT[kind], value := float(value))  # which raises OverflowError
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r:.60} is not a whole number")
    low, high = _range(kind) if kind is not None else (-(1 << 63), 1 << 64)
    if not low <= value < high:
        raise ValueError("out of range")
    return value


def _range(kind: ValueType) -> tuple[int, int]:
    """The least whole number of a type, and the first beyond it."""
    bits = 8 * SCALAR_DTYPE[kind].itemsize
    return (0, 1 << bits) if SCALAR_FORMAT[kind].isupper() else (-(1 << bits - 1), 1 << bits - 1)
