"""Unigram segmentation (Kudo 2018, arXiv 1804.10959): of all ways to cut a word into pieces, the likeliest.

The words are those that a tokenizer.json's pre-tokenizer makes; ties, unknown characters and bytes are as in
the tokenizers library, so that ids are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_UNKNOWN_PENALTY = 10.0  # below the lowest score
_MAX_CACHED = 1 << 16  # words


class Unigram:
    """pieces and scores: of the vocabulary, by id; of a piece that is there twice the last one counts.

    unknown: the id for characters that no piece has, neighbours being one token; None: they are an error for
    the caller, who gets None in place of an id. With `byte_fallback` they become the tokens of their bytes,
    where the vocabulary has all of these.
    """

    def __init__(
        self, pieces: Sequence[str], scores: Sequence[float], unknown: int | None, byte_fallback: bool
    ) -> None:
        self.ids = dict(zip(pieces, range(len(pieces)), strict=True))
        self._scores = list(scores)
        self._unknown = unknown
        self._unknown_score = min(self._scores) - _UNKNOWN_PENALTY
        self._longest = max(map(len, pieces))
        self._byte_fallback = byte_fallback
        self._cache: dict[str, list[int | None]] = {}

    def encode(self, word: str) -> list[int | None]:
        """The ids of a word's pieces."""
        found = self._cache.get(word)
        if found is None:
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            found = self._encoded(word)
            if len(word) <= 64:
                self._cache[word] = found
        return found

    def _encoded(self, word: str) -> list[int | None]:
        ids: list[int | None] = []
        unknown_end = -1  # of the run of unknown characters that was met last, walking backwards
        end, (starts, pieces) = len(word), self._best_path(word)
        while end > 0:
            start, piece = starts[end], pieces[end]
            if piece is not None and piece != self._unknown:
                if unknown_end >= 0:
                    ids += reversed(self._of_unknown(word[end:unknown_end]))
                    unknown_end = -1
                ids.append(piece)
            elif unknown_end < 0:
                unknown_end = end
            end = start
        if unknown_end >= 0:
            ids += reversed(self._of_unknown(word[:unknown_end]))
        return ids[::-1]

    def _best_path(self, word: str) -> tuple[list[int], list[int | None]]:
        """By each place in the word: where the best piece that ends there begins, and its id (None or
        `unknown`: a character that no piece has). Of paths that are as likely the first found counts.
        """
        n, known, scores = len(word), self.ids.get, self._scores
        best = [0.0] + [-math.inf] * n
        starts, pieces = [0] * (n + 1), [None] * (n + 1)
        ends: list[int | None] = pieces  # type: ignore[assignment]
        reached = bytearray(n + 1)
        for i in range(n):
            before, single = best[i], False
            for end in range(i + 1, min(i + self._longest, n) + 1):
                piece = known(word[i:end])
                if piece is None:
                    continue
                score = scores[piece] + before
                if not reached[end] or score > best[end]:
                    reached[end], best[end], starts[end], ends[end] = 1, score, i, piece
                single = single or end == i + 1
            if not single:
                score = self._unknown_score + before
                if not reached[i + 1] or score > best[i + 1]:
                    reached[i + 1], best[i + 1], starts[i + 1], ends[i + 1] = 1, score, i, self._unknown
        return starts, ends

    def _of_unknown(self, text: str) -> list[int | None]:
        """The tokens of neighbouring characters that no piece has."""
        if text in self.ids:
            return [self.ids[text]]
        if self._byte_fallback:
            found = [self.ids.get(f"<0x{byte:02X}>") for byte in text.encode()]
            if None not in found:
                return found
        return [self._unknown]
