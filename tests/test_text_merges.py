"""Merging and cutting into words in C, against a plain reference, `tokenizers`, and the patterns themselves.

Covers text/character_classes.py.
"""

from __future__ import annotations

import random
import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_oracle import HOSTILE, PRES, fixture, load

from pyllamacpu.text.bpe import BYTE_LETTERS, from_letters, n_malformed, to_letters
from pyllamacpu.text.bpe_words import PRE_TOKENIZERS, RULES, PreTokenizer
from pyllamacpu.text.merges import Merges, split_words
from pyllamacpu.text.vocab import string_lines

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


def merges_of(pieces: list[str], hidden: list[bool], listed: list[str], **options: Any) -> Merges:
    spelled, lines = (string_lines(texts, "key", "model") for texts in (pieces, listed))
    return Merges(spelled, np.asarray(hidden, np.bool_), lines, **options)


def made(listed: list[str], ids: dict[str, int], **options: Any) -> Merges:
    """A vocabulary of these ids; what is between them is hidden."""
    pieces = [f"[{i}]" for i in range(1 + max(ids.values()))]
    for piece, token in ids.items():
        pieces[token] = piece
    return merges_of(pieces, [piece[:1] == "[" for piece in pieces], listed, **options)


def test_merging_equals_the_reference_on_random_lists() -> None:
    rng = random.Random(11)
    merged = 0
    for _ in range(600):
        listed = random_merges(rng)
        ids = ids_of(listed, rng)
        merges = made(listed, ids)
        for length in [*rng.choices(range(1, 13), k=30), 33, 70]:  # long words go another way
            word = "".join(rng.choices(ALPHABET, k=length))
            pieces = reference([merge for merge in listed if merge.count(" ") == 1], word)
            expected = expected_ids(pieces, ids)
            assert merges.encode(word.encode()) == expected, (listed, ids, word)
            merged += len(expected) < len(word)
    assert merged > 10_000


