"""What type checkers are told of answers is so: their shapes, and the keywords of the calls.

Covers api/call_types.py, llama_cpp/llama_types.py. (`typed_user.py` is what CI gives to mypy.)
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from tiny_llama import nothing_was_warned_of  # noqa: F401
from tiny_model import write_model

from pyllamacpu import Llama
from pyllamacpu.api.call_types import ChatKeywords, CompletionKeywords
from pyllamacpu.api.sampling_arguments import SamplingKeywords
from pyllamacpu.llama_cpp import llama_types as types

QUESTION = [{"role": "user", "content": "hello"}]
FUNCTION = {
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]},
}
TOOL = {"type": "function", "function": FUNCTION}
CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "required": {"tools": [TOOL], "tool_choice": "required"},
    "named": {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    "function": {"functions": [FUNCTION], "function_call": {"name": "weather"}},
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llama]:
    path: Path = write_model(tmp_path_factory.mktemp("types") / "tiny.gguf", n_ctx=2048)
    with Llama(path, n_ctx=2048, n_threads=1) as opened:
        yield opened


def fits(answer: Any, kind: Any) -> bool:
    """Whether it has all that the type has, of the types there, and nothing else."""
    return bool(TypeAdapter(kind).validate_python(answer, strict=True) == answer)


@pytest.mark.parametrize("more", [{}, {"logprobs": 2, "echo": True}, {"logit_bias": {5: 3.0}}])
def test_completions(llm: Llama, more: dict[str, Any]) -> None:
    assert fits(llm("hello", max_tokens=4, **more), types.Completion)
    chunks = list(llm("hello", max_tokens=4, stream=True, **more))
    assert len(chunks) > 1 and all(fits(chunk, types.CompletionChunk) for chunk in chunks)


@pytest.mark.parametrize("name", CHATS)
def test_chats(llm: Llama, name: str) -> None:
    more = {"max_tokens": 300, "seed": 1, **CHATS[name]}
    answer: Any = llm.create_chat_completion(QUESTION, **more)
    assert fits(answer, types.ChatCompletion)
    chunks = list(llm.create_chat_completion(QUESTION, stream=True, **more))
    assert len(chunks) > 2 and all(fits(chunk, types.ChatCompletionChunk) for chunk in chunks)
    if name in ("required", "named"):
        assert answer["choices"][0]["message"]["tool_calls"]


def test_embeddings(llm: Llama) -> None:
    assert fits(llm.create_embedding(["hello", "the"]), types.CreateEmbeddingResponse)


@pytest.mark.parametrize(
    ("method", "first", "keywords"),
    [
        (Llama.create_completion, "prompt", CompletionKeywords),
        (Llama.create_chat_completion, "messages", ChatKeywords),
    ],
)
def test_keywords_are_those_of_the_call(method: Any, first: str, keywords: Any) -> None:
    own = inspect.signature(inspect.unwrap(method, stop=lambda _: False)).parameters
    named = set(own) - {"self", first, "stream", "sampling"}
    assert named == set(keywords.__annotations__) - set(SamplingKeywords.__annotations__)
    assert set(inspect.signature(method).parameters) - {"self", first, "stream", "sampling"} <= set(
        keywords.__annotations__
    )
