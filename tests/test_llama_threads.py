"""The `Llama` class in threads: what is looked at, saved or changed while another one generates.

Covers api/tokens.py, api/busy.py, api/caches.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import path, text_of  # noqa: F401
from tiny_model import BOS

from pyllamacpu import Llama
from pyllamacpu.api.caches import LlamaRAMCache
from pyllamacpu.api.state import LlamaState

PROMPT = [BOS, *range(6, 30)]
Call = Callable[[Llama], object]
CALLS: dict[str, Call] = {
    "save_state": lambda llm: llm.save_state(),
    "load_state": lambda llm: llm.load_state(STATES[0]),
    "reset": lambda llm: llm.reset(),
    "eval": lambda llm: llm.eval([7]),
    "logits": lambda llm: llm.logits([7, 8]),
    "sample": lambda llm: llm.sample(),
    "set_adapters": lambda llm: llm.set_adapters({}),
    "scores": lambda llm: llm.scores,
    "_scores": lambda llm: llm._scores,
    "eval_logits": lambda llm: llm.eval_logits,
    "n_tokens=": lambda llm: setattr(llm, "n_tokens", 2),
    "input_ids=": lambda llm: setattr(llm, "input_ids", [BOS, 7]),
    "generate": lambda llm: next(llm.generate([9], reset=False)),
}
STATES: list[LlamaState] = []  # one, of the model below


@pytest.fixture(params=[False, True], ids=["", "logits_all"])
def llm(path: Path, request: pytest.FixtureRequest) -> Iterator[Llama]:
    with Llama(str(path), n_ctx=128, n_threads=1, kv_type="f32", logits_all=request.param) as model:
        model.eval(PROMPT)
        STATES[:] = [model.save_state()]
        yield model


class Meeting:
    """A thread that generates, and stops in the middle of a step, behind the engine's part of it, until
    `go_on`.
    """

    def __init__(self, llm: Llama, monkeypatch: pytest.MonkeyPatch, n_before: int = 3) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.text = ""
        outputs, self._left = llm.engine.outputs, n_before

        def stop(*args: Any, **options: Any) -> Any:
            found = outputs(*args, **options)
            self._left -= threading.current_thread() is self.thread
            if not self._left and threading.current_thread() is self.thread:
                self.reached.set()
                assert self.go_on.wait(60)
            return found

        def work() -> None:
            self.text = text_of(llm("hello", max_tokens=6, temperature=0.0))

        monkeypatch.setattr(llm.engine, "outputs", stop)
        self.thread = threading.Thread(target=work)
        self.thread.start()
        assert self.reached.wait(60)

    def end(self) -> None:
        self.go_on.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.mark.parametrize("name", CALLS)
def test_calls_wait_for_the_step_of_another_thread(
    llm: Llama, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In the middle of one, tokens and logits do not belong together. The answer is what it is alone."""
    expected = text_of(llm("hello", max_tokens=6, temperature=0.0))
    meeting = Meeting(llm, monkeypatch)
    errors: list[Exception] = []

    def call() -> None:
        try:
            CALLS[name](llm)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    meeting.end()
    thread.join(60)
    assert not thread.is_alive() and not errors
    assert meeting.text == expected


