"""Tools over HTTP, through each dialect's client. Covers server/tools.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest
from serving import PATIENCE, Running, openai_client, serving, tiny_path, tiny_server

from pyllamacpu.sampling.grammar import Grammar
from pyllamacpu.server import generation
from pyllamacpu.server.generation import Generate

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
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells it", "parameters": SCHEMA},
}
TIME: Any = {"type": "function", "function": {"name": "time", "parameters": NOTHING}}
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
    pieces = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or ()]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ""
    assert {piece.index for piece in pieces} == {0} and chunks[-1].choices[0].finish_reason == "tool_calls"
    assert pieces[0].id and pieces[0].function.name and pieces[0].function.arguments == ""
    assert not any(piece.id or piece.function.name for piece in pieces[1:]) and len(pieces) > 2
    arguments = "".join(piece.function.arguments for piece in pieces)
    check(pieces[0].function.name, json.loads(arguments))


def test_a_call_that_is_cut_off_is_text_before_its_arguments(client: openai.OpenAI) -> None:
    choice = chat(client, tool_choice="required", max_tokens=4).choices[0]
    assert choice.finish_reason == "length" and not choice.message.tool_calls


# What models write, of their own accord: the request gets a grammar that leaves no choice.

CALL, NONE = ("weather", '{"city": "Rome", "days": 2}'), ("time", "{}")
WRITTEN: list[tuple[str, list[tuple[str, str]], str]] = [
    (SAID, [CALL], ""),
    (f"{SAID};\n{SAID}", [CALL, CALL], ""),
    (f'[{SAID}, {{"name": "time"}}]', [CALL, NONE], ""),
    ("[weather(city='Rome', days=2), time()]", [CALL, NONE], ""),
    (f"{SAID} is it.", [CALL], " is it."),
    (f"Say {SAID}", [], f"Say {SAID}"),
    ('{"name": "time"', [], '{"name": "time"'),
]


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets all answers be a text."""

    def will_write(text: str) -> None:
        def forced(model: Any, request: Generate, *more: Any) -> Any:
            return make(model, replace(request, grammar=Grammar.choice([text])), *more)

        monkeypatch.setattr(generation, "engine_request", forced)

    make = generation.engine_request
    return will_write


Writer = Callable[[str], None]


@pytest.mark.parametrize("text, calls, rest", WRITTEN)
def test_openai_streams_what_it_gives_whole(
    client: openai.OpenAI, write: Writer, text: str, calls: list[tuple[str, str]], rest: str
) -> None:
    write(text)
    whole = chat(client).choices[0]
    found = [(call.function.name, call.function.arguments) for call in whole.message.tool_calls or ()]
    assert found == calls and (whole.message.content or "") == rest
    assert whole.finish_reason == ("tool_calls" if calls else "stop")
    strict: Any = [{**tool, "function": {**tool["function"], "strict": True}} for tool in (WEATHER, TIME)]
    with client.chat.completions.stream(model="tiny", messages=QUESTION, tools=strict, seed=1) as stream:
        events = list(stream)
        final = stream.get_final_completion().choices[0]
    if not text.startswith("["):  # strict calls are the JSON of objects
        streamed = [(c.function.name, c.function.arguments) for c in final.message.tool_calls or ()]
        assert (streamed, final.message.content, final.finish_reason) == (
            calls, whole.message.content, whole.finish_reason
        )  # fmt: skip
        done = [e for e in events if e.type == "tool_calls.function.arguments.done"]
        assert [(e.name, e.arguments) for e in done] == calls


