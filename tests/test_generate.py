"""Sessions and the events of an answer, on an engine whose logits are a function of the whole history."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_engine import N_VOCAB, FakeEngine
from tiny_model import BOS, EOS, byte, vocabulary

from pyllamacpu.engine.driver import Driver
from pyllamacpu.engine.generate import (
    GenerationStats,
    Request,
    StepSampler,
    TextDecoder,
    TextEvent,
    token_limit,
)
from pyllamacpu.engine.scheduler import Scheduler
from pyllamacpu.engine.session import Session
from pyllamacpu.engine.token_ids import check_tokens, common_prefix
from pyllamacpu.errors import ContextError, ModelError, OptionError, TokenizerError
from pyllamacpu.sampling.sampler import SamplingOptions
from pyllamacpu.text import Tokenizer, load_tokenizer

GREEDY = SamplingOptions(temperature=0.0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = load_tokenizer(vocabulary())
    assert made is not None
    return made


def run(engine: FakeEngine, tokenizer: Tokenizer | None, request: Request) -> list[TextEvent]:
    """All events of a request that has the engine for itself."""
    return events_of(Scheduler(engine, tokenizer), request)


def events_of(scheduler: Scheduler, request: Request) -> list[TextEvent]:
    stream, events = Driver(scheduler).submit(request), []
    while not events or events[-1].finish_reason is None:
        event = stream.next().text
        if event is not None:
            events.append(event)
    return events


def text_of(events: list[TextEvent]) -> str:
    return "".join(event.text for event in events)


def tokens_of(events: list[TextEvent]) -> list[int]:
    return [token for event in events for token in event.tokens]


def bytes_script(text: bytes) -> list[int]:
    return [byte(value) for value in text]


# Session


def test_logits_are_the_sessions_own_and_not_the_engines_array() -> None:
    engine = FakeEngine()
    one, two = Session(engine), Session(engine)
    one.append([7])
    two.append([8])
    assert np.array_equal(one.last, engine.row([7]))


def test_keeping_all_logits() -> None:
    engine = FakeEngine(n_ctx=8)
    session = Session(engine, keep_all=True)
    session.append([7, 8, 9])
    session.truncate(2)
    session.append([3, 4])
    assert session.scores is not None
    assert session.scores.shape == (8, N_VOCAB)
    for i in range(4):
        assert np.array_equal(session.scores[i], engine.row([7, 8, 3, 4][: i + 1]))
    session.truncate(2)
    assert session.n_scored == 2
    assert np.array_equal(session.last, engine.row([7, 8]))
    fork = session.fork()
    fork.append([5])
    assert fork.scores is not None
    assert np.array_equal(fork.scores[1], session.scores[1])
    assert (len(session), session.n_scored, fork.n_scored) == (2, 2, 3)


@pytest.mark.parametrize("keep_all", [False, True])
def test_an_interrupt_leaves_a_usable_session(keep_all: bool) -> None:
    engine = FakeEngine()
    session = Session(engine, keep_all=keep_all)
    session.append([7, 8])
    engine.interrupt_at = 4
    with pytest.raises(KeyboardInterrupt):
        session.append([1, 2, 3, 4])
    assert session.last is None
    engine.interrupt_at = None
    session.append([1, 2, 3, 4][len(session) - 2 :])
    assert np.array_equal(session.last, engine.row([7, 8, 1, 2, 3, 4]))
    if session.scores is not None:
        assert np.array_equal(session.scores[3], engine.row([7, 8, 1, 2]))


def test_a_failed_cut_leaves_no_logits_of_tokens_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was let go is evaluated again, for which something may be missing."""
    session = Session(FakeEngine(), keep_all=True)
    session.append([7, 8, 9, 10])
    monkeypatch.setattr(session.sequence, "reusable", lambda n: 1)

    def fail(*_: object, **__: object) -> None:
        raise OptionError("the rows of an image are no longer in memory")

    monkeypatch.setattr(session.engine, "eval", fail)
    with pytest.raises(OptionError):
        session.truncate(3)
    assert (len(session), session.n_scored, session.last) == (1, 1, None)


def test_too_many_tokens_for_a_session() -> None:
    session = Session(FakeEngine(n_ctx=4))
    session.append([3] * 3)
    with pytest.raises(ContextError, match="5 tokens do not fit in the context of 4"):
        session.append([3, 3])
    assert len(session) == 3


def test_a_damaged_state_is_refused() -> None:
    session = Session(FakeEngine())
    session.append([7, 8])
    data = session.save()
    with pytest.raises(ModelError):
        Session(FakeEngine()).load(data, [7, 9], None, None)
    with pytest.raises(OptionError, match="longer"):
        Session(FakeEngine()).load(data + b"x", [7, 8], None, None)


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
    scheduler = Scheduler(FakeEngine(n_ctx=128, n_batch=32), tokenizer)
    events_of(scheduler, Request([BOS, *[9] * 39], GREEDY, max_tokens=0))
    stream = Driver(scheduler).submit(Request([BOS, *[9] * 99], GREEDY, max_tokens=0, progress=True))
    seen = []
    while (event := stream.next()).text is None:
        seen.append(event.progress)
    assert seen == [(64, 100), (96, 100), (100, 100)]
    assert event.text.stats is not None
    assert event.text.stats.n_cached == 40


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


