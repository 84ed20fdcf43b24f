"""The metadata of a GGUF file: validated when it is opened, decoded when it is read."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyllamacpu.gguf.source import Cursor, Source
from pyllamacpu.gguf.strings import StringArray, scan_end
from pyllamacpu.gguf.values import SCALAR_DTYPE, SCALAR_FORMAT, ValueType

MAX_DEPTH = 4  # arrays within arrays
MAX_NESTED = 1 << 16  # inner arrays of one file
MAX_ITEMS = 1 << 27  # elements of all arrays of one file
MAX_ENTRIES = 1 << 20  # keys, and tensors, of one file


@dataclass
class _Budget:
    """What the arrays of one file may still hold, so that a large file of nothing is refused at once."""

    arrays: int = MAX_NESTED
    items: int = MAX_ITEMS


@dataclass(frozen=True)
class Entry:
    """Where a value lies. `start` is its first byte, after the type and, for arrays, after the count."""

    kind: ValueType
    element: ValueType | None  # of arrays
    start: int
    count: int  # elements of an array, bytes of a string, else 1


class Metadata(Mapping[str, Any]):
    """The keys of a file and their values, decoded on first access.

    Numbers come as int, float or bool; strings as str (bytes that are not UTF-8 are replaced, `raw(key)` has
    them); arrays of numbers as read-only numpy arrays in native byte order; arrays of strings as
    `StringArray`; arrays of arrays as tuples of those.
    """

    def __init__(self, source: Source, entries: dict[str, Entry]) -> None:
        self._source = source
        self._entries = entries
        self._values: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            self._values[key] = _decode(self._source, self._entries[key])
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    @property
    def path(self) -> str:
        """The file that the metadata is from."""
        return self._source.path

    def value_type(self, key: str) -> ValueType:
        return self._entries[key].kind

    def element_type(self, key: str) -> ValueType | None:
        """The type of an array's elements; None for anything else."""
        return self._entries[key].element

    def raw(self, key: str) -> bytes:
        """The bytes of a string value. Raises KeyError for values of other types."""
        entry = self._entries[key]
        if entry.kind != ValueType.STRING:
            raise KeyError(f"{key} is not a string")
        return self._source.bytes[entry.start : entry.start + entry.count].tobytes()

    def describe(self, key: str) -> str:
        """The type of a value in short, e.g. `uint32`, `string`, `array of 49152 string`."""
        entry = self._entries[key]
        if entry.kind != ValueType.ARRAY or entry.element is None:
            return entry.kind.name.lower()
        return f"array of {entry.count} {entry.element.name.lower()}"


def text_of(metadata: Mapping[str, Any], key: str) -> str | None:
    """The value of `key` where it is a text: a file may hold anything there, arrays cannot be compared."""
    value = metadata.get(key)
    return value if isinstance(value, str) else None


def architecture_of(metadata: Mapping[str, Any]) -> str | None:
    """general.architecture, where it is a text."""
    return text_of(metadata, "general.architecture")


