"""Programs for llama-cpp-python: its names, and what it lets them do with a `Llama` object.

Covers llama_cpp/llama.py, llama_cpp/llama_cache.py, llama_cpp/llama_cpp.py, llama_cpp/llama_grammar.py,
llama_cpp/llama_speculative.py, llama_cpp/llama_tokenizer.py, llama_cpp/llama_types.py, api/caches.py,
api/drafts.py, api/grammar.py, api/opening.py, api/tokenizers.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import contextlib
import copy
import ctypes
import pickle
import random
import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import N_VOCAB, ROOT, greedy, llm, nothing_was_warned_of, path, text_of  # noqa: F401
from tiny_model import BOS, EOS, PIECES

import pyllamacpu.llama_cpp as llama_cpp
from pyllamacpu import Llama
from pyllamacpu.engine.drafts import CalledDrafts, PromptLookup
from pyllamacpu.errors import ModelError, OptionError, PyllamacpuError
from pyllamacpu.sampling.options import MAX_SEED, SamplingOptions

WORDS = "hello the hello the hello"


def opened(path: Path, **more: Any) -> Llama:
    return llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, kv_type="f32", **more)


# Names


def test_the_module_can_stand_for_llama_cpp() -> None:
    code = """
import sys, pyllamacpu.llama_cpp
sys.modules["llama_cpp"] = pyllamacpu.llama_cpp
import llama_cpp, importlib.util
from llama_cpp import Llama, LlamaGrammar, LogitsProcessorList, LlamaRAMCache, ChatCompletionRequestMessage
from llama_cpp.llama import Llama as Same, LlamaState
from llama_cpp.llama_cache import LlamaDiskCache, LlamaRAMCache as SameCache
from llama_cpp.llama_types import CreateChatCompletionResponse, ChatCompletionTool
from llama_cpp.llama_tokenizer import LlamaHFTokenizer, LlamaTokenizer
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
import llama_cpp.llama_cpp as low
assert Llama is Same is pyllamacpu.Llama and LlamaRAMCache is SameCache
assert importlib.util.find_spec("llama_cpp") is not None
assert low.GGML_TYPE_Q8_0 == llama_cpp.GGML_TYPE_Q8_0 == 8
print(llama_cpp.__version__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0.3.")


def test_constants_are_those_of_llama_h() -> None:
    assert llama_cpp.LLAMA_POOLING_TYPE_UNSPECIFIED == -1 and llama_cpp.LLAMA_POOLING_TYPE_LAST == 3
    assert llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M == 15 and llama_cpp.LLAMA_FTYPE_MOSTLY_BF16 == 32
    assert llama_cpp.LLAMA_SPLIT_MODE_ROW == 2 and llama_cpp.LLAMA_DEFAULT_SEED == MAX_SEED
    assert llama_cpp.LLAMA_ROPE_SCALING_TYPE_YARN == 2 and llama_cpp.GGML_TYPE_IQ4_XS == 23
    assert llama_cpp.llama_supports_gpu_offload() is False
    assert "LLAMA_DEFAULT_SEED" in dir(llama_cpp)


def test_functions_of_c_are_named_as_such() -> None:
    with pytest.raises(AttributeError, match="llama_decode belongs to the C interface"):
        _ = llama_cpp.llama_decode
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = llama_cpp.nonsense


def test_grammars(llm: Llama) -> None:
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "a" | "b"')
    assert text_of(llm("hello", max_tokens=4, grammar=grammar)) in ("a", "b")


def test_the_pieces_of_the_vocabulary(llm: Llama) -> None:
    vocabulary = llama_cpp.llama_model_get_vocab(llm.model)
    buffer = (ctypes.c_char * 8)()
    token = PIECES.index("▁hello")
    n = llama_cpp.llama_token_to_piece(vocabulary, token, buffer, 8, 0, True)
    assert buffer[:n] == b" hello"
    assert llama_cpp.llama_token_to_piece(vocabulary, token, buffer, 8, 1, True) == 5
    assert llama_cpp.llama_token_to_piece(vocabulary, token, buffer, 3, 0, True) == -6
    n = llama_cpp.llama_token_to_piece(vocabulary, EOS, buffer, 8, 0, True)
    assert buffer[:n] == b"</s>"


# The object


def test_facts_by_the_other_names(path: Path) -> None:
    with opened(path, n_batch=64, n_ubatch=32) as llm:
        assert (llm.n_threads, llm.n_threads_batch) == (1, 1)
        params = llm.context_params
        assert (params.n_ctx, params.n_batch, params.n_ubatch) == (128, 32, 32)
        assert params.type_k == llama_cpp.GGML_TYPE_F32
        assert llm.model_params.n_gpu_layers == 0 and llm.model_params.vocab_only is False


def test_the_seed_none_is_a_random_one(path: Path) -> None:
    with opened(path, seed=None) as llm:
        llm.set_seed(None)
        assert len({text_of(llm("a", max_tokens=12, temperature=2.0)) for _ in range(8)}) > 1
        llm.set_seed(3)
        first = text_of(llm("a", max_tokens=12, temperature=2.0))
        llm.set_seed(3)
        assert text_of(llm("a", max_tokens=12, temperature=2.0)) == first


def test_logits_to_logprobs() -> None:
    logits = np.array([[1.0, 2.0, -np.inf], [5.0, 5.0, 5.0]], np.float32)
    want = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True) + 1e-45)
    got = Llama.logits_to_logprobs(logits)
    assert got.dtype == np.float32 and np.allclose(got[:, :2], want[:, :2]) and got[0, 2] == -np.inf
    assert np.allclose(np.exp(Llama.logits_to_logprobs(logits.T, axis=0)).sum(0), 1.0)
    assert Llama.longest_token_prefix([1, 2, 3], (1, 2, 4, 5)) == 2


