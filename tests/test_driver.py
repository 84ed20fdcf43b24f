"""Threads that share a scheduler: each waits for its own request, and steps for all."""

from __future__ import annotations

import threading

import pytest
from fake_engine import FakeEngine
from watched_requests import GREEDY, Row, Watched, prompt

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
