"""The form of an answer, over HTTP, through each dialect's client. Covers server/constraints.py."""

from __future__ import annotations

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ollama
import openai
import pytest
from serving import PATIENCE, Running, tiny_path, tiny_server
from test_grammar import PERSON, QUESTION
from tiny_model import byte

from pyllamacpu.sampling import grammar

path, running = tiny_path(n_ctx=1024), tiny_server()


def chat(running: Running, **more: Any) -> Any:
    body = {"messages": QUESTION, "seed": 4, "max_tokens": 300, **more}
    response = running.post("/v1/chat/completions", **body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def test_openai_schemas(running: Running) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "p", "strict": True, "schema": PERSON}}
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="k", timeout=PATIENCE, max_retries=0) as client:
        for stream in (False, True):
            answer: Any = client.chat.completions.create(
                model="tiny", messages=QUESTION, response_format=form, seed=3, max_tokens=300, stream=stream
            )
            if stream:
                text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
            else:
                text = answer.choices[0].message.content
            assert set(json.loads(text)) == {"name", "age"}
    brace = {str(byte(ord("}"))): 100}  # a model of random weights does not find the end
    choice = chat(running, response_format={"type": "json_object"}, logit_bias=brace)
    assert json.loads(choice["message"]["content"]) == {} and choice["finish_reason"] == "stop"
    cut = chat(running, response_format={"type": "json_object"}, max_tokens=1)
    assert cut["finish_reason"] == "length"


def test_n_answers_have_each_their_form(running: Running) -> None:
    response = running.post(
        "/v1/completions", prompt="x", n=3, seed=1, max_tokens=40, guided_regex=r"[a-z]{4}[0-9]"
    ).json()
    texts = [choice["text"] for choice in response["choices"]]
    assert len(set(texts)) > 1 and all(re.fullmatch(r"[a-z]{4}[0-9]", text) for text in texts)


@pytest.mark.parametrize(
    "form, pattern",
    [
        ({"grammar": 'root ::= "a" [0-9]{2}'}, r"a[0-9]{2}"),
        ({"grammar": 'start: "b" /[0-9]{2}/'}, r"b[0-9]{2}"),
        ({"guided_choice": ["red", "blue"]}, r"red|blue"),
        ({"structured_outputs": {"regex": "[xyz]{3}"}}, r"[xyz]{3}"),
        ({"structured_outputs": {"choice": ["left"]}}, r"left"),
        ({"json_schema": {"const": 7}}, r"7"),
        ({"guided_json": {"enum": [True]}}, r"true"),
    ],
)
def test_other_forms(running: Running, form: dict[str, Any], pattern: str) -> None:
    choice = chat(running, **form)
    assert re.fullmatch(pattern, choice["message"]["content"]) and choice["finish_reason"] == "stop"


def test_other_dialects(running: Running) -> None:
    options = {"seed": 2, "num_predict": 300}
    client = ollama.Client(host=running.url, timeout=PATIENCE)
    answer = client.chat("tiny", QUESTION, format=PERSON, options=options)
    assert set(json.loads(answer.message.content or "")) == {"name", "age"}
    assert client.generate("tiny", "x", format="json", options=options).response.startswith("{")
    client._client.close()
    config = {"format": {"type": "json_schema", "schema": PERSON}}
    body = {"messages": QUESTION, "max_tokens": 300, "output_config": config}
    message = running.post("/v1/messages", **body).json()
    assert set(json.loads(message["content"][0]["text"])) == {"name", "age"}
    native = running.post("/completion", prompt="x", json_schema={"const": "q"}, seed=1).json()
    assert native["content"] == '"q"'


@pytest.mark.parametrize(
    "form, param",
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_object", "schema": 3}}, "response_format.schema"),
        ({"grammar": 3}, "grammar"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": 3}, "guided_regex"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
        ({"grammar": 'root ::= "a"', "guided_regex": "a"}, "grammar"),
    ],
)
def test_forms_that_are_none_are_named(running: Running, form: dict[str, Any], param: str) -> None:
    response = running.post("/v1/chat/completions", messages=QUESTION, **form)
    assert response.status_code == 400 and response.json()["error"]["param"] == param


def test_what_cannot_be_enforced_is_a_400(running: Running) -> None:
    for form in ({"json_schema": {"type": "string", "not": {}}}, {"grammar": "root ::= root"}):
        response = running.post("/v1/chat/completions", messages=QUESTION, stream=True, **form)
        assert response.status_code == 400, response.text
    assert running.post("/api/chat", model="tiny", messages=QUESTION, format="xml").status_code == 400


