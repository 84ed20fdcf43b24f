"""`Llama.generate`, prefixes that are reused, and saved states."""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import dataclasses
import pickle
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import N_VOCAB, ROOT, llm, no_text, nothing_was_warned_of, path, text_of  # noqa: F401
from tiny_model import BOS, write_model

from pyllamacpu import Llama, LogitsProcessorList, StoppingCriteriaList
from pyllamacpu.api.caches import LlamaDiskCache, LlamaRAMCache
from pyllamacpu.errors import (
    ContextError,
    ModelError,
    OptionError,
    PyllamacpuError,
)
from pyllamacpu.sampling.sampler import SamplingOptions

# generate


def test_generate_follows_the_best_token(llm: Llama) -> None:
    ids = [BOS, 9, 8]
    for token in islice(llm.generate(ids, temp=0.0, repeat_penalty=1.0), 8):
        assert token == int(llm.logits(ids)[-1].argmax())
        ids.append(token)


def test_generate_without_reset_goes_on(llm: Llama) -> None:
    llm.eval([BOS, 9])
    got = list(islice(llm.generate([8], temp=0.0, reset=False), 4))
    assert got == list(islice(llm.generate([BOS, 9, 8], temp=0.0), 4))


def test_tokens_can_be_sent(llm: Llama) -> None:
    tokens = llm.generate([BOS, 9], temp=0.0)
    first = next(tokens)
    second = tokens.send([7, 6])
    assert second == int(llm.logits([BOS, 9, first, 7, 6])[-1].argmax())


def test_generate_ends_with_the_context(llm: Llama) -> None:
    made = 0
    with pytest.raises(ContextError):
        for _ in llm.generate([BOS] * 120):
            made += 1
    assert made == 128 - 120 + 1