def test_input_ids_can_be_set(llm: Llama) -> None:
    llm.eval([BOS, 6, 9])
    ids = llm.input_ids
    ids[1:3] = 9, 6
    llm.input_ids = ids
    assert llm.input_ids[:4].tolist() == [BOS, 9, 6, 0] and llm.n_tokens == 3
    assert np.array_equal(llm.scores[2], llm.logits([BOS, 9, 6])[2])


@pytest.mark.parametrize("logits_all", [False, True])
def test_sampling_draws_from_what_is_written_into_scores(path: Path, logits_all: bool) -> None:
    with opened(path, logits_all=logits_all) as llm:
        llm.eval([BOS, 6, 9])
        llm.scores[llm.n_tokens - 1, 7] = 1000.0
        assert llm.sample(temp=0.0) == 7
        rows = llm.scores.copy()
        rows[llm.n_tokens - 1, 8] = 2000.0
        llm.scores = rows
        assert llm.sample(temp=0.0) == 8
        with pytest.raises(OptionError, match="shape"):
            llm.scores = rows[:, :3]


def test_a_state_by_its_constructor(llm: Llama) -> None:
    llm.eval([BOS, 6, 9])
    want = list(islice(llm.generate([BOS, 6, 9], temp=0.0), 4))
    llm.reset()
    llm.eval([BOS, 6, 9])
    saved = llm.save_state()
    names = ("input_ids", "scores", "n_tokens", "llama_state", "llama_state_size", "seed")
    state = llama_cpp.LlamaState(**{name: getattr(saved, name) for name in names})
    llm.reset()
    llm.load_state(state)
    assert llm.n_tokens == 3 and np.array_equal(llm.scores[2], llm.logits([BOS, 6, 9])[2])
    assert list(islice(llm.generate([], reset=False, temp=0.0), 4)) == want


# Pickling


class Counting(Llama):
    """A subclass with a constructor of its own."""

    def __init__(self, where: str, label: str) -> None:
        super().__init__(where, n_ctx=128, n_threads=1, kv_type="f32")
        self.label = label


def test_subclasses_survive_pickling_and_copying(path: Path) -> None:
    with Counting(str(path), "mine") as llm:
        llm.verbose = True
        llm.last_n_tokens_size = 7
        for twin in (pickle.loads(pickle.dumps(llm)), copy.copy(llm), copy.deepcopy(llm)):
            assert type(twin) is Counting and twin.label == "mine" and twin.n_ctx() == 128
            assert twin.verbose and twin.last_n_tokens_size == 7
            twin.verbose = False
            assert greedy(twin, "hello") == greedy(Llama(str(path), n_ctx=128, kv_type="f32"), "hello")
            twin.close()


