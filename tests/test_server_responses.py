"""OpenAI's responses, through its client. Covers server/responses.py."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from serving import Running, openai_client, tiny_path, tiny_server
from test_server_tools import SCHEMA, check

QUESTION = [{"role": "user", "content": "hello"}]
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


def test_a_response_shows_its_request(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
    text: Any = {"format": {"type": "json_schema", "name": "s", "schema": {"enum": ["yes"]}}}
    own: Any = {"model": "tiny", "input": "hello", "instructions": "Be kind.", "tools": [tool], "text": text}
    whole: Any = client.responses.create(**own, tool_choice="auto")
    events: Any = list(client.responses.create(**own, tool_choice="none", stream=True))
    for response, choice in ((whole, "auto"), (events[0].response, "none"), (events[-1].response, "none")):
        assert response.instructions == "Be kind." and response.tool_choice == choice
        assert response.tools[0].name == "f" and response.text.format.name == "s"
    plain: Any = client.responses.create(model="tiny", input="hello", max_output_tokens=16)
    assert (plain.instructions, plain.tool_choice, plain.tools) == (None, "auto", [])
    assert plain.text.format.type == "text"


def test_a_message_that_was_cut_is_incomplete(client: openai.OpenAI) -> None:
    own: Any = {"model": "tiny", "input": "hello", "max_output_tokens": 16, "extra_body": {"temperature": 0}}
    whole: Any = client.responses.create(**own)
    events: Any = list(client.responses.create(**own, stream=True))
    done = next(event for event in events if event.type == "response.output_item.done")
    for response in (whole, events[-1].response):
        assert response.status == response.output[-1].status == "incomplete" and response.output_text
    assert done.item.status == "incomplete" and done.item.content[0].text == whole.output_text


def test_seed_and_stop(running: Running) -> None:
    def said(**more: Any) -> str:
        body = {"input": "hello", "max_output_tokens": 20, "temperature": 1.5, **more}
        return str(running.post("/v1/responses", **body).json()["output"][0]["content"][0]["text"])

    assert said(seed=3) == said(seed=3) != said(seed=4)
    word = said(seed=3)[4:6]
    assert word and said(seed=3, stop=[word]) == said(seed=3).partition(word)[0]


def test_a_refusal_is_what_the_assistant_said(running: Running) -> None:
    part = {"type": "refusal", "refusal": "I will not."}
    counts = []
    for content in ([part], [{"type": "output_text", "text": "I will not."}], "no"):
        items = [{"role": "user", "content": "x"}, {"role": "assistant", "content": content}]
        response = running.post("/v1/responses/input_tokens", input=items)
        assert response.status_code == 200, response.text
        counts.append(response.json()["input_tokens"])
    assert counts[0] == counts[1] > counts[2]
    said: Any = ({"content": [part]}, {"content": None, "refusal": "I will not."}, {"content": "I will not."})
    shown = {
        running.post("/apply-template", messages=[*QUESTION, {"role": "assistant", **one}, *QUESTION]).text
        for one in said
    }
    assert len(shown) == 1 and "I will not." in shown.pop()
    response = running.post("/v1/responses", input=[{"role": "user", "content": [part]}])
    assert response.status_code == 400


@pytest.mark.parametrize("reasoning", [None, {}, {"effort": None}, {"effort": "none", "summary": None}])
def test_no_reasoning_is_what_there_is(running: Running, reasoning: Any) -> None:
    response = running.post("/v1/responses", input="hello", max_output_tokens=16, reasoning=reasoning)
    assert response.status_code == 200, response.text
