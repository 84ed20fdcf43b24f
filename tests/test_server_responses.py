"""OpenAI's responses, through its client. Covers server/responses.py."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from serving import Running, openai_client, tiny_path, tiny_server
from test_server_tools import SCHEMA, check

TOOL = {"type": "function", "name": "weather", "description": "Tells it", "parameters": SCHEMA}


path, running = tiny_path(n_ctx=4096), tiny_server()
client = openai_client()


def ask(client: openai.OpenAI, **more: Any) -> Any:
    arguments: dict[str, Any] = {"model": "tiny", "input": "hello", "temperature": 0, "max_output_tokens": 10}
    return client.responses.create(**{**arguments, **more})


def test_a_response_is_the_chat(client: openai.OpenAI, running: Running) -> None:
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "hello"}]
    chat = running.post("/v1/chat/completions", messages=messages, temperature=0, max_tokens=10).json()
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]
    for given in ("hello", parts):
        answer = ask(client, input=given, instructions="a")
        assert answer.output_text == chat["choices"][0]["message"]["content"]
        assert answer.status == "incomplete" and answer.incomplete_details.reason == "max_output_tokens"
        assert answer.usage.input_tokens == chat["usage"]["prompt_tokens"]
        assert answer.usage.output_tokens == 10


def test_a_stream_adds_up(client: openai.OpenAI) -> None:
    whole = ask(client)
    events = list(ask(client, stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]


def test_tools(client: openai.OpenAI) -> None:
    more: dict[str, Any] = {"tools": [TOOL], "tool_choice": "required", "max_output_tokens": 200}
    (call,) = ask(client, **more).output
    assert call.type == "function_call"
    check(call.name, json.loads(call.arguments))
    events = list(ask(client, **more, stream=True))
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert json.loads(done[0].arguments) == json.loads(call.arguments)
    assert events[-1].type == "response.completed" and events[-1].response.output[0].name == "weather"
    turns = [{"role": "user", "content": "hello"}, call.model_dump()]
    turns.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
    again = ask(client, input=turns, tools=[TOOL])
    assert again.usage.input_tokens > ask(client, tools=[TOOL]).usage.input_tokens


def test_forms(client: openai.OpenAI) -> None:
    form = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}}
    check("weather", json.loads(ask(client, text=form, max_output_tokens=100).output_text))


@pytest.mark.parametrize(
    "change, param",
    [
        ({"input": None}, "input"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"temperature": 3}, "temperature"),
    ],
)
def test_what_cannot_be_honoured_is_named(running: Running, change: dict[str, Any], param: str) -> None:
    response = running.post("/v1/responses", **{"input": "hello", **change})
    assert response.status_code == 400 and response.json()["error"]["param"] == param


@pytest.mark.parametrize("reasoning", [None, {}, {"effort": None}, {"effort": "none", "summary": None}])
def test_no_reasoning_is_what_there_is(running: Running, reasoning: Any) -> None:
    response = running.post("/v1/responses", input="hello", max_output_tokens=16, reasoning=reasoning)
    assert response.status_code == 200, response.text
