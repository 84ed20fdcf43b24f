"""Unigram segmentation (Kudo 2018, arXiv 1804.10959): of all ways to cut a word into pieces, the likeliest.

The words are those that a tokenizer.json's pre-tokenizer makes; ties, unknown characters and bytes are as in
the tokenizers library, so that ids are the same. The search itself is in C (csrc/text/unigram.c).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import TokenizerError
from pyllamacpu.gguf.strings import StringArray
from pyllamacpu.native import check, ffi, lib

_UNKNOWN_PENALTY = 10.0  # below the lowest score
_MAX_CACHED = 1 << 16  # words
_CACHED_LENGTH = 64  # characters of a word that is remembered


class Unigram:
    """pieces and scores: of the vocabulary, by id, which may have more pieces than scores; those count not.

    unknown: the id for characters that no piece has, neighbours being one token; None: they are an error for
    the caller, who gets None in place of an id. With `byte_fallback` they become the tokens of their bytes,
    where the vocabulary has all of these.
    """

    def __init__(
        self,
        pieces: Sequence[str],
        scores: npt.NDArray[np.float64],
        unknown: int | None,
        byte_fallback: bool,
    ) -> None:
        """Raises TokenizerError for a vocabulary that is none."""
        self._unknown, self._byte_fallback = unknown, byte_fallback
        text, starts = pieces.packed() if isinstance(pieces, StringArray) else _packed(pieces)
        scores = np.ascontiguousarray(scores, np.float64)
        handle = lib.pl_unigram_new(
            ffi.from_buffer("uint8_t[]", text),
            ffi.from_buffer("int64_t[]", starts),
            ffi.from_buffer("double[]", scores),
            min(len(scores), len(pieces)),
            float(scores.min()) - _UNKNOWN_PENALTY if scores.size else 0.0,
        )
        if handle == ffi.NULL:
            raise TokenizerError("its pieces are no vocabulary, or too large a one")
        self._handle = ffi.gc(handle, lib.pl_unigram_free, len(text) + 32 * len(scores))
        self._cache: dict[str, list[int | None]] = {}

    def encode(self, word: str) -> list[int | None]:
        """The ids of a word's pieces."""
        found = self._cache.get(word)
        if found is None:
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            found = self._encoded(word.encode())
            if len(word) <= _CACHED_LENGTH:
                self._cache[word] = found
        return found

    def _encoded(self, word: bytes) -> list[int | None]:
        room = ffi.new("int32_t[]", 2 * len(word) + 2)
        ends = room + len(word)
        n = check(
            lib.pl_unigram_encode(self._handle, word, len(word), room, ends), "cutting a word into pieces"
        )
        ids: list[int | None] = []
        start = end = 0
        unknown_from = -1  # where the run of unknown characters under way begins
        for token, end in zip(
            ffi.unpack(room, n) if n else (), ffi.unpack(ends, n) if n else (), strict=True
        ):
            if token < 0 or token == self._unknown:
                unknown_from = start if unknown_from < 0 else unknown_from
            else:
                if unknown_from >= 0:
                    ids += self._of_unknown(word[unknown_from:start])
                    unknown_from = -1
                ids.append(token)
            start = end
        return ids + self._of_unknown(word[unknown_from:end]) if unknown_from >= 0 else ids

    def _id(self, text: bytes) -> int | None:
        found = int(lib.pl_unigram_find(self._handle, text, len(text)))
        return None if found < 0 else found

    def _of_unknown(self, text: bytes) -> list[int | None]:
        """The tokens of neighbouring characters that no piece has."""
        if (whole := self._id(text)) is not None:
            return [whole]
        if self._byte_fallback:
            found = [self._id(b"<0x%02X>" % byte) for byte in text]
            if None not in found:
                return found
        return [self._unknown]


def _packed(pieces: Sequence[str]) -> tuple[bytes, npt.NDArray[np.int64]]:
    """As StringArray.packed."""
    data = [piece.encode("utf-8", "surrogateescape") for piece in pieces]
    starts = np.zeros(len(data) + 1, np.int64)
    np.cumsum([len(item) + 1 for item in data], out=starts[1:])
    return b"".join(item + b"\0" for item in data), starts
