"""Byte-level BPE (`tokenizer.ggml.model = gpt2`): the tokenizers of Llama 3, Llama 4, SmolLM2 and their
relatives.

Pieces are written in an alphabet of 256 letters, one per byte. tiktoken does the merging wherever it is
exact. It knows only which strings are tokens and in what order they were made, while the file lists which
pairs may merge. The two agree on every text if the merges that make one token stand together in the list and
either every split of a merged token into two tokens is in the list (vocabularies that were tiktoken's to
begin with, such as Llama 3's), or every merged token has one merge and comes out whole when it is encoded
alone (trained ones, such as SmolLM2's). Reason for the latter: two neighbours that tiktoken joins into X were
reached without a merge across the ends of X, so the run on X alone passes through them too; that run ends in
X, so the pair is in the list. `tiktoken_is_exact` checks this; a vocabulary that fails is merged by
`merge_word`.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import tiktoken

from pyllamacpu.errors import TokenizerError
from pyllamacpu.text.pretokenize import PRE_TOKENIZERS
from pyllamacpu.text.tokenizer import Tokenizer
from pyllamacpu.text.vocab import TokenType, Vocabulary, string_list

MAX_CACHED_WORDS = 1 << 16
MAX_CACHED_LENGTH = 64  # characters
# Both ways of merging give the same ids; for a short prompt the list is quicker than checking it and filling
# tiktoken.
FEW_WORDS = 2000
LONG_WORD = 256  # bytes


def _byte_letters() -> list[str]:
    """The letter for each byte: itself where it is visible Latin-1, else the next letter from U+0100 on
    (GPT-2).
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(spare)) for byte in range(256)]


BYTE_LETTERS = _byte_letters()
LETTER_BYTES = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}
_TO_LETTERS = dict(enumerate(BYTE_LETTERS))


def to_letters(data: bytes) -> str:
    """Bytes in the alphabet of the vocabulary."""
    return data.decode("latin-1").translate(_TO_LETTERS)


def from_letters(piece: str) -> bytes:
    """The bytes a piece stands for; characters outside the alphabet stand for their own UTF-8."""
    try:
        return bytes([LETTER_BYTES[letter] for letter in piece])
    except KeyError:
        parts = (LETTER_BYTES.get(c) for c in piece)
        encoded = ((c.encode("utf-8", "surrogateescape"), byte) for c, byte in zip(piece, parts, strict=True))
        return b"".join(own if byte is None else bytes((byte,)) for own, byte in encoded)


class Merges:
    """The list of merges: `rank["left right"]`, lower merges first, over the letters of the vocabulary."""

    def __init__(self, merges: list[str]) -> None:
        n = len(merges)
        self.rank = dict(
            zip(reversed(merges), range(n - 1, -1, -1), strict=True)
        )  # the first of equals stays

    def merge_word(self, word: str) -> list[str]:
        """The pieces of `word` after all merges: lowest rank first, the leftmost of equal ranks first. O(n
        log n).
        """
        pieces: list[str] = list(word)
        after = list(range(1, len(pieces) + 1))
        before = list(range(-1, len(pieces) - 1))
        n, rank = len(pieces), self.rank
        queue: list[tuple[int, int, str]] = []

        def consider(left: int, right: int) -> None:
            if left >= 0 and right < n:
                pair = f"{pieces[left]} {pieces[right]}"
                order = rank.get(pair)
                if order is not None:
                    heapq.heappush(queue, (order, left, pair))

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


def tiktoken_is_exact(merges: list[str]) -> bool:
    """Whether merging by the order of the merged strings gives the same pieces as the list of merges on every
    text.
    """
    pairs = dict(zip(merges, range(len(merges)), strict=True))
    made: dict[str, int] = {}  # merged string → rank of its first merge
    halves: dict[str, tuple[str, str]] = {}
    last = ""
    for merge, rank in pairs.items():
        left, _, right = merge.partition(" ")
        whole = left + right
        if not left or not right or " " in right or (whole in made and whole != last):
            return False
        if whole != last:
            made[whole], halves[whole] = rank, (left, right)
        last = whole
    tokens = {*made, *BYTE_LETTERS}
    if not all(half in tokens for merge in pairs for half in merge.split(" ")):
        return False
    if len(made) == len(merges):
        return all(_comes_out_whole(whole, pairs, made, halves) for whole in made)
    return _count_splits(made, tokens) == len(pairs)  # all that there are: every merge in the list is one


def _count_splits(made: Mapping[str, int], tokens: set[str]) -> int:
    """In how many ways the merged strings fall into two tokens."""
    count = 0
    for whole in made:
        for i in range(1, len(whole)):
            if whole[:i] in tokens and whole[i:] in tokens:
                count += 1
    return count


def _comes_out_whole(
    whole: str, pairs: Mapping[str, int], made: Mapping[str, int], halves: Mapping[str, tuple[str, str]]
) -> bool:
    """Whether `whole` by itself is encoded to itself, in a list with one merge for each token where all
    others are.

    Walks back in time along the border of the two halves: the one that was finished last is opened, and what
    then stood at the border must not have had a merge of its own below `limit`.
    """
    limit = made[whole]
    left, right = halves[whole]
    if any(len(half) > 1 and made.get(half, limit) >= limit for half in (left, right)):
        return False
    while True:
        left_made, right_made = made.get(left, -1), made.get(right, -1)
        if left_made < 0 and right_made < 0:
            return True
        # Merges of equal rank go from left to right: of equal strings the right one was finished last, and a
        # merge over the border comes before one that makes `right`, but after one that makes `left`.
        if left_made > right_made:
            limit, left = left_made, halves[left][1]
        else:
            limit, right = right_made + 1, halves[right][0]
        rank = pairs.get(f"{left} {right}")
        if rank is not None and rank < limit:
            return False


