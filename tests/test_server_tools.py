"""Tools over HTTP, through each dialect's client. Covers server/tools.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest
from serving import PATIENCE, Running, openai_client, serving, tiny_path, tiny_server

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells it", "parameters": SCHEMA},
}
TIME = {"type": "function", "function": {"name": "time", "parameters": NOTHING}}
QUESTION: Any = [{"role": "user", "content": "hello"}]
SAID = '{"name": "weather", "parameters": {"city": "Rome", "days": 2}}'


path, running = tiny_path(n_ctx=4096), tiny_server()
client = openai_client()


def chat(client: openai.OpenAI, **more: Any) -> Any:
    arguments: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "tools": [WEATHER, TIME], "seed": 1}
    return client.chat.completions.create(**{**arguments, "max_tokens": 200, **more})


def check(name: str, arguments: Any) -> None:
    if name == "weather":
        assert set(arguments) == {"city", "days"} and arguments["city"] in ("Paris", "Rome")
        assert 1 <= arguments["days"] <= 9
    else:
        assert name == "time" and arguments == {}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_required_call_comes(client: openai.OpenAI, choice: Any) -> None:
    answer = chat(client, tool_choice=choice, n=3)
    for one in answer.choices:
        (call,) = one.message.tool_calls
        assert one.finish_reason == "tool_calls" and one.message.content is None
        assert choice == "required" or call.function.name == "weather"
        check(call.function.name, json.loads(call.function.arguments))
    ids = [one.message.tool_calls[0].id for one in answer.choices]
    assert len(set(ids)) == 3
    chunks = list(chat(client, tool_choice=choice, stream=True))
    calls = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or ()]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ""
    assert [call.index for call in calls] == [0] and chunks[-1].choices[0].finish_reason == "tool_calls"
    check(str(calls[0].function.name), json.loads(calls[0].function.arguments))


def test_a_call_that_is_cut_off_is_none(client: openai.OpenAI) -> None:
    choice = chat(client, tool_choice="required", max_tokens=4).choices[0]
    assert choice.finish_reason == "length" and not choice.message.tool_calls


def test_calls_of_the_models_own_accord(client: openai.OpenAI) -> None:
    """What the model would write is forced by a grammar in a request for text, then read as a call."""
    plain = chat(client, tools=openai.NOT_GIVEN, extra_body={"guided_choice": [SAID]}).choices[0]
    assert plain.message.content == SAID and not plain.message.tool_calls
    free = chat(client, max_tokens=5).choices[0]
    assert free.finish_reason == "length" and isinstance(free.message.content, str)
    streamed = chat(client, max_tokens=5, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == free.message.content
    none = chat(client, tool_choice="none", max_tokens=5)
    without = chat(client, tools=openai.NOT_GIVEN, max_tokens=5)
    assert none.choices[0].message.content == without.choices[0].message.content


def test_results_go_back(client: openai.OpenAI) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
    }
    messages = [
        *QUESTION,
        {"role": "assistant", "content": "so", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    longer = chat(client, messages=messages, max_tokens=3).usage.prompt_tokens
    assert longer > chat(client, max_tokens=3).usage.prompt_tokens


def test_anthropic(running: Running) -> None:
    tools: Any = [{"name": "weather", "description": "Tells it", "input_schema": SCHEMA}]
    choice: Any = {"type": "tool", "name": "weather"}
    arguments: Any = {"model": "tiny", "messages": QUESTION, "max_tokens": 200, "tools": tools}
    with anthropic.Anthropic(base_url=running.url, api_key="k", timeout=PATIENCE, max_retries=0) as client:
        answer = client.messages.create(**arguments, tool_choice=choice)
        (use,) = answer.content
        assert answer.stop_reason == "tool_use" and use.type == "tool_use"
        check(use.name, use.input)
        with client.messages.stream(**arguments, tool_choice={"type": "any"}) as stream:
            final = stream.get_final_message()
        assert final.stop_reason == "tool_use" and final.content[0].type == "tool_use"
        check(final.content[0].name, final.content[0].input)
        result: Any = {
            "type": "tool_result",
            "tool_use_id": use.id,
            "content": [{"type": "text", "text": "sun"}],
        }
        used: Any = {"type": "tool_use", "id": use.id, "name": use.name, "input": use.input}
        turns = [*QUESTION, {"role": "assistant", "content": [{"type": "text", "text": "so"}, used]}]
        turns.append({"role": "user", "content": [result]})
        more = client.messages.count_tokens(model="tiny", messages=turns, tools=tools).input_tokens
        assert more > client.messages.count_tokens(model="tiny", messages=QUESTION, tools=tools).input_tokens


def test_ollama(running: Running) -> None:
    client = ollama.Client(host=running.url, timeout=PATIENCE)
    body: Any = {"model": "tiny", "messages": QUESTION, "tools": [WEATHER], "tool_choice": "required"}
    response = running.post("/api/chat", **body, stream=False, options={"seed": 1})
    (call,) = response.json()["message"]["tool_calls"]
    check(call["function"]["name"], call["function"]["arguments"])
    answer = client.chat("tiny", QUESTION, tools=[WEATHER], options={"num_predict": 4, "seed": 1})
    parts = client.chat("tiny", QUESTION, tools=[WEATHER], options={"num_predict": 4, "seed": 1}, stream=True)
    assert "".join(part.message.content or "" for part in parts) == answer.message.content
    client._client.close()


@pytest.mark.parametrize(
    "change, param",
    [
        ({"tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "tools"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"response_format": {"type": "json_object"}}, "tools"),
        ({"functions": [{"name": "f"}]}, "functions"),
    ],
)
def test_what_cannot_be_honoured_is_named(running: Running, change: dict[str, Any], param: str) -> None:
    response = running.post("/v1/chat/completions", **{"messages": QUESTION, "tools": [WEATHER], **change})
    assert response.status_code == 400 and response.json()["error"]["param"] == param


def test_a_template_without_tools_shows_them_as_words(starter_model: Path) -> None:
    with serving(("smol", starter_model), n_ctx=1024) as running:
        question = [{"role": "user", "content": "How will the weather in Rome be for 3 days?"}]
        body: Any = {"messages": question, "temperature": 0, "max_tokens": 60}
        plain = running.post("/v1/chat/completions", **body, logprobs=True).json()
        answer = running.post("/v1/chat/completions", **body, tools=[WEATHER], tool_choice="required").json()
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        check(call["function"]["name"], json.loads(call["function"]["arguments"]))
        assert answer["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 50