@pytest.mark.parametrize("text, calls, rest", WRITTEN)
def test_responses_stream_what_they_give_whole(
    client: openai.OpenAI, write: Writer, text: str, calls: list[tuple[str, str]], rest: str
) -> None:
    write(text)
    tools: Any = [{"type": "function", **tool["function"]} for tool in (WEATHER, TIME)]
    own: Any = {"model": "tiny", "input": "hello", "tools": tools}
    whole = client.responses.create(**own)
    with client.responses.stream(**own) as stream:
        deltas = [event for event in stream if event.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()

    def shown(response: Any) -> list[Any]:
        return [
            (item.name, item.arguments) if item.type == "function_call" else item.content[0].text
            for item in response.output
        ]

    assert shown(whole) == shown(final) == [*calls, *([rest] if rest else [])]
    assert {item.status for item in (*whole.output, *final.output)} == {"completed"}
    if text.startswith("{") and calls:
        assert len(deltas) > 2 * len(calls)
    assert "".join(event.delta for event in deltas) == "".join(arguments for _, arguments in calls)


@pytest.mark.parametrize("text, calls, rest", WRITTEN)
def test_anthropic_streams_what_it_gives_whole(
    running: Running, write: Writer, text: str, calls: list[tuple[str, str]], rest: str
) -> None:
    write(text)
    tools: Any = [
        {"name": tool["function"]["name"], "input_schema": tool["function"]["parameters"]}
        for tool in (WEATHER, TIME)
    ]
    own: Any = {"model": "tiny", "messages": QUESTION, "max_tokens": 200, "tools": tools}
    with anthropic.Anthropic(base_url=running.url, api_key="k", timeout=PATIENCE, max_retries=0) as client:
        whole = client.messages.create(**own)
        with client.messages.stream(**own) as stream:
            deltas = [event for event in stream if event.type == "input_json"]
            final = stream.get_final_message()

    def shown(message: Any) -> list[Any]:
        return [(b.name, b.input) if b.type == "tool_use" else b.text for b in message.content]

    uses = [(name, json.loads(arguments)) for name, arguments in calls]
    assert shown(whole) == [*uses, *([rest] if rest else [])] == shown(final)
    assert whole.stop_reason == final.stop_reason == ("tool_use" if calls else "end_turn")
    if text.startswith("{") and calls:
        assert len(deltas) > 2 * len(calls)


@pytest.mark.parametrize("text, calls, rest", WRITTEN)
def test_ollama_gives_whole_calls(
    running: Running, write: Writer, text: str, calls: list[tuple[str, str]], rest: str
) -> None:
    write(text)
    client = ollama.Client(host=running.url, timeout=PATIENCE)
    whole = client.chat("tiny", QUESTION, tools=[WEATHER, TIME])
    parts = list(client.chat("tiny", QUESTION, tools=[WEATHER, TIME], stream=True))
    client._client.close()
    found = [(c.function.name, c.function.arguments) for c in whole.message.tool_calls or ()]
    assert found == [(name, json.loads(arguments)) for name, arguments in calls]
    streamed = [c for part in parts for c in part.message.tool_calls or ()]
    assert [(c.function.name, c.function.arguments) for c in streamed] == found
    assert "".join(part.message.content or "" for part in parts) == whole.message.content == rest


def test_calls_that_are_cut_short(running: Running, client: openai.OpenAI, write: Writer) -> None:
    """Told by the reason, whole or streamed; Ollama has whole calls only, so it is text there."""
    write(SAID)
    n = len('{"name": "weather", "parameters": {"city": ')
    whole = chat(client, max_tokens=n).choices[0]
    (call,) = whole.message.tool_calls
    assert whole.finish_reason == "length" and SAID.find(call.function.arguments) > 0
    pieces = [c for chunk in chat(client, max_tokens=n, stream=True)
              for c in chunk.choices[0].delta.tool_calls or ()]  # fmt: skip
    assert "".join(piece.function.arguments for piece in pieces) == call.function.arguments
    tools: Any = [{"type": "function", **WEATHER["function"]}]
    own: Any = {"model": "tiny", "input": "hello", "tools": tools, "max_output_tokens": n}
    response = client.responses.create(**own)
    assert response.status == "incomplete" and response.output[0].status == "incomplete"
    events = list(client.responses.create(**own, stream=True))
    assert events[-1].type == "response.incomplete" and events[-1].response.output[0].status == "incomplete"
    message: Any = {"model": "tiny", "messages": QUESTION, "max_tokens": n}
    message["tools"] = [{"name": "weather", "input_schema": SCHEMA}]
    with anthropic.Anthropic(base_url=running.url, api_key="k", timeout=PATIENCE, max_retries=0) as other:
        cut = other.messages.create(**message)
        with other.messages.stream(**message) as stream:
            final = stream.get_final_message()
    assert cut.stop_reason == final.stop_reason == "max_tokens"
    assert cut.content[0].input == final.content[0].input
    body: Any = {"model": "tiny", "messages": QUESTION, "tools": [WEATHER], "options": {"num_predict": n}}
    answer = running.post("/api/chat", **body, stream=False).json()
    assert answer["message"]["content"] == SAID[: len(answer["message"]["content"])]
    lines = [json.loads(line) for line in running.post("/api/chat", **body).text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == answer["message"]["content"]
    assert answer["done_reason"] == lines[-1]["done_reason"] == "length"


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
    del messages[1]["content"]  # as clients leave out what is null
    several = [*messages[:1], {**messages[1], "tool_calls": [call, {**call, "id": "call_2"}]}, messages[2]]
    several.append({"role": "tool", "tool_call_id": "call_2", "content": "rainy"})
    counts = [chat(client, messages=m, max_tokens=3).usage.prompt_tokens for m in (messages, several)]
    assert counts[0] <= longer < counts[1]


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
        ({"parallel_tool_calls": 3}, "parallel_tool_calls"),
        ({"grammar": 'root ::= "a"', "tool_choice": "required"}, "tool_choice"),
        (
            {
                "response_format": {
                    "type": "json_object",
                    "schema": {"properties": {"a": {"pattern": "(?=x)"}}},
                }
            },
            "response_format.schema",
        ),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": []}}}, "tool_choice"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "sometimes", "tools": [{"name": "weather"}]}},
            "tool_choice",
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"name": "no"}]}},
            "tool_choice",
        ),
        ({"functions": [{"name": "f"}]}, "functions"),
    ],
)
def test_what_cannot_be_honoured_is_named(running: Running, change: dict[str, Any], param: str) -> None:
    response = running.post("/v1/chat/completions", **{"messages": QUESTION, "tools": [WEATHER], **change})
    assert response.status_code == 400 and response.json()["error"]["param"] == param


