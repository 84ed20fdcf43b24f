"""Every option of the three clients' own signatures: honoured, refused by its name, or noted in the log; and
answers have every field that the clients' types require. Covers the dialects in server/.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest
from anthropic.types import Message, MessageTokensCount, ModelInfo, RawMessageStreamEvent
from openai.types import Completion, CreateEmbeddingResponse
from openai.types import Model as ModelEntry
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import InputTokenCountResponse, ResponseStreamEvent
from openai.types.responses import Response as ResponseObject
from pydantic import TypeAdapter
from serving import Running, tiny_path, tiny_server, wait_until

from pyllamacpu.server import fields

QUESTION = [{"role": "user", "content": "hello"}]
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
TOOL = {"type": "function", "function": FUNCTION}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
OWN = {"extra_headers", "extra_query", "extra_body", "timeout", "self", "betas"}  # not in bodies
NO_MEANING = {"user", "service_tier", "store", "metadata", "safety_identifier", "prompt_cache_key",
              "prompt_cache_retention", "prompt_cache_options", "stream_options"}  # fmt: skip

path, running = tiny_path(n_ctx=1024), tiny_server()

# What each parameter is sent as; the others are sent as an object that nobody can mean.
VALUES: dict[str, Any] = {
    "frequency_penalty": 0.5, "presence_penalty": 0.5, "logit_bias": {"5": 1}, "logprobs": True, "seed": 3,
    "max_completion_tokens": 3, "max_tokens": 3, "max_output_tokens": 16, "n": 2, "best_of": 2, "echo": True,
    "suffix": "x", "modalities": ["text"], "parallel_tool_calls": False, "response_format": FORM,
    "stop": ["a"], "stream": True, "stream_options": {}, "temperature": 0.5, "top_p": 0.5, "top_k": 3,
    "tool_choice": "auto", "tools": [TOOL], "encoding_format": "base64", "instructions": "be", "metadata": {},
    "include": ["message.output_text.logprobs"], "top_logprobs": 2, "stop_sequences": ["a"], "system": "s",
    "text": {"format": {"type": "text"}}, "raw": True, "format": "json", "keep_alive": "5m", "images": [],
    "options": {"num_predict": 2}, "truncate": True, "function_call": "auto",
    "user": "u", "service_tier": "auto", "store": False, "safety_identifier": "s", "prompt_cache_key": "k",
}  # fmt: skip
ANTHROPIC: dict[str, Any] = {
    "tools": [{"name": "f", "input_schema": FUNCTION["parameters"]}], "tool_choice": {"type": "auto"},
    "output_config": {"effort": "low"},
    "output_format": {"type": "json_schema", "schema": {"type": "object"}},
}  # fmt: skip
# Of no effect here, and known: they say who asks, and how a service in a data centre is to go about it.
ANTHROPIC_NO_MEANING = {"metadata", "service_tier", "context_management", "cache_control", "inference_geo"}

Call = Callable[..., httpx.Response]


@pytest.fixture
def noted(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    fields._noted.clear()
    with caplog.at_level(logging.WARNING, "pyllamacpu.server"):
        yield caplog


def walk(
    running: Running, noted: pytest.LogCaptureFixture, method: Any, path: str, base: dict[str, Any],
    values: dict[str, Any], silent: set[str],
) -> set[str]:  # fmt: skip
    """Sends each option of a client's method by itself; the names of those that were honoured."""
    honoured = set()
    for name in inspect.signature(method).parameters.keys() - base.keys() - OWN:
        noted.clear()
        fields._noted.clear()
        response = running.post(path, **base, **{name: values.get(name, {"no": "meaning"})})
        said = [record.getMessage() for record in noted.records]
        if response.status_code == 200:
            known = name in values or name in silent
            assert known or any(f"{name!r}" in text or f".{name}" in text for text in said), name
            if known and not said:
                honoured.add(name)
        else:
            assert response.status_code == 400 and name in response.text, (name, response.text)
    return honoured - silent