def test_a_state_that_is_saved_while_another_thread_generates(
    llm: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n_before in (1, 2, 4):
        with monkeypatch.context() as patch:
            meeting = Meeting(llm, patch, n_before)
            states: list[LlamaState] = []
            thread = threading.Thread(target=lambda found=states: found.append(llm.save_state()))
            thread.start()
            thread.join(0.05)
            meeting.end()
            thread.join(60)
        (state,) = states
        assert state.n_tokens and len(state.input_ids) == state.n_tokens
        assert len(state.scores)
        assert np.array_equal(state.scores, llm.logits(state.tokens)[-len(state.scores) :])
        llm.load_state(state)
        assert llm.n_tokens == state.n_tokens


def test_what_is_looked_at_without_waiting(llm: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """How far it is shows at any time."""
    meeting = Meeting(llm, monkeypatch)
    n = llm.n_tokens
    assert n and llm.input_ids[n - 1] == llm.eval_tokens[n - 1] == llm._input_ids[n - 1]
    assert len(llm.input_ids) == 128
    meeting.end()


@pytest.mark.parametrize("inner", ["processor", "criterion"])
@pytest.mark.parametrize("name", CALLS)
def test_a_step_that_calls_the_model_and_a_call_that_waits_for_the_step(
    llm: Llama, name: str, inner: str
) -> None:
    """Neither waits for ever."""
    inside, called = threading.Event(), threading.Event()

    def ask(ids: Any, row: Any) -> Any:
        if not inside.is_set():
            inside.set()
            assert called.wait(60)
            llm("a", max_tokens=1)
            llm.embed("a")
        return False if inner == "criterion" else row

    options = {"logits_processor" if inner == "processor" else "stopping_criteria": ask}
    outer = threading.Thread(target=lambda: llm("hello", max_tokens=3, **options), daemon=True)
    outer.start()
    assert inside.wait(60)
    other = threading.Thread(target=lambda: CALLS[name](llm), daemon=True)
    other.start()
    other.join(0.05)
    called.set()
    for thread in (outer, other):
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("logits_all", [False, True])
def test_drafted_tokens_are_not_there_until_they_come_true(path: Path, logits_all: bool) -> None:
    """What a processor sees of its model, while tokens that are evaluated ahead wait to be verified."""
    options: dict[str, Any] = {"n_ctx": 128, "n_threads": 1, "kv_type": "f32", "logits_all": logits_all}
    prompt = [BOS, *[6] * 32]
    ahead: list[int] = []
    stopped: list[int] = []

    def look(ids: Any, row: Any) -> Any:
        n = llm.n_tokens
        state, rows = llm.save_state(), llm.scores
        assert list(state.tokens) == llm._input_ids.tolist() == list(llm.eval_tokens) == ids.tolist()
        assert n == len(ids) == state.n_tokens
        assert np.array_equal(state.scores[-1], row) and np.array_equal(rows[n - 1], row)
        assert np.array_equal(llm._scores[-1], row) and np.array_equal(llm.eval_logits[-1], row)
        other.load_state(state)
        assert other.n_tokens == n
        ahead.append(len(llm._own_session.sequence) - n)
        if ahead[-1] and not stopped:  # the request goes on with a session of its own
            llm.eval([9])
            assert llm.n_tokens == n + 1
            assert np.array_equal(llm.scores[n], llm.logits([*ids.tolist(), 9])[-1])
            llm.load_state(state)
            stopped.append(n)
        return row

    with Llama(str(path), draft_model="lookup", **options) as llm, Llama(str(path), **options) as other:
        given: dict[str, Any] = {"max_tokens": 60, "temperature": 0.0, "logit_bias": {6: 99.0}}
        wanted = other(prompt, **given)["choices"]  # guesses come true
        found = llm(prompt, **given, logits_processor=lambda i, row: row if stopped else look(i, row))
        assert found["choices"] == wanted
        assert stopped


# Caches


def greedy_stream(llm: Llama, prompt: str) -> Iterator[Any]:
    return iter(llm(prompt, max_tokens=6, temperature=0.0, stream=True))


def test_a_cache_gets_the_state_of_the_answer_itself(llm: Llama, path: Path) -> None:
    """Whatever the object was called for meanwhile; what is taken of it can be gone on with."""
    others: list[Call] = [
        lambda llm: llm("the world", max_tokens=6),
        lambda llm: next(greedy_stream(llm, "other")),
        lambda llm: llm.reset(),
        lambda llm: llm.eval([7, 8, 9]),
    ]
    for other in others:
        for n in (1, 6):
            cache = LlamaRAMCache()
            llm.set_cache(cache)
            stream = greedy_stream(llm, "hello")
            list(islice(stream, n))
            llm.set_cache(None)
            other(llm)
            llm.set_cache(cache)
            list(stream)
            ((key, state),) = cache.cache_state.items()
            assert key == state.tokens
            assert key[: len(llm.tokenize(b"hello"))] == tuple(llm.tokenize(b"hello"))
            assert np.array_equal(state.scores, llm.logits(key)[-len(state.scores) :])
            llm.load_state(state)
            assert not any(session.to_save for session in llm._driver.sessions)


def test_threads_that_share_a_cache(llm: Llama) -> None:
    prompts = [f"{a} {b}" for a in ("hello", "the world", "a") for b in ("x", "hello")]
    expected = [text_of(llm(p, max_tokens=5, temperature=0.0)) for p in prompts]
    cache = LlamaRAMCache(400_000)
    llm.set_cache(cache)
    wrong: list[object] = []

    def work(first: int) -> None:
        for i in range(first, first + 12):
            n = i % len(prompts)
            try:
                found = text_of(llm(prompts[n], max_tokens=5, temperature=0.0))
            except Exception as error:
                wrong.append(error)
            else:
                wrong.extend([found] if found != expected[n] else [])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert all(key == state.tokens for key, state in cache.cache_state.items())
