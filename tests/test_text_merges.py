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
LETTER_IDS = {"a": 30, "b": 10, "c": 20}


def ids_of(listed: list[str], rng: random.Random | None = None) -> dict[str, int]:
    """Ids of the letters and of what the merges make, in any order, some without one."""
    made = list(dict.fromkeys(merge.replace(" ", "") for merge in listed))
    numbers = list(range(40, 40 + 2 * len(made), 2))
    if rng is not None:
        rng.shuffle(numbers)
        numbers = numbers[: rng.randint(0, len(numbers))] if rng.random() < 0.2 else numbers
    return {**dict(zip(made, numbers, strict=False)), **LETTER_IDS}


def expected_ids(pieces: list[str], ids: dict[str, int]) -> list[int]:
    return [ids[part] for piece in pieces for part in ([piece] if piece in ids else piece)]


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
        ids = ids_of(listed, rng)
        merges = Merges(listed, ALPHABET, ids)
        for _ in range(40):
            word = "".join(rng.choices(ALPHABET, k=rng.randint(1, 12)))
            pieces = reference([merge for merge in listed if merge.count(" ") == 1], word)
            expected = expected_ids(pieces, ids)
            assert merges.merge_by_list(word) == expected, (listed, ids, word)
            assert merges.merge_by_library(word) == expected, (listed, ids, word)
            merged += len(expected) < len(word)
    assert merged > 30_000


@pytest.mark.parametrize("pre", PRES)
def test_both_mergers_agree_on_trained_vocabularies(pre: str) -> None:
    """Random bytes, and the hostile texts in one piece: words that no pre-tokenizer would give."""
    metadata = fixture(f"bpe-{pre}.json")["metadata"]
    ids = {piece: i for i, piece in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = Merges(metadata["tokenizer.ggml.merges"], BYTE_LETTERS, ids)
    rng = random.Random(7)
    words = [to_letters(text.encode()) for text in HOSTILE]
    words += [to_letters(rng.randbytes(rng.randint(1, 60))) for _ in range(200)]
    for word in words:
        assert merges.merge_by_library(word) == merges.merge_by_list(word), word


def test_the_library_takes_over_where_it_pays() -> None:
    listed = ["a b", "b c", "ab c", "a a", "b b", "c c", "c a", "b a"]
    ids = ids_of(listed)
    merges = Merges(listed, ALPHABET, ids)
    assert merges.merge("abc") == [ids["abc"]] and "_bpe" not in merges.__dict__
    assert merges.merge("ba") == [ids["ba"]] and "_bpe" in merges.__dict__, "8 merges, 5 letters"
    assert merges.merge("cabc") == [ids["c"], ids["abc"]]


def test_merges_of_letters_that_are_not_text_are_left_out() -> None:
    """A lone surrogate is what an invalid byte in the file becomes; the library could not take it."""
    listed = ["\udcff a", "a b"]
    ids = ids_of(listed)
    merges = Merges(listed, ALPHABET, ids)
    assert merges.merge_by_library("ab") == merges.merge_by_list("ab") == [ids["ab"]]


def test_a_long_run_is_not_quadratic() -> None:
    listed = ["a a", "aa aa", "aaaa aaaa"]
    ids = ids_of(listed)
    merges = Merges(listed, ALPHABET, ids)
    for merge in (merges.merge_by_list, merges.merge_by_library):
        start = time.process_time()
        assert merge("a" * 100_000) == [ids["a" * 8]] * 12_500
        assert time.process_time() - start < 10
