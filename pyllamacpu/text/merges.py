"""Byte-pair merging of one word by a list of merges, lowest rank first.

Two mergers with the same answer: `merge_by_list`, a Python loop over a dictionary of ranks, and the BPE model
of the `tokenizers` library. The library merges a long word up to ten times as fast, but it must be built: for
Llama 3 (280,000 merges) that takes 0.35 s and 50 MB more than the dictionary does, and a short prompt would
wait for it before the first token. So the list merges until it has seen as many letters as there are merges
(one letter costs the list about what one merge costs the library to take up), then the library takes over:
never more than twice the time of the better choice.

CPU time in ms, of the first text after loading (tokenizers 0.23, one core of a Xeon, 2026-11-29), beside
tiktoken, which knows only the order of the tokens, so that its answer had to be proved equal first:

                                  list    library   tiktoken
    Llama 3, 240 bytes             126        484          -
    Llama 3, 1 MB of code          577        821       1839
    Llama 3, 1 MB of Chinese      1750        945       2067
    Llama 3, 1 MB of long runs    4981       1039       1747
    SmolLM2, 240 bytes              22         85          -
    SmolLM2, 1 MB of Chinese      1101        534        845
"""

from __future__ import annotations

import heapq
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers.models import BPE

LETTERS_PER_MERGE = 1  # letters by the list in the time that the library needs to take up one merge


class Merges:
    """A list of merges ("left right", the first of equals counts) over the words of an alphabet."""

    def __init__(self, merges: list[str], alphabet: list[str]) -> None:
        self._list = merges
        self._alphabet = alphabet
        self._n_letters = 0  # merged by the list so far

    def merge(self, word: str) -> list[str]:
        """The pieces of `word` after all merges: the lowest rank first, the leftmost of equal ranks first."""
        self._n_letters += len(word)
        if self._n_letters > len(self._list) * LETTERS_PER_MERGE:
            return self.merge_by_library(word)
        return self.merge_by_list(word)

    def merge_by_library(self, word: str) -> list[str]:
        """As `merge`; characters outside the alphabet are lost."""
        return [token.value for token in self._bpe.tokenize(word)]

    def merge_by_list(self, word: str) -> list[str]:
        """As `merge`. O(n log n)."""
        pieces: list[str] = list(word)
        after = list(range(1, len(pieces) + 1))
        before = list(range(-1, len(pieces) - 1))
        n, ranks = len(pieces), self._ranks
        queue: list[tuple[int, int, str]] = []

        def consider(left: int, right: int) -> None:
            if left >= 0 and right < n:
                pair = f"{pieces[left]} {pieces[right]}"
                rank = ranks.get(pair)
                if rank is not None:
                    heapq.heappush(queue, (rank, left, pair))

        for i in range(n - 1):
            consider(i, i + 1)
        while queue:
            _, left, pair = heapq.heappop(queue)
            right = after[left]
            if not pieces[left] or right >= n or f"{pieces[left]} {pieces[right]}" != pair:
                continue  # one of the two has been merged since
            pieces[left] += pieces[right]
            pieces[right] = ""
            after[left] = after[right]
            if after[left] < n:
                before[after[left]] = left
            consider(before[left], left)
            consider(left, after[left])
        return [piece for piece in pieces if piece]

    @cached_property
    def _ranks(self) -> dict[str, int]:
        n = len(self._list)  # backwards, so that the first of equals stays
        return dict(zip(reversed(self._list), range(n - 1, -1, -1), strict=True))

    @cached_property
    def _bpe(self) -> BPE:
        """The library's model. Its ids are its own: only the pieces are used.

        Left out, because the library refuses them: merges that can never happen (of letters outside the
        alphabet, or of pieces that no merge makes).
        """
        from tokenizers.models import BPE

        foreign = set("".join(self._list)).difference(self._alphabet, " ")
        pairs = [merge.split(" ") for merge in dict.fromkeys(self._list) if foreign.isdisjoint(merge)]
        pairs = [pair for pair in pairs if len(pair) == 2 and all(pair)]
        pieces = dict.fromkeys(self._alphabet)
        pieces.update(dict.fromkeys(left + right for left, right in pairs))
        merges = [(left, right) for left, right in pairs if left in pieces and right in pieces]
        ids = dict(zip(pieces, range(len(pieces)), strict=True))
        self.__dict__.pop("_ranks", None)  # of no more use
        return BPE(vocab=ids, merges=merges, cache_capacity=0)
