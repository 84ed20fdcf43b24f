"""Each request gets what it gets alone, whatever else runs; what runs when."""

from __future__ import annotations

import gc
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine
from tiny_model import write_model
from watched_requests import GREEDY, Watched, finish, prompt

from pyllamacpu.engine.batch import Entry
from pyllamacpu.engine.engine import Engine
from pyllamacpu.engine.generate import HiddenRequest, Request, ScoreRequest
from pyllamacpu.engine.handle import SCORED, Handle
from pyllamacpu.engine.pages import PAGE
from pyllamacpu.engine.scheduler import Scheduler
from pyllamacpu.errors import ContextError
from pyllamacpu.sampling.sampler import SamplingOptions, top_logprobs


def stormy(scheduler: Scheduler, requests: list[Watched], seed: int) -> set[int]:
    """Submits the requests at random moments, cancels and pauses some; those that were cancelled."""
    chance = random.Random(seed)
    waiting, handles, cancelled = list(enumerate(requests)), dict[Handle, int](), set[int]()
    while waiting or scheduler.has_work or any(h.paused for h in handles):
        while waiting and chance.random() < 0.5:
            number, watched = waiting.pop(0)
            handles[scheduler.submit(watched.request())] = number
        for handle, number in handles.items():
            handle.paused = not handle.is_finished and chance.random() < 0.1
            if number % 7 == 3 and not handle.is_finished and chance.random() < 0.2:
                scheduler.cancel(handle)
                cancelled.add(number)
        for event in scheduler.step():
            requests[handles[event.handle]].take(event)
    return cancelled


