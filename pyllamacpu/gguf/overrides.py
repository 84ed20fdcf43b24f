"""Metadata that is changed while a model is opened: `--override-kv`, `kv_overrides`.

What is asked for happens, or is an error: a key that nothing reads, a value of another type than the file's,
and keys by which the file itself was read cannot be overridden. Who reads a group of keys calls
`check_used` when it is done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from pyllamacpu.errors import OptionError
from pyllamacpu.gguf.metadata import Entry, Metadata, architecture_of
from pyllamacpu.gguf.values import SCALAR_DTYPE, SCALAR_FORMAT, ValueType

Overrides: TypeAlias = Mapping[str, "bool | int | float | str"]
"""Values by their keys; the type of a value is the one that is meant."""

_TYPES = ("int", "float", "bool", "str")
_FIXED = ("general.architecture", "general.type", "general.alignment", "general.quantization_version")
_FIXED_GROUPS = ("split.", "clip.", "adapter.")
_READ_LATER = ("tokenizer.chat_template", "pooling_type")  # when a chat begins, or an embedding is asked for
_MAX_TEXT = 1 << 20  # characters


class OverriddenMetadata(Metadata):
    """A file's metadata with some values replaced or added. Notes which of these were read."""

    def __init__(self, own: Metadata, values: Overrides) -> None:
        """Raises OptionError."""
        if not isinstance(values, Mapping):
            raise OptionError(f"kv_overrides={values!r:.80}: give a dictionary of keys and values")
        super().__init__(own._source, dict(own._entries))
        self._new = {key: _checked(own, key, value) for key, value in values.items()}
        for key, (kind, value) in self._new.items():
            self._values[key] = value
            self._entries[key] = Entry(kind, None, 0, 1)
        self._unread = set(self._new)

    def __getitem__(self, key: str) -> Any:
        self._unread.discard(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._unread.discard(str(key))
        return super().__contains__(key)

    def raw(self, key: str) -> bytes:
        if key in self._new and isinstance(self._values[key], str):
            return str(self[key]).encode("utf-8", "surrogateescape")
        return super().raw(key)

    def check_used(self, prefix: str) -> None:
        """Raises OptionError for an overridden key with this prefix that has not been read."""
        for key in sorted(self._unread):
            later = key.startswith(_READ_LATER) or key.endswith(_READ_LATER)
            if key.startswith(prefix) and not later:
                from difflib import get_close_matches

                near = get_close_matches(key, [k for k in self._entries if k != key], 1, 0.8)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise OptionError(
                    f"{self.path}: {key} cannot be overridden: nothing reads it for this model{hint}"
                )


def check_used(metadata: Mapping[str, Any], prefix: str) -> None:
    """The same of metadata of any kind."""
    if isinstance(metadata, OverriddenMetadata):
        metadata.check_used(prefix)


def is_overridden(metadata: Mapping[str, Any], key: str) -> bool:
    """Whether the value of a key is not the file's own."""
    return isinstance(metadata, OverriddenMetadata) and key in metadata._new


def parse_overrides(given: Sequence[str]) -> dict[str, bool | int | float | str]:
    """From `KEY=TYPE:VALUE` each, TYPE one of int, float, bool and str. The last of a key counts. Raises
    OptionError.
    """
    return dict(map(_parse, given))


def _parse(text: str) -> tuple[str, bool | int | float | str]:
    key, equals, typed = text.partition("=")
    kind, colon, value = typed.partition(":")
    if not (key and equals and colon and kind in _TYPES):
        raise OptionError(
            f"--override-kv {text[:200]!r} is not KEY=TYPE:VALUE with a TYPE of {', '.join(_TYPES)}, such as "
            "tokenizer.ggml.add_bos_token=bool:false"
        )
    try:
        if kind == "bool":
            return key, {"true": True, "false": False}[value]
        return key, {"int": int, "float": float, "str": str}[kind](value)
    except (ValueError, KeyError):
        raise OptionError(f"--override-kv {key}: {value[:80]!r} is not {_article(kind)}") from None


def _article(kind: str) -> str:
    return {"int": "a whole number", "float": "a number", "bool": "true or false"}[kind]


def _checked(own: Metadata, key: str, value: Any) -> tuple[ValueType, Any]:
    """The type and the value that the metadata has from now on."""
    where = f"{own.path}: {key!r:.200} cannot be overridden"
    if not isinstance(key, str) or not key:
        raise OptionError(f"{where}: give a key's name")
    arch = architecture_of(own)
    if key in _FIXED or key.startswith(_FIXED_GROUPS):
        raise OptionError(f"{where}: the file is read by it; change the file with `pyllamacpu convert`")
    if key.startswith(f"{arch}.vision."):
        raise OptionError(f"{where}: the shape of a vision tower cannot be changed")
    if not key.startswith(("general.", "tokenizer.", f"{arch}.")):
        raise OptionError(f"{where}: nothing reads it; keys of this model begin with {arch}. or tokenizer.")
    if isinstance(value, str) and len(value) <= _MAX_TEXT:
        given, kind = "str", ValueType.STRING
    elif isinstance(value, bool):
        given, kind = "bool", ValueType.BOOL
    elif isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        given, kind = "int", ValueType.INT64
    elif isinstance(value, float) and math.isfinite(value):
        given, kind = "float", ValueType.FLOAT32
    else:
        raise OptionError(f"{where}: {value!r:.80} is not a whole number, a number, true or false, or a text")
    if key not in own:
        return kind, value
    there = own.value_type(key)
    if (wanted := _override_type(there)) != given:
        stored = f"it is {own.describe(key)} in the file"
        raise OptionError(f"{where}: {stored}" + (f", so give {wanted}:VALUE" if wanted else ""))
    if wanted == "int" and not _fits(value, there):
        raise OptionError(f"{where}: {value} does not fit in {there.name.lower()}, as the file has it")
    return there, value


def _override_type(kind: ValueType) -> str:
    """How a value of this type is written; "" for lists."""
    if kind == ValueType.ARRAY:
        return ""
    if kind == ValueType.STRING:
        return "str"
    if kind == ValueType.BOOL:
        return "bool"
    return "float" if kind in (ValueType.FLOAT32, ValueType.FLOAT64) else "int"


def _fits(value: int, kind: ValueType) -> bool:
    bits, unsigned = 8 * SCALAR_DTYPE[kind].itemsize, SCALAR_FORMAT[kind].isupper()
    low, high = (0, 1 << bits) if unsigned else (-(1 << bits - 1), 1 << bits - 1)
    return low <= value < high