# Caches


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_cache_carries_texts_to_another_object(path: Path, tmp_path: Path, kind: str) -> None:
    def cache() -> Any:
        return llama_cpp.LlamaDiskCache(str(tmp_path)) if kind == "disk" else llama_cpp.LlamaCache()

    first = cache()
    with opened(path) as llm:
        want = greedy(llm, WORDS)
    with opened(path) as llm:
        llm.set_cache(first)
        assert greedy(llm, WORDS) == want
        ids = llm.tokenize(WORDS.encode())
    assert ids in first and [EOS] not in first and first.cache_size > 0
    second = cache() if kind == "disk" else first  # another process sees the files
    assert second[ids].tokens[: len(ids)] == tuple(ids)
    with opened(path) as llm:
        llm.set_cache(second)
        loaded: list[Any] = []
        load = llm.load_state
        llm.load_state = lambda state: (loaded.append(state), load(state))[1]  # type: ignore[method-assign]
        assert greedy(llm, WORDS) == want
        assert len(loaded) == 1
        assert greedy(llm, WORDS) == want  # what is at hand is not loaded again
        assert len(loaded) == 1


def test_a_cache_leaves_the_random_numbers_alone(path: Path) -> None:
    cache = llama_cpp.LlamaRAMCache()
    with opened(path, seed=5) as plain, opened(path, seed=5) as cached:
        cached.set_cache(cache)
        for _ in range(3):
            options: dict[str, Any] = {"max_tokens": 8, "temperature": 2.0}
            assert text_of(cached(WORDS, **options)) == text_of(plain(WORDS, **options))


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_a_cache_lets_the_oldest_go(llm: Llama, tmp_path: Path, kind: str) -> None:
    llm.eval([BOS, 6])
    state = llm.save_state()
    one = state.llama_state_size + 4 * N_VOCAB + 3000
    cache: Any
    if kind == "disk":
        cache = llama_cpp.LlamaDiskCache(str(tmp_path), capacity_bytes=one)
    else:
        cache = llama_cpp.LlamaRAMCache(capacity_bytes=one)
    cache[[BOS, 6]] = state
    llm.reset()
    llm.eval([9, 9])
    cache[[9, 9]] = llm.save_state()
    assert [9, 9] in cache and [BOS, 6] not in cache
    with pytest.raises(KeyError):
        cache[[BOS, 6]]


def test_a_cache_in_memory_in_many_threads() -> None:
    def state(key: tuple[int, ...]) -> llama_cpp.LlamaState:
        none = np.zeros((0, 4), np.float32)
        return llama_cpp.LlamaState(np.array(key, np.intc), none, len(key), b"x" * 100, 100, 1)

    cache = llama_cpp.LlamaRAMCache(20_000)
    errors: list[Exception] = []

    def work(seed: int) -> None:
        numbers = np.random.default_rng(seed)
        try:
            for _ in range(300):
                key = tuple(numbers.integers(0, 3, 8).tolist())
                cache[key] = state(key)
                assert cache.cache_size <= 20_000
                cache.__contains__(key[:3])
        except Exception as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    for twin in (pickle.loads(pickle.dumps(cache)), copy.deepcopy(cache), copy.copy(cache)):
        assert list(twin.cache_state) == list(cache.cache_state)
        twin[(9,)] = state((9,))
        assert (9,) not in cache.cache_state


def test_damaged_files_of_a_cache_are_as_if_not_there(llm: Llama, tmp_path: Path) -> None:
    cache = llama_cpp.LlamaDiskCache(str(tmp_path))
    llm.eval([BOS, 6])
    cache[[BOS, 6]] = llm.save_state()
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    assert [BOS, 6] not in cache
    file.write_bytes(pickle.dumps({"input_ids": [BOS, 6]}))
    assert [BOS, 6] not in cache


