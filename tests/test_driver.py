"""Threads that share a scheduler: each waits for its own request, and steps for all."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
from fake_engine import FakeEngine
from watched_requests import GREEDY, Row, Watched, prompt

from pyllamacpu.engine.batch import Entry
from pyllamacpu.engine.driver import Driver
from pyllamacpu.engine.generate import Request
from pyllamacpu.engine.scheduler import Scheduler
from pyllamacpu.errors import ModelError


def test_threads_wait_for_their_own_and_step_for_all() -> None:
    engine = FakeEngine(n_ctx=256)
    driver = Driver(Scheduler(engine, None))
    requests = [Watched(prompt(20 + i, i), 30, i) for i in range(8)]
    expected = [w.alone(Scheduler(FakeEngine(n_ctx=256), None)) for w in requests]
    start = threading.Barrier(8)

    def work(watched: Watched) -> None:
        start.wait()
        stream = driver.submit(watched.request(), ahead=2)
        while watched.reason is None:
            watched.take(stream.next())

    threads = [threading.Thread(target=work, args=(w,)) for w in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [w.answer for w in requests] == expected
    assert len(engine.steps) < 8 * 30  # several in a step


def test_a_stream_goes_ahead_only_so_far() -> None:
    engine = FakeEngine(n_ctx=256)
    driver = Driver(Scheduler(engine, None))
    slow = driver.submit(Request(prompt(5, 6), GREEDY, 50), ahead=2)
    unasked = driver.submit(Request(prompt(5, 4), GREEDY, 50, endless=True), ahead=0)
    fast = driver.submit(Request(prompt(5, 7), GREEDY, 50))
    while fast.next().text.finish_reason is None:
        pass
    evaluated = engine.cache.pages_in_use
    assert len(slow.handle.sequence) == 6  # the prompt, and a token for the second event
    assert unasked.handle.state == "waiting"
    slow.close()
    assert slow.handle.is_finished
    assert engine.cache.pages_in_use <= evaluated
    unasked.close()


class SlowEngine(FakeEngine):
    """Whose steps take a while, so that threads meet."""

    def step(self, entries: Sequence[Entry], buffer: np.ndarray) -> np.ndarray:
        time.sleep(0.002)
        return super().step(entries, buffer)


def test_steps_and_those_who_pause_them_take_turns() -> None:
    """Nobody waits until an answer is written, and answers are written whatever pauses come."""
    engine = SlowEngine(n_ctx=1024)
    driver, ended, waited = Driver(Scheduler(engine, None)), threading.Event(), [0, 0]

    def answer(first: int) -> None:
        stream = driver.submit(Request(prompt(5, first), GREEDY, 1000, endless=True))
        while not ended.is_set():
            stream.next()
        stream.close()

    def pause(i: int) -> None:
        for _ in range(30):
            before = len(engine.steps)
            with driver.paused():
                waited[i] = max(waited[i], len(engine.steps) - before)
                now = len(engine.steps)
                time.sleep(0.002)
                assert len(engine.steps) == now

    answers = [threading.Thread(target=answer, args=(i + 6,)) for i in range(2)]
    pauses = [threading.Thread(target=pause, args=(i,)) for i in range(2)]
    for thread in (*answers, *pauses):
        thread.start()
    for thread in pauses:
        thread.join(60)
    n_steps = len(engine.steps)
    ended.set()
    for thread in answers:
        thread.join(60)
        assert not thread.is_alive()
    assert max(waited) <= 50  # of more than 1,000, had they to wait for the end
    assert n_steps >= 30


def test_an_interrupt_while_steps_are_to_be_paused_leaves_nobody_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver(Scheduler(FakeEngine(n_ctx=256), None))
    stream = driver.submit(Request(prompt(5), GREEDY, 50))
    driver._leader = -1  # of another thread

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(driver._idle, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt), driver.paused():
        pass
    driver._leader = None
    assert stream.next().text
    with driver.paused():
        pass
    assert stream.next().text


def test_closing_ends_those_who_wait() -> None:
    driver = Driver(Scheduler(FakeEngine(n_ctx=256), None))
    stream = driver.submit(Request(prompt(5), GREEDY, 50))
    stream.next()
    driver.close(ModelError("closed"))
    with pytest.raises(ModelError, match="closed"):
        stream.next()
    with pytest.raises(ModelError, match="closed"):
        driver.submit(Request(prompt(5), GREEDY))


def test_a_processor_may_call_the_model_that_calls_it() -> None:
    driver = Driver(Scheduler(FakeEngine(n_ctx=256), None))
    inner: list[list[int]] = []

    def ask(ids: Row, logits: Row) -> Row:
        if len(ids) == 6:
            stream = driver.submit(Request(prompt(9), GREEDY, 3))
            inner.append([t for _ in range(3) for t in stream.next().text.tokens])
        return logits

    outer = Watched(prompt(5), 5, 1)
    expected = outer.alone(Scheduler(FakeEngine(n_ctx=256), None))[0]
    stream = driver.submit(Request(prompt(5), outer.request().sampling, 5, processors=(ask,)))
    tokens = [t for _ in range(5) for t in stream.next().text.tokens]
    assert tokens == expected
    plain = driver.submit(Request(prompt(9), GREEDY, 3))
    assert inner == [[t for _ in range(3) for t in plain.next().text.tokens]]
