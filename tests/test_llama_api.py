"""The `Llama` class: opening models, token ids, the kept sequence and its state.

Covers api/llama.py, api/loading.py, api/state.py, api/tokens.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_build import cache_file
from tiny_llama import N_VOCAB, ROOT, llm, no_text, nothing_was_warned_of, path, text_of  # noqa: F401
from tiny_model import BOS, DIM, EOS, PIECES, byte, write_model

import pyllamacpu
import pyllamacpu.api.compat
from pyllamacpu import Llama, topology
from pyllamacpu.errors import (
    ContextError,
    GGUFError,
    ModelError,
    OptionError,
    TokenizerError,
)
from pyllamacpu.sampling.sampler import SamplingOptions

# The package


def test_the_version_has_one_place() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '\nversion = { attr = "pyllamacpu.__version__" }' in project
    assert pyllamacpu.__version__ not in project


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
        {"n_ctx": "512"},
        {"n_batch": 1.5},
        {"n_threads": "2"},
        {"rope_freq_base": "x"},
        {"yarn_orig_ctx": 4096},
        {"chat_format": "llama-2", "chat_template": "{{ messages }}"},
    ],
)
def test_options_that_cannot_be_served(path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Llama(str(path), **options)


def test_an_unknown_option_is_told_of_with_a_hint(path: Path, llm: Llama) -> None:
    with pytest.warns(UserWarning, match=r"no option 'n_cxt', which does nothing; did you mean 'n_ctx'"):
        Llama(str(path), n_cxt=5).close()
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
            n_parts=-1,
            f16_kv=True,
            device="cpu",
            tokenizer=None,
        ).close()


@pytest.mark.parametrize("name, value", [("use_mlock", True), ("numa", 4), ("numa", "mirror")])
def test_options_that_would_matter_elsewhere_are_told_of(path: Path, name: str, value: object) -> None:
    pyllamacpu.api.compat._warned.discard(name)
    with pytest.warns(UserWarning, match=f"{name}={value!r} does nothing"):
        Llama(str(path), **{name: value}).close()


@pytest.mark.parametrize(
    "given, strategy", [(True, "distribute"), (2, "isolate"), (3, "numactl"), ("isolate", "isolate")]
)
def test_memory_nodes_are_used_as_asked_for(path: Path, given: object, strategy: str) -> None:
    before = topology.numa_strategy()
    try:
        Llama(str(path), numa=given).close()
        assert topology.numa_strategy() == strategy
        Llama(str(path), numa=False).close()
        assert topology.numa_strategy() == strategy  # asks for nothing
    finally:
        topology.use_numa(before)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        Llama(str(tmp_path / "missing.gguf"))
    with pytest.raises(OptionError, match="model_path is empty"):
        Llama(" ")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(GGUFError):
        Llama(str(tmp_path / "text.gguf"))


def test_names_as_on_the_command_line(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A known name, and references to the hub; a mistyped one is a ValueError that says what exists."""
    monkeypatch.setenv("PYLLAMACPU_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = {
        "user/repo:Q4_K_M": ("user/repo", "x-Q4_K_M.gguf"),
        "hf.co/user/repo/x-Q4_K_M.gguf": ("user/repo", "x-Q4_K_M.gguf"),
        "llama3.2:1b": ("bartowski/Llama-3.2-1B-Instruct-GGUF", "Llama-3.2-1B-Instruct-Q4_K_M.gguf"),
    }
    for name, (repo, filename) in names.items():
        cached = cache_file(repo, filename, path.read_bytes())
        with Llama(name, n_ctx=16) as opened:
            assert opened.model_path == str(cached)
    with pytest.raises(ValueError, match="did you mean"):
        Llama("llama9")
    with pytest.raises(ValueError, match="not in the cache"):
        Llama("user/repo:Q8_0")


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
        assert (ids_only.token_bos(), ids_only.token_eos(), ids_only.text_tokenizer) == (-1, -1, None)
        for call in (
            lambda: ids_only("a"),
            lambda: ids_only([6]),
            lambda: ids_only.tokenize(b"a"),
            lambda: ids_only.detokenize([6]),
            lambda: ids_only.create_chat_completion([{"role": "user", "content": "a"}]),
            lambda: ids_only.embed("a"),
            lambda: ids_only.tokenizer_,
            ids_only.tokenizer,
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
    for idx in ("a", 1.0, True):
        with pytest.raises(OptionError, match="give a position"):
            llm.sample(idx=idx)  # type: ignore[arg-type]


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


@pytest.mark.parametrize(
    "keys",
    [
        {"tokenizer__ggml__scores": None},
        {"tokenizer__ggml__padding_token_id": 9999},
        {"tokenizer__ggml__add_eos_token": True},
        {"tokenizer__ggml__precompiled_charsmap": np.zeros(4, np.uint8)},
        {"tokenizer__ggml__model": "gpt2", "tokenizer__ggml__merges": ["h e"]},
    ],
)
def test_warnings_about_a_tokenizer_name_the_file_once(tmp_path: Path, keys: dict[str, Any]) -> None:
    odd = write_model(tmp_path / "odd.gguf", **keys)
    with pytest.warns(UserWarning) as caught:
        Llama(str(odd), vocab_only=True).close()
    for warning in caught:
        assert str(warning.message).startswith(f"{odd}: ") and str(warning.message).count(str(odd)) == 1


def test_a_chat_with_a_closed_model(path: Path) -> None:
    llm = Llama(str(path))
    llm.close()
    with pytest.raises(ModelError, match="closed"):
        llm.create_chat_completion([{"role": "user", "content": "x"}])