def test_a_cache_of_another_model_is_refused(path: Path) -> None:
    cache = llama_cpp.LlamaCache()
    with opened(path) as llm:
        llm.set_cache(cache)
        greedy(llm, WORDS)
    with llama_cpp.Llama(str(path), n_ctx=128, kv_type="q8_0") as other:
        other.set_cache(cache)
        with pytest.raises(ModelError, match="another model, cache type"):
            greedy(other, WORDS)


# Tokenizers, processors, drafts


def test_the_tokenizer_is_a_method(llm: Llama, path: Path) -> None:
    tokenizer = llama_cpp.LlamaTokenizer(llm)
    assert tokenizer.encode("hello") == llm.tokenizer().encode("hello") == [BOS, PIECES.index("▁hello")]
    assert llama_cpp.LlamaTokenizer.from_ggml_file(str(path)).decode(tokenizer.encode("hello")) == "hello"


class Letters(llama_cpp.BaseLlamaTokenizer):
    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        return [6, 9]

    def detokenize(self, tokens: Any, prev_tokens: Any = None, special: bool = False) -> bytes:
        return b"letters"


def test_a_tokenizer_of_ones_own(path: Path) -> None:
    with opened(path, tokenizer=Letters()) as llm:
        assert llm.tokenize(b"x") == [6, 9] and llm.detokenize([1]) == b"letters"
        assert llm("anything", max_tokens=1)["usage"]["prompt_tokens"] == 2


class Words:
    """What `LlamaHFTokenizer` needs of transformers' tokenizers."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [0] * add_special_tokens + [len(word) for word in text.split()]

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return " ".join("x" * token or "<s>" for token in tokens if token or not skip_special_tokens)


def test_a_tokenizer_of_transformers() -> None:
    tokenizer = llama_cpp.LlamaHFTokenizer(Words())
    assert tokenizer.tokenize(b"ab c") == [0, 2, 1]
    assert tokenizer.detokenize([0, 2, 1]) == b"xx x"
    assert tokenizer.detokenize([1], prev_tokens=[2]) == b" x"
    assert tokenizer.detokenize([0, 1], special=True) == b"<s> x"


def test_an_answer_of_at_least_some_tokens(llm: Llama) -> None:
    processors = llama_cpp.LogitsProcessorList([llama_cpp.MinTokensLogitsProcessor(3, EOS)])
    answer = llm("a", max_tokens=8, temperature=0.0, logit_bias={EOS: 1000}, logits_processor=processors)
    assert answer["usage"]["completion_tokens"] == 3


def test_drafts_look_up_the_prompt() -> None:
    draft = llama_cpp.LlamaPromptLookupDecoding(max_ngram_size=3, num_pred_tokens=2)
    assert draft(np.array([1, 2, 3, 1, 2, 3, 1, 2, 3])).tolist() == [1, 2]
    assert draft(np.arange(9)).tolist() == []
    assert draft(np.array([5])).tolist() == []


class _Repeats(llama_cpp.LlamaDraftModel):
    def __call__(self, input_ids: Any, /, **kwargs: Any) -> Any:
        return np.array([input_ids[-1]] * 3)


@pytest.mark.parametrize("draft", ["lookup", llama_cpp.LlamaPromptLookupDecoding(), _Repeats()])
def test_drafts_do_not_change_answers(path: Path, draft: Any) -> None:
    with opened(path, draft_model=draft) as llm, opened(path) as plain:
        assert greedy(llm, "hello hello") == greedy(plain, "hello hello")
        repeated = llm("hello hello hello", max_tokens=40, logprobs=2, seed=1)
        assert repeated["choices"] == plain("hello hello hello", max_tokens=40, logprobs=2, seed=1)["choices"]
        expected = CalledDrafts if isinstance(draft, _Repeats) else PromptLookup
        assert isinstance(llm._parts.drafts, expected)


def test_what_makes_no_drafts_is_an_error(path: Path) -> None:
    with pytest.raises(OptionError, match="draft_model=7: give 'lookup'"):
        opened(path, draft_model=7)
    with pytest.raises(OptionError, match="num_pred_tokens='x'"):
        opened(path, draft_model=llama_cpp.LlamaPromptLookupDecoding(num_pred_tokens="x"))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="this is a class"):
        opened(path, draft_model=_Repeats)
    with opened(path) as other, pytest.raises(OptionError, match="give its file's path"):
        opened(path, draft_model=other)


@pytest.mark.parametrize("found", [None, "ab", [0.5], [float("nan")], [[1], [2, 3]]])
def test_drafts_that_are_not_tokens_are_an_error(path: Path, found: Any) -> None:
    drafted = opened(path, draft_model=lambda ids, **more: found)
    with drafted as llm, pytest.raises(OptionError, match="draft_model: it returned"):
        greedy(llm, "hello hello hello")


def test_a_draft_function_that_fails_ends_its_own_answer_only(path: Path) -> None:
    def draft(ids: Any, **more: Any) -> Any:
        if ids[1] == bad:
            raise ZeroDivisionError("mine")
        return ids[-2:]

    best = SamplingOptions(temperature=0.0)
    with opened(path) as plain:
        good = plain.tokenize(b"hello hello hello", special=True)
        other = plain.tokenize(b"the world the world", special=True)
        expected = [event.text for event in plain.stream(good, best, max_tokens=24)]
    bad = other[1]
    assert good[1] != bad
    with opened(path, draft_model=draft) as llm:
        first, second = llm.stream(good, best, max_tokens=24), llm.stream(other, best, max_tokens=24)
        texts = [next(first).text]
        with pytest.raises(ZeroDivisionError, match="mine"):
            list(second)
        assert "".join([*texts, *(event.text for event in first)]) == "".join(expected)


def test_a_cache_on_disk_spares_other_files(llm: Llama, tmp_path: Path) -> None:
    """Its folder may be anyone's: only what it wrote is ever removed, and that is for its owner only."""
    others = [tmp_path / name for name in ("data.npz", "notes.txt", "model.gguf")]
    for other in others:
        other.write_bytes(b"not of the cache" * 100)
    (tmp_path / ".x.0123abcd.part").write_bytes(b"of a killed run")
    cache = llama_cpp.LlamaDiskCache(str(tmp_path), capacity_bytes=1)
    llm.eval([BOS, 6])
    cache[[BOS, 6]] = llm.save_state()
    assert sorted(tmp_path.iterdir()) == sorted(others) and cache.cache_size == 0
    cache.capacity_bytes = 1 << 30
    cache[[BOS, 6]] = llm.save_state()
    (file,) = set(tmp_path.iterdir()) - set(others)
    assert file.stat().st_mode & 0o777 == 0o600 and cache.cache_size == file.stat().st_size


