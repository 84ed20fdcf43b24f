"""Requests that fail or are interrupted, and steps that fail: the others get what they get alone.

Covers engine/scheduler.py.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine
from watched_requests import GREEDY, Row, Watched, finish, prompt

from pyllamacpu.engine.generate import HiddenRequest, Request
from pyllamacpu.engine.scheduler import Scheduler
from pyllamacpu.errors import ContextError, NativeError, OptionError, TokenizerError
from pyllamacpu.sampling.sampler import SamplingOptions


def failing(kind: str) -> Callable[[Row, Row], Any]:
    def process(ids: Row, logits: Row) -> Any:
        if kind == "raises":
            raise ZeroDivisionError
        logits[:] = np.nan
        return logits

    return process


@pytest.mark.parametrize(("kind", "error"), [("raises", ZeroDivisionError), ("nan", NativeError)])
def test_a_request_that_fails_harms_nobody_else(kind: str, error: type[Exception]) -> None:
    good = Watched(prompt(30), 8, 3)
    expected = good.alone(Scheduler(FakeEngine(), None))
    scheduler = Scheduler(FakeEngine(), None)
    handle = scheduler.submit(good.request())
    bad = scheduler.submit(Request(prompt(10), GREEDY, 8, processors=(failing(kind),)))
    worse = scheduler.submit(Request(prompt(12), GREEDY, 8, criteria=(lambda *_: 1 // 0,)))
    errors = {}
    for event in finish(scheduler):
        if event.handle is handle:
            good.take(event)
        else:
            errors[event.handle] = type(event.error)
    assert errors == {bad: error, worse: ZeroDivisionError}
    assert good.answer == expected


def test_a_step_that_fails_is_done_again_one_by_one() -> None:
    engine = FakeEngine()
    engine.broken = 5
    scheduler = Scheduler(engine, None)
    bad = scheduler.submit(Request(prompt(10, 5), GREEDY, 2))
    good = scheduler.submit(Request(prompt(10, 6), GREEDY, 2))
    events = finish(scheduler)
    assert [e.handle for e in events if e.error] == [bad]
    assert good.is_finished


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (Request([], GREEDY), OptionError),
        (Request([-1], GREEDY), TokenizerError),
        (Request([1] * 64, GREEDY), ContextError),
        (Request([1], GREEDY, stop=("a",)), TokenizerError),
        (HiddenRequest([1] * 65), ContextError),
        (Request([1], SamplingOptions(logit_bias={10**6: 1.0})), OptionError),
    ],
)
def test_requests_that_cannot_be_served(request_: Any, error: type[Exception]) -> None:
    scheduler = Scheduler(FakeEngine(), None)
    with pytest.raises(error):
        scheduler.submit(request_)
    assert not scheduler.has_work


def test_an_interrupt_in_a_processor_loses_nothing() -> None:
    def interrupt(ids: Row, logits: Row) -> Row:
        if len(ids) == 13 and not seen:
            seen.append(1)
            signal.raise_signal(signal.SIGINT)
        return logits

    seen: list[int] = []
    watched = Watched(prompt(20), 8, 3)
    expected = watched.alone(Scheduler(FakeEngine(), None))
    scheduler = Scheduler(FakeEngine(), None)
    scheduler.submit(Request(prompt(10, 5), GREEDY, 6, processors=(interrupt,)))
    handle = scheduler.submit(watched.request())
    watched.rows.clear()
    interrupted = 0
    while scheduler.has_work:
        try:
            events = scheduler.step()
        except KeyboardInterrupt:
            interrupted += 1
            continue
        for event in events:
            if event.handle is handle:
                watched.take(event)
    assert interrupted == 1
    assert (watched.tokens, watched.reason) == (expected[0], expected[2])


def test_a_request_cancelled_after_an_interrupt_is_not_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interrupt comes when tokens were chosen for two requests, and taken for none."""
    scheduler = Scheduler(FakeEngine(), None)
    watched = Watched(prompt(20), 8, 3)
    expected = watched.alone(Scheduler(FakeEngine(), None))
    gone = scheduler.submit(Request(prompt(10, 5), GREEDY, 6))
    stays = scheduler.submit(watched.request())

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "_take", interrupt)
        with pytest.raises(KeyboardInterrupt):
            scheduler.step()
    scheduler.cancel(gone)
    events = finish(scheduler)
    assert {event.handle for event in events} == {stays}
    for event in events:
        watched.take(event)
    assert watched.answer == expected
