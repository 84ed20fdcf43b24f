"""Merging by the list against a plain reference, and the `tokenizers` library against the list."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest
from text_oracle import HOSTILE, PRES, fixture

from pyllamacpu.text.bpe import BYTE_LETTERS, to_letters
from pyllamacpu.text.merges import Merges

ALPHABET = ["a", "b", "c"]


def reference(merges: list[str], word: str) -> list[str]:
    """Quadratic and plain: the best pair of all, over and over."""
    ranks = {tuple(merge.split(" ")): -i for i, merge in enumerate(reversed(merges))}
    pieces = list(word)
    while True:
        pairs = [(ranks[pair], i) for i, pair in enumerate(pairwise(pieces)) if pair in ranks]
        if not pairs:
            return pieces
        _, i = min(pairs)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


def random_merges(rng: random.Random) -> list[str]:
    """Also impossible merges: repeated, of pieces that nothing makes or a later merge makes, of foreign
    letters.
    """
    pieces = list(ALPHABET)
    merges = []
    for _ in range(rng.randint(1, 12)):
        left, right = rng.choice(pieces), rng.choice(pieces)
        merges.append(f"{left} {right}")
        if rng.random() < 0.9:
            pieces.append(left + right)
    merges += rng.choices(["x a", "a x", "aab bca", "a", "a b c", " a", "a ", "", "  "], k=rng.randint(0, 3))
    if rng.random() < 0.3:
        rng.shuffle(merges)
    return merges


def test_both_mergers_equal_the_reference_on_random_lists() -> None:
    rng = random.Random(11)
    merged = 0
    for _ in range(1500):
        listed = random_merges(rng)
        merges = Merges(listed, ALPHABET)
        for _ in range(40):
            word = "".join(rng.choices(ALPHABET, k=rng.randint(1, 12)))
            expected = reference([merge for merge in listed if merge.count(" ") == 1], word)
            assert merges.merge_by_list(word) == expected, (listed, word)
            assert merges.merge_by_library(word) == expected, (listed, word)
            merged += len(expected) < len(word)
    assert merged > 30_000


@pytest.mark.parametrize("pre", PRES)
def test_both_mergers_agree_on_trained_vocabularies(pre: str) -> None:
    """Random bytes, and the hostile texts in one piece: words that no pre-tokenizer would give."""
    merges = Merges(fixture(f"bpe-{pre}.json")["metadata"]["tokenizer.ggml.merges"], BYTE_LETTERS)
    rng = random.Random(7)
    words = [to_letters(text.encode()) for text in HOSTILE]
    words += [to_letters(rng.randbytes(rng.randint(1, 60))) for _ in range(200)]
    for word in words:
        assert merges.merge_by_library(word) == merges.merge_by_list(word), word


def test_the_library_takes_over_after_as_many_letters_as_merges() -> None:
    merges = Merges(["a b", "b c", "ab c"], ALPHABET)
    assert merges.merge("abc") == ["abc"] and "_bpe" not in merges.__dict__
    assert merges.merge("a") == ["a"] and "_bpe" in merges.__dict__
    assert merges.merge("cabc") == ["c", "abc"]


def test_merges_of_letters_that_are_not_text_are_left_out() -> None:
    """A lone surrogate is what an invalid byte in the file becomes; the library could not take it."""
    merges = Merges(["\udcff a", "a b"], ALPHABET)
    assert merges.merge_by_library("ab") == merges.merge_by_list("ab") == ["ab"]


def test_a_long_run_is_not_quadratic() -> None:
    merges = Merges(["a a", "aa aa", "aaaa aaaa"], ALPHABET)
    for merge in (merges.merge_by_list, merges.merge_by_library):
        start = time.process_time()
        assert merge("a" * 100_000) == ["a" * 8] * 12_500
        assert time.process_time() - start < 10