def mixed_requests(n: int, n_vocab: int, longest: int, seed: int) -> list[Watched]:
    """Prompts of mixed lengths, of which many begin alike."""
    chance = random.Random(seed)
    common = [chance.randrange(n_vocab) for _ in range(longest)]
    found = []
    for i in range(n):
        own = [chance.randrange(n_vocab) for _ in range(chance.randrange(1, longest // 2))]
        found.append(
            Watched(common[: chance.choice([0, 5, 40, 70, longest // 2])] + own, chance.randrange(1, 12), i)
        )
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_ctx=256)


@pytest.mark.parametrize(("seed", "limit_pages", "n_batch"), [(1, 12, 64), (2, 20, 512), (3, 9, 40)])
def test_32_requests_get_the_bits_of_running_alone(
    tiny: Path, seed: int, limit_pages: int, n_batch: int
) -> None:
    """With cancellations, pauses, a cache too small for all (eviction, preemption) and shared beginnings."""
    engine = Engine.open(tiny, n_ctx=256, n_batch=n_batch, n_threads=2)
    alone = Scheduler(engine, None)
    requests = mixed_requests(32, engine.n_vocab, 150, seed)
    expected = [watched.alone(alone) for watched in requests]
    engine.cache.limit_bytes = limit_pages * engine.cache.page_bytes
    scheduler = Scheduler(engine, None, itl_target=0.0)  # small chunks
    cancelled = stormy(scheduler, requests, seed)
    assert len(cancelled) < 8
    for number, (watched, answer) in enumerate(zip(requests, expected, strict=True)):
        if number in cancelled:
            tokens, rows, _ = watched.answer
            assert (tokens, rows) == (answer[0][: len(tokens)], answer[1][: len(rows)])
        else:
            assert watched.answer == answer
    assert engine.cache.bytes_in_use <= engine.cache.limit_bytes
    assert engine.cache.pages_in_use == len(scheduler.prefixes)
    engine.close()


def test_a_step_that_nobody_wants_any_more_ends_early(
    starter_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that somebody else is in does not. Nothing of it stays."""
    engine = Engine.open(starter_model, n_ctx=600, n_batch=512, n_threads=1)
    scheduler = Scheduler(engine, None)
    outputs = engine.outputs
    unwanted: list[Handle] = []

    def cancelled_meanwhile(*arguments: Any) -> Any:
        for handle in unwanted:
            scheduler.cancel(handle)
        return outputs(*arguments)

    monkeypatch.setattr(engine, "outputs", cancelled_meanwhile)
    prompts = [list(range(start, start + 400)) for start in (100, 3000, 900)]
    unwanted = [scheduler.submit(Request(prompts[0], GREEDY, 2))]
    assert scheduler.step() == [] and scheduler.n_steps == 0
    scheduler.step()
    assert unwanted[0].is_finished and not scheduler.has_work and scheduler.n_evaluated == 0
    unwanted = [scheduler.submit(Request(prompts[1], GREEDY, 2))]
    other = scheduler.submit(Request(prompts[2][:100], GREEDY, 1))
    while not other.is_finished:
        scheduler.step()
    assert scheduler.n_evaluated == 500
    scheduler.step()
    assert unwanted[0].is_finished
    scheduler.close()
    assert engine.cache.pages_in_use == 0
    engine.close()


def test_the_starter_model_under_load(starter_model: Path) -> None:
    engine = Engine.open(starter_model, n_ctx=256, n_batch=128)
    alone = Scheduler(engine, None)
    requests = mixed_requests(8, engine.n_vocab, 120, 5)
    expected = [watched.alone(alone) for watched in requests]
    engine.cache.limit_bytes = 14 * engine.cache.page_bytes
    cancelled = stormy(Scheduler(engine, None), requests, 5)
    for number, (watched, answer) in enumerate(zip(requests, expected, strict=True)):
        assert number in cancelled or watched.answer == answer
    engine.close()


def test_hidden_states_are_requests_too(tiny: Path) -> None:
    engine = Engine.open(tiny, n_ctx=256, n_batch=40, n_threads=1)
    texts = [prompt(30, 6), prompt(90, 7)]
    expected = [engine.hidden(text).copy() for text in texts]
    watched = Watched(prompt(50), 8, 3)
    answer = watched.alone(Scheduler(engine, None))
    scheduler = Scheduler(engine, None)
    handles = [
        scheduler.submit(r) for r in (HiddenRequest(texts[0]), watched.request(), HiddenRequest(texts[1]))
    ]
    found = {}
    for event in finish(scheduler):
        if event.handle is handles[1]:
            watched.take(event)
        else:
            assert event.is_last
            found[event.handle] = event.hidden
    assert watched.answer == answer
    assert np.array_equal(found[handles[0]], expected[0])
    assert np.array_equal(found[handles[2]], expected[1])
    engine.close()


@pytest.mark.parametrize("n_pages", [20, 4])
def test_scores_are_requests_too(tiny: Path, n_pages: int) -> None:
    """The same bits beside others, and where memory is short; few rows of logits at a time."""
    engine = Engine.open(tiny, n_ctx=256, n_batch=100, n_threads=1)
    texts = [prompt(30, 6), prompt(90, 7), prompt(1, 8), prompt(70, 9)]
    expected = [
        [top_logprobs(row, token, 3) for row, token in zip(rows, text[1:], strict=False)]
        for text, rows in ((text, engine.step([Entry(engine.sequence(), text, "all")])) for text in texts)
    ]
    watched = Watched(prompt(50), 8, 3)
    answer = watched.alone(Scheduler(engine, None))
    gc.collect()
    engine.cache.limit_bytes = n_pages * engine.cache.page_bytes
    scheduler = Scheduler(engine, None)
    handles = [scheduler.submit(watched.request())]
    handles += [scheduler.submit(ScoreRequest(text, n_best=3)) for text in texts]
    found = {}
    for event in finish(scheduler):
        assert event.error is None
        if event.handle is handles[0]:
            watched.take(event)
        else:
            assert event.is_last
            found[event.handle] = event.scores
    assert watched.answer == answer
    assert [found[handle] for handle in handles[1:]] == expected
    assert len(scheduler._logits) <= SCORED + len(handles)
    engine.close()


def test_cancelled_requests_leave_their_pages(tiny: Path) -> None:
    engine = FakeEngine(n_ctx=512)
    scheduler = Scheduler(engine, None)
    handle = scheduler.submit(Request(prompt(100), GREEDY, 50))
    scheduler.step()
    scheduler.cancel(handle)
    assert scheduler.step() == []
    assert handle.is_finished
    assert engine.cache.pages_in_use == len(scheduler.prefixes) == 4
    again = scheduler.submit(Request(prompt(100), GREEDY, 1))
    finish(scheduler)
    assert again.n_cached == 99
    scheduler.close()
    assert engine.cache.pages_in_use == 0


# Scheduling


def test_a_step_mixes_tokens_and_chunks() -> None:
    engine = FakeEngine(n_ctx=512, n_batch=96)
    scheduler = Scheduler(engine, None)
    scheduler.submit(Request(prompt(5, 6), GREEDY, 30))
    scheduler.step()
    scheduler.submit(Request(prompt(200), GREEDY, 3))
    scheduler.submit(Request(prompt(50, 8), GREEDY, 3))
    while scheduler.has_work:
        scheduler.step()
    assert engine.steps[0] == [5]
    assert engine.steps[1][0] == 1  # the answer goes on in each step
    assert any(len(step) == 3 for step in engine.steps)
    assert sum(map(sum, engine.steps)) == 5 + 29 + 200 + 2 + 50 + 2


def test_a_giant_prompt_does_not_take_the_whole_budget() -> None:
    engine = FakeEngine(n_ctx=4096, n_batch=128)
    scheduler = Scheduler(engine, None)
    giant = scheduler.submit(Request(prompt(3000), GREEDY, 1))
    scheduler.step()
    small = scheduler.submit(Request(prompt(60, 8), GREEDY, 1))
    scheduler.step()
    assert small.is_finished
    assert not giant.is_finished


def test_steps_with_answers_stay_under_the_wanted_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that goes by the tokens of a step: 1 ms for each, 5 ms for the step."""
    engine, now = FakeEngine(n_ctx=4096, n_batch=512), [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    lengths: list[float] = []
    step = engine.outputs

    def timed(entries: Any, buffer: Any) -> Any:
        lengths.append(0.005 + 0.001 * sum(len(entry.tokens) for entry in entries))
        now[0] += lengths[-1]
        return step(entries, buffer)

    engine.outputs = timed  # type: ignore[method-assign]
    scheduler = Scheduler(engine, None, itl_target=0.1)
    scheduler.submit(Request(prompt(8, 6), GREEDY, 100))
    scheduler.step()
    scheduler.submit(Request(prompt(1500), GREEDY, 1))
    finish(scheduler)
    assert max(lengths) <= 0.1
    assert sorted(lengths)[-5] > 0.06  # and the time is used


def test_requests_wait_until_their_pages_fit() -> None:
    engine = FakeEngine(n_ctx=512)
    engine.cache.limit_bytes = 6 * engine.cache.page_bytes
    scheduler = Scheduler(engine, None)
    handles = [scheduler.submit(Request(prompt(PAGE * 2, i), GREEDY, 40)) for i in range(3)]
    scheduler.step()
    assert [h.state for h in handles] == ["decoding", "waiting", "waiting"]
    finish(scheduler)
    assert all(h.is_finished for h in handles)


def test_the_youngest_is_preempted_and_goes_on_later() -> None:
    def run(limit_pages: int | None) -> list[list[int]]:
        engine = FakeEngine(n_ctx=2048)
        if limit_pages:
            engine.cache.limit_bytes = limit_pages * engine.cache.page_bytes
        scheduler = Scheduler(engine, None)
        options = SamplingOptions(seed=4, temperature=2.0)
        handles = [scheduler.submit(Request(prompt(20, i), options, 500)) for i in range(3)]
        tokens = {handle: [] for handle in handles}
        states = set()
        while scheduler.has_work:
            for event in scheduler.step():
                assert event.error is None
                tokens[event.handle] += event.text.tokens
            states.add(tuple(h.state for h in handles))
        assert (("decoding", "decoding", "waiting") in states) == bool(limit_pages)
        return list(tokens.values())

    assert run(36) == run(None)


def test_a_request_that_cannot_fit_at_all_is_an_error() -> None:
    engine = FakeEngine(n_ctx=512)
    engine.cache.limit_bytes = 2 * engine.cache.page_bytes
    scheduler = Scheduler(engine, None)
    scheduler.submit(Request(prompt(100), GREEDY, 4))
    good = scheduler.submit(Request(prompt(20), GREEDY, 4))
    bad, *rest = finish(scheduler)
    assert isinstance(bad.error, ContextError)
    assert {event.handle for event in rest} == {good}
    assert good.is_finished


def test_a_paused_request_gives_way_when_nothing_else_can_run() -> None:
    engine = FakeEngine(n_ctx=512)
    engine.cache.limit_bytes = 4 * engine.cache.page_bytes
    scheduler = Scheduler(engine, None)
    first = scheduler.submit(Request(prompt(90), GREEDY, 4))
    scheduler.step()
    first.paused = True
    second = scheduler.submit(Request(prompt(90, 3), GREEDY, 4))
    while not second.is_finished:
        scheduler.step()
    assert first.state == "waiting"
    first.paused = False
    finish(scheduler)
    assert first.is_finished


def test_paused_requests_do_not_keep_others_waiting() -> None:
    """Not even while another one runs: slow readers have no hold on the places."""
    scheduler = Scheduler(FakeEngine(n_ctx=512), None, max_running=3)
    slow = [scheduler.submit(Request(prompt(40, i), GREEDY, 4)) for i in range(2)]
    scheduler.step()
    for handle in slow:
        handle.paused = True
    endless = scheduler.submit(Request(prompt(40, 7), GREEDY, None))
    other = scheduler.submit(Request(prompt(40, 8), GREEDY, 4))
    for _ in range(50):
        scheduler.step()
    assert other.is_finished and not endless.is_finished
    for handle in slow:
        handle.paused = False
    scheduler.cancel(endless)
    finish(scheduler)
    assert all(handle.is_finished for handle in slow)
