"""engine/scheduler.py and engine/driver.py: each request gets what it gets alone, whatever else runs."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine
from tiny_model import write_model

from pyllamacpu.engine.driver import Driver
from pyllamacpu.engine.engine import Engine
from pyllamacpu.engine.generate import HiddenRequest, Request
from pyllamacpu.engine.handle import Event, Handle
from pyllamacpu.engine.pages import PAGE
from pyllamacpu.engine.scheduler import Scheduler
from pyllamacpu.errors import ContextError, ModelError, NativeError, OptionError, TokenizerError
from pyllamacpu.sampling.sampler import SamplingOptions

GREEDY = SamplingOptions(temperature=0.0)
Row = np.ndarray
Answer = tuple[list[int], list[bytes], str | None]


class Watched:
    """A request whose logits are written down, as each token's processor sees them."""

    def __init__(self, prompt: list[int], n: int, seed: int) -> None:
        self.rows: list[bytes] = []
        self.tokens: list[int] = []
        self.reason: str | None = None
        self.prompt, self.n, self.seed = prompt, n, seed

    def request(self) -> Request:
        hot = SamplingOptions(seed=self.seed, temperature=1.5, top_k=0, min_p=0.0, repeat_penalty=1.1)
        return Request(self.prompt, hot, self.n, processors=(self._see,))

    def _see(self, ids: Row, logits: Row) -> Row:
        self.rows.append(logits.tobytes())
        return logits

    def take(self, event: Event) -> None:
        assert event.text is not None, event.error
        self.tokens += event.text.tokens
        self.reason = event.text.finish_reason

    @property
    def answer(self) -> Answer:
        return self.tokens, self.rows, self.reason

    def alone(self, scheduler: Scheduler) -> Answer:
        """What the request gets when nothing else runs and nothing is cached."""
        other = Watched(self.prompt, self.n, self.seed)
        scheduler.submit(other.request())
        while other.reason is None:
            for event in scheduler.step():
                other.take(event)
        scheduler.prefixes.clear()
        return other.answer


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


# Scheduling


def prompt(n: int, first: int = 7) -> list[int]:
    return [first, *[9] * (n - 1)]


def finish(scheduler: Scheduler) -> list[Event]:
    events = []
    while scheduler.has_work:
        events += scheduler.step()
    return events


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


# Failures


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


# Threads


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