FORM: Any = {"const": {"n": 1}}


@pytest.mark.parametrize(
    "url, body, text",
    [
        ("/v1/chat/completions", {"response_format": {"type": "json_object", "schema": FORM}},
         lambda a: a["choices"][0]["message"]["content"]),
        ("/v1/responses", {"input": "hello", "text": {"format": {"type": "json_schema", "schema": FORM}}},
         lambda a: a["output"][0].get("content", [{"text": None}])[0]["text"]),
        ("/v1/messages",
         {"max_tokens": 200, "output_config": {"format": {"type": "json_schema", "schema": FORM}}},
         lambda a: a["content"][0].get("text")),
        ("/api/chat", {"model": "tiny", "format": FORM, "stream": False},
         lambda a: a["message"]["content"] or None),
    ],
)  # fmt: skip
def test_a_form_beside_tools(running: Running, url: str, body: dict[str, Any], text: Any) -> None:
    """The answer has the form, or it is a call: what the model wants. The tools are in the prompt."""
    tool = {**WEATHER["function"], "parameters": SCHEMA}
    other = {"name": "weather", "input_schema": SCHEMA}
    tools = {"/v1/responses": {"type": "function", **tool}, "/v1/messages": other}
    own = {} if url == "/v1/responses" else {"messages": QUESTION}
    seen = set()
    for seed in range(40):
        seeded = {"options": {"seed": seed}} if url == "/api/chat" else {"seed": seed}
        if url == "/v1/messages":
            seeded = {"temperature": 1.0}
        answer = running.post(url, **own, **body, **seeded, tools=[tools.get(url, WEATHER)])
        assert answer.status_code == 200, answer.text
        if (found := text(answer.json())) is not None:
            assert json.loads(found) == {"n": 1}
        seen.add("text" if found else "call")
        if len(seen) == 2:
            return
    pytest.fail(f"always a {seen}")


@pytest.mark.parametrize("nested", [True, False])
def test_some_tools_are_allowed(client: openai.OpenAI, nested: bool) -> None:
    """OpenAI's choice among several: only these may be called."""
    function: Any = {"type": "function", "function": {"name": "time"}}
    own: Any = {"mode": "required", "tools": [function if nested else {"type": "function", "name": "time"}]}
    choice = {"type": "allowed_tools", **({"allowed_tools": own} if nested else own)}
    for seed in range(4):
        (call,) = chat(client, tool_choice=choice, seed=seed).choices[0].message.tool_calls
        assert call.function.name == "time"
    free = chat(client, tool_choice={**choice, "allowed_tools": {**own, "mode": "auto"}}, max_tokens=3)
    assert free.choices[0].finish_reason == "length"


def test_a_template_without_tools_shows_them_as_words(starter_model: Path) -> None:
    with serving(("smol", starter_model), n_ctx=1024) as running:
        question = [{"role": "user", "content": "How will the weather in Rome be for 3 days?"}]
        body: Any = {"messages": question, "temperature": 0, "max_tokens": 60}
        plain = running.post("/v1/chat/completions", **body, logprobs=True).json()
        answer = running.post("/v1/chat/completions", **body, tools=[WEATHER], tool_choice="required").json()
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        check(call["function"]["name"], json.loads(call["function"]["arguments"]))
        assert answer["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 50
