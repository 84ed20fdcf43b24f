"""Anthropic's dialect, through its own client. Covers server/anthropic.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anthropic
import pytest
from serving import Running, anthropic_client, tiny_path, tiny_server

from pyllamacpu import Llama

QUESTION: Any = [{"role": "user", "content": "hello the world"}]


path, running = tiny_path(), tiny_server()
client = anthropic_client()


def ask(client: anthropic.Anthropic, messages: Any = QUESTION, **more: Any) -> Any:
    more.setdefault("max_tokens", 10)
    return client.messages.create(
        model="tiny", messages=messages, extra_body={"temperature": 0, **more.pop("extra", {})}, **more
    )


def reference(path: Path, messages: Any, **more: Any) -> Any:
    with Llama(str(path), n_ctx=256, n_threads=1, kv_type="f32") as llm:
        return llm.create_chat_completion(messages, temperature=0, **more)


def test_an_answer_is_that_of_the_class(client: anthropic.Anthropic, path: Path) -> None:
    expected = reference(path, [{"role": "system", "content": "a"}, *QUESTION], max_tokens=10)
    answer = ask(client, system=[{"type": "text", "text": "a"}])
    assert answer.content[0].text == expected["choices"][0]["message"]["content"]
    assert answer.stop_reason == "max_tokens" and answer.role == "assistant" and answer.model == "tiny"
    usage = answer.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == expected["usage"]["prompt_tokens"]
    assert usage.output_tokens == 10
    again = ask(client, system="a").usage
    assert again.input_tokens == 1 and again.cache_read_input_tokens == expected["usage"]["prompt_tokens"] - 1


def test_a_stream_adds_up(client: anthropic.Anthropic) -> None:
    whole = ask(client)
    with client.messages.stream(
        model="tiny", messages=QUESTION, max_tokens=10, extra_body={"temperature": 0}
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text and final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    raw = [kind for kind in kinds if kind not in ("text", "ping")]
    assert raw[:2] == ["message_start", "content_block_start"]
    assert raw[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_stop_sequences(client: anthropic.Anthropic) -> None:
    text = ask(client).content[0].text
    answer = ask(client, stop_sequences=["never there", text[3:5]])
    assert answer.stop_reason == "stop_sequence" and answer.stop_sequence == text[3:5]
    assert answer.content[0].text == text[: text.index(text[3:5])]


def test_an_answer_goes_on_where_it_was_begun(client: anthropic.Anthropic) -> None:
    text = ask(client, max_tokens=40).content[0].text
    begun = [*QUESTION, {"role": "assistant", "content": text[:6]}]
    rest = ask(client, begun, max_tokens=8)
    long = [{"role": "user", "content": "hello the world " * 20000}]
    assert client.messages.count_tokens(model="tiny", messages=long).input_tokens > 20000  # to know how long
    counted = client.messages.count_tokens(model="tiny", messages=begun).input_tokens
    assert counted > client.messages.count_tokens(model="tiny", messages=QUESTION).input_tokens
    assert rest.usage.input_tokens + rest.usage.cache_read_input_tokens == counted
    assert rest.content[0].text


@pytest.mark.parametrize(
    "change, says",
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]"),
        ({"tools": [{"description": "f"}]}, "tools[0].name"),
        ({"tools": [{"type": "web_search", "name": "f"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking"),
        ({"stop_sequences": [""]}, "stop_sequences"),
    ],
)
def test_what_cannot_be_honoured_is_named(running: Running, change: dict[str, Any], says: str) -> None:
    response = running.post("/v1/messages", **{"messages": QUESTION, "max_tokens": 5, **change})
    error = response.json()["error"]
    assert response.status_code == 400 and response.json()["type"] == "error"
    assert error["type"] == "invalid_request_error" and error["message"].startswith(says)


def test_errors_have_their_classes(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="nobody"):
        client.messages.create(model="nobody", messages=QUESTION, max_tokens=3)
    with pytest.raises(anthropic.BadRequestError, match="the context of 256"):
        ask(client, [{"role": "user", "content": "the " * 400}])


def test_errors_below_v1_have_the_callers_shape(client: anthropic.Anthropic, running: Running) -> None:
    """Two dialects share /v1: Anthropic's client says `anthropic-version`."""
    with pytest.raises(anthropic.NotFoundError) as found:
        client.post("/v1/unknown", body={}, cast_to=object)
    message = "there is no such path"
    expected = {"type": "error", "error": {"type": "not_found_error", "message": message}}
    assert found.value.body == expected
    with pytest.raises(anthropic.APIStatusError) as refused:
        client.get("/v1/messages/count_tokens", cast_to=object)
    assert refused.value.body["type"] == "error"  # type: ignore[index]
    assert running.post("/v1/unknown").json()["error"]["code"] == 404  # and OpenAI's as before
