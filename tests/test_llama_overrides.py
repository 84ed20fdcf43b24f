"""What llama-cpp-python's users rely on in calls: replaced methods, penalties, odd arguments, logprobs.

Covers api/overrides.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_llama import greedy, llm, nothing_was_warned_of, path, text_of  # noqa: F401
from tiny_model import BOS, PIECES, byte

from pyllamacpu import Llama, LlamaGrammar
from pyllamacpu.api.caches import LlamaDiskCache
from pyllamacpu.errors import OptionError, OutputError, TokenizerError

QUESTION = [{"role": "user", "content": "hello"}]


class Recording(Llama):
    """Notes which of its methods are called."""

    def __init__(self, path: Path, *names: str) -> None:
        super().__init__(str(path), n_ctx=128, n_threads=1, kv_type="f32")
        self.called: list[str] = []
        for name in names:
            setattr(self, name, self._noting(name, getattr(self, name)))

    def _noting(self, name: str, method: Any) -> Any:
        def call(*args: Any, **keywords: Any) -> Any:
            self.called.append(name)
            return method(*args, **keywords)

        return call


@pytest.mark.parametrize(
    ("replaced", "call"),
    [
        ("tokenize", lambda llm: llm("hello", max_tokens=1)),
        ("tokenize", lambda llm: llm.embed("hello")),
        ("embed", lambda llm: llm.create_embedding("hello")),
        ("create_completion", lambda llm: llm("hello", max_tokens=1)),
        ("create_completion", lambda llm: llm.create_chat_completion(QUESTION, max_tokens=1)),
        (
            "create_completion",
            lambda llm: list(llm.create_chat_completion(QUESTION, max_tokens=2, stream=True)),
        ),
        ("generate", lambda llm: llm("hello", max_tokens=2)),
        ("sample", lambda llm: llm("hello", max_tokens=2)),
        ("eval", lambda llm: llm("hello", max_tokens=2)),
        ("eval", lambda llm: list(islice(llm.generate([BOS, 6], temp=0.0), 2))),
        ("load_state", lambda llm: llm.load_state(llm.save_state())),
    ],
)
def test_replaced_methods_are_called(path: Path, replaced: str, call: Any) -> None:
    with Recording(path, replaced) as llm:
        call(llm)
        assert replaced in llm.called


class Seventh(Llama):
    """Always says the token 7."""

    def sample(self, *args: Any, **keywords: Any) -> int:
        return 7


def test_what_a_replaced_method_says_counts(path: Path) -> None:
    with Seventh(str(path), n_ctx=128, n_threads=1) as llm:
        assert list(islice(llm.generate([BOS, 6]), 3)) == [7, 7, 7]
        answer = llm("hello", max_tokens=3)
        assert answer["choices"][0]["text"] == llm.detokenize([7, 7, 7]).decode()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert "".join(map(text_of, llm("hello", max_tokens=3, stream=True))) == text_of(answer)
        with pytest.raises(OptionError, match="replaces generate"):
            llm("hello", grammar='root ::= "a"')


@pytest.mark.parametrize("names", [("eval",), ("sample", "eval"), ("generate",)])
def test_answers_are_the_same_through_replaced_methods(path: Path, llm: Llama, names: Sequence[str]) -> None:
    with Recording(path, *names) as own:
        for prompt in ("hello the", "hello there", "hello the"):
            options: dict[str, Any] = {"stop": ["\u2581zzz"], "logprobs": 2}
            assert greedy(own, prompt, **options) == greedy(llm, prompt, **options)
        assert greedy(own, "a", repeat_penalty=1.5) == greedy(llm, "a", repeat_penalty=1.5)


# Penalties and temperatures


def test_penalties_count_the_answer_and_not_the_prompt(llm: Llama) -> None:
    first = llm("hello the hello", max_tokens=1, temperature=0.0)
    assert (
        llm("hello the hello", max_tokens=1, temperature=0.0, presence_penalty=50.0)["choices"]
        == first["choices"]
    )
    token = next(llm.generate([BOS, 6], temp=0.0))
    assert next(llm.generate([BOS, 6, token, 6], temp=0.0)) == next(
        llm.generate([BOS, 6, token, 6], temp=0.0, presence_penalty=100.0)
    )
    answer = list(islice(llm.generate([BOS, 6], temp=0.0, presence_penalty=1000.0), 8))
    assert len(set(answer)) == 8


def test_penalties_count_the_prompt_where_the_command_line_asks(llm: Llama) -> None:
    from pyllamacpu import SamplingOptions

    plain = SamplingOptions(temperature=0.0)
    token = next(llm.stream([BOS, 6], plain, 1)).tokens[0]
    prompt = [BOS, 6, token, 6]
    likely = int(np.argmax(llm.logits(prompt)[-1]))
    strong = SamplingOptions(temperature=0.0, presence_penalty=1000.0)
    assert next(llm.stream([*prompt, likely], strong, 1)).tokens[0] not in prompt


def test_a_temperature_below_0_draws_from_all_tokens(llm: Llama) -> None:
    drawn = {
        llm("a", max_tokens=1, temperature=-1.0, top_k=1, seed=s)["choices"][0]["text"] for s in range(40)
    }
    assert len(drawn) > 4  # top_k is not heeded, nor is it the likeliest one
    assert len({text_of(llm("a", max_tokens=1, temperature=0.0, seed=s)) for s in range(4)}) == 1


# Arguments of a wrong kind


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": b"hello"},
        {"prompt": bytearray(b"hello")},
        {"stop": 3},
        {"stop": [3]},
        {"stop": b"x"},
        {"max_tokens": "3"},
        {"max_tokens": 2.5},
        {"logprobs": "2"},
    ],
)
def test_arguments_of_a_wrong_kind_are_typed_errors(llm: Llama, wrong: dict[str, Any]) -> None:
    with pytest.raises((OptionError, TokenizerError)):
        llm(**{"prompt": "hello", **wrong})
    chat = {name: value for name, value in wrong.items() if name in ("stop", "max_tokens")}
    if chat:
        with pytest.raises(OptionError):
            llm.create_chat_completion(QUESTION, **chat)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_path", None),
        ("model_path", 5),
        ("n_ctx", None),
        ("n_batch", None),
        ("n_ubatch", None),
        ("last_n_tokens_size", "64"),
        ("kv_bytes", "1G"),
        ("kv_bytes", -1),
        ("chat_format", 5),
        ("chat_format", ["chatml"]),
        ("chat_template", 5),
        ("chat_handler", 5),
        ("tokenizer", 5),
    ],
)
def test_the_constructors_arguments_of_a_wrong_kind(path: Path, name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=name):
        Llama(**{"model_path": str(path), name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repo_id", None),
        ("repo_id", 5),
        ("repo_id", ""),
        ("filename", 5),
        ("additional_files", 5),
        ("additional_files", [5]),
        ("local_dir", 5),
        ("cache_dir", 5),
    ],
)
def test_the_hubs_arguments_of_a_wrong_kind(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=name):
        Llama.from_pretrained(**{"repo_id": "user/repo", name: value})


@pytest.mark.parametrize("value", [3, "x", [3], [None], {"a": 1}])
def test_what_cannot_be_called_is_not_a_processor(llm: Llama, value: Any) -> None:
    for call in (
        lambda **wrong: llm("hello", **wrong),
        lambda **wrong: llm.generate([BOS, 6], **wrong),
        lambda **wrong: llm.create_chat_completion(QUESTION, **wrong),
        lambda **wrong: (llm.eval([BOS]), llm.sample(**wrong)),
    ):
        with pytest.raises(OptionError, match="logits_processor="):
            call(logits_processor=value)
    for call in (
        lambda **wrong: llm("hello", **wrong),
        lambda **wrong: llm.generate([BOS, 6], **wrong),
        lambda **wrong: llm.stream([BOS, 6], **wrong),
    ):
        with pytest.raises(OptionError, match="stopping_criteria="):
            call(stopping_criteria=value)
    with pytest.raises(OptionError, match="logits_processors="):
        llm.stream([BOS, 6], logits_processors=value)


@pytest.mark.parametrize("value", [5, None, [5], b"x", {"a": 1}])
def test_what_is_not_a_text_is_not_embedded(llm: Llama, value: Any) -> None:
    for call in (llm.embed, llm.create_embedding):
        with pytest.raises(OptionError, match="input"):
            call(value)


@pytest.mark.parametrize("name", ["suffix", "samplers", "dry_sequence_breakers"])
@pytest.mark.parametrize("value", [3, [3], [[1]]])
def test_texts_and_lists_of_a_wrong_kind(llm: Llama, name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=name):
        llm("hello", max_tokens=1, **{name: value})


def test_a_cache_that_keeps_nothing_by_its_tokens(llm: Llama) -> None:
    for value in (5, [None], "x"):
        with pytest.raises(OptionError, match="cache"):
            llm.set_cache(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["tools", "functions"])
@pytest.mark.parametrize("choice", [None, {"name": "f"}])
def test_tools_that_are_not_a_list(llm: Llama, name: str, choice: Any) -> None:
    key = "tool_choice" if name == "tools" else "function_call"
    for value in (3, "f", {"name": "f"}):
        with pytest.raises(OptionError, match=f"{name}="):
            llm.create_chat_completion(QUESTION, **{name: value, key: choice})


@pytest.mark.parametrize("choice", [3, "required", {"name": "f"}])
def test_a_choice_among_no_functions(llm: Llama, choice: Any) -> None:
    with pytest.raises(OptionError, match="function_call: there are no functions"):
        llm.create_chat_completion(QUESTION, function_call=choice)
    llm.create_chat_completion(QUESTION, function_call="auto", max_tokens=1)


def test_parts_in_a_tuple_are_parts(llm: Llama) -> None:
    parts = ({"type": "text", "text": "hello"}, {"type": "text", "text": " the"})
    options: dict[str, Any] = {"max_tokens": 3, "temperature": 0.0}
    given = llm.create_chat_completion([{"role": "user", "content": parts}], **options)
    want = llm.create_chat_completion([{"role": "user", "content": list(parts)}], **options)
    assert (given["choices"], given["usage"]) == (want["choices"], want["usage"])
    with pytest.raises(OptionError, match="read no images"):
        llm.create_chat_completion([{"role": "user", "content": ({"type": "image_url"},)}])


@pytest.mark.parametrize("name", ["options", "max_tokens", "logprobs", "on_prompt", "grammar", "stop"])
@pytest.mark.parametrize("value", [1.5, [5]])
def test_streams_arguments_of_a_wrong_kind(llm: Llama, name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=name):
        llm.stream([BOS, 6], **{name: value})


@pytest.mark.parametrize("value", ["x", None, 1.5, [1]])
def test_what_is_set_of_a_wrong_kind(llm: Llama, value: Any) -> None:
    llm.eval([BOS, 6])
    for name in ("n_tokens", "scores"):
        with pytest.raises(OptionError, match=name):
            setattr(llm, name, value)


@pytest.mark.parametrize("value", [5, None, [5], b"x"])
def test_grammars_of_a_wrong_kind(value: Any) -> None:
    for make in (LlamaGrammar, LlamaGrammar.from_string, LlamaGrammar.from_file, LlamaGrammar.from_choice):
        with pytest.raises(OptionError):
            make(value)


def test_texts_for_a_tokenizer_by_itself(llm: Llama) -> None:
    for text in ("\ud800", "hello\udcff"):  # halves of pairs, and bytes that were no UTF-8
        assert llm.tokenizer().encode(text) == llm.tokenize(text, special=True)
    with pytest.raises(TokenizerError, match="str or bytes"):
        llm.tokenizer().encode(5)  # type: ignore[arg-type]


def test_a_cache_in_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be made"):
        LlamaDiskCache(str(tmp_path / "file"))


def test_files_of_a_cache_that_are_gone_are_left_out(llm: Llama, tmp_path: Path) -> None:
    (tmp_path / f"{0:064x}.npz").symlink_to(tmp_path / "gone")  # listed, and not there
    cache = LlamaDiskCache(str(tmp_path))
    assert cache.cache_size == 0
    llm.reset()
    llm.eval([BOS, 6])
    cache[(BOS, 6)] = llm.save_state()
    assert cache[(BOS, 6)].tokens == (BOS, 6) and cache.cache_size > 0
    cache.capacity_bytes = cache.cache_size
    cache[(BOS,)] = cache[(BOS, 6)]
    assert 0 < cache.cache_size <= cache.capacity_bytes


def test_a_tool_that_json_cannot_say(llm: Llama) -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": b"x"}}]
    with pytest.raises(OptionError, match=r"tools\[0\].*JSON"):
        llm.create_chat_completion(QUESTION, tools=tools)


def test_bytes_are_no_token_ids(llm: Llama) -> None:
    for call in (llm.eval, llm.logits, llm.detokenize, lambda text: next(llm.generate(text))):
        with pytest.raises(TokenizerError, match="tokenize"):
            call(b"hello")


# Logprobs of chats


def test_chat_logprobs_have_the_bytes_of_parts_of_characters(llm: Llama) -> None:
    part = byte(0xC3)
    answer = llm.create_chat_completion(
        QUESTION, max_tokens=1, logprobs=True, top_logprobs=5, logit_bias={part: 1000.0}, temperature=0.0
    )
    (entry,) = answer["choices"][0]["logprobs"]["content"]
    assert entry["bytes"] == [0xC3]
    assert len(entry["top_logprobs"]) == 5
    chunks = list(
        llm.create_chat_completion(
            QUESTION, max_tokens=1, logprobs=True, logit_bias={part: 1000.0}, temperature=0.0, stream=True
        )
    )
    assert [0xC3] in [
        e["bytes"] for c in chunks for e in (c["choices"][0]["logprobs"] or {"content": []})["content"]
    ]


def test_chat_logprobs_do_not_merge_equal_texts(llm: Llama) -> None:
    answer = llm.create_chat_completion(QUESTION, max_tokens=1, logprobs=True, top_logprobs=len(PIECES) - 1)
    (entry,) = answer["choices"][0]["logprobs"]["content"]
    assert len(entry["top_logprobs"]) == len(PIECES) - 1  # parts of characters share a text


def test_a_temperature_that_is_not_a_number_is_refused(llm: Llama) -> None:
    with pytest.raises(OptionError, match="temperature"):
        llm("a", max_tokens=1, temperature=float("nan"))
