"""The `Llama` class on a small random model and on the starter model: names and answers."""

from __future__ import annotations

import inspect
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_model import BOS, DIM, EOS, MID, PIECES, PRE, SUF, byte, write_model

import pyllamacpu
import pyllamacpu.compat
from pyllamacpu import Llama, LogitsProcessorList, StoppingCriteriaList
from pyllamacpu.engine.sampler import SamplingOptions
from pyllamacpu.errors import (
    ContextError,
    GGUFError,
    ModelError,
    OptionError,
    PyllamacpuError,
    StoreError,
    TemplateError,
    TokenizerError,
)
from pyllamacpu.loading import download
from pyllamacpu.store.hub import HubRef

N_VOCAB = len(PIECES)
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def no_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "no-text.gguf", text=False)


@pytest.fixture
def llm(path: Path) -> Iterator[Llama]:
    with Llama(str(path), n_ctx=128, n_threads=1, kv_type="f32") as opened:
        yield opened


@pytest.fixture(autouse=True)
def nothing_was_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyllamacpu.compat, "_warned", set())


def text_of(answer: Any) -> str:
    return str(answer["choices"][0]["text"])


def greedy(llm: Llama, prompt: Any, n: int = 12, **more: Any) -> str:
    return text_of(llm(prompt, max_tokens=n, temperature=0.0, **more))


# The package


