"""Ctrl-C at any moment of a step: the steps after it give the very answers that there are without it.

The signal is a real one, sent where Python looks for signals: where functions begin and C calls return.
Covers engine/interrupts.py, engine/scheduler.py, sampling/rows.py.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from itertools import count
from types import FrameType
from typing import Any

import pytest
from fake_engine import FakeEngine
from test_speculation import Oracle, drafting
from tiny_model import byte, vocabulary
from watched_requests import prompt

from pyllamacpu.engine.generate import Request, TextEvent
from pyllamacpu.engine.interrupts import Uninterrupted
from pyllamacpu.engine.scheduler import Scheduler
from pyllamacpu.sampling.grammar import Grammar, GrammarCompiler
from pyllamacpu.sampling.sampler import SamplingOptions
from pyllamacpu.text import Tokenizer, load_tokenizer


def interrupted(job: Callable[[], object], at: int) -> bool:
    """Runs it with SIGINT at the moment of that number: whether there was one."""
    n = 0

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal n
        if event in ("call", "c_return") and "/pyllamacpu/" in frame.f_code.co_filename:
            n += 1
            if n == at:
                signal.raise_signal(signal.SIGINT)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        job()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(before)
    return n >= at


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = load_tokenizer(vocabulary())
    assert made is not None
    return made


def scheduler_of(tokenizer: Tokenizer, oracle: Oracle | None) -> Scheduler:
    script = [byte(65 + i % 7) for i in range(9)]
    return drafting(FakeEngine(script, n_prompt=5), tokenizer, oracle)


def answers(
    tokenizer: Tokenizer, requests: list[Request], oracle: Oracle | None, at: int
) -> tuple[Any, bool]:
    """What becomes of the requests, and whether there was such a moment."""
    scheduler = scheduler_of(tokenizer, oracle)
    handles = [scheduler.submit(request) for request in requests]
    events: dict[Any, list[TextEvent]] = {handle: [] for handle in handles}

    def run() -> None:
        while scheduler.has_work:
            for event in scheduler.step():
                assert event.text is not None, event.error
                events[event.handle].append(event.text)

    there = interrupted(run, at)
    run()
    found = [
        (
            "".join(event.text for event in own),
            [t for event in own for t in event.tokens],
            [entry for event in own for entry in event.logprobs],
            own[-1].finish_reason,
            own[-1].stop_string,
        )
        for own in (events[handle] for handle in handles)
    ]
    scheduler.close()
    return found, there


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("drafts", [False, True])
def test_an_interrupt_at_any_moment_changes_no_answer(tokenizer: Tokenizer, drafts: bool) -> None:
    hot = SamplingOptions(seed=3, temperature=1.5, top_k=0, min_p=0.0, repeat_penalty=1.1, mirostat=2)
    letters = GrammarCompiler(tokenizer).compile(Grammar.regex("[A-Z]{1,20}"))
    cool = SamplingOptions(seed=5, temperature=0.7, dry_multiplier=0.5)
    requests = [
        Request(prompt(5, 11), cool, 6, logprobs=2, stop=("EFG",)),
        Request(prompt(5, 12), hot, 5, grammar=letters),
    ]
    known = [[*prompt(5, first), *(byte(65 + i % 7) for i in range(9))] for first in (11, 12)]

    def oracle() -> Oracle | None:
        return Oracle(known, 0.9) if drafts else None

    wanted, there = answers(tokenizer, requests, oracle(), 1 << 40)
    assert not there
    for at in count(1, 3):
        found, there = answers(tokenizer, requests, oracle(), at)
        if not there:
            break
        assert found == wanted, at
    assert at > 500


def test_what_comes_from_the_signal_comes_behind_the_block() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), Uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done.append(1)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_others_are_called_once_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def mine(number: int, _: object) -> None:
        calls.append(number)

    before = signal.signal(signal.SIGINT, mine)
    try:
        with Uninterrupted(), Uninterrupted():
            signal.raise_signal(signal.SIGINT)
            assert calls == []
        assert calls == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is mine
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with Uninterrupted():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_errors_pass_and_other_threads_are_left_alone() -> None:
    def work() -> None:
        with pytest.raises(ZeroDivisionError), Uninterrupted():
            raise ZeroDivisionError
        seen.append(signal.getsignal(signal.SIGINT))

    seen: list[object] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    work()
    assert seen == [signal.default_int_handler] * 2