class ByteLevelTokenizer(Tokenizer):
    """`kind` gpt2. `pre` names the pre-tokenizer; a name that is not known warns and uses the default one."""

    kind = "gpt2"

    def __init__(self, vocab: Vocabulary, metadata: Mapping[str, Any]) -> None:
        self.pre = metadata.get("tokenizer.ggml.pre")
        known = PRE_TOKENIZERS.get(str(self.pre))
        self._words = known or PRE_TOKENIZERS["default"]
        super().__init__(vocab, metadata, add_bos=self._words.add_bos)
        if known is None:
            said = (
                "names no pre-tokenizer"
                if self.pre is None
                else f"names an unknown pre-tokenizer, {self.pre!r}"
            )
            self.warnings.append(
                f"{vocab.path}: the file {said} (tokenizer.ggml.pre); text is split the default way and the "
                "model may answer worse. Convert the model again"
            )
        key = "tokenizer.ggml.merges"
        if key not in metadata:
            raise TokenizerError(f"{vocab.path}: {key} is missing; convert the model again")
        self._merge_list = string_list(metadata[key], key, vocab.path)
        self._cache: dict[str, tuple[int, ...]] = {}
        self._n_merged = 0  # words that were not in the cache

    def _encode_plain(self, text: bytes, follows_special: bool) -> list[int]:
        ids: list[int] = []
        cache = self._cache
        # Bytes that are no UTF-8 pass through as lone surrogates: no letters, no digits, no space.
        for word in self._words.split(text.decode("utf-8", "surrogateescape").translate(self._replaced)):
            known = cache.get(word)
            if known is None:
                known = tuple(self._encode_word(word.encode("utf-8", "surrogateescape")))
                if len(word) <= MAX_CACHED_LENGTH:
                    if len(cache) >= MAX_CACHED_WORDS:
                        cache.clear()
                    cache[word] = known
            ids.extend(known)
        return ids

    def _encode_word(self, word: bytes) -> list[int]:
        letters = to_letters(word)
        if self._words.whole_words and letters in self._text_ids:
            return [self._text_ids[letters]]
        if not self._missing.isdisjoint(word):
            word = bytes(byte for byte in word if byte not in self._missing)
            letters = to_letters(word)
        if not word:
            return []
        self._n_merged += 1
        many = len(word) > LONG_WORD or self._n_merged > FEW_WORDS
        if many and self._encoding is not None and (self._takes_words_whole or letters not in self._text_ids):
            return [self._rank_to_id[rank] for rank in self._encoding._encode_single_piece(word)]
        found: list[int] = []
        for piece in self._merges.merge_word(letters):
            token = self._text_ids.get(piece)
            found.extend([token] if token is not None else [self._text_ids[letter] for letter in piece])
        return found

    @cached_property
    def _takes_words_whole(self) -> bool:
        """tiktoken gives a word that is a token as that token. The merges do so too where each token has one
        merge.
        """
        return self._words.whole_words or len(self._ranked or ()) == 256 + len(self._merge_list)

    @cached_property
    def _missing(self) -> frozenset[int]:
        """Bytes that have no token. They are left out of a word before it is merged, as `tokenizers` does it
        (SmolLM2 lacks a few control characters and bytes that only invalid or unassigned text has).
        """
        return frozenset(byte for byte, letter in enumerate(BYTE_LETTERS) if letter not in self._text_ids)

    @cached_property
    def _replaced(self) -> dict[int, str]:
        """Escaped invalid bytes that have no token: U+FFFD is put for them, so that the model sees that they
        were there.
        """
        return {0xDC00 + byte: "\ufffd" for byte in self._missing if byte >= 0x80}

    @cached_property
    def _text_ids(self) -> dict[str, int]:
        """Spelling → id of the tokens that plain text can become."""
        hidden = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
        special = self.vocab.of_type(*hidden)
        return {piece: token for piece, token in self.vocab.ids.items() if piece not in special}

    @cached_property
    def _merges(self) -> Merges:
        return Merges(self._merge_list)

    @cached_property
    def _rank_to_id(self) -> list[int]:
        """Rank → id; -1 for a byte without a token."""
        return [self._text_ids.get(piece, -1) for piece in self._ranked or ()]

    @cached_property
    def _ranked(self) -> list[str] | None:
        """Tokens in the order in which they are made, bytes first; None where tiktoken would not be exact."""
        made = dict.fromkeys(merge.replace(" ", "", 1) for merge in self._merge_list)
        ids = self._text_ids
        pieces = [*BYTE_LETTERS, *made]
        if len(pieces) != len(set(pieces)) or not all(piece in ids for piece in made):
            return None
        return pieces if tiktoken_is_exact(self._merge_list) else None

    @cached_property
    def _encoding(self) -> tiktoken.Encoding | None:
        if self._ranked is None:
            return None
        ranks = {from_letters(piece): rank for rank, piece in enumerate(self._ranked)}
        return tiktoken.Encoding(
            self.vocab.path, pat_str=r"(?s:.+)", mergeable_ranks=ranks, special_tokens={}
        )

    def _piece_bytes(self, token: int) -> bytes:
        piece = self.vocab.pieces[token]
        if self.vocab.types[token] == TokenType.USER_DEFINED:
            return piece.encode("utf-8", "surrogateescape")
        if self.vocab.types[token] == TokenType.BYTE and len(piece) == 6:
            return bytes((int(piece[3:5], 16),))
        return from_letters(piece)
