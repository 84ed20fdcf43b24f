"""Byte-pair merging in C (csrc/text): from text, or from single words of it, to the ids of its pieces.

Merging is by rank: the lowest first, the leftmost of equal ranks first. A word is merged once, and then
remembered.

1.6 MB of manuals (Llama 3's vocabulary, one core of an AMD EPYC, Zen 3, CPU time, the best of 15, 2026-11-29)
are read at 31 MB/s the first time and 56 again, 0.7 MB of stories at 38 and 81; SmolLM2's vocabulary: 29 and
54, 33 and 76 (benchmarks/tokenizing.py, which has the library `tokenizers` beside it).
"""

from __future__ import annotations

from collections import deque
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import OptionError
from pyllamacpu.native import check, ffi, lib, pointer
from pyllamacpu.text.bpe_words import WordRule
from pyllamacpu.text.character_classes import classes_of_block
from pyllamacpu.text.many_cores import on_all_cores, parts_of

_KEPT_CACHES = 2


class Merges:
    """A vocabulary and its list of merges. Safe to share between threads.

    pieces: spelled in byte letters, in the order of their ids, each followed by a line end (vocab.py's
    string_lines); hidden: for each, whether plain text never becomes it; merges: "left right", each followed
    by a line end, the first of equals counts. A piece that has no id, or is hidden, comes out as the ids of
    its letters, and a byte that has none is left out. whole_words: a word that is a piece is taken whole,
    whatever the merges say.

    Raises OptionError unless `hidden` is as long as `pieces`.
    """

    def __init__(
        self,
        pieces: bytes,
        hidden: npt.NDArray[np.bool_],
        merges: bytes,
        *,
        rule: WordRule | None = None,
        whole_words: bool = False,
    ) -> None:
        if pieces.count(b"\n") != len(hidden):
            raise OptionError(f"{len(hidden)} flags do not fit {pieces.count(10)} pieces")
        flags = hidden.astype(np.uint8).tobytes()
        new = lib.pl_bpe_new(pieces, len(pieces), flags, len(hidden), merges, len(merges), int(whole_words))
        self._bpe = ffi.gc(pointer(new, "a tokenizer's merges"), lib.pl_bpe_free)
        self._words = None if rule is None else _native_words(rule)
        # Of words met before, up to 11 MB. Each is used by one thread at a time; not all threads' are kept.
        self._caches: deque[Any] = deque(maxlen=_KEPT_CACHES)

    def encode(self, text: bytes) -> list[int]:
        """The ids of a text, cut into words by the rule; without a rule it is one word. A long text takes all
        cores.
        """
        parts = [text] if self._words is None else parts_of(text)
        return self._encode(text) if len(parts) < 2 else [*chain(*on_all_cores(self._encode, parts))]

    def _encode(self, text: bytes) -> list[int]:
        ids = np.empty(max(1, len(text)), np.int32)
        run = ffi.new("pl_encoding *", {"ids": ffi.from_buffer("int32_t[]", ids, require_writable=True)})
        words = ffi.NULL if self._words is None else self._words
        cache = self._cache()
        try:
            while (code := lib.pl_bpe_encode(self._bpe, words, cache, text, len(text), run)) != lib.PL_OK:
                if code != lib.PL_ENEEDS_BLOCK:
                    check(code, "tokenizing")
                learn(words, run.block)
        finally:
            self._caches.append(cache)
        found: list[int] = ids[: run.n_ids].tolist()
        return found

    def _cache(self) -> Any:
        try:
            return self._caches.pop()
        except IndexError:
            new = pointer(lib.pl_word_cache_new(), "a cache of words")
            return ffi.gc(new, lib.pl_word_cache_free)


def split_words(rule: WordRule, text: bytes) -> list[bytes]:
    """The words of a text."""
    words, at, found = _native_words(rule), 0, []
    ends = ffi.new("int64_t[]", max(1, len(text)))
    while at < len(text):
        n = lib.pl_words_split(words, text, len(text), 0, ends)
        if n < 0:
            learn(words, -1 - n)
            continue
        for end in ffi.unpack(ends, n):
            found.append(text[at:end])
            at = end
    return found


def learn(words: Any, block: int) -> None:
    """Tells the matcher what the characters of a block are."""
    check(lib.pl_words_learn(words, block, classes_of_block(block)), "characters")


def _native_words(rule: WordRule) -> Any:
    numbers = ffi.new("pl_word_rule *")
    for field in ("contractions", "word", "tail", "digits", "spaced_digits", "lines", "digits_end_spaces"):
        setattr(numbers, field, int(getattr(rule, field)))
    return ffi.gc(
        pointer(lib.pl_words_new(numbers, classes_of_block(0)), "a pre-tokenizer"), lib.pl_words_free
    )