def test_any_damage_of_a_file_of_a_cache(llm: Llama, tmp_path: Path) -> None:
    cache = llama_cpp.LlamaDiskCache(str(tmp_path))
    llm.eval([BOS, 6])
    cache[[BOS, 6]] = llm.save_state()
    (file,) = tmp_path.glob("*.npz")
    whole, rng = file.read_bytes(), random.Random(5)
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        file.write_bytes(content[: rng.choice((len(content), len(content), rng.randrange(len(content))))])
        with contextlib.suppress(KeyError, PyllamacpuError):
            llm.load_state(cache[[BOS, 6]])


@pytest.mark.parametrize("scales", [None, [1], "0"])
def test_scales_of_adapters_are_a_mapping(llm: Llama, scales: Any) -> None:
    with pytest.raises(OptionError, match="give a dict"):
        llm.set_adapters(scales)


@pytest.mark.parametrize("files", [3, [(3, 1.0)], ["gone.gguf"], [("a", 1.0, 2)]])
def test_adapters_are_files(llm: Llama, files: Any) -> None:
    with pytest.raises(OptionError, match=r"give a file|is neither a file|no such file"):
        llm.load_adapters(files)


@pytest.mark.parametrize("folder", ["a\0b", "~nobody-of-that-name/x"])
def test_a_folder_that_cannot_be_one(path: Path, folder: str) -> None:
    with pytest.raises(OptionError, match="disk cache"):
        opened(path, cache_disk=folder)
