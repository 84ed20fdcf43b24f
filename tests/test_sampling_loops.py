"""Answers that repeat themselves are ended, and nothing else is changed (sampling/loops.py)."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from fake_engine import FakeEngine
from tiny_model import EOS, PIECES

from pyllamacpu.engine.generate import Generation, Request
from pyllamacpu.sampling.loops import MAX_PERIOD, LoopDetector
from pyllamacpu.sampling.options import SamplingOptions


def detected_at(tokens: Sequence[int]) -> int | None:
    """The number of tokens after which a loop is reported; None when it never is."""
    detector = LoopDetector()
    return next((n for n, token in enumerate(tokens, 1) if detector.push(token)), None)


@pytest.mark.parametrize("period", [1, 2, 3, 7, 16, 31, 64, 100, MAX_PERIOD])
def test_loops_are_found_soon(period: int) -> None:
    draw = random.Random(period)
    passage = [draw.randrange(1000) for _ in range(period)]
    before = [draw.randrange(1000) for _ in range(300)]
    found = detected_at(before + passage * (200 // period + 6))
    needed = len(before) + max(4 * period, 96)
    assert found is not None and needed - period <= found <= needed + period + 16


def test_what_is_not_a_loop() -> None:
    draw = random.Random(0)
    refrain = [draw.randrange(1000) for _ in range(30)]
    verses = [[draw.randrange(1000) for _ in range(60)] for _ in range(12)]
    assert detected_at([token for verse in verses for token in [*verse, *refrain]]) is None
    numbered = [token for line in range(300) for token in (1000 + line, 5, 6, 7)]
    assert detected_at(numbered) is None, "a list with numbers"
    assert detected_at([7] * 90) is None, "a line of dashes"
    assert detected_at(refrain * 3 + verses[0]) is None
    assert detected_at([7] * 95 + [8]) is None


def test_a_longer_passage_than_is_looked_for_is_let_through_in_bounded_memory() -> None:
    passage = list(range(MAX_PERIOD + 1))
    detector = LoopDetector()
    assert not any(detector.push(token) for token in passage * 30)
    assert len(detector._tokens) <= 8 * MAX_PERIOD


def generation(stop_loops: bool, max_tokens: int = 400) -> Generation:
    request = Request([1, 2], SamplingOptions(temperature=0), max_tokens, stop_loops=stop_loops)
    return Generation(request, None, len(PIECES), 1000)


def run(generation: Generation, tokens: Sequence[int]) -> list[int]:
    """The tokens that are taken until the end."""
    row, taken = FakeEngine().row([1]), []
    for token in tokens:
        if generation.must_end(row):
            break
        generation.take(token, row)
        taken.append(token)
        if generation.reason is not None:
            break
    return taken


def test_the_engine_ends_a_loop_when_asked_to() -> None:
    looping = [5, 6, 7] * 200
    asked, plain = generation(True), generation(False)
    taken = run(asked, looping)
    assert asked.reason == "loop" and 96 <= len(taken) <= 112
    assert asked.n_generated == len(taken)
    assert len(run(plain, looping)) == 400 and plain.reason == "length"
    assert taken == looping[: len(taken)]


def test_a_limit_is_still_a_limit() -> None:
    limited = generation(True, max_tokens=96)
    assert len(run(limited, [5] * 200)) == 96 and limited.reason == "length"
    assert EOS not in (5, 6, 7)
