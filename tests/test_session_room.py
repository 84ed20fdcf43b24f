"""The kept sequence of a `Llama` object gives its pages to answers that need them, and comes back.

Covers engine/session.py, engine/scheduler.py, engine/pages.py, engine/prefix_cache.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import path  # noqa: F401
from tiny_model import BOS, EOS

from pyllamacpu import Llama
from pyllamacpu.api.caches import LlamaRAMCache
from pyllamacpu.engine.pages import PAGE
from pyllamacpu.errors import ContextError

N_CTX = 128  # 4 pages
LONG: dict[str, Any] = {"max_tokens": 100, "temperature": 0.0, "logit_bias": {EOS: -100.0}}
TEXT, OTHER = [BOS, *range(30, 49)], [BOS, *range(60, 129)]


def opened(path: Path, pages: int | None = None, **options: Any) -> Llama:
    llm = Llama(str(path), n_ctx=N_CTX, n_threads=1, kv_type="f32", **options)
    if pages is not None:
        llm.engine.cache.limit_bytes = pages * llm.engine.cache.page_bytes
    return llm


def streamed(stream: Iterator[Any]) -> str:
    return "".join(chunk["choices"][0]["text"] for chunk in stream)


def ask(llm: Llama) -> None:
    llm(OTHER, max_tokens=20, temperature=0.0)


def evaluate(llm: Llama) -> None:
    llm.reset()
    llm.eval(OTHER)


@pytest.mark.parametrize("logits_all", [False, True])
@pytest.mark.parametrize("meanwhile", [ask, evaluate])
def test_an_answer_has_the_room_that_a_resting_session_takes(
    path: Path, meanwhile: Callable[[Llama], None], logits_all: bool
) -> None:
    """A context and two pages is the least that a model is opened with."""
    with opened(path) as fresh:
        expected = streamed(fresh(TEXT, stream=True, **LONG))
    with opened(path) as fresh:
        meanwhile(fresh)
        ids, state, row = list(fresh.eval_tokens), fresh.save_state(), fresh.scores[fresh.n_tokens - 1].copy()
        fresh.eval([9])
        further = np.array(fresh.eval_logits[-1])
    with opened(path, 6, logits_all=logits_all) as llm:
        stream = llm(TEXT, stream=True, **LONG)
        first = next(stream)["choices"][0]["text"]
        meanwhile(llm)
        assert first + streamed(stream) == expected
        assert list(llm.eval_tokens) == ids and llm.n_tokens == len(ids)
        assert np.array_equal(llm.scores[llm.n_tokens - 1], row)
        assert llm.save_state().llama_state == state.llama_state
        llm.eval([9])
        assert np.array_equal(np.array(llm.eval_logits[-1]), further)


def test_a_resting_session_is_cut_and_forgotten(path: Path) -> None:
    with opened(path) as llm:
        llm.eval(OTHER)
        session = llm._session
        assert session.park() and not session.park()
        assert not session.sequence.tokens and llm.n_tokens == len(OTHER)
        llm.n_tokens = 3
        assert list(llm.eval_tokens) == OTHER[:3]
        llm.eval([7])
        expected = llm.logits([*OTHER[:3], 7])[-1]
        assert np.array_equal(llm.scores[llm.n_tokens - 1], expected)
        assert llm._session.park()
        llm.reset()
        assert llm.n_tokens == 0
        llm.eval(TEXT)
        assert list(llm.eval_tokens) == TEXT


def test_a_session_that_cannot_come_back_stays_as_it_is(path: Path) -> None:
    with opened(path) as llm:
        llm.eval(OTHER)
        session, cache = llm._session, llm.engine.cache
        assert session.park()
        llm._driver.prefixes.clear()
        cache.limit_bytes = cache.page_bytes
        for call in (lambda: llm.eval([7]), llm.save_state):
            with pytest.raises(ContextError, match="the limit of"):
                call()
            assert list(llm.eval_tokens) == OTHER
        cache.limit_bytes = None
        llm.eval([7])
        assert list(llm.eval_tokens) == [*OTHER, 7]


@pytest.mark.parametrize(
    "call",
    [
        lambda llm: llm.save_state(),
        lambda llm: llm.eval([7]),
        lambda llm: setattr(llm, "n_tokens", 60),
        lambda llm: llm.logits(OTHER),
    ],
)
def test_a_session_comes_back_beside_an_answer_that_waits_for_it(
    path: Path, call: Callable[[Llama], object]
) -> None:
    with opened(path) as fresh:
        expected = streamed(fresh(TEXT, stream=True, **LONG))
    with opened(path, 6) as llm:
        stream = llm(TEXT, stream=True, **LONG)
        answer = next(stream)["choices"][0]["text"]
        evaluate(llm)
        while not llm._session._parked:
            answer += next(stream)["choices"][0]["text"]
        call(llm)
        assert list(llm.eval_tokens)[:60] == OTHER[:60]
        llm.eval([8])
        assert np.array_equal(llm.scores[llm.n_tokens - 1], llm.logits(list(llm.eval_tokens))[-1])
        assert answer + streamed(stream) == expected


def test_logits_have_the_room_of_the_session(path: Path) -> None:
    with opened(path) as llm:
        expected = llm.logits(OTHER)
    with opened(path, 4) as llm:
        llm.eval(list(range(30, 140)))
        assert np.array_equal(llm.logits(OTHER), expected)
        assert list(llm.eval_tokens) == list(range(30, 140))


def test_a_cache_takes_no_room_from_others(path: Path) -> None:
    """Neither what is yet to be stored, nor what is looked up."""
    prompts = [[BOS, *range(30 + 20 * i, 90 + 20 * i)] for i in range(5)]
    options: dict[str, Any] = {"max_tokens": 30, "temperature": 0.0}
    with opened(path) as fresh:
        expected = [fresh(prompt, **options)["choices"][0]["text"] for prompt in prompts]
    with opened(path, 6) as llm:
        llm.set_cache(LlamaRAMCache())
        wrong: list[object] = []

        def work(first: int) -> None:
            for i in range(first, first + 10):
                n = i * 7 % len(prompts)
                try:
                    found = llm(prompts[n], **options)["choices"][0]["text"]
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


@pytest.mark.parametrize("n_prompt", [PAGE + 8, 2 * PAGE - 6])
def test_a_limit_of_just_so_many_pages_is_enough(path: Path, n_prompt: int) -> None:
    """The page that the prompt ends in is the prefix cache's too, until there is no room for a copy."""
    prompt = [BOS, *range(30, 29 + n_prompt)]
    with opened(path) as fresh:
        expected = fresh(prompt, max_tokens=5, temperature=0.0)
    with opened(path, 2) as llm:
        for _ in range(2):
            assert llm(prompt, max_tokens=5, temperature=0.0)["choices"] == expected["choices"]


@pytest.mark.parametrize("at", ["before", "between"])
def test_an_interrupt_while_pages_are_let_go_doubles_no_tokens(
    path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with opened(path) as llm:
        expected = llm.logits([*OTHER, 7])[-1]
        llm.eval(OTHER)
        session = llm._session
        with monkeypatch.context() as patch:
            if at == "before":
                patch.setattr(session, "_let_go", interrupt)
            else:
                patch.setattr(session.sequence, "truncate", interrupt)
            with pytest.raises(KeyboardInterrupt):
                session.park()
        assert list(llm.eval_tokens) == OTHER
        llm.eval([7])
        assert list(llm.eval_tokens) == [*OTHER, 7]
        assert np.array_equal(llm.scores[llm.n_tokens - 1], expected)