def read_metadata(cursor: Cursor, n_entries: int) -> Metadata:
    """Reads `n_entries` keys and checks their values, leaving the cursor after the last one."""
    smallest = cursor.source.width + 1 + 4 + 1  # a key of one byte, its type, a value of one byte
    if n_entries > min(MAX_ENTRIES, cursor.left // smallest):
        raise cursor.fail(f"{n_entries} metadata keys cannot fit in the file")
    entries: dict[str, Entry] = {}
    budget = _Budget()
    for i in range(n_entries):
        key = cursor.name(f"metadata key {i}")
        if key in entries:
            raise cursor.fail(f"metadata key {key!r} occurs twice")
        kind = _value_type(cursor, f"the value of {key!r}")
        entries[key] = _check_value(cursor, kind, f"the value of {key!r}", 0, budget)
    return Metadata(cursor.source, entries)


def _value_type(cursor: Cursor, what: str) -> ValueType:
    number = cursor.u32(what)
    try:
        return ValueType(number)
    except ValueError:
        raise cursor.fail(f"{what} has the unknown type {number}") from None


def _check_value(cursor: Cursor, kind: ValueType, what: str, depth: int, budget: _Budget) -> Entry:
    """Moves past one value and returns where it lies; every length in it is inside the file afterwards."""
    if kind == ValueType.STRING:
        length = cursor.count(what)
        return Entry(kind, None, cursor.skip(length, what), length)
    if kind == ValueType.ARRAY:
        return _check_array(cursor, what, depth, budget)
    start = cursor.skip(SCALAR_DTYPE[kind].itemsize, what)
    if kind == ValueType.BOOL:
        _check_bools(cursor, start, 1, what)
    return Entry(kind, None, start, 1)


def _check_array(cursor: Cursor, what: str, depth: int, budget: _Budget) -> Entry:
    if depth >= MAX_DEPTH:
        raise cursor.fail(f"{what} has arrays nested deeper than {MAX_DEPTH}")
    element = _value_type(cursor, what)
    count = cursor.count(what)
    start = cursor.pos
    smallest = _smallest_bytes(element, cursor.source.width)
    if count > cursor.left // smallest:
        raise cursor.fail(f"{what} claims {count} elements at byte {start}, more than the file can hold")
    budget.items -= count
    if budget.items < 0:
        raise cursor.fail(f"{what} claims {count} elements; arrays of {MAX_ITEMS} in all can be read")
    if element == ValueType.STRING:
        cursor.pos = scan_end(cursor.source, start, count)
    elif element == ValueType.ARRAY:
        budget.arrays -= count
        if budget.arrays < 0:
            raise cursor.fail(f"{what} holds more than {MAX_NESTED} inner arrays")
        for _ in range(count):
            _check_array(cursor, what, depth + 1, budget)
    else:
        cursor.skip(count * smallest, what)
        if element == ValueType.BOOL:
            _check_bools(cursor, start, count, what)
    return Entry(ValueType.ARRAY, element, start, count)


def _smallest_bytes(kind: ValueType, width: int) -> int:
    """The least number of bytes that a value of this type takes in a file."""
    if kind == ValueType.STRING:
        return width
    return 4 + width if kind == ValueType.ARRAY else SCALAR_DTYPE[kind].itemsize


def _check_bools(cursor: Cursor, start: int, count: int, what: str) -> None:
    if count and int(cursor.source.bytes[start : start + count].max()) > 1:
        raise cursor.fail(f"{what} is a boolean that is neither 0 nor 1")


def _decode(source: Source, entry: Entry) -> Any:
    if entry.kind == ValueType.STRING:
        return source.bytes[entry.start : entry.start + entry.count].tobytes().decode("utf-8", "replace")
    if entry.kind == ValueType.ARRAY and entry.element is not None:
        return _decode_array(source, entry.element, entry.start, entry.count)
    packed = source.bytes[entry.start : entry.start + SCALAR_DTYPE[entry.kind].itemsize].tobytes()
    return struct.unpack(source.order + SCALAR_FORMAT[entry.kind], packed)[0]


def _decode_array(source: Source, element: ValueType, start: int, count: int) -> Any:
    if element == ValueType.STRING:
        return StringArray(source, start, count)
    if element == ValueType.ARRAY:
        return _decode_nested(source, start, count)
    dtype = SCALAR_DTYPE[element]
    stored = source.bytes[start : start + count * dtype.itemsize].tobytes()
    array = np.frombuffer(stored, dtype.newbyteorder(source.byteorder)).astype(dtype)
    array.flags.writeable = False
    return array


def _decode_nested(source: Source, start: int, count: int) -> tuple[Any, ...]:
    cursor = Cursor(source, start)
    inner = [_check_array(cursor, "an array", 0, _Budget()) for _ in range(count)]
    return tuple(_decode(source, entry) for entry in inner)
