"""Sessions, the token loop and text events, on an engine whose logits are a function of the whole history."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from tiny_model import BOS, EOS, PIECES, byte, vocabulary

from pyllamacpu.engine.generate import (
    GenerationStats,
    Request,
    StepSampler,
    TextEvent,
    TokenLoop,
    generate_text,
    make_sampler,
    token_limit,
)
from pyllamacpu.engine.session import Session, check_tokens, common_prefix
from pyllamacpu.errors import ContextError, ModelError, OptionError, TokenizerError
from pyllamacpu.sampling.sampler import SamplingOptions
from pyllamacpu.text import Tokenizer, load_tokenizer

GREEDY = SamplingOptions(temperature=0.0)
N_VOCAB = len(PIECES)


class FakeSequence:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.closed = False

    def __len__(self) -> int:
        return len(self.tokens)

    def truncate(self, n: int) -> None:
        del self.tokens[n:]

    def fork(self) -> FakeSequence:
        other = FakeSequence()
        other.tokens = list(self.tokens)
        return other

    def close(self) -> None:
        self.closed = True

    def save(self) -> bytes:
        return bytes(np.array(self.tokens, np.int32))

    def load(self, data: bytes) -> None:
        self.tokens = np.frombuffer(data, np.int32).tolist()


class FakeEngine:
    """Wants the tokens of `script` one after the other behind any prompt, and counts what it evaluates."""

    n_vocab = N_VOCAB

    def __init__(self, script: Sequence[int] = (), n_prompt: int = 0, n_ctx: int = 64) -> None:
        self.n_ctx = n_ctx
        self.script, self.n_prompt = list(script), n_prompt
        self.evaluated: list[list[int]] = []
        self.interrupt_at: int | None = None
        self._row = np.zeros((1, N_VOCAB), np.float32)

    def sequence(self) -> FakeSequence:
        return FakeSequence()

    def row(self, history: Sequence[int]) -> np.ndarray:
        row = np.random.default_rng([len(history), *history]).normal(size=N_VOCAB).astype(np.float32)
        if self.script:
            step = len(history) - self.n_prompt
            row[self.script[step] if 0 <= step < len(self.script) else EOS] += 20
        return row

    def eval(
        self, sequence: FakeSequence, tokens: list[int], *, logits: str = "last", on_progress: Any = None
    ) -> np.ndarray:
        self.evaluated.append(list(tokens))
        rows = []
        for done, token in enumerate(tokens, 1):
            if self.interrupt_at == len(sequence):
                raise KeyboardInterrupt
            sequence.tokens.append(token)
            rows.append(self.row(sequence.tokens))
            if on_progress:
                on_progress(done, len(tokens))
        if logits == "all":
            return np.stack(rows)
        self._row[0] = rows[-1]  # one array for all calls, as the engine has
        return self._row


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = load_tokenizer(vocabulary())
    assert made is not None
    return made


def run(engine: FakeEngine, tokenizer: Tokenizer | None, request: Request) -> list[TextEvent]:
    session = Session(engine)
    sampler = make_sampler(request.sampling, session, tokenizer, request.processors)
    return list(generate_text(session, tokenizer, request, sampler, threading.RLock()))


def greedy_events(session: Session, tokenizer: Tokenizer, lock: Any = None) -> Iterator[TextEvent]:
    sampler = make_sampler(GREEDY, session, tokenizer)
    return generate_text(session, tokenizer, Request([BOS], GREEDY), sampler, lock or threading.RLock())


def text_of(events: list[TextEvent]) -> str:
    return "".join(event.text for event in events)


def tokens_of(events: list[TextEvent]) -> list[int]:
    return [token for event in events for token in event.tokens]


def bytes_script(text: bytes) -> list[int]:
    return [byte(value) for value in text]


# Session


def test_a_session_reads_only_what_is_new() -> None:
    engine = FakeEngine()
    session = Session(engine)
    assert session.read([7, 8, 9]) == 0
    assert session.read([7, 8, 10, 11]) == 2
    assert engine.evaluated == [[7, 8, 9], [10, 11]]
    assert np.array_equal(session.last, engine.row([7, 8, 10, 11]))


def test_the_same_prompt_again_needs_no_work_and_a_prefix_one_token() -> None:
    engine = FakeEngine()
    session = Session(engine)
    session.read([7, 8, 9])
    assert session.read([7, 8, 9]) == 3
    assert session.read([7, 8]) == 1
    assert engine.evaluated == [[7, 8, 9], [8]]
    assert np.array_equal(session.last, engine.row([7, 8]))


def test_logits_are_the_sessions_own_and_not_the_engines_array() -> None:
    engine = FakeEngine()
    one, two = Session(engine), Session(engine)
    one.read([7])
    two.read([8])
    assert np.array_equal(one.last, engine.row([7]))


def test_keeping_all_logits() -> None:
    engine = FakeEngine(n_ctx=8)
    session = Session(engine, keep_all=True)
    session.read([7, 8, 9])
    session.read([7, 8, 3, 4])
    assert session.scores is not None
    assert session.scores.shape == (8, N_VOCAB)
    for i in range(4):
        assert np.array_equal(session.scores[i], engine.row([7, 8, 3, 4][: i + 1]))
    session.truncate(2)
    assert np.array_equal(session.last, engine.row([7, 8]))
    fork = session.fork()
    fork.append([5])
    assert fork.scores is not None
    assert np.array_equal(fork.scores[1], session.scores[1])
    assert len(session) == 2


@pytest.mark.parametrize("keep_all", [False, True])
def test_an_interrupted_prompt_leaves_a_usable_session(keep_all: bool) -> None:
    engine = FakeEngine()
    session = Session(engine, keep_all=keep_all)
    session.read([7, 8])
    engine.interrupt_at = 4
    with pytest.raises(KeyboardInterrupt):
        session.read([7, 8, 1, 2, 3, 4])
    assert session.last is None
    engine.interrupt_at = None
    session.read([7, 8, 1, 2, 3, 4])
    assert np.array_equal(session.last, engine.row([7, 8, 1, 2, 3, 4]))
    if session.scores is not None:
        assert np.array_equal(session.scores[3], engine.row([7, 8, 1, 2]))


def test_too_many_tokens_and_none_at_all() -> None:
    session = Session(FakeEngine(n_ctx=4))
    with pytest.raises(ContextError, match="5 tokens do not fit in the context of 4"):
        session.read([3] * 5)
    session.read([3] * 3)
    with pytest.raises(ContextError):
        session.append([3, 3])
    assert len(session) == 3
    with pytest.raises(OptionError, match="empty"):
        session.read([])


def test_a_damaged_state_is_refused() -> None:
    session = Session(FakeEngine())
    session.read([7, 8])
    with pytest.raises(ModelError):
        Session(FakeEngine()).load(session.sequence.save(), [7, 9], None, None)


@pytest.mark.parametrize(
    ("a", "b", "shared"), [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2], [1, 3], 1), ([2], [1], 0)]
)
def test_common_prefix(a: list[int], b: list[int], shared: int) -> None:
    assert common_prefix(a, b) == common_prefix(b, a) == shared


@pytest.mark.parametrize("wrong", [[-1], [N_VOCAB], [0, 10**12], ["a"], [1.5], [None]])
def test_token_ids_are_checked(wrong: list[Any]) -> None:
    with pytest.raises(TokenizerError):
        check_tokens(wrong, N_VOCAB)
    assert check_tokens(np.array([0, N_VOCAB - 1]), N_VOCAB) == [0, N_VOCAB - 1]


# Text events


def test_text_stops_at_the_end_token(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(bytes_script(b"ab"), n_prompt=1)
    events = run(engine, tokenizer, Request([BOS], GREEDY))
    assert text_of(events) == "ab"
    assert tokens_of(events) == bytes_script(b"ab")
    assert [event.finish_reason for event in events] == [None] * (len(events) - 1) + ["stop"]
    assert events[-1].stats is not None
    assert (events[-1].stats.n_prompt, events[-1].stats.n_cached, events[-1].stats.n_generated) == (1, 0, 2)


@pytest.mark.parametrize("limit", range(12))
def test_no_event_ends_inside_a_character(tokenizer: Tokenizer, limit: int) -> None:
    whole = "é日🎉x"
    engine = FakeEngine(bytes_script(whole.encode()), n_prompt=2)
    events = run(engine, tokenizer, Request([BOS, 9], GREEDY, max_tokens=limit))
    assert text_of(events) == whole.encode()[:limit].decode("utf-8", "ignore")
    assert all(event.text in whole for event in events)
    assert tokens_of(events) == bytes_script(whole.encode())[:limit]
    assert events[-1].finish_reason == ("stop" if limit > len(whole.encode()) else "length")


@pytest.mark.parametrize(
    ("text", "stop", "expected", "reason"),
    [
        ("one two three", ["two"], "one ", "stop"),
        ("one two three", ["x", "o th"], "one tw", "stop"),
        ("one tw", ["two"], "one tw", "stop"),  # by the end token
        ("one tw and more than the limit", ["two"], "one tw and mor", "length"),
        ("日本語", ["語"], "日本", "stop"),
        ("aab", ["ab"], "a", "stop"),
    ],
)
def test_stop_strings(tokenizer: Tokenizer, text: str, stop: list[str], expected: str, reason: str) -> None:
    engine = FakeEngine(bytes_script(text.encode()), n_prompt=1)
    events = run(engine, tokenizer, Request([BOS], GREEDY, max_tokens=14, stop=tuple(stop)))
    assert text_of(events) == expected
    assert events[-1].finish_reason == reason
    assert sum(event.finish_reason is not None for event in events) == 1


def test_the_last_token_is_not_evaluated(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(bytes_script(b"abcdef"), n_prompt=2)
    run(engine, tokenizer, Request([BOS, 9], GREEDY, max_tokens=3))
    assert engine.evaluated == [[BOS, 9], [byte(ord("a"))], [byte(ord("b"))]]


def test_the_context_limits_the_answer(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(bytes_script(b"x" * 50), n_prompt=3, n_ctx=10)
    events = run(engine, tokenizer, Request([BOS, 9, 9], GREEDY, max_tokens=None))
    assert text_of(events) == "x" * 7
    assert events[-1].finish_reason == "length"
    with pytest.raises(ContextError, match="leaves no room"):
        token_limit(10, 1, 10)
    assert token_limit(9, None, 10) == 1


def test_prompt_progress_counts_the_whole_prompt(tokenizer: Tokenizer) -> None:
    engine = FakeEngine()
    session = Session(engine)
    session.read([BOS, 9])
    seen: list[tuple[int, int]] = []
    request = Request([BOS, 9, 8, 7], GREEDY, max_tokens=0, on_prompt=lambda *at: seen.append(at))
    sampler = make_sampler(GREEDY, session, tokenizer)
    (last,) = generate_text(session, tokenizer, request, sampler, threading.RLock())
    assert seen == [(3, 4), (4, 4)]
    assert last.stats is not None
    assert last.stats.n_cached == 2


def test_logprobs_are_those_of_the_unprocessed_logits(tokenizer: Tokenizer) -> None:
    engine = FakeEngine()
    hot = SamplingOptions(temperature=2.0, seed=5, logit_bias={9: -5.0})
    events = run(engine, tokenizer, Request([BOS], hot, max_tokens=6, logprobs=3))
    entries = [entry for event in events for entry in event.logprobs]
    history = [BOS]
    assert [entry.token for entry in entries] == tokens_of(events)
    for entry in entries:
        row = engine.row(history).astype(np.float64)
        expected = row - np.log(np.exp(row).sum())
        assert entry.logprob == pytest.approx(expected[entry.token], abs=1e-5)
        assert [token for token, _ in entry.top] == np.argsort(-expected)[:3].tolist()
        history.append(entry.token)


def test_processors_and_criteria_see_prompt_and_answer(tokenizer: Tokenizer) -> None:
    seen: list[list[int]] = []

    def only_b(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        seen.append(ids.tolist())
        scores[:] = -np.inf
        scores[byte(ord("b"))] = 0
        return scores

    def after_three(ids: np.ndarray, scores: np.ndarray) -> bool:
        return len(ids) >= 1 + 3

    engine = FakeEngine()
    request = Request([BOS], GREEDY, processors=(only_b,), criteria=(after_three,))
    events = run(engine, tokenizer, request)
    assert text_of(events) == "bbb"
    assert events[-1].finish_reason == "stop"
    b = byte(ord("b"))
    assert seen == [[BOS], [BOS, b], [BOS, b, b]]


def test_extra_end_tokens(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(bytes_script(b"ab#c"), n_prompt=1)
    events = run(engine, tokenizer, Request([BOS], GREEDY, end_tokens=frozenset({byte(ord("#"))})))
    assert (text_of(events), events[-1].finish_reason) == ("ab", "stop")


def test_without_a_tokenizer_there_are_tokens_and_no_text() -> None:
    engine = FakeEngine([9, 8, 7, EOS, 6], n_prompt=1)
    events = run(engine, None, Request([BOS], GREEDY, max_tokens=5))
    assert tokens_of(events) == [9, 8, 7, EOS, 6]
    assert text_of(events) == ""
    with pytest.raises(TokenizerError, match="no tokenizer"):
        run(engine, None, Request([BOS], GREEDY, stop=("a",)))


def test_an_interrupt_passes_through_and_the_session_goes_on(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(bytes_script(b"abcdef"), n_prompt=1)
    session = Session(engine)
    engine.interrupt_at = 3
    events = greedy_events(session, tokenizer)
    with pytest.raises(KeyboardInterrupt):
        list(events)
    engine.interrupt_at = None
    again = greedy_events(session, tokenizer)
    assert text_of(list(again)) == "abcdef"


def test_a_lock_is_free_while_events_are_looked_at(tokenizer: Tokenizer) -> None:
    lock = threading.Lock()
    session = Session(FakeEngine(bytes_script(b"abc"), n_prompt=1))
    for _ in greedy_events(session, tokenizer, lock):
        assert lock.acquire(blocking=False)
        lock.release()


# Loops and steps


def sampled(seed: int, n: int) -> list[int]:
    session = Session(FakeEngine())
    session.read([BOS])
    loop = TokenLoop(session, make_sampler(SamplingOptions(seed=seed), session, None))
    return [token for _ in range(n) if (token := loop.next()) is not None]


def test_a_seed_gives_the_same_tokens() -> None:
    assert sampled(3, 20) == sampled(3, 20)
    assert sampled(3, 20) != sampled(4, 20)


def test_pushed_tokens_are_evaluated_before_the_next_is_sampled() -> None:
    engine = FakeEngine()
    session = Session(engine)
    session.read([BOS])
    loop = TokenLoop(session, make_sampler(GREEDY, session, None))
    first = loop.next()
    loop.push([9, 8])
    loop.next()
    assert engine.evaluated[1:] == [[first, 9, 8]]


def test_the_step_sampler_goes_on_with_its_random_numbers_and_its_history() -> None:
    session = Session(FakeEngine())
    session.read([BOS, 9])
    options = SamplingOptions(seed=11, temperature=5.0, top_k=0, min_p=0.0, top_p=1.0)
    steps = StepSampler()
    drawn = [steps.sample(session, session.last, options, None) for _ in range(12)]
    assert len(set(drawn)) > 1
    state = steps.get_state()
    more = [steps.sample(session, session.last, options, None) for _ in range(6)]
    other = StepSampler()
    other.set_state(state, session, None)
    assert [other.sample(session, session.last, options, None) for _ in range(6)] == more


def test_the_step_samplers_penalties_follow_a_session_that_was_cut() -> None:
    session = Session(FakeEngine())
    options = SamplingOptions(temperature=0.0, repeat_penalty=1e6, repeat_last_n=64)
    steps = StepSampler()
    session.read([BOS, 9])
    best = int(np.argmax(session.last))
    row = session.last
    assert steps.sample(session, row, options, None) == best
    session.append([best])
    assert steps.sample(session, row, options, None) != best
    session.truncate(2)
    assert steps.sample(session, row, options, None) == best


def test_rates_of_nothing_are_zero() -> None:
    stats = GenerationStats(5, 5, 0, 0.0, 0.0)
    assert (stats.prompt_rate, stats.generate_rate) == (0.0, 0.0)
    assert GenerationStats(6, 2, 3, 2.0, 1.5).prompt_rate == 2.0
    assert GenerationStats(6, 2, 3, 2.0, 1.5).generate_rate == 2.0


def test_events_come_one_by_one(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(bytes_script(b"abc"), n_prompt=1)
    session = Session(engine)
    events: Iterator[TextEvent] = greedy_events(session, tokenizer)
    assert engine.evaluated == []
    assert next(events).text == "a"
    assert len(engine.evaluated) == 1