def test_an_interrupt_passes_through_and_the_request_can_go_on(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(bytes_script(b"abcdef"), n_prompt=1)
    stream = Driver(Scheduler(engine, tokenizer)).submit(Request([BOS], GREEDY))
    engine.interrupt_at = 3
    texts = []
    with pytest.raises(KeyboardInterrupt):
        while True:
            texts.append(stream.next().text)
    engine.interrupt_at = None
    while texts[-1].finish_reason is None:
        texts.append(stream.next().text)
    assert text_of(texts) == "abcdef"


# Loops and steps


def sampled(seed: int, n: int) -> list[int]:
    return tokens_of(run(FakeEngine(), None, Request([BOS], SamplingOptions(seed=seed), max_tokens=n)))


def test_a_seed_gives_the_same_tokens() -> None:
    assert sampled(3, 20) == sampled(3, 20)
    assert sampled(3, 20) != sampled(4, 20)


def test_pushed_tokens_are_evaluated_before_the_next_is_sampled() -> None:
    engine = FakeEngine()
    stream = Driver(Scheduler(engine, None)).submit(Request([BOS], GREEDY, endless=True), ahead=0)
    first = stream.next().text.tokens[0]
    stream.handle.push([9, 8])
    stream.next()
    assert engine.evaluated[1:] == [[first, 9, 8]]


def test_an_endless_request_ends_with_the_context(tokenizer: Tokenizer) -> None:
    engine = FakeEngine([EOS] * 20, n_prompt=1, n_ctx=8)
    stream = Driver(Scheduler(engine, tokenizer)).submit(Request([BOS], GREEDY, endless=True), ahead=0)
    assert [stream.next().text.tokens for _ in range(8)] == [(EOS,)] * 8
    with pytest.raises(ContextError):
        stream.next()


def test_the_step_sampler_goes_on_with_its_random_numbers_and_its_history() -> None:
    session = Session(FakeEngine())
    session.append([BOS, 9])
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
    session.append([BOS, 9])
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
    stream = Driver(Scheduler(engine, tokenizer)).submit(Request([BOS], GREEDY))
    assert engine.evaluated == []
    assert stream.next().text.text == "a"
    assert len(engine.evaluated) == 1


@pytest.mark.parametrize("n", [1, 7, 300])
def test_criteria_see_arrays_of_their_own(n: int) -> None:
    seen: list[np.ndarray] = []

    def look(ids: np.ndarray, scores: np.ndarray) -> bool:
        seen.append(ids)
        return False

    engine = FakeEngine(n_ctx=512)
    tokens = tokens_of(run(engine, None, Request([BOS], GREEDY, max_tokens=n, criteria=(look,))))
    assert [ids.tolist() for ids in seen] == [[BOS, *tokens[:i]] for i in range(n)]


# Answers that are gone on with


@pytest.mark.parametrize("text", ["日本 é 😀 end", "😀\u200d😀", "aé"])
def test_an_answer_that_was_cut_inside_a_character_goes_on_with_it(tokenizer: Tokenizer, text: str) -> None:
    script = bytes_script(text.encode())
    for n in range(1, len(script)):
        engine = FakeEngine(script, n_prompt=2)
        first = run(engine, tokenizer, Request([BOS, 6], GREEDY, n))
        assert tokens_of(first) == script[:n]
        prompt = [BOS, 6, *script[:n]]
        rest = run(engine, tokenizer, Request(prompt, GREEDY, n_said=n))
        assert text_of(first) + text_of(rest) == text, n


def test_a_stop_string_that_an_answer_was_cut_in_is_found(tokenizer: Tokenizer) -> None:
    """What was shown of it stays; what only looked like one comes once."""
    for text, shown in (("one END two", "one EN"), ("one ENtwo", "one ENtwo"), ("one EEND", "one EEN")):
        script = bytes_script(text.encode())
        n = text.rindex("EN") + 2
        engine = FakeEngine(script, n_prompt=1)
        first = run(engine, tokenizer, Request([BOS], GREEDY, n, stop=("END",)))
        rest = run(engine, tokenizer, Request([BOS, *script[:n]], GREEDY, stop=("END",), n_said=n))
        assert text_of(first) + text_of(rest) == shown
        assert rest[-1].stop_string == ("END" if "END" in text else None)


def test_stop_strings_that_were_set_later_do_not_end_what_was_said(tokenizer: Tokenizer) -> None:
    decoder = TextDecoder(tokenizer, ["b", "cd"])
    decoder.go_on(bytes_script(b"abc"))
    assert "".join(map(decoder.push, bytes_script(b"xyd"))) == "xyd" and not decoder.stopped


@pytest.mark.parametrize("n_said", [-1, 3])
def test_more_tokens_said_than_there_are(n_said: int) -> None:
    with pytest.raises(OptionError, match=f"n_said={n_said}: the prompt has 2 tokens"):
        Request([BOS, 6], GREEDY, n_said=n_said)