def test_options_of_openais_client(running: Running, noted: pytest.LogCaptureFixture) -> None:
    client = openai.OpenAI(base_url=running.url, api_key="k")
    base = {"model": "tiny", "max_tokens": 3}
    chat = walk(running, noted, client.chat.completions.create, "/v1/chat/completions",
                {**base, "messages": QUESTION}, VALUES, NO_MEANING)  # fmt: skip
    assert chat >= {"frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "n", "seed",
                    "presence_penalty", "response_format", "stop", "stream", "tools", "top_p"}  # fmt: skip
    text = walk(running, noted, client.completions.create, "/v1/completions",
                {**base, "prompt": "hello"}, {**VALUES, "logprobs": 2}, NO_MEANING)  # fmt: skip
    assert text >= {"best_of", "echo", "logit_bias", "logprobs", "n", "seed", "stop", "suffix", "top_p"}
    walk(running, noted, client.embeddings.create, "/v1/embeddings", {"model": "tiny", "input": "hello"},
         VALUES, NO_MEANING)  # fmt: skip
    values = {**VALUES, "tools": [{"type": "function", **FUNCTION}]}
    given = {"model": "tiny", "input": "hello", "max_output_tokens": 16}
    found = walk(running, noted, client.responses.create, "/v1/responses", given, values, NO_MEANING)
    given = {"model": "tiny", "input": "hello"}
    counting = client.responses.input_tokens.count
    walk(running, noted, counting, "/v1/responses/input_tokens", given, values, NO_MEANING)
    assert found >= {"include", "instructions", "stream", "temperature", "text", "tools", "top_logprobs"}


def test_options_of_anthropics_client(running: Running, noted: pytest.LogCaptureFixture) -> None:
    client = anthropic.Anthropic(base_url=running.url, api_key="k")
    values, base = {**VALUES, **ANTHROPIC}, {"model": "tiny", "messages": QUESTION}
    asked = {**base, "max_tokens": 3}
    for method in (client.messages.create, client.beta.messages.create):
        found = walk(running, noted, method, "/v1/messages", asked, values, ANTHROPIC_NO_MEANING)
        assert found >= {"stop_sequences", "stream", "system", "tool_choice", "tools"}
    for counting in (client.messages.count_tokens, client.beta.messages.count_tokens):
        walk(running, noted, counting, "/v1/messages/count_tokens", base, values, ANTHROPIC_NO_MEANING)


def test_options_of_ollamas_client(running: Running, noted: pytest.LogCaptureFixture) -> None:
    client = ollama.Client(host=running.url)
    base = {"model": "tiny", "options": {"num_predict": 3}}
    more: list[tuple[Any, str, dict[str, Any]]] = [
        (client.generate, "/api/generate", {**base, "prompt": "hello"}),
        (client.chat, "/api/chat", {**base, "messages": QUESTION}),
        (client.embed, "/api/embed", {"model": "tiny", "input": "hello"}),
        (client.embeddings, "/api/embeddings", {"model": "tiny", "prompt": "hello"}),
    ]
    for method, path, body in more:
        found = walk(running, noted, method, path, body, VALUES, {"options"})
        assert "keep_alive" in found
    client._client.close()


@pytest.mark.parametrize("name", sorted(ollama.Options.model_fields))
def test_ollamas_options(running: Running, noted: pytest.LogCaptureFixture, name: str) -> None:
    """Each is honoured, has an effect on speed and memory only, is refused by its name, or noted."""
    kind = str(ollama.Options.model_fields[name].annotation)
    value = ["a"] if "Sequence" in kind else False if "bool" in kind else 0.5 if "float" in kind else 1
    options = {"num_predict": 2, name: value}
    response = running.post("/api/generate", model="tiny", prompt="hello", options=options, stream=False)
    if response.status_code != 200:
        assert response.json()["error"].startswith(f"options.{name}: ")
    elif name in ("tfs_z", "num_ctx"):
        assert [r for r in noted.records if f"options.{name}" in r.getMessage()]


# Answers


def events(response: httpx.Response) -> list[Any]:
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]


adapter = cache(TypeAdapter)  # making one takes a tenth of a second


def fits(kind: Any, value: Any) -> None:
    adapter(kind).validate_python(value)