NEVER: Any = {"type": "string", "not": {}}
TOOL: Any = {"name": "f", "strict": True}


@pytest.mark.parametrize(
    "url, form, param",
    [
        ("chat/completions", {"response_format": {"type": "json_schema", "json_schema": {"schema": NEVER}}},
         "response_format.json_schema.schema"),
        ("chat/completions", {"grammar": "root ::= root"}, "grammar"),
        ("chat/completions", {"guided_regex": "("}, "guided_regex"),
        ("chat/completions", {"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ("chat/completions", {"tools": [{"type": "function", "function": {"name": "e"}}, {
            "type": "function", "function": {**TOOL, "parameters": {"properties": {"a": NEVER}}}}]},
         "tools[1].function.parameters"),
        ("responses", {"text": {"format": {"type": "json_schema", "schema": NEVER}}}, "text.format.schema"),
        ("responses", {"tools": [{"type": "function", **TOOL, "parameters": {"properties": {"a": NEVER}}}]},
         "tools[0].parameters"),
        ("messages", {"output_config": {"format": {"type": "json_schema", "schema": NEVER}}},
         "output_config.format.schema"),
        ("messages", {"tools": [{**TOOL, "input_schema": {"properties": {"a": NEVER}}}]},
         "tools[0].input_schema"),
    ],
)  # fmt: skip
def test_a_refusal_calls_a_form_as_the_request_does(
    running: Running, url: str, form: dict[str, Any], param: str
) -> None:
    body = {"input": "x"} if url == "responses" else {"messages": QUESTION, "max_tokens": 5}
    response = running.post(f"/v1/{url}", **body, **form)
    error = response.json()["error"]
    assert response.status_code == 400 and error["message"].startswith(f"{param}: "), response.text
    assert url == "messages" or error["param"] == param
    assert (
        running.post("/api/chat", model="tiny", messages=QUESTION, format=NEVER)
        .json()["error"]
        .startswith("format: ")
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_bias_that_leaves_no_token_is_named(running: Running, stream: bool) -> None:
    bias = {str(byte(ord(letter))): -100 for letter in "ab"}
    barred = [[token, False] for token in map(int, bias)]
    body: dict[str, Any] = {"prompt": "x", "max_tokens": 3, "guided_regex": "[ab]c", "stream": stream}
    assert running.post("/v1/completions", **body, logit_bias=bias).status_code == 200
    response = running.post("/v1/completions", **body, logit_bias=barred)
    error = response.json()["error"] if not stream else json.loads(response.text.split("data: ")[1])["error"]
    assert error["param"] == "logit_bias" and error["type"] == "invalid_request_error", error
    assert stream or response.status_code == 400


def test_bombs_do_not_stop_others(running: Running) -> None:
    nested: dict[str, Any] = {"type": "string"}
    for _ in range(60):
        nested = (
            {"anyOf": [nested, {"type": "array", "items": nested}]} if len(str(nested)) < 20000 else nested
        )
    bombs: list[dict[str, Any]] = [
        {"guided_regex": "(((a{1,100}){1,100}){1,100}){1,100}"},
        {"guided_regex": "(a?){500}b" * 20},
        {"json_schema": nested},
        {"json_schema": {"$ref": "#"}},
    ]
    with ThreadPoolExecutor(len(bombs)) as threads:
        found = [
            threads.submit(running.post, "/v1/completions", prompt="x", max_tokens=2, **bomb)
            for bomb in bombs
        ]
        while not all(one.done() for one in found):
            assert running.get("/health").status_code == 200
        assert {one.result().status_code for one in found} <= {200, 400}


def test_nobody_waits_for_a_grammar_that_is_built(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, release, build = threading.Event(), threading.Event(), grammar._compile

    def slow(*arguments: Any) -> Any:
        begun.set()
        assert release.wait(PATIENCE)
        return build(*arguments)

    monkeypatch.setattr(grammar, "_compile", slow)
    form = {"json_schema": {"const": "nobody waits"}}
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(running.post, "/v1/completions", prompt="x", max_tokens=2, **form)
        try:
            assert begun.wait(PATIENCE)
            assert running.get("/health").status_code == 200
            assert running.post("/v1/completions", prompt="x", max_tokens=2).status_code == 200
            assert not waiting.done()
        finally:
            release.set()
        assert waiting.result().status_code == 200
