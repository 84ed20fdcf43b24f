"""Ctrl-C in the middle of a `Llama` object's calls: nothing is left running, locked or contradictory.

An interrupt is raised at the beginning of each call of a Python function in turn, where Python itself raises
it. Covers api/tokens.py, api/busy.py, engine/driver.py, engine/scheduler.py, engine/session.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine
from tiny_llama import path, text_of  # noqa: F401
from tiny_model import BOS
from watched_requests import GREEDY, prompt

from pyllamacpu import Llama
from pyllamacpu.engine.driver import Driver, Stream
from pyllamacpu.engine.generate import Request
from pyllamacpu.engine.handle import Event
from pyllamacpu.engine.scheduler import Scheduler

FILES = ("tokens.py", "busy.py", "driver.py", "scheduler.py", "handle.py", "session.py", "contextlib.py")
SHORT: dict[str, Any] = {"max_tokens": 3, "temperature": 0.0}


def generated(llm: Llama) -> object:
    tokens = llm.generate([BOS, 9, 8], temp=0.0)
    found = list(islice(tokens, 3))
    tokens.close()
    return found


def by_hand(llm: Llama) -> object:
    llm.reset()
    llm.eval([BOS, 9])
    llm.eval([8])
    llm.n_tokens = 2
    llm.eval([7])
    return llm.sample(temp=0.0)


def saved(llm: Llama) -> object:
    llm.load_state(llm.save_state())
    return None


JOBS: dict[str, Callable[[Llama], object]] = {
    "generate": generated,
    "completion": lambda llm: text_of(llm("hello", **SHORT)),
    "stream": lambda llm: "".join(map(text_of, llm("hello", stream=True, **SHORT))),
    "by hand": by_hand,
    "state": saved,
    "embed": lambda llm: llm.embed("hello")[:3],
}


def interrupted(job: Callable[[], object], at: int) -> bool:
    """Runs it with an interrupt at the call of that number; whether there was one."""
    n = 0

    def trace(frame: FrameType, event: str, _: object) -> None:
        nonlocal n
        if frame.f_code.co_filename.endswith(FILES) and frame.f_code.co_name != "__del__":
            n += 1
            if n == at:
                raise KeyboardInterrupt

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        job()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return n >= at


@pytest.fixture(params=[{}, {"logits_all": True, "draft_model": "lookup"}], ids=["", "drafts"])
def llm(path: Path, request: pytest.FixtureRequest) -> Iterator[Llama]:
    with Llama(str(path), n_ctx=64, n_threads=1, kv_type="f32", verbose=False, **request.param) as model:
        yield model


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", JOBS)
def test_an_interrupt_at_any_call(llm: Llama, name: str) -> None:
    wanted = {other: job(llm) for other, job in JOBS.items()}
    for at in count(1):
        goes_on = interrupted(lambda: JOBS[name](llm), at)
        driver = llm._driver
        locks = (driver._lock, llm._busy.lock, llm.engine._lock)
        assert not any(lock._is_owned() for lock in locks), at  # type: ignore[attr-defined]
        assert (driver._leader, driver._n_pausing) == (None, 0), at
        driver._scheduler.settle()
        assert driver._scheduler.unfinished() == [], at
        session = llm._session
        if session.last is not None:
            assert np.array_equal(llm.logits(list(session.tokens))[-1], session.last), at
        other = list(JOBS)[at % len(JOBS)]
        assert JOBS[other](llm) == wanted[other], (at, other)
        if not goes_on:
            break
    assert at > 50


def test_a_stream_that_nobody_has_is_over() -> None:
    """As when an interrupt comes before whoever asked for it could take it."""

    scheduler = Scheduler(FakeEngine(n_ctx=256), None)
    driver = Driver(scheduler)
    driver.submit(Request(prompt(5), GREEDY, 50, endless=True), ahead=0)
    kept = driver.submit(Request(prompt(6), GREEDY, 50))
    assert kept.next().text
    assert scheduler.unfinished() == [kept.handle]


def test_an_interrupt_while_a_stream_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler has the request by then."""

    scheduler = Scheduler(FakeEngine(n_ctx=256), None)
    driver = Driver(scheduler)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "__init__", interrupt)
        with pytest.raises(KeyboardInterrupt) as kept:
            driver.submit(Request(prompt(5), GREEDY, 50))
    scheduler.settle()
    assert scheduler.unfinished() == []
    assert kept.value is not None  # with the frames of its traceback


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_call_of_a_step_loses_no_request() -> None:
    """Those of other threads go on: each comes to its end, with a last event."""
    for at in count(1):
        engine = FakeEngine(n_ctx=256)
        engine.cache.limit_bytes = 3 * engine.cache.page_bytes  # one of them is sent back to wait
        scheduler = Scheduler(engine, None)
        handles = [scheduler.submit(Request(prompt(30 + i, 5 + i), GREEDY, 5)) for i in range(3)]
        events: list[Event] = []

        def step(scheduler: Scheduler = scheduler, events: list[Event] = events) -> None:
            for _ in range(12):
                events.extend(scheduler.step())

        goes_on = interrupted(step, at)
        step()
        step()
        assert {event.handle for event in events if event.is_last} == set(handles), at
        assert scheduler.unfinished() == [], at
        scheduler.close()
        if not goes_on:
            break
    assert at > 100