def test_the_version_is_the_projects() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{pyllamacpu.__version__}"\n' in project


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, pyllamacpu; print([m for m in ('numpy', 'jinja2', 'cffi', 'gguf') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    home = Path(pyllamacpu.__file__).parent.parent  # where this very package was imported from
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=home)
    assert done.stdout.strip() == "[]"


def test_unknown_names_are_attribute_errors() -> None:
    assert set(pyllamacpu.__all__) <= set(dir(pyllamacpu))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = pyllamacpu.nonsense


# Opening


def test_facts(llm: Llama) -> None:
    assert (llm.n_ctx(), llm.n_vocab(), llm.n_embd()) == (128, N_VOCAB, DIM)
    assert (llm.token_bos(), llm.token_eos(), llm.token_eot()) == (BOS, EOS, -1)
    assert llm.token_nl() == byte(10)
    assert llm.metadata["general.name"] == "tiny"
    assert llm.metadata["llama.block_count"] == "2"
    assert "tokenizer.ggml.tokens" not in llm.metadata
    assert all(isinstance(value, str) for value in llm.metadata.values())


def test_the_default_context_is_512_and_0_is_the_models(path: Path) -> None:
    with Llama(str(path)) as llm:
        assert llm.n_ctx() == 512
    with Llama(path, n_ctx=0) as llm:
        assert llm.n_ctx() == 256


@pytest.mark.parametrize(("given", "keys", "values"), [("q8_0", "Q8_0", "Q8_0"), (0, "F32", "F32")])
def test_kv_type_sets_both(path: Path, given: Any, keys: str, values: str) -> None:
    with Llama(str(path), kv_type=given) as llm:
        assert (llm.engine.cache.type_k.name, llm.engine.cache.type_v.name) == (keys, values)


def test_type_k_and_type_v_by_name_and_number(path: Path) -> None:
    with Llama(str(path), type_k="F32", type_v=8) as llm:
        assert (llm.engine.cache.type_k.name, llm.engine.cache.type_v.name) == ("F32", "Q8_0")
    with Llama(str(path)) as llm:
        assert (llm.engine.cache.type_k.name, llm.engine.cache.type_v.name) == ("F16", "F16")


@pytest.mark.parametrize(
    "options",
    [
        {"kv_type": "q5_k"},
        {"type_k": 99},
        {"type_v": "nonsense"},
        {"n_ctx": -1},
        {"n_batch": 0},
        {"n_threads": -2},
        {"pooling_type": 4},
        {"seed": 2**40},
        {"lora_path": "x"},
        {"kv_overrides": {"a": 1}},
        {"yarn_orig_ctx": 4096},
        {"chat_format": "llama-2", "chat_template": "{{ messages }}"},
    ],
)
def test_options_that_cannot_be_served(path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Llama(str(path), **options)


def test_an_unknown_keyword_is_a_type_error_with_a_hint(path: Path, llm: Llama) -> None:
    with pytest.raises(TypeError, match=r"'n_cxt'; did you mean 'n_ctx'"):
        Llama(str(path), n_cxt=5)
    with pytest.raises(TypeError, match="did you mean 'temperature'"):
        llm("a", temperatur=0.5)


def test_gpu_options_are_accepted_and_told_of_once(path: Path) -> None:
    with pytest.warns(UserWarning, match="n_gpu_layers=-1 does nothing"):
        Llama(str(path), n_gpu_layers=-1).close()
    Llama(str(path), n_gpu_layers=-1).close()  # warnings are errors: a second one would raise


def test_harmless_options_are_quiet(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Llama(
            model_path=str(path),
            n_gpu_layers=0,
            use_mmap=True,
            use_mlock=False,
            main_gpu=0,
            tensor_split=None,
            offload_kqv=True,
            flash_attn=True,
            numa=False,
            n_threads=1,
            n_threads_batch=1,
            verbose=False,
            embedding=True,
            rope_scaling_type=-1,
            yarn_ext_factor=-1.0,
            draft_model=None,
            kv_overrides=None,
        ).close()


@pytest.mark.parametrize("name", ["use_mlock", "numa", "draft_model"])
def test_options_that_would_matter_elsewhere_are_told_of(path: Path, name: str) -> None:
    with pytest.warns(UserWarning, match=f"{name}=True does nothing"):
        Llama(str(path), **{name: True}).close()


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        Llama(str(tmp_path / "missing.gguf"))
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(GGUFError):
        Llama(str(tmp_path / "text.gguf"))


def test_rope_overrides_change_the_logits(path: Path, llm: Llama) -> None:
    ids = list(range(6, 46))
    with Llama(str(path), n_ctx=128, kv_type="f32", rope_freq_base=500.0) as other:
        assert not np.allclose(other.logits(ids), llm.logits(ids))
    with Llama(str(path), n_ctx=128, kv_type="f32", rope_freq_scale=0.25) as other:
        assert not np.allclose(other.logits(ids), llm.logits(ids))


def test_closing(path: Path) -> None:
    llm = Llama(str(path))
    llm.close()
    llm.close()
    for call in (
        lambda: llm("a"),
        lambda: llm.eval([6]),
        lambda: llm.logits([6]),
        lambda: llm.n_tokens,
        llm.save_state,
        lambda: llm.embed("a"),
        lambda: next(llm.generate([6])),
    ):
        with pytest.raises(ModelError, match="closed"):
            call()


def test_closing_ends_a_stream_with_an_error(path: Path) -> None:
    llm = Llama(str(path))
    tokens = llm.generate([BOS, 9])
    next(tokens)
    llm.close()
    with pytest.raises(ModelError, match="closed"):
        next(tokens)


def test_pickling_opens_the_model_again(llm: Llama) -> None:
    with pickle.loads(pickle.dumps(llm)) as other:
        assert other.n_ctx() == 128
        assert np.array_equal(other.logits([6, 7]), llm.logits([6, 7]))


# vocab_only, and files without a tokenizer


def test_vocab_only(path: Path, no_text: Path) -> None:
    with Llama(str(path), vocab_only=True) as llm:
        assert llm.tokenize(b"hello") == [BOS, PIECES.index("▁hello")]
        assert (llm.n_vocab(), llm.n_embd(), llm.n_ctx()) == (N_VOCAB, DIM, 256)
        for call in (
            lambda: llm("a"),
            lambda: llm.logits([6]),
            lambda: llm.eval([6]),
            lambda: llm.embed("a"),
        ):
            with pytest.raises(ModelError, match="vocab_only"):
                call()
    with pytest.raises(TokenizerError, match="no tokenizer"):
        Llama(str(no_text), vocab_only=True)


def test_a_file_without_a_tokenizer_serves_token_ids(no_text: Path, llm: Llama) -> None:
    with Llama(str(no_text), n_ctx=128, n_threads=1, kv_type="f32") as ids_only:
        assert np.array_equal(ids_only.logits([6, 9]), llm.logits([6, 9]))
        tokens = list(islice(ids_only.generate([6, 9], temp=0.0), 5))
        assert tokens == list(islice(llm.generate([6, 9], temp=0.0), 5))
        events = list(ids_only.stream([6, 9], SamplingOptions(temperature=0.0), 5))
        assert [token for event in events for token in event.tokens] == tokens
        assert (ids_only.token_bos(), ids_only.token_eos(), ids_only.tokenizer) == (-1, -1, None)
        for call in (
            lambda: ids_only("a"),
            lambda: ids_only([6]),
            lambda: ids_only.tokenize(b"a"),
            lambda: ids_only.detokenize([6]),
            lambda: ids_only.create_chat_completion([{"role": "user", "content": "a"}]),
            lambda: ids_only.embed("a"),
            lambda: ids_only.tokenizer_,
        ):
            with pytest.raises(TokenizerError, match="no tokenizer"):
                call()


# Text and ids


@pytest.mark.parametrize("text", ["hello the", "é 日 🎉", "", " leading", "a\nb", "\x00"])
def test_tokens_become_the_text_again(llm: Llama, text: str) -> None:
    ids = llm.tokenize(text.encode())
    assert ids[0] == BOS
    assert llm.detokenize(ids) == text.encode()
    assert llm.tokenize(text) == ids


def test_tokenize_options(llm: Llama) -> None:
    assert llm.tokenize(b"</s>", add_bos=False, special=True) == [EOS]
    assert EOS not in llm.tokenize(b"</s>", add_bos=False)
    assert llm.tokenize(b"hello", add_bos=False) == [PIECES.index("▁hello")]
    assert llm.detokenize([BOS, PIECES.index("▁hello"), EOS], special=True) == b"<s>hello</s>"


def test_bytes_that_are_no_utf8(llm: Llama) -> None:
    ids = llm.tokenize(b"\xff\xfe", add_bos=False)
    assert ids[-2:] == [byte(0xFF), byte(0xFE)]
    assert llm.detokenize(ids).endswith(b"\xff\xfe")


def test_a_continuation_keeps_its_space(llm: Llama) -> None:
    hello = PIECES.index("▁hello")
    assert llm.detokenize([hello]) == b" hello"
    assert llm.detokenize([BOS, hello]) == b"hello"
    assert llm.detokenize([hello], prev_tokens=[BOS]) == b" hello"


def test_the_tokenizer_with_the_other_names(llm: Llama) -> None:
    assert llm.tokenizer_.encode("hello") == [BOS, PIECES.index("▁hello")]
    assert llm.tokenizer_().decode([BOS, PIECES.index("▁hello")]) == "hello"
    assert llm.tokenizer_.tokenize(b"</s>", add_bos=False) == [EOS]


@pytest.mark.parametrize("token", [-1, N_VOCAB])
def test_ids_outside_the_vocabulary(llm: Llama, token: int) -> None:
    for call in (
        lambda: llm.detokenize([token]),
        lambda: llm([token]),
        lambda: llm.eval([6, token]),
        lambda: llm.logits([token]),
        lambda: llm.generate([token]),
        lambda: llm.stream([token]),
    ):
        with pytest.raises(TokenizerError):
            call()
    assert llm.n_tokens == 0


# The kept sequence


def test_eval_sample_reset(llm: Llama) -> None:
    llm.eval([BOS, 9, 8])
    assert llm.n_tokens == 3
    assert llm.input_ids[:3].tolist() == [BOS, 9, 8]
    assert llm.input_ids.shape == (128,)
    assert list(llm.eval_tokens) == [BOS, 9, 8]
    whole = llm.logits([BOS, 9, 8])
    assert np.array_equal(llm.scores[llm.n_tokens - 1], whole[-1])
    assert llm.eval_logits[-1] == whole[-1].tolist()
    assert llm.sample(temp=0.0) == int(whole[-1].argmax())
    llm.reset()
    assert llm.n_tokens == 0
    with pytest.raises(OptionError, match=r"eval\(\)"):
        llm.sample()


def test_logits_all_keeps_every_row(path: Path) -> None:
    with Llama(str(path), n_ctx=64, logits_all=True, kv_type="f32") as llm:
        ids = [BOS, 9, 8, 7]
        llm.eval(ids[:2])
        llm.eval(ids[2:])
        assert llm.scores.shape == (64, N_VOCAB)
        assert np.array_equal(llm.scores[:4], llm.logits(ids))
        assert len(llm.eval_logits) == 4
        assert llm.sample(temp=0.0, idx=1) == int(llm.scores[1].argmax())
        llm.n_tokens = 2
        llm.eval([5])
        assert np.array_equal(llm.scores[:3], llm.logits([BOS, 9, 5]))


def test_idx_needs_logits_all(llm: Llama) -> None:
    llm.eval([BOS, 9])
    assert llm.sample(temp=0.0, idx=1) == llm.sample(temp=0.0)
    with pytest.raises(OptionError, match="logits_all"):
        llm.sample(idx=0)


def test_logits_of_a_fresh_sequence_leave_the_kept_one(llm: Llama) -> None:
    llm.eval([BOS, 9])
    rows = llm.logits([7, 8, 9])
    assert (rows.shape, rows.dtype) == ((3, N_VOCAB), np.float32)
    assert llm.n_tokens == 2
    llm.eval([8])
    assert np.array_equal(llm.scores[-1], llm.logits([BOS, 9, 8])[-1])
    rows[:] = 0  # the caller's own
    assert llm.logits([7]).any()


def test_limits_of_eval_and_logits(llm: Llama) -> None:
    with pytest.raises(OptionError):
        llm.logits([])
    with pytest.raises(ContextError):
        llm.logits([6] * 129)
    assert llm.logits([6] * 128).shape[0] == 128
    llm.eval([6] * 100)
    with pytest.raises(ContextError):
        llm.eval([6] * 29)
    assert llm.n_tokens == 100
    llm.eval([])
    assert llm.n_tokens == 100


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


def test_the_prefix_is_reused_and_changes_nothing(llm: Llama) -> None:
    long = [BOS, *range(6, 60)]
    first = list(llm.stream(long, SamplingOptions(temperature=0.0), 6))
    again = list(llm.stream([*long[:40], 9, 9], SamplingOptions(temperature=0.0), 6))
    llm.reset()
    fresh = list(llm.stream([*long[:40], 9, 9], SamplingOptions(temperature=0.0), 6))
    assert (first[-1].stats.n_cached, again[-1].stats.n_cached, fresh[-1].stats.n_cached) == (0, 40, 0)
    assert [e.tokens for e in again] == [e.tokens for e in fresh]


# Completions


def test_a_completion_has_the_openai_shape(llm: Llama) -> None:
    answer = llm.create_completion("hello", max_tokens=5, temperature=0.0)
    assert set(answer) == {"id", "object", "created", "model", "choices", "usage"}
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    (choice,) = answer["choices"]
    assert set(choice) == {"text", "index", "logprobs", "finish_reason"}
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, "length")
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7}
    assert answer["model"] == llm.model_path
    assert llm("hello", model="name")["model"] == "name"


def test_calling_is_create_completion(llm: Llama) -> None:
    assert text_of(llm("hello", None, 7, 0.0)) == greedy(llm, "hello", 7)
    assert inspect.signature(Llama.create_completion).parameters["max_tokens"].default == 16


def test_prompts_as_ids_are_taken_as_they_are(llm: Llama) -> None:
    ids = llm.tokenize(b"hello")
    assert greedy(llm, ids) == greedy(llm, "hello")
    assert llm([9], max_tokens=1)["usage"]["prompt_tokens"] == 1


def test_an_empty_prompt(llm: Llama, tmp_path: Path) -> None:
    assert llm("", max_tokens=1)["usage"]["prompt_tokens"] == 1  # BOS
    for call in (lambda: llm([]), lambda: llm.stream([]), lambda: llm.generate([]).send(None)):
        with pytest.raises(OptionError, match="empty"):
            call()
    path = write_model(tmp_path / "no-bos.gguf", tokenizer__ggml__add_bos_token=False)
    with Llama(str(path)) as no_bos, pytest.raises(OptionError, match="empty"):
        no_bos("")


def test_a_spelled_bos_is_not_doubled(llm: Llama) -> None:
    assert llm("<s>hello", max_tokens=1)["usage"] == llm("hello", max_tokens=1)["usage"]


def test_streamed_chunks_are_the_whole_answer(llm: Llama) -> None:
    whole = llm("hello", max_tokens=40, temperature=0.9, seed=7)
    chunks = list(llm("hello", max_tokens=40, temperature=0.9, seed=7, stream=True))
    assert "".join(map(text_of, chunks)) == text_of(whole)
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + [whole["choices"][0]["finish_reason"]]
    assert text_of(chunks[-1]) == ""
    assert "\ufffd" not in text_of(chunks[-2]) or "\ufffd" in text_of(whole)


def test_seeds(path: Path, llm: Llama) -> None:
    hot = {"max_tokens": 20, "temperature": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    assert text_of(llm("a", seed=1, **hot)) == text_of(llm("a", seed=1, **hot))
    assert text_of(llm("a", seed=1, **hot)) != text_of(llm("a", seed=2, **hot))
    assert text_of(llm("a", **hot)) != text_of(llm("a", **hot))
    pairs = []
    for _ in range(2):
        with Llama(str(path), n_ctx=128, seed=5) as seeded:
            pairs.append((text_of(seeded("a", **hot)), text_of(seeded("a", **hot))))
    assert pairs[0] == pairs[1]
    assert pairs[0][0] != pairs[0][1]
    llm.set_seed(5)
    one = list(islice(llm.generate([BOS], temp=3.0), 10))
    assert one == list(islice(llm.generate([BOS], temp=3.0), 10))


def test_stop_strings_end_the_answer(llm: Llama) -> None:
    text = greedy(llm, "hello", 30)
    assert len(text) >= 6
    stop = text[3:5]
    answer = llm("hello", max_tokens=30, temperature=0.0, stop=stop)
    assert text_of(answer) == text[: text.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"
    streamed = llm("hello", max_tokens=30, temperature=0.0, stop=[stop, "never"], stream=True)
    assert "".join(map(text_of, streamed)) == text_of(answer)
    with pytest.raises(OptionError, match="stop"):
        llm("hello", stop=[""])


def test_logit_bias_can_force_a_token(llm: Llama) -> None:
    hello = PIECES.index("▁hello")
    assert text_of(llm("a", max_tokens=3, temperature=0.0, logit_bias={hello: 100.0})) == " hello" * 3
    assert text_of(llm("a", max_tokens=1, temperature=0.0, logit_bias={str(hello): 100})) == " hello"
    end = llm("a", max_tokens=3, logit_bias={EOS: 100.0})
    assert (text_of(end), end["choices"][0]["finish_reason"]) == ("", "stop")
    assert end["usage"]["completion_tokens"] == 0


def test_max_tokens(llm: Llama) -> None:
    ban_end = {EOS: -np.inf}
    for limit in (None, 0, -1, 10_000):
        usage = llm("hello", max_tokens=limit, logit_bias=ban_end)["usage"]
        assert usage["total_tokens"] == 128


def test_prompts_that_do_not_fit_are_errors_at_once(llm: Llama) -> None:
    for call in (
        lambda: llm([6] * 128),
        lambda: llm([6] * 500, stream=True),
        lambda: llm("x" * 500),
        lambda: llm.stream([6] * 128),
        lambda: llm.create_chat_completion([{"role": "user", "content": "x" * 500}], stream=True),
    ):
        with pytest.raises(ContextError) as caught:
            call()
        assert isinstance(caught.value, ValueError)
    assert llm([6] * 127)["usage"]["completion_tokens"] <= 1


def test_logprobs_and_echo(llm: Llama) -> None:
    answer = llm("hello the", max_tokens=4, temperature=0.0, logprobs=3, echo=True)
    table = answer["choices"][0]["logprobs"]
    prompt = llm.tokenize(b"hello the")
    assert text_of(answer).startswith("hello the")
    n = len(prompt) - 1 + answer["usage"]["completion_tokens"]
    assert [len(column) for column in table.values()] == [n] * 4
    assert table["token_logprobs"][0] is None
    rows = llm.logits(prompt).astype(np.float64)
    for i in range(1, len(prompt) - 1):
        row = rows[i] - np.log(np.exp(rows[i]).sum())
        assert table["token_logprobs"][i] == pytest.approx(row[prompt[i + 1]], abs=1e-4)
        assert max(table["top_logprobs"][i].values()) == pytest.approx(row.max(), abs=1e-4)
    assert table["text_offset"] == sorted(table["text_offset"])
    plain = llm("hello the", max_tokens=4, temperature=0.0, logprobs=3)["choices"][0]["logprobs"]
    assert plain["token_logprobs"] == table["token_logprobs"][len(prompt) - 1 :]
    assert plain["text_offset"][0] == len("hello the")
    chunks = llm("hello the", max_tokens=4, temperature=0.0, logprobs=3, stream=True)
    streamed = [lp for chunk in chunks if (lp := chunk["choices"][0]["logprobs"])]
    assert [value for lp in streamed for value in lp["token_logprobs"]] == plain["token_logprobs"]
    assert [value for lp in streamed for value in lp["text_offset"]] == plain["text_offset"]


def test_filling_in_the_middle(llm: Llama) -> None:
    seen: list[list[int]] = []

    def look(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        seen.append(ids.tolist())
        return scores

    llm("the", suffix="the", max_tokens=1, logits_processor=look)
    the = PIECES.index("▁the")
    plain = [PIECES.index("th"), PIECES.index("e")]
    assert seen[0][:4] == [BOS, PRE, the, SUF]
    assert seen[0][-1] == MID
    assert llm.detokenize(seen[0][4:-1]) == b"the"
    assert the not in seen[0][4:-1]
    assert set(plain) & set(seen[0][4:-1]) or PIECES.index("t") in seen[0][4:-1]


def test_a_suffix_for_a_model_that_cannot_fill_in_is_appended(tmp_path: Path) -> None:
    tokens = [piece.replace("<PRE>", "<x>").replace("<SUF>", "<y>") for piece in PIECES]
    path = write_model(tmp_path / "plain.gguf", tokenizer__ggml__tokens=tokens)
    with Llama(str(path)) as llm:
        with pytest.warns(UserWarning, match="cannot fill in the middle"):
            text = text_of(llm("the", suffix="!END", max_tokens=2, temperature=0.0))
        assert text == greedy(llm, "the", 2) + "!END"
        chunks = llm("the", suffix="!END", max_tokens=2, temperature=0.0, stream=True)
        assert "".join(map(text_of, chunks)) == text


def test_options_of_the_sampler(llm: Llama) -> None:
    once = greedy(llm, "a", 20)
    assert text_of(llm("a", max_tokens=20, temperature=0.0, repeat_penalty=1e6)) != once
    assert text_of(llm("a", max_tokens=20, top_k=1)) == once
    assert text_of(llm("a", max_tokens=20, temperature=0.0, top_k=1, top_p=1.0, seed=3)) == once
    assert len(text_of(llm("a", max_tokens=20, mirostat_mode=2, seed=1))) > 0
    assert len(text_of(llm("a", max_tokens=20, dry_multiplier=0.8, xtc_probability=0.5))) > 0
    for wrong in (
        {"top_p": 7.0},
        {"repeat_penalty": 0.0},
        {"mirostat_mode": 3},
        {"logit_bias": {N_VOCAB: 1.0}},
    ):
        with pytest.raises(OptionError):
            llm("a", max_tokens=1, **wrong)


def test_options_without_effect_are_told_of(llm: Llama) -> None:
    with pytest.warns(UserWarning, match="tfs_z=0.5 does nothing"):
        llm("a", max_tokens=1, tfs_z=0.5)
    with pytest.warns(UserWarning, match=r"set_cache\(\) does nothing"):
        llm.set_cache(object())
    with pytest.warns(UserWarning, match="top_k does nothing with mirostat=2"):
        llm("a", max_tokens=1, top_k=7, mirostat_mode=2)


@pytest.mark.parametrize("options", [{"grammar": object()}])
def test_constrained_completions_are_refused(llm: Llama, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="not supported yet"):
        llm("a", **options)


# Chat

HELLO = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]


def chat(llm: Llama, messages: Any = HELLO, **options: Any) -> Any:
    return llm.create_chat_completion(messages, **{"max_tokens": 6, "temperature": 0.0, **options})


def test_a_chat_completion_has_the_openai_shape(llm: Llama) -> None:
    answer = chat(llm)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == greedy(llm, "system: be kind\nuser: hello\nassistant:", 6)
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 6


def test_a_streamed_chat(llm: Llama) -> None:
    whole = chat(llm)["choices"][0]["message"]["content"]
    chunks = list(chat(llm, stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant"}
    assert deltas[-1] == {}
    assert "".join(delta["content"] for delta in deltas[1:-1]) == whole
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + [
        "length"
    ]


def test_chat_logprobs(llm: Llama) -> None:
    content = chat(llm, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert len(content) == 6
    assert all(len(entry["top_logprobs"]) in (1, 2) for entry in content)
    assert all(entry["logprob"] <= 0 and isinstance(entry["bytes"], list) for entry in content)
    assert len(chat(llm, logprobs=True)["choices"][0]["logprobs"]["content"]) == 6
    assert chat(llm, top_logprobs=2)["choices"][0]["logprobs"] is None


def test_tools_reach_the_template(llm: Llama) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    plain = chat(llm)["usage"]["prompt_tokens"]
    assert chat(llm, tools=[tool])["usage"]["prompt_tokens"] > plain
    assert chat(llm, tools=[tool], tool_choice="none")["usage"]["prompt_tokens"] == plain
    given = chat(llm, tools=[tool], tool_choice="auto")["usage"]
    assert chat(llm, functions=[tool["function"]])["usage"] == given


@pytest.mark.parametrize(
    "options",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"grammar": object()},
        {"tools": [{}], "tool_choice": "required"},
        {"tools": [{}], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"functions": [{}], "function_call": {"name": "f"}},
    ],
)
def test_constrained_chats_are_refused(llm: Llama, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="not supported yet"):
        chat(llm, **options)
    assert chat(llm, response_format={"type": "text"})["choices"]


@pytest.mark.parametrize(
    "messages",
    [[], "hello", {"role": "user"}, [{"content": "a"}], ["a"], None],
)
def test_messages_that_are_none(llm: Llama, messages: Any) -> None:
    with pytest.raises(OptionError, match="messages"):
        chat(llm, messages)


def test_content_parts(llm: Llama) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert chat(llm, [HELLO[0], {"role": "user", "content": parts}])["choices"] == chat(llm)["choices"]
    with pytest.raises(OptionError, match="image_url"):
        chat(llm, [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}])


def test_chat_formats(path: Path) -> None:
    with Llama(str(path), chat_format="llama-2") as llm:
        prompt = "[INST] <<SYS>>\nbe kind\n<</SYS>>\n\nhello [/INST]"
        assert chat(llm)["choices"][0]["message"]["content"] == greedy(llm, prompt, 6)
    with Llama(str(path), chat_template="{{ messages[-1].content }}") as llm:
        assert chat(llm)["choices"][0]["message"]["content"] == greedy(llm, "hello", 6)
    for wrong in ({"chat_format": "nonsense"}, {"chat_template": "{% if %}"}):
        with pytest.raises(TemplateError):
            Llama(str(path), **wrong)


def test_a_broken_template_in_the_file_only_stops_chats(tmp_path: Path) -> None:
    path = write_model(tmp_path / "broken.gguf", tokenizer__chat_template="{% for %}")
    with Llama(str(path)) as llm:
        assert llm("a", max_tokens=1)["choices"]
        with pytest.raises(TemplateError):
            chat(llm)


def test_a_guessed_template_is_told_of(tmp_path: Path) -> None:
    path = write_model(tmp_path / "none.gguf", tokenizer__chat_template=None)
    with Llama(str(path)) as llm, pytest.warns(UserWarning, match="no chat template"):
        chat(llm)


def test_a_chat_handler(path: Path) -> None:
    def handler(*, llama: Llama, messages: Any, max_tokens: int | None, **rest: Any) -> Any:
        return (llama, messages, max_tokens, rest["temperature"])

    with Llama(str(path), chat_handler=handler) as llm:
        assert llm.create_chat_completion(HELLO, max_tokens=3) == (llm, HELLO, 3, 0.2)


def test_special_tokens_in_a_users_words_stay_text(llm: Llama) -> None:
    answer = chat(llm, [{"role": "user", "content": "</s>"}])
    spelled = len(llm.tokenize(b"user: </s>\nassistant:"))
    assert answer["usage"]["prompt_tokens"] == spelled


# Embeddings


def test_embeddings(llm: Llama, path: Path) -> None:
    states = llm.engine.hidden(llm.tokenize(b"hello the"))
    mean = llm.embed("hello the")
    assert len(mean) == DIM
    assert mean == pytest.approx(states.mean(axis=0), abs=1e-6)
    unit = llm.embed("hello the", normalize=True)
    assert np.linalg.norm(unit) == pytest.approx(1)
    assert np.dot(unit, mean) == pytest.approx(np.linalg.norm(mean), rel=1e-5)
    expected = {0: states, 1: states.mean(axis=0), 2: states[0], 3: states[-1]}
    for number, value in expected.items():
        with Llama(str(path), n_ctx=128, kv_type="f32", pooling_type=number, embedding=True) as other:
            assert np.allclose(other.embed("hello the"), value, atol=1e-6)


def test_the_shape_of_an_embedding_answer(llm: Llama) -> None:
    answer = llm.create_embedding(["hello", "hello the"])
    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert answer["data"][0]["embedding"] == llm.embed("hello")
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    assert answer["object"] == "list"
    assert len(llm.create_embedding("hello")["data"]) == 1
    assert llm.embed(["hello"], return_count=True) == ([llm.embed("hello")], 2)


def test_texts_too_long_to_embed(llm: Llama) -> None:
    llm.eval([BOS, 9])
    with pytest.raises(ContextError):
        llm.embed("x" * 500)
    assert len(llm.embed("x" * 500, truncate=True)) == DIM
    assert llm.n_tokens == 2


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


def test_a_state_of_nothing(llm: Llama) -> None:
    state = llm.save_state()
    llm.eval([BOS])
    llm.load_state(state)
    assert llm.n_tokens == 0


# Threads, interrupts, calls inside calls


def test_streams_that_alternate_do_not_disturb_each_other(llm: Llama) -> None:
    expected = {prompt: greedy(llm, prompt, 25) for prompt in ("hello", "the world", "a")}
    streams = {
        prompt: llm(prompt, max_tokens=25, temperature=0.0, stream=True) for prompt in ("hello", "the world")
    }
    texts = dict.fromkeys(streams, "")
    for first, second in zip(*streams.values(), strict=False):
        texts["hello"] += text_of(first)
        texts["the world"] += text_of(second)
        assert greedy(llm, "a", 25) == expected["a"]
    for prompt, stream in streams.items():
        texts[prompt] += "".join(map(text_of, stream))
    assert texts == {prompt: expected[prompt] for prompt in texts}


def test_calls_inside_a_generator(llm: Llama) -> None:
    expected = list(islice(llm.generate([BOS, 9], temp=0.0), 8))
    got = []
    for token in islice(llm.generate([BOS, 9], temp=0.0), 8):
        got.append(token)
        llm.reset()
        llm.eval([7, 8])
        assert llm.n_tokens == 2
    assert got == expected
    assert llm.n_tokens == 2


def test_a_stream_that_is_left_gives_its_sequence_back(llm: Llama) -> None:
    for _ in range(20):
        for _chunk in llm("hello", max_tokens=20, stream=True):
            break
    assert llm.n_tokens > 0
    kept = llm.engine.cache.pages_in_use
    assert kept == 1


def test_calls_from_threads_queue(llm: Llama) -> None:
    prompts = ["hello", "the world", "a", "answer"]
    expected = {prompt: greedy(llm, prompt, 20) for prompt in prompts}
    found: list[tuple[str, str]] = []
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(6):
                prompt = prompts[(number + i) % len(prompts)]
                if i % 2:
                    chunks = llm(prompt, max_tokens=20, temperature=0.0, stream=True)
                    found.append((prompt, "".join(map(text_of, chunks))))
                else:
                    found.append((prompt, greedy(llm, prompt, 20)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(found) == 24
    assert all(text == expected[prompt] for prompt, text in found)


@pytest.mark.skipif(os.name == "nt", reason="raises SIGINT in the process")
def test_an_interrupt_comes_out_and_the_object_stays_usable(llm: Llama) -> None:
    expected = greedy(llm, "hello", 20)

    def interrupt(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        if len(ids) == 4:
            signal.raise_signal(signal.SIGINT)
        return scores

    with pytest.raises(KeyboardInterrupt):
        llm("hello", max_tokens=20, logits_processor=interrupt, logit_bias={EOS: -np.inf})
    with pytest.raises(KeyboardInterrupt):
        list(llm("hello", logits_processor=[interrupt], stream=True, logit_bias={EOS: -np.inf}))
    assert greedy(llm, "hello", 20) == expected


def test_an_error_in_a_processor_leaves_the_object_usable(llm: Llama) -> None:
    def fail(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError

    expected = greedy(llm, "hello")
    with pytest.raises(ZeroDivisionError):
        llm("hello", logits_processor=fail)
    with pytest.raises(PyllamacpuError):
        llm("hello", logits_processor=lambda ids, scores: scores[:5])
    assert greedy(llm, "hello") == expected


def test_verbose_writes_timings_to_stderr(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Llama(str(path), verbose=True) as llm:
        llm("hello", max_tokens=2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "tokens/s" in err


# The hub


class FakeHub:
    """Stands for the hub's library: a list of files, and downloads into a folder."""

    def __init__(self, folder: Path, files: list[str], model: Path) -> None:
        self.folder, self.files, self.model = folder, files, model
        self.fetched: list[tuple[str, str]] = []

    def list_repo_files(self, repo_id: str, **_: Any) -> list[str]:
        return self.files

    def hf_hub_download(self, repo_id: str, filename: str, **_: Any) -> str:
        self.fetched.append((repo_id, filename))
        target = self.folder / filename
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.model.read_bytes())
        return str(target)


@pytest.fixture
def hub(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    files = ["README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "big/m-F16-00001-of-00002.gguf", "config.json"]
    fake = FakeHub(tmp_path, [*files, "big/m-F16-00002-of-00002.gguf"], path)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda *args, **kwargs: fake)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fake.hf_hub_download)
    return fake


def test_from_pretrained_by_pattern(hub: FakeHub) -> None:
    with Llama.from_pretrained("user/repo", "*Q8_0.gguf", additional_files=["config.*"], n_ctx=64) as llm:
        assert llm.n_ctx() == 64
        assert llm.model_path.endswith("m-Q8_0.gguf")
    assert hub.fetched == [("user/repo", "m-Q8_0.gguf"), ("user/repo", "config.json")]


def test_all_parts_of_a_split_model_are_downloaded(hub: FakeHub) -> None:
    assert download("user/repo", "big/*F16*.gguf").endswith("00001-of-00002.gguf")
    assert [name for _, name in hub.fetched] == [f"big/m-F16-0000{i}-of-00002.gguf" for i in (1, 2)]


def test_an_exact_name_is_taken_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[HubRef] = []
    monkeypatch.setattr("pyllamacpu.store.hub.fetch", lambda ref: asked.append(ref) or Path("found.gguf"))
    assert download("user/repo", "m.gguf") == "found.gguf"
    assert download("user/repo", None) == "found.gguf"
    assert [(ref.repo, ref.filename) for ref in asked] == [("user/repo", "m.gguf"), ("user/repo", None)]


def test_network_errors_are_typed(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(repo_id: str) -> list[str]:
        raise ConnectionError("no route\nand more")

    monkeypatch.setattr(hub, "list_repo_files", fail)
    with pytest.raises(StoreError, match=r"user/repo: cannot download \(ConnectionError: no route\)"):
        Llama.from_pretrained("user/repo", "*.gguf")


@pytest.mark.parametrize(("pattern", "said"), [("*.gguf", "3 files match"), ("nothing*", "no file matches")])
def test_patterns_that_mean_no_file_or_many(hub: FakeHub, pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Llama.from_pretrained("user/repo", pattern)
    assert hub.fetched == []


# The starter model


@pytest.fixture(scope="module")
def starter(starter_model: Path) -> Iterator[Llama]:
    with Llama(str(starter_model), n_ctx=512) as opened:
        yield opened


def test_the_starter_model_knows_paris(starter: Llama) -> None:
    assert greedy(starter, "The capital of France is", 4).startswith(" Paris.")
    # The margin is small in a chat (0.08 between the first two words), so leave the second best out.
    question = [{"role": "user", "content": "What is the capital of France?"}]
    options = {"temperature": 0.0, "max_tokens": 32, "logit_bias": {starter.tokenize(b"L")[0]: -5.0}}
    answer = starter.create_chat_completion(question, **options)
    assert answer["choices"][0]["message"]["content"] == "The capital of France is Paris."
    assert answer["choices"][0]["finish_reason"] == "stop"
    chunks = starter.create_chat_completion(question, stream=True, **options)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == answer["choices"][0]["message"]["content"]


def test_the_second_turn_begins_with_the_first(starter: Llama) -> None:
    turns = [{"role": "user", "content": "Name a colour."}]
    starter.reset()
    answer = starter.create_chat_completion(turns, temperature=0.0, max_tokens=16)
    first = list(starter.eval_tokens)
    turns += [answer["choices"][0]["message"], {"role": "user", "content": "Another one."}]
    starter.create_chat_completion(turns, temperature=0.0, max_tokens=1)
    assert list(starter.eval_tokens)[: len(first)] == first


def test_emoji_arrive_whole(starter: Llama) -> None:
    emoji = "🎉👩‍👩‍👧"
    script = starter.tokenize(emoji.encode(), add_bos=False)
    position = iter(script)

    def follow(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
        scores[:] = -np.inf
        scores[next(position)] = 0
        return scores

    chunks = list(starter("x", max_tokens=len(script), logits_processor=follow, stream=True))
    assert "".join(map(text_of, chunks)) == emoji
    assert all("\ufffd" not in text_of(chunk) for chunk in chunks)