def test_stopping_criteria_and_processors_of_generate(llm: Llama) -> None:
    def ban(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        scores[scores.argmax()] = -np.inf
        return scores

    criteria = StoppingCriteriaList([lambda ids, logits: len(ids) >= 5])
    processors = LogitsProcessorList([ban])
    got = list(llm.generate([BOS, 9], temp=0.0, logits_processor=processors, stopping_criteria=criteria))
    assert len(got) == 3
    assert got[0] == int(np.argsort(-llm.logits([BOS, 9])[-1])[1])


def test_the_prefix_is_reused_and_changes_nothing(llm: Llama, path: Path) -> None:
    long = [BOS, *range(6, 60)]
    other = [*long[:40], 9, 9]
    first = list(llm.stream(long, SamplingOptions(temperature=0.0), 6))
    again = list(llm.stream(other, SamplingOptions(temperature=0.0), 6))
    with Llama(str(path), n_ctx=128, kv_type="f32") as unused:
        fresh = list(unused.stream(other, SamplingOptions(temperature=0.0), 6))
    assert (first[-1].stats.n_cached, again[-1].stats.n_cached, fresh[-1].stats.n_cached) == (0, 40, 0)
    assert [e.tokens for e in again] == [e.tokens for e in fresh]


def test_what_was_evaluated_by_hand_is_reused_too(llm: Llama) -> None:
    llm.eval([BOS, *range(6, 60)])
    state = llm.save_state()
    answer = list(llm.stream([BOS, *range(6, 60), 9], SamplingOptions(temperature=0.0), 2))
    assert answer[-1].stats.n_cached == 55
    llm._driver.prefixes.clear()
    llm.reset()
    llm.load_state(state)
    again = list(llm.stream([BOS, *range(6, 60), 9], SamplingOptions(temperature=0.0), 2))
    assert again[-1].stats.n_cached == 55
    assert [e.tokens for e in again] == [e.tokens for e in answer]


def test_prompts_in_alternation_are_read_once(llm: Llama) -> None:
    prompts = [[BOS, *range(start, start + 90)] for start in (6, 7)]
    greedy = SamplingOptions(temperature=0.0)
    first = [[e.tokens for e in llm.stream(prompt, greedy, 5)] for prompt in prompts]
    before = llm._driver.n_evaluated
    again = [[e.tokens for e in llm.stream(prompt, greedy, 5)] for prompt in prompts]
    assert again == first
    assert llm._driver.n_evaluated - before == 2 * 5  # the last token of the prompt, and 4 of the answer


def test_logits_all_keeps_the_rows_of_a_reused_prefix(path: Path) -> None:
    with Llama(str(path), n_ctx=64, logits_all=True, kv_type="f32") as llm:
        greedy = SamplingOptions(temperature=0.0)
        list(llm.stream([BOS, *range(6, 40)], greedy, 4))
        events = list(llm.stream([BOS, *range(6, 30), 9], greedy, 4))
        assert events[-1].stats.n_cached == 25
        assert np.array_equal(llm.scores[: llm.n_tokens], llm.logits(llm.input_ids[: llm.n_tokens]))


# State


def test_a_state_survives_pickling_and_another_object(path: Path, llm: Llama) -> None:
    llm.set_seed(3)
    llm.eval([BOS, 9, 8, 7])
    llm.sample(temp=3.0)
    state = pickle.loads(pickle.dumps(llm.save_state()))
    expected = [llm.sample(temp=3.0) for _ in range(5)]
    answers = [text_of(llm("hello", temperature=3.0)) for _ in range(2)]
    assert (state.n_tokens, state.input_ids.tolist()) == (4, [BOS, 9, 8, 7])
    with Llama(str(path), n_ctx=64, kv_type="f32") as other:
        other.load_state(state)
        assert other.n_tokens == 4
        assert [other.sample(temp=3.0) for _ in range(5)] == expected
        other.eval([6])
        assert np.array_equal(other.scores[-1], llm.logits([BOS, 9, 8, 7, 6])[-1])
        other.load_state(state)
        assert [text_of(other("hello", temperature=3.0)) for _ in range(2)] == answers


def test_a_state_without_all_logits_where_all_are_kept(path: Path, llm: Llama) -> None:
    """They are computed again, and the object goes on as the one that was saved."""
    tokens = [BOS, *range(6, 40)]
    llm.eval(tokens)
    llm.scores[-1, 9] += 1  # what a program writes there is in the state
    llm.set_seed(3)
    llm.sample(temp=2.0)
    state = llm.save_state()
    expected = [llm.sample(temp=2.0) for _ in range(3)]
    with Llama(str(path), n_ctx=128, n_batch=16, kv_type="f32", logits_all=True) as other:
        other.eval([BOS, 7])
        other.load_state(state)
        assert other.n_tokens == len(tokens) and other.eval_tokens == llm.eval_tokens
        assert [other.sample(temp=2.0) for _ in range(3)] == expected
        assert np.array_equal(other.scores[len(tokens) - 1], llm.scores[-1])
        rows = llm.logits([*tokens, 9])
        assert np.array_equal(other.scores[: len(tokens) - 1], rows[: len(tokens) - 1])
        other.eval([9])
        assert np.array_equal(other.scores[len(tokens)], rows[-1])
        other.n_tokens = 20
        assert np.array_equal(other.scores[19], rows[19])
        again = other.save_state()
        assert again.all_scores is not None and again.n_tokens == 20
    llm.load_state(again)  # and the other way round
    assert llm.n_tokens == 20 and np.array_equal(llm.scores[-1], rows[19])


def test_a_cached_state_without_all_logits_where_all_are_kept(path: Path, llm: Llama) -> None:
    """It is of no use, and nothing is forgotten for it."""
    llm.eval([BOS, *range(6, 40)])
    cache = LlamaRAMCache()
    cache[[BOS, *range(6, 40)]] = llm.save_state()
    prompt, greedy = [BOS, *range(6, 41)], SamplingOptions(temperature=0.0)
    expected = [e.tokens for e in llm.stream(prompt, greedy, 3)]
    with Llama(str(path), n_ctx=128, kv_type="f32", logits_all=True) as other:
        other.eval([BOS, 6, 7])
        other.set_cache(cache)
        other.load_state = lambda _: pytest.fail("loaded")  # type: ignore[assignment,misc]
        events = list(other.stream(prompt, greedy, 3))
        assert [e.tokens for e in events] == expected
        assert np.array_equal(other.scores[: other.n_tokens], llm.logits(other.input_ids[: other.n_tokens]))


def test_states_that_do_not_fit(path: Path, tmp_path: Path, llm: Llama) -> None:
    llm.eval([BOS] * 50)
    state = llm.save_state()
    with Llama(str(path), n_ctx=128, kv_type="q8_0") as other, pytest.raises(ModelError, match="another"):
        other.load_state(state)
    with Llama(str(path), n_ctx=40, kv_type="f32") as other, pytest.raises(ContextError):
        other.load_state(state)
    renamed = write_model(tmp_path / "other.gguf", general__name="another")
    with Llama(str(renamed), n_ctx=128, kv_type="f32") as other, pytest.raises(ModelError):
        other.load_state(state)


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_states_of_models_that_differ_in_what_no_name_tells(
    path: Path, tmp_path: Path, llm: Llama, kind: str
) -> None:
    """Rope's stretching, constants that are overridden, the weights of another model with the same name. A
    cache is as exact.
    """
    llm.eval([BOS] * 50)
    cache = LlamaRAMCache() if kind == "ram" else LlamaDiskCache(str(tmp_path / "kept"))
    cache[[BOS] * 50] = llm.save_state()
    state = cache[[BOS] * 50]
    tuned = write_model(tmp_path / "tuned.gguf", seed=5)
    others: list[dict[str, Any]] = [
        {"model_path": str(path), "rope_freq_scale": 0.5},
        {"model_path": str(path), "kv_overrides": {"llama.attention.layer_norm_rms_epsilon": 0.01}},
        {"model_path": str(tuned)},
    ]
    for options in others:
        with Llama(n_ctx=128, kv_type="f32", **options) as other:
            with pytest.raises(ModelError, match="another model"):
                other.load_state(state)
            assert other.n_tokens == 0
    copied = tmp_path / "copied.gguf"
    copied.write_bytes(path.read_bytes())
    for earlier in (state, dataclasses.replace(state, weights="")):  # as older versions have written it
        with Llama(str(copied), n_ctx=64, kv_type="f32") as other:
            other.load_state(earlier)
            assert other.n_tokens == 50


def test_a_state_of_nothing(llm: Llama) -> None:
    state = llm.save_state()
    llm.eval([BOS])
    llm.load_state(state)
    assert llm.n_tokens == 0


@pytest.mark.parametrize(
    "field, value",
    [
        ("model", np.zeros(3)),
        ("model", (np.zeros(3),)),
        ("input_ids", None),
        ("input_ids", np.array([BOS, -1], np.intc)),
        ("input_ids", np.array([BOS, 10**9], np.intc)),
        ("input_ids", np.array([BOS, 9.0])),
        ("n_tokens", 3),
        ("n_tokens", "2"),
        ("llama_state", 5),
        ("llama_state", b""),
        ("scores", 0.5),
        ("scores", np.zeros(3, np.float32)),
        ("scores", np.zeros((1, 1), np.float32)),
        ("seed", "1"),
        ("seeds", (1, 2)),
        ("weights", b""),
        ("sampler", [1]),
        ("sampler", {"options": None, "state": {}, "accepted": []}),
    ],
)
def test_a_state_with_a_wrong_field_is_refused(llm: Llama, field: str, value: Any) -> None:
    llm.eval([BOS, 9])
    llm.sample()
    sound = llm.save_state()
    with pytest.raises(PyllamacpuError):
        llm.load_state(pickle.loads(pickle.dumps(dataclasses.replace(sound, **{field: value}))))
    llm.load_state(sound)  # and the object is as good as before
    assert llm.n_tokens == 2
    for other in (None, b"state", {"tokens": [1]}):
        with pytest.raises(OptionError, match="what save_state returned"):
            llm.load_state(other)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["rope_freq_base", "rope_freq_scale"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e30, 1e-30])
def test_rope_options_that_no_rope_can_have(path: Path, name: str, value: float) -> None:
    with pytest.raises(OptionError, match=name):
        Llama(str(path), n_ctx=64, **{name: value})
