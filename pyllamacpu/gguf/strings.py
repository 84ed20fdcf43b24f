"""Arrays of strings inside a mapped file, indexed and decoded only when they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TypeAlias, overload

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import GGUFError
from pyllamacpu.gguf.source import Source

Positions: TypeAlias = npt.NDArray[np.uint64]
RawBytes: TypeAlias = bytes  # `bytes` itself is a method's name below
_SEPARATORS = (0, 1, 2, 3, 4, 5, 6, 7, 10, 13)  # control characters that real tokens hardly ever contain


def scan_end(source: Source, start: int, count: int) -> int:
    """The byte after `count` strings that begin at `start`.

    Raises GGUFError when they run outside the file.
    """
    return _scan(source, start, count, None, None)


def _scan(
    source: Source, start: int, count: int, offsets: Positions | None, lengths: Positions | None
) -> int:
    from pyllamacpu.native import ffi, lib

    def pointer(array: Positions | None) -> object:
        return ffi.NULL if array is None else ffi.from_buffer("uint64_t[]", array)

    end = lib.pl_gguf_scan_strings(
        ffi.from_buffer("uint8_t[]", source.bytes),
        source.size,
        start,
        count,
        source.width,
        int(source.byteorder == "big"),
        pointer(offsets),
        pointer(lengths),
    )
    if end < 0:
        raise GGUFError(
            source.path, f"the array of {count} strings at byte {start} runs past the end of the file"
        )
    return int(end)


class StringArray(Sequence[str]):
    """`count` strings of a metadata array, as text or as the raw bytes of the file.

    Text is decoded as UTF-8 with `surrogateescape`, so that strings that are not UTF-8 stay distinct and
    `s.encode("utf-8", "surrogateescape")` gives the bytes back. `str_list()` and `bytes_list()` are the
    fast ways to all of them; nothing is kept but the positions, once a single string was asked for.
    """

    def __init__(self, source: Source, start: int, count: int) -> None:
        self._source = source
        self._start = start
        self._count = count

    @cached_property
    def _index(self) -> tuple[Positions, Positions]:
        return self._positions()

    def _positions(self) -> tuple[Positions, Positions]:
        """(offsets, lengths), bytes from the file's start, both (count,) uint64."""
        if (known := self.__dict__.get("_index")) is not None:
            offsets, lengths = known
            return offsets, lengths
        offsets = np.empty(self._count, np.uint64)
        lengths = np.empty(self._count, np.uint64)
        _scan(self._source, self._start, self._count, offsets, lengths)
        return offsets, lengths

    def __len__(self) -> int:
        return self._count

    def bytes(self, i: int) -> RawBytes:
        """String `i` as the file's bytes. Raises IndexError outside the array."""
        if not -self._count <= i < self._count:
            raise IndexError(f"string {i} of {self._count}")
        offset, length = (int(array[i]) for array in self._index)
        return self._source.bytes[offset : offset + length].tobytes()

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(self._count))]
        return self.bytes(i).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return iter(self.str_list())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (StringArray, list, tuple)):
            return NotImplemented
        return len(self) == len(other) and self.str_list() == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"StringArray of {self._count}"

    def bytes_list(self) -> list[RawBytes]:
        """All strings as bytes."""
        for separator in _SEPARATORS:
            joined = self._joined(separator)
            if joined.count(separator) == self._count:
                return joined.split(RawBytes([separator]))[:-1]
        return [self.bytes(i) for i in range(self._count)]

    def str_list(self) -> list[str]:
        """All strings as text."""
        for separator in _SEPARATORS:
            joined = self._joined(separator)
            if joined.count(separator) == self._count:
                # An ASCII separator ends any unfinished UTF-8 sequence: decoding at once equals one by one.
                return joined.decode("utf-8", "surrogateescape").split(chr(separator))[:-1]
        return [self.bytes(i).decode("utf-8", "surrogateescape") for i in range(self._count)]

    def lines(self) -> RawBytes:
        """All strings, each followed by a line end; one that holds a line end is left empty."""
        joined = self._joined(10)
        if joined.count(10) == self._count:
            return joined
        return b"".join(b"\n" if b"\n" in text else text + b"\n" for text in self.bytes_list())

    def packed(self) -> tuple[RawBytes, npt.NDArray[np.int64]]:
        """All strings with a byte behind each, and where each begins, (n + 1,): the fastest way to them."""
        starts = np.zeros(self._count + 1, np.int64)
        np.cumsum(self._index[1].astype(np.int64) + 1, out=starts[1:])
        return self._joined(0), starts

    def _joined(self, separator: int) -> RawBytes:
        """All strings, each followed by the separator byte."""
        from pyllamacpu.native import ffi, lib

        offsets, lengths = self._positions()
        out = bytearray(int(lengths.sum()) + self._count)
        used = lib.pl_gguf_join_strings(
            ffi.from_buffer("uint8_t[]", self._source.bytes),
            self._source.size,
            self._count,
            ffi.from_buffer("uint64_t[]", offsets),
            ffi.from_buffer("uint64_t[]", lengths),
            separator,
            ffi.from_buffer("uint8_t[]", out),
            len(out),
        )
        if used != len(out):
            raise GGUFError(self._source.path, "the file changed while it was read")
        return RawBytes(out)
