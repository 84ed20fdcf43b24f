"""The pieces of a vocabulary, packed: 128,000 objects and a dictionary of them take 17 MB, their text one."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import overload

_HALVES = "surrogatepass"  # whatever a file's piece is, it comes back


class Pieces(Sequence[str]):
    """Texts that are all different, by their ids. Immutable; one is decoded when it is asked for."""

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [text.encode("utf-8", _HALVES) for text in texts]
        self._text = b"\n".join([b"", *encoded, b""])  # each between two line ends
        self._starts = array("q", accumulate((len(one) + 1 for one in encoded), initial=1))

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"piece {i} of {len(self)}")
        i %= len(self)
        return self._text[self._starts[i] : self._starts[i + 1] - 1].decode("utf-8", _HALVES)

    def __iter__(self) -> Iterator[str]:
        if self._text.count(b"\n") == len(self) + 1:  # none holds a line end
            return iter(self._text[1:-1].decode("utf-8", _HALVES).split("\n") if len(self) else ())
        return (self[i] for i in range(len(self)))

    def id_of(self, piece: str) -> int | None:
        """None for a text that is no piece. A search through all of them: a fraction of a millisecond."""
        wanted = b"\n%b\n" % piece.encode("utf-8", _HALVES)
        at = self._text.find(wanted)
        while at >= 0:
            i = bisect_left(self._starts, at + 1)
            if i < len(self) and self._starts[i] == at + 1 and self._starts[i + 1] == at + len(wanted):
                return i
            at = self._text.find(wanted, at + 1)  # that was within a piece with line ends
        return None
