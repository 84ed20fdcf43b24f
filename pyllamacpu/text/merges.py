"""Byte-pair merging of one word by a list of merges, lowest rank first.

Two mergers with the same answer: a loop in Python over a dictionary of ranks (`merge_by_list`), and the BPE
model of the `tokenizers` library. The library merges a long word up to ten times as fast, but must be built:
for Llama 3 (280,000 merges) that takes 0.35 s and 50 MB more than the dictionary does, and a short prompt
would wait for it before the first token. So the list merges at first, and the library takes over when it has
done about as much work as building the library is.

CPU time in ms from the metadata to the ids of a first text (tokenizers 0.23, one core of a Xeon, 2026-11-29),
for either merger alone, both as here, and tiktoken, which knows only the order of the tokens, so that its
answer had to be proved equal first (it had the list beside it for short prompts, too):

                                 list  library  both  tiktoken
    Llama 3, 240 bytes            240      550   180       240
    Llama 3, 1 MB of code         640      890   845      1910
    Llama 3, 1 MB of Chinese     1850     1030  2030      2560
    Llama 3, 1 MB of long runs   5060     1100  1820      2490
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers.models import BPE

MERGES_PER_LETTER = 2  # that the library takes up in the time of one letter by the list


class Merges:
    """A list of merges ("left right", the first of equals counts) over the words of an alphabet.

    `ids` gives the id of each piece; a piece that has none comes out as the ids of its letters.
    """

    def __init__(self, merges: list[str], alphabet: list[str], ids: Mapping[str, int]) -> None:
        self._list = merges
        self._alphabet = alphabet
        self._ids = ids
        self._n_letters = 0  # merged by the list so far

    def merge(self, word: str) -> list[int]:
        """The ids of the pieces of `word`, all of whose letters have one, after all merges: the lowest rank
        first, the leftmost of equal ranks first.
        """
        self._n_letters += len(word)
        if self._n_letters * MERGES_PER_LETTER > len(self._list):
            return self.merge_by_library(word)
        return self.merge_by_list(word)

    def merge_by_library(self, word: str) -> list[int]:
        """As `merge`."""
        bpe, spelled = self._bpe
        ids = [token.id for token in bpe.tokenize(word)]
        if spelled.keys().isdisjoint(ids):
            return ids
        return [one for token in ids for one in spelled.get(token, (token,))]

    def merge_by_list(self, word: str) -> list[int]:
        """As `merge`. O(n log n)."""
        ids: list[int] = []
        for piece in self._pieces(word):
            token = self._ids.get(piece)
            ids.extend([token] if token is not None else [self._ids[letter] for letter in piece])
        return ids

    def _pieces(self, word: str) -> list[str]:
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
    def _bpe(self) -> tuple[BPE, dict[int, tuple[int, ...]]]:
        """The library's model, and the letters' ids of the pieces that have no id of their own.

        Left out, because the library refuses them: merges that can never happen (of letters outside the
        alphabet, or of pieces that no merge makes).
        """
        from tokenizers.models import BPE

        self.__dict__.pop("_ranks", None)  # of no more use
        letters = [letter for letter in self._alphabet if letter in self._ids]
        foreign = set("".join(self._list)).difference(letters, " ")
        listed = [merge for merge in self._list if merge.count(" ") == 1 and foreign.isdisjoint(merge)]
        pieces = dict.fromkeys(letters)
        pieces.update(dict.fromkeys(merge.replace(" ", "") for merge in listed))
        one = {piece: piece for piece in pieces}  # a string once, however many merges have it
        halves = (merge.split(" ") for merge in dict.fromkeys(listed))
        merges = [(one[left], one[right]) for left, right in halves if left in one and right in one]
        free = count(max(self._ids.values(), default=0) + 1)
        vocab = {piece: self._ids[piece] if piece in self._ids else next(free) for piece in pieces}
        spelled = {
            token: tuple(self._ids[letter] for letter in piece)
            for piece, token in vocab.items()
            if piece not in self._ids
        }
        return BPE(vocab=vocab, merges=merges, cache_capacity=0), spelled