@pytest.mark.parametrize("pre", PRES)
def test_merging_equals_the_librarys_on_trained_vocabularies(pre: str) -> None:
    """Random bytes, and the hostile texts in one piece: words that no pre-tokenizer would give."""
    from tokenizers.models import BPE

    metadata = fixture(f"bpe-{pre}.json")["metadata"]
    pieces = metadata["tokenizer.ggml.tokens"]
    listed = metadata["tokenizer.ggml.merges"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    library = BPE(vocab=vocab, merges=[tuple(merge.split(" ")) for merge in listed])
    merges = merges_of(pieces, [False] * len(pieces), listed)
    missing = {letter for letter in BYTE_LETTERS if letter not in vocab}
    rng = random.Random(7)
    words = [text.encode() for text in HOSTILE] + [rng.randbytes(rng.randint(1, 90)) for _ in range(300)]
    for word in words:
        letters = "".join(letter for letter in to_letters(word) if letter not in missing)
        assert merges.encode(word) == [token.id for token in library.tokenize(letters)], word


def test_lines_of_odd_strings() -> None:
    """Pieces and merges with line ends or bytes that are not UTF-8 keep their numbers, and make nothing."""
    listed = ["\udcff a", "a\n b", "a b"]
    merges = merges_of(["a", "x\ny", "b", "\udcff", "ab", ""], [False] * 6, listed)
    assert merges.encode(b"ab") == [4] and merges.encode(b"ba") == [2, 0]
    assert merges_of([], [], []).encode(b"ab") == []
    assert made(["a b"], {"a": 0, "b": 1, "ab": 2}).encode(b"") == []


def test_whole_words_and_hidden_pieces() -> None:
    pieces, hidden = ["a", "b", "c", "ab", "abc", "ca"], [False] * 5 + [True]
    whole = merges_of(pieces, hidden, ["a b", "c a"], whole_words=True)
    assert whole.encode(b"abc") == [4] and whole.encode(b"abca") == [3, 2, 0]
    assert merges_of(pieces, hidden, ["a b", "c a"]).encode(b"abc") == [3, 2]


def test_a_long_run_is_not_quadratic() -> None:
    listed = ["a a", "aa aa", "aaaa aaaa"]
    ids = ids_of(listed)
    assert made(listed, ids).encode(b"a" * 1_000_000) == [ids["a" * 8]] * 125_000


def test_more_words_than_are_remembered() -> None:
    """Every number below 200000, twice: the words met before are forgotten in between, and come again."""
    pieces = [*map(str, range(10)), *(f"{i:02}" for i in range(100))]
    merges = merges_of(
        pieces, [False] * 110, [f"{i} {k}" for i in range(10) for k in range(10)], rule=RULES[DIGITS]
    )
    text = " ".join(map(str, range(200_000))).encode()
    assert merges.encode(text) == merges.encode(text)
    assert merges.encode(b"1234 1234") == merges.encode(b"1234") * 2 == [22, 44, 22, 44]


def test_words_met_before_come_back_as_they_were() -> None:
    """Of lengths around what a slot of the cache holds, with bytes that are zero, with few and many ids."""
    rng, zero = random.Random(5), BYTE_LETTERS[0]
    listed = ["a b", "b a", f"{zero} {zero}", f"a {zero}"]
    ids = {"a": 0, "b": 1, zero: 2, "ab": 3, "ba": 4, zero * 2: 5, f"a{zero}": 6}
    merges = made(listed, ids)
    alone = [b"ab"[: n % 3] * (n // 2) + rng.choice([b"a", b"b", b"\0"]) * (n % 5) for n in range(1, 130)]
    for word in [*alone, *(b"a" + b"\0" * n for n in range(20))] * 2:
        assert merges.encode(word) == [ids[p] for p in reference(listed, to_letters(word))], word
    ids = {"a": 0, "b": 1, "ab": 2, BYTE_LETTERS[32]: 3}
    cut = made(["a b"], ids, rule=RULES[DIGITS])
    words = ["".join(rng.choices("ab", k=rng.randint(1, 24))) for _ in range(2000)]
    expected = [[ids[piece] for piece in reference(["a b"], word)] for word in words]
    for _ in range(2):
        found = [cut.encode(word.encode()) for word in words]
        assert found == expected
    together = [token for word in expected for token in [*word, 3]]
    assert cut.encode(" ".join([*words, ""]).encode()) == together


# Words


DIGITS = next(pattern for pattern, rule in RULES.items() if rule.digits == 0)
PIECES = st.sampled_from(
    [
        *"aZ1' \n\r\t/-._é٣ǅʰªﬀ漢ا\u0301\u0903\u200d\xa0\u3000\x1c\x85\u2028ſKİ²Ⅷ👍",
        "'s",
        "'LL",
        "'ſ",
        "'Re",
        "  ",
        "don't",
        "\udc80",
    ]
)


@pytest.mark.parametrize("pattern", RULES, ids=[rule.word for rule in RULES.values()])
@settings(max_examples=400, deadline=None)
@given(text=st.lists(st.one_of(PIECES, st.characters())).map("".join))
def test_words_are_the_patterns(pattern: str, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
    expected = [word.encode("utf-8", "surrogateescape") for word in PreTokenizer((pattern,)).split(data)]
    assert split_words(RULES[pattern], data.encode("utf-8", "surrogateescape")) == expected


def test_words_of_every_character() -> None:
    """Each character in the middle of a word, before one, and behind a space."""
    for pattern, rule in RULES.items():
        patterns = PreTokenizer((pattern,))
        for first in [
            *range(0, 0x3400, 0x400),
            *range(0xA000, 0xAC00, 0x400),
            *range(0xF800, 0x12000, 0x400),
        ]:
            codes = range(first, first + 0x400)
            text = "\n".join(f"a{c}b {c}7 {c}{c}" for c in map(chr, codes))
            assert split_words(rule, text.encode()) == [w.encode() for w in patterns.split(text)], hex(first)


@pytest.mark.parametrize("pre", PRES)
def test_bytes_that_are_not_utf8(pre: str) -> None:
    tokenizer, rng = load(f"bpe-{pre}.json"), random.Random(3)
    rule = PRE_TOKENIZERS[pre].rule
    assert rule is not None
    for _ in range(300):
        data = b"".join(
            rng.choice([b" ", b"a", b"\xff", b"\xe2\x82", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90", b"9"])
            for _ in range(12)
        )
        text = data.decode("utf-8", "surrogateescape")
        expected = [word.encode("utf-8", "surrogateescape") for word in PRE_TOKENIZERS[pre].split(text)]
        assert split_words(rule, data) == expected
        ids = tokenizer.encode(data, add_special=False)
        assert (
            b"".join(map(tokenizer.token_bytes, ids)).replace("\ufffd".encode(), b"").strip(b"\xff")
            is not None
        )


def test_threads_share_a_tokenizer() -> None:
    tokenizer, results = load("bpe-llama-bpe.json"), [[], [], []]
    text = "".join(HOSTILE) * 20

    def work(found: list[list[int]]) -> None:
        found += [tokenizer.encode(text) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(found,)) for found in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found == [tokenizer.encode(text)] * 3 for found in results)


def test_spelling_in_byte_letters() -> None:
    assert from_letters(to_letters(bytes(range(256)))) == bytes(range(256))


@pytest.mark.parametrize(
    "lines, n", [(b"a b\nc d\n", 0), (b"a b c\nx\n", 2), (b" a\na \n\nq w\n", 3), (b"", 0)]
)
def test_merges_that_join_nothing_are_counted(lines: bytes, n: int) -> None:
    assert n_malformed(lines) == n