def test_answers_have_what_openais_types_require(running: Running) -> None:
    plain: dict[str, Any] = {"messages": QUESTION, "max_tokens": 40}
    for more in ({}, {"logprobs": True, "top_logprobs": 2}, {"tools": [TOOL], "tool_choice": "required"}):
        body = {**plain, **more}
        fits(ChatCompletion, running.post("/v1/chat/completions", **body).json())
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        for event in events(running.post("/v1/chat/completions", **body)):
            fits(ChatCompletionChunk, event)
    fits(Completion, running.post("/v1/completions", prompt="hello", logprobs=2).json())
    fits(CreateEmbeddingResponse, running.post("/v1/embeddings", input="hello").json())
    counted = running.post("/v1/responses/input_tokens", input="hello").json()
    fits(InputTokenCountResponse, counted)
    asked = running.post("/v1/responses", input="hello", max_output_tokens=1).json()
    assert counted["input_tokens"] == asked["usage"]["input_tokens"]
    fits(ModelEntry, running.get("/v1/models/tiny").json())
    given = {"input": "hello", "max_output_tokens": 40}
    tools = {"tools": [{"type": "function", **FUNCTION}], "tool_choice": "required"}
    for more in ({}, {"top_logprobs": 2}, tools):
        fits(ResponseObject, running.post("/v1/responses", **given, **more).json())
        for event in events(running.post("/v1/responses", stream=True, **given, **more)):
            fits(ResponseStreamEvent, event)


def test_answers_have_what_anthropics_types_require(running: Running) -> None:
    plain: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "max_tokens": 40}
    for more in ({}, {"tools": ANTHROPIC["tools"], "tool_choice": {"type": "any"}}):
        fits(Message, running.post("/v1/messages", **plain, **more).json())
        for event in events(running.post("/v1/messages", stream=True, **plain, **more)):
            if event["type"] != "ping":
                fits(RawMessageStreamEvent, event)
    counted = running.post("/v1/messages/count_tokens", model="tiny", messages=QUESTION)
    fits(MessageTokensCount, counted.json())
    fits(ModelInfo, running.get("/v1/models/tiny").json())
    with anthropic.Anthropic(base_url=running.url, api_key="k", max_retries=0) as client:
        assert [model.display_name for model in client.models.list()][0] == "tiny"  # noqa: RUF015


def test_answers_have_what_ollamas_types_require(running: Running) -> None:
    base = {"model": "tiny", "options": {"num_predict": 3}, "stream": False, "logprobs": True}
    fits(ollama.GenerateResponse, running.post("/api/generate", prompt="hello", **base).json())
    fits(ollama.ChatResponse, running.post("/api/chat", messages=QUESTION, **base).json())
    fits(ollama.EmbedResponse, running.post("/api/embed", input="hello", model="tiny").json())
    fits(ollama.ListResponse, running.get("/api/tags").json())
    fits(ollama.ShowResponse, running.post("/api/show", model="tiny").json())
    wait_until(lambda: running.get("/api/ps").json()["models"])
    fits(ollama.ProcessResponse, running.get("/api/ps").json())


def test_log_probabilities_of_the_same_answer_are_the_same(running: Running) -> None:
    """In every dialect that has them, whole and streamed."""
    sampled = {"temperature": 0, "model": "tiny"}
    chat = running.post("/v1/chat/completions", messages=QUESTION, max_tokens=16, logprobs=True,
                        top_logprobs=2, **sampled).json()  # fmt: skip
    expected = chat["choices"][0]["logprobs"]["content"]
    assert len(expected) == chat["usage"]["completion_tokens"]
    body = {"input": "hello", "max_output_tokens": 16, "top_logprobs": 2, **sampled}
    whole = running.post("/v1/responses", **body).json()
    assert whole["output"][0]["content"][0]["logprobs"] == expected and whole["top_logprobs"] == 2
    streamed = events(running.post("/v1/responses", stream=True, **body))
    deltas = [e["logprobs"] for e in streamed if e["type"] == "response.output_text.delta"]
    done = next(e["logprobs"] for e in streamed if e["type"] == "response.output_text.done")
    sent = [entry for delta in deltas for entry in delta]
    assert done == expected and sent == expected[: len(sent)]
    options = {"num_predict": 16, "temperature": 0}
    own = {"model": "tiny", "messages": QUESTION, "options": options, "logprobs": True, "top_logprobs": 2}
    assert running.post("/api/chat", stream=False, **own).json()["logprobs"] == expected
    lines = [json.loads(line) for line in running.post("/api/chat", **own).text.splitlines()]
    assert [entry for line in lines for entry in line.get("logprobs", [])] == expected
