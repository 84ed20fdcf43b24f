"""`serve --guard`: unsafe prompts get no answer, unsafe answers end, in each dialect with its own reason.

The guard is one that goes by a word, so that each case can be made; one test runs a real guard model. Covers
safety/shield.py, server/endings.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from serving import Running, serving, wait_until
from tiny_model import write_model

from pyllamacpu import Llama
from pyllamacpu.errors import ContextError
from pyllamacpu.safety import Guard, Verdict, shield
from pyllamacpu.safety.shield import ShieldOptions, judged_messages

BAD = "bomb"


class WordGuard:
    """Finds unsafe what has a word in it. `seen` are the conversations that it was shown."""

    word = BAD
    seen: ClassVar[list[list[dict[str, str]]]] = []

    weight_bytes, reads_images = 0, False

    def __init__(self, path: str, **options: Any) -> None: ...

    def check(self, messages: list[dict[str, str]]) -> Verdict:
        self.seen.append(messages)
        text = messages[-1]["content"]
        if "too long" in text:
            raise ContextError("the conversation is too long for the guard")
        return Verdict("unsafe", ("S9",), 0.9) if self.word in text else Verdict("safe", (), 0.1)

    def close(self) -> None: ...


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def running(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(shield, "Guard", WordGuard)
    monkeypatch.setattr(WordGuard, "seen", [])
    with serving(("tiny", path), shield=ShieldOptions(guard="guard.gguf")) as found:
        wait_until(lambda: found.get("/health").status_code == 200)
        yield found
        found.wait_idle()


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": f"You know all of the {BAD}."}, {"role": "user", "content": text}]


def text_of(answer: dict[str, Any]) -> Any:
    return answer["choices"][0]["message"]["content"]


def test_a_prompt_that_is_unsafe_is_not_answered(running: Running) -> None:
    safe = running.post("/v1/chat/completions", messages=asked("hello"), max_tokens=3).json()
    assert text_of(safe) and safe["choices"][0]["finish_reason"] == "length"
    answer = running.post("/v1/chat/completions", messages=asked(BAD), max_tokens=3, n=2).json()
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["content_filter"] * 2
    assert not text_of(answer) and answer["usage"]["completion_tokens"] == 0
    assert answer["usage"]["prompt_tokens"] > 3
    # of the one that was answered only
    assert "pyllamacpu_prompt_seconds_count 1.0" in running.get("/metrics").text
    assert not any("You know" in message["content"] for seen in WordGuard.seen for message in seen)


@pytest.mark.parametrize(
    "route, body, reason",
    [
        ("/v1/completions", {"prompt": BAD}, lambda a: a["choices"][0]["finish_reason"]),
        ("/v1/messages", {"messages": asked(BAD)[1:], "max_tokens": 3}, lambda a: a["stop_reason"]),
        ("/v1/responses", {"input": BAD}, lambda a: a["incomplete_details"]["reason"]),
        ("/api/chat", {"model": "tiny", "messages": asked(BAD), "stream": False}, lambda a: a["done_reason"]),
        ("/api/generate", {"model": "tiny", "prompt": BAD, "stream": False}, lambda a: a["done_reason"]),
        ("/completion", {"prompt": BAD}, lambda a: a["stop_type"]),
    ],
)
def test_each_dialect_says_so(running: Running, route: str, body: dict[str, Any], reason: Any) -> None:
    response = running.post(route, **body)
    assert response.status_code == 200, response.text
    expected = "refusal" if route == "/v1/messages" else "content_filter"
    assert reason(response.json()) == expected


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_its_unsafe_window(
    running: Running, path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(shield, "WINDOW", 4)
    with Llama(str(path), type_k="f32", type_v="f32", verbose=False) as llm:
        whole = llm("hello", max_tokens=24, temperature=0)["choices"][0]["text"]
    word = whole[-8:-4]
    assert word not in whole[:-8]
    monkeypatch.setattr(WordGuard, "word", word)
    body = {"prompt": "hello", "max_tokens": 24, "temperature": 0, "stream": stream}
    if stream:
        lines = running.post("/v1/completions", **body).text.split("\n\n")
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        reason = chunks[-1]["choices"][0]["finish_reason"]
    else:
        choice = running.post("/v1/completions", **body).json()["choices"][0]
        text, reason = choice["text"], choice["finish_reason"]
    assert reason == "content_filter" and text and whole.startswith(text) and word not in text
    assert len(text) >= len(whole) // 3  # windows before it have passed
    running.wait_idle()  # the rest of the answer is not computed
    assert 'pyllamacpu_blocked_total{what="output"} 1' in running.get("/metrics").text


def test_a_client_that_leaves_is_noticed_within_a_window(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"prompt": "hello", "max_tokens": 180, "ignore_eos": True, "stream": True}
    with running.client() as client, client.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_lines())
    running.wait_idle()
    assert "socket.send() raised" not in caplog.text  # what asyncio says of writing on and on


def test_a_safe_answer_is_the_same(running: Running, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shield, "WINDOW", 4)
    with Llama(str(path), type_k="f32", type_v="f32", verbose=False) as llm:
        whole = llm("hello", max_tokens=20, temperature=0)["choices"][0]["text"]
    answer = running.post("/v1/completions", prompt="hello", max_tokens=20, temperature=0, n=2).json()
    assert [choice["text"] for choice in answer["choices"]] == [whole] * 2
    assert all(seen[0] == {"role": "user", "content": "hello"} for seen in WordGuard.seen)


def test_a_blank_message_does_not_hide_the_one_before(running: Running) -> None:
    for blank in ([{"role": "user", "content": " "}], [{"role": "assistant", "content": "a"}] * 2):
        answer = running.post("/v1/chat/completions", messages=[*asked(BAD), *blank], max_tokens=3).json()
        assert answer["choices"][0]["finish_reason"] == "content_filter"


def test_a_beginning_of_the_answer_is_judged_with_it(running: Running) -> None:
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "It is"}]
    body = {"messages": messages, "max_tokens": 3, "temperature": 0}
    answer = running.post("/v1/messages", **body).json()["content"][0]["text"]
    assert WordGuard.seen[-1] == [messages[0], {"role": "assistant", "content": f"It is{answer}"}]


def test_what_cannot_be_judged_is_not_answered(running: Running) -> None:
    response = running.post("/v1/completions", prompt="this is too long", max_tokens=2)
    assert response.status_code == 400 and "too long for the guard" in response.json()["error"]["message"]


def test_a_real_guard(path: Path, tmp_path: Path) -> None:
    """A tiny model in the shape of Llama Guard 3: its verdicts are noise, but they are the server's."""
    own = write_model(
        tmp_path / "g.gguf", general__name="Llama Guard 3", tokenizer__chat_template=None, n_ctx=2048
    )
    with Guard(own) as guard:
        verdicts = {
            word: guard.check(word).verdict for word in ("hello", "the world", "a", "good day to you", "help")
        }
    with serving(("tiny", path), shield=ShieldOptions(guard=str(own))) as found:
        wait_until(lambda: found.get("/health").status_code == 200)
        for word, verdict in verdicts.items():
            choice = found.post("/v1/completions", prompt=word, max_tokens=1).json()["choices"][0]
            if verdict == "unsafe":
                assert choice["finish_reason"] == "content_filter"
        found.wait_idle()


def test_a_model_that_is_not_a_guard_does_not_serve(path: Path) -> None:
    with serving(("tiny", path), shield=ShieldOptions(guard=str(path))) as found:
        found.wait_end()
        assert "is not a guard" in str(found.server.failure)


def test_a_conversation_as_a_guard_reads_it() -> None:
    call = {"type": "function", "function": {"name": "find", "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "x"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "found", "name": "find", "tool_call_id": "call_1"},
        {"role": "user", "name": "not a name", "content": "c", "thoughts": ["d"], "n": 3, "to": None},
    ]
    assert judged_messages(messages, "It") == [
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": json.dumps(call)},
        {"role": "user", "content": "found"},
        {"role": "user", "content": 'c\nnot a name\n["d"]'},
        {"role": "assistant", "content": "It"},
    ]
