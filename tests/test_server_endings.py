"""Why an answer ended, in each dialect; loops are ended. Covers server/endings.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from serving import Running, serving, tiny_path, tiny_server
from tiny_model import byte

path, running = tiny_path(n_ctx=1024), tiny_server()
QUESTION = [{"role": "user", "content": "hello"}]
N = 200  # tokens of an answer that nothing ends
LOOP = {"logit_bias": {str(byte(ord("a"))): 100}}
CHAT = {"messages": QUESTION, "max_tokens": N, **LOOP}
OLLAMA = {"model": "tiny", "messages": QUESTION, "stream": False, "options": {"num_predict": N, **LOOP}}

# (path, body, path to what tells the end, the end of a loop, of an answer that was cut)
DIALECTS: list[tuple[str, dict[str, Any], list[Any], Any, Any]] = [
    ("/v1/chat/completions", CHAT, ["choices", 0], {"finish_reason": "length", "stopped_by": "loop"},
     {"finish_reason": "length"}),
    ("/v1/completions", {"prompt": "x", "max_tokens": N, **LOOP}, ["choices", 0],
     {"finish_reason": "length", "stopped_by": "loop"}, {"finish_reason": "length"}),
    ("/v1/messages", CHAT, [], {"stop_reason": "max_tokens", "stopped_by": "loop"},
     {"stop_reason": "max_tokens"}),
    ("/v1/responses", {"input": "hello", "max_output_tokens": N, **LOOP}, [],
     {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens", "stopped_by": "loop"}},
     {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}),
    ("/api/chat", OLLAMA, [], {"done_reason": "loop"}, {"done_reason": "length"}),
    ("/completion", {"prompt": "x", "n_predict": N, **LOOP}, [],
     {"stop_type": "loop"}, {"stop_type": "limit"}),
]  # fmt: skip


def end_of(running: Running, url: str, body: dict[str, Any], where: list[Any], keys: Any) -> dict[str, Any]:
    response = running.post(url, **body)
    assert response.status_code == 200, response.text
    value = response.json()
    for step in where:
        value = value[step]
    return {key: value[key] for key in (*keys, "stopped_by") if key in value}


@pytest.mark.parametrize("url, body, where, loop, cut", DIALECTS, ids=[row[0] for row in DIALECTS])
def test_answers_that_repeat_themselves_are_ended(
    running: Running, url: str, body: dict[str, Any], where: list[Any], loop: Any, cut: Any
) -> None:
    assert end_of(running, url, body, where, loop) == loop
    inner = body.get("options")
    off = {"options": {**inner, "stop_loops": False}} if inner else {"stop_loops": False}
    assert end_of(running, url, {**body, **off}, where, cut) == cut


def test_streams_tell_it_too(running: Running) -> None:
    lines = running.post("/v1/chat/completions", **CHAT, stream=True).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert chunks[-1]["choices"][0]["stopped_by"] == "loop" and 96 < len(chunks) < N
    lines = running.post("/v1/messages", **CHAT, stream=True).text.splitlines()
    deltas = [json.loads(line[6:]) for line in lines if '"message_delta"' in line and line.startswith("data")]
    assert deltas[0]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None, "stopped_by": "loop"}


def test_who_wants_no_end_gets_none(running: Running, path: Path) -> None:
    """`ignore_eos`, and a server that was told so; a request may still ask for it."""
    answer = running.post("/v1/chat/completions", **CHAT, ignore_eos=True).json()
    assert answer["usage"]["completion_tokens"] == N and "stopped_by" not in answer["choices"][0]
    with serving(("tiny", path), n_ctx=0, stop_loops=False) as other:
        assert other.post("/v1/chat/completions", **CHAT).json()["usage"]["completion_tokens"] == N
        asked = other.post("/v1/chat/completions", **CHAT, stop_loops=True).json()
        assert asked["choices"][0]["stopped_by"] == "loop"
    assert running.post("/v1/chat/completions", **CHAT, stop_loops=3).status_code == 400
    form = running.post("/v1/chat/completions", **CHAT, grammar="root ::= [a-z]+").json()["choices"][0]
    assert form["finish_reason"] == "length" and "stopped_by" not in form
