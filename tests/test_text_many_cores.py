"""Texts on all cores: parts of a long text have the ids of the whole, and batches those of each text."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_oracle import HOSTILE, PRES, VOCABULARIES, load

from pyllamacpu.errors import TokenizerError
from pyllamacpu.text import many_cores
from pyllamacpu.text.bpe_words import RULES
from pyllamacpu.text.merges import split_words

WORDS = ["a\nb", "don't\nwe", "'s\nLL", ".\nx", "!/\nA", " \nz", "7\nI'm"]
NEAR_CUTS = st.sampled_from(
    [
        *"aZ1'/ \n\r\t-.é٣ʰ漢\u0301\xa0\u2028ſ👍\udc80",
        "a\nb",
        "don't\nwe",
        "'s\nLL",
        ".\nx",
        "!/\nA",
        " \nz",
        "7\nI'm",
    ]
)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many threads and short parts, as a machine of this size would need a library for."""
    monkeypatch.setattr(many_cores, "cpus_usable", lambda: 7)
    monkeypatch.setattr(many_cores, "MIN_PART", 8)


@pytest.mark.parametrize("pattern", RULES, ids=[rule.word for rule in RULES.values()])
@settings(max_examples=300, deadline=None)
@given(text=st.lists(st.one_of(NEAR_CUTS, st.characters()), min_size=8, max_size=60).map("".join))
def test_words_of_parts_are_those_of_the_whole(pattern: str, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    for place in many_cores.LINE_ENDS.finditer(data):
        before, after = data[: place.end()], data[place.end() :]
        words = split_words(RULES[pattern], before) + split_words(RULES[pattern], after)
        assert words == split_words(RULES[pattern], data)


@pytest.mark.usefixtures("small_parts")
def test_parts_are_the_text_in_order() -> None:
    rng = random.Random(5)
    most = 0
    for _ in range(300):
        text = "".join(rng.choices(["a", "\n", " ", "word\nWord", "é", "."], k=rng.randint(0, 60))).encode()
        parts = many_cores.parts_of(text)
        assert b"".join(parts) == text
        assert len(parts) == 1 or all(parts)
        most = max(most, len(parts))
    assert most == 7
    assert many_cores.parts_of(b"no line ends " * 9) == [b"no line ends " * 9]


@pytest.mark.parametrize("pre", PRES)
def test_ids_do_not_depend_on_the_cores(pre: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, rng = load(f"bpe-{pre}.json"), random.Random(1)
    pieces = [*HOSTILE, "word\nword", "\n", "I'll\nwe", "x\ny ", "...\nAnd", "12\n"]
    texts = ["".join(rng.choices(pieces, k=40)) for _ in range(10)]
    alone = [tokenizer.encode(text) for text in texts]
    monkeypatch.setattr(many_cores, "cpus_usable", lambda: 5)
    monkeypatch.setattr(many_cores, "MIN_PART", 16)
    assert len(many_cores.parts_of(texts[0].encode("utf-8", "surrogatepass"))) > 1
    assert [tokenizer.encode(text) for text in texts] == alone
    assert tokenizer.encode_all(texts) == alone


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("name", VOCABULARIES)
def test_batches_are_each_text(name: str) -> None:
    """Short ones, which go in groups, empty ones and long ones between them."""
    tokenizer = load(name)
    texts = ["", "a", "a b c\nd e f " * 30, b"bytes", "", *HOSTILE, "x" * 100, "<|end|>", ""]
    for special in (False, True):
        expected = [tokenizer.encode(text, special, special) for text in texts]
        assert tokenizer.encode_all(texts, special, special) == expected
    assert tokenizer.encode_all([]) == []


@pytest.mark.usefixtures("small_parts")
def test_work_within_work_does_not_wait_for_itself() -> None:
    """More tasks at once than threads, each of which would ask for more."""
    tokenizer = load(VOCABULARIES[0])
    text = "a line\nof text " * 20

    def inner(n: int) -> list[list[int]]:
        return tokenizer.encode_all([text] * n)

    found: list[list[list[list[int]]]] = []
    asking = threading.Thread(
        target=lambda: found.append(many_cores.on_all_cores(inner, [3] * 40)), daemon=True
    )
    asking.start()
    asking.join(120)
    assert found == [[[tokenizer.encode(text)] * 3] * 40]


def test_one_error_is_the_callers() -> None:
    tokenizer = load(VOCABULARIES[0])
    with pytest.raises(TokenizerError, match="list of texts"):
        tokenizer.encode_all("not a list")
    with pytest.raises(TokenizerError, match="str or bytes, not int"):
        tokenizer.encode_all(["a", 5])
