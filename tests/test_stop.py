"""Stop strings across token borders: against a plain search in the whole text."""

from __future__ import annotations

import random
import time

import pytest

from pyllamacpu.errors import OptionError
from pyllamacpu.sampling.stop import MAX_CHARACTERS, StopMatcher


def plain(text: str, stop: list[str]) -> tuple[str, bool]:
    """The text before the stop string that is complete first (the longest of those), by trying every end."""
    for end in range(1, len(text) + 1):
        complete = [s for s in stop if text[:end].endswith(s)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def feed(matcher: StopMatcher, pieces: list[str]) -> tuple[str, bool]:
    out = ""
    for piece in pieces:
        text, stopped = matcher.push(piece)
        out += text
        if stopped:
            return out, True
    return out + matcher.flush(), False


def cut(rng: random.Random, text: str) -> list[str]:
    pieces = []
    while text:
        n = rng.randint(0, 4)
        pieces.append(text[:n])
        text = text[n:]
    return pieces


@pytest.mark.parametrize("seed", range(300))
def test_equals_a_plain_search(seed: int) -> None:
    rng = random.Random(seed)
    stop = [
        "".join(rng.choices("ab", k=rng.randint(1, 6))) + rng.choice(["", "c"])
        for _ in range(rng.randint(1, 4))
    ]
    text = "".join(rng.choices("aabbc", k=rng.randint(0, 30)))
    assert feed(StopMatcher(stop), cut(rng, text)) == plain(text, stop)


def test_holds_back_only_what_could_be_a_beginning() -> None:
    matcher = StopMatcher(["<end>", "\n\n"])
    assert matcher.push("hello <") == ("hello ", False)
    assert matcher.push("en") == ("", False)
    assert matcher.push("t") == ("<ent", False)
    assert matcher.push(" a\n") == (" a", False)
    assert matcher.push("b<<en") == ("\nb<", False)
    assert matcher.push("d> more") == ("", True)
    assert matcher.stopped and matcher.matched == "<end>"
    assert matcher.push("more") == ("", True) and matcher.flush() == ""


def test_overlaps_and_suffixes() -> None:
    assert feed(StopMatcher(["abcd", "bc"]), ["a", "b", "c", "d"]) == ("a", True)
    assert feed(StopMatcher(["b", "aab"]), ["xa", "ab"]) == ("x", True)
    assert feed(StopMatcher(["aab"]), ["aaa", "a", "b"]) == ("aa", True)
    assert feed(StopMatcher(["ünïcode 🙂"]), ["an ünï", "code ", "🙂!"]) == ("an ", True)


def test_flush_and_reset() -> None:
    matcher = StopMatcher("stop")
    assert matcher.push("st") == ("", False) and matcher.flush() == "st" and matcher.flush() == ""
    assert matcher.push("op") == ("op", False)
    matcher.push("sto")
    matcher.push("p")
    matcher.reset()
    assert not matcher.stopped and matcher.matched is None and matcher.push("op") == ("op", False)


def test_no_stop_strings() -> None:
    for none in (None, [], ()):
        matcher = StopMatcher(none)
        assert matcher.push("anything") == ("anything", False) and matcher.flush() == ""


@pytest.mark.parametrize("bad", [[""], "", ["a", ""], [3]])
def test_empty_stop_strings_are_refused(bad: object) -> None:
    with pytest.raises(OptionError, match="stop"):
        StopMatcher(bad)  # type: ignore[arg-type]


def test_time_is_linear_on_nearly_matching_text() -> None:
    matcher = StopMatcher(["a" * 20000 + "b"])
    start = time.process_time()
    emitted = sum(len(matcher.push("a")[0]) for _ in range(100000))
    assert emitted == 80000 and len(matcher.flush()) == 20000
    assert time.process_time() - start < 5


def test_stop_strings_have_a_limit_together() -> None:
    assert StopMatcher(["a" * (MAX_CHARACTERS - 1), "b"]).push("ab") == ("a", True)
    with pytest.raises(OptionError, match=f"stop: {MAX_CHARACTERS + 1} characters in all; allowed: at most"):
        StopMatcher(["a" * MAX_CHARACTERS, "b"])
