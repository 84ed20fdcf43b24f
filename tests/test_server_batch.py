"""Files of requests in OpenAI's batch format: answered once each, also after a kill.

Covers server/batch.py, server/batch_engine.py, server/batch_file.py, cli/batch.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from serving import PATIENCE, serving
from test_engine_adapters import write_adapter
from tiny_model import write_model

from pyllamacpu import Llama
from pyllamacpu.cli.main import cli
from pyllamacpu.errors import OptionError
from pyllamacpu.files import lock_file
from pyllamacpu.server import batch_engine, batch_file

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


def request(custom_id: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    if url == CHAT:
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "temperature": 0, **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def write(path: Path, *lines: dict[str, Any] | bytes) -> Path:
    path.write_bytes(b"".join(_bytes(line) + b"\n" for line in lines))
    return path


def _bytes(line: dict[str, Any] | bytes) -> bytes:
    return line if isinstance(line, bytes) else json.dumps(line).encode()


def arguments(model: Path, source: Path, target: Path) -> list[str]:
    names = ["batch", "-m", str(model), "-t", "1", "-c", "256", "-ctk", "f32", "-ctv", "f32"]
    return [*names, str(source), str(target)]


def run(model: Path, source: Path, target: Path, *more: str) -> Result:
    return CliRunner().invoke(cli, [*arguments(model, source, target), *more])


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_answers_are_the_servers(model: Path, tmp_path: Path) -> None:
    requests = [
        request("chat", model="tiny", logprobs=True),
        request("text", "/v1/completions", prompt="the world", max_tokens=5, temperature=0, n=2),
        request("vector", "/v1/embeddings", input=["hello", "the world"]),
        request("response", "/v1/responses", input="hello", max_output_tokens=4, temperature=0),
        request("bad", max_tokens=-1),
        request("nobody's", model="nobody"),
        request("stream", stream=True),
    ]
    source, target = write(tmp_path / "in.jsonl", *requests), tmp_path / "out.jsonl"
    result = run(model, source, target)
    assert result.exit_code == 0, result.output
    assert "4 answered, 3 failed" in result.stderr
    found = {line["custom_id"]: line for line in answers(target)}
    assert len(found) == len(requests) and len({line["id"] for line in found.values()}) == len(requests)
    with serving(("tiny", model)) as running:
        for one in requests[:-1]:
            line = found[one["custom_id"]]
            expected = running.post(one["url"], **one["body"])
            assert set(line) == {"id", "custom_id", "response", "error"} and line["error"] is None
            assert set(line["response"]) == {"status_code", "request_id", "body"}
            assert line["response"]["status_code"] == expected.status_code
            assert without_names(line["response"]["body"]) == without_names(expected.json())
    refusal = found["stream"]["response"]
    assert refusal["status_code"] == 400 and refusal["body"]["error"]["param"] == "stream"


def without_names(body: dict[str, Any]) -> dict[str, Any]:
    body = {key: value for key, value in body.items() if key not in ("id", "created", "created_at")}
    for details in ("prompt_tokens_details", "input_tokens_details"):
        body.get("usage", {}).pop(details, None)
    for item in body.get("output", ()):
        item.pop("id")
    return body


BAD_LINES: list[tuple[dict[str, Any] | bytes, str | None, str]] = [
    (b"{", None, "not JSON"),
    (b"\xff\xfe", None, "not UTF-8"),
    (b"[" * 100_000, None, "line"),
    (b"[1]", None, "must be a JSON object"),
    (b'{"custom_id": 5}', None, "custom_id: must be a string"),
    (b'{"custom_id": "\\ud800"}', None, "surrogate"),
    ({**request("a"), "custom_id": ""}, None, "custom_id: is missing"),
    ({**request("get"), "method": "GET"}, "get", "method: must be POST"),
    (request("there", "/v1/nowhere"), "there", "url: must be one of"),
    ({**request("url"), "url": ["x"]}, "url", "url: must be a string"),
    (request("twice"), "twice", "custom_id: 'twice' is an earlier line's"),
]


def test_lines_that_are_no_requests_get_an_error(model: Path, tmp_path: Path) -> None:
    lines = [request("twice"), *(line for line, _, _ in BAD_LINES), b"  ", request("twice"), b"{"]
    source, target = write(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    result = run(model, source, target)
    assert result.exit_code == 0, result.output
    found = answers(target)
    assert len(found) == len(lines) - 1  # the empty one
    refused = [line for line in found if line["response"] is None]
    assert len(refused) == len(BAD_LINES) + 2
    for (_, custom_id, words), line in zip(BAD_LINES, refused, strict=False):
        assert line["custom_id"] == custom_id and words in line["error"]["message"]
    assert refused[0]["error"]["message"].startswith("line 2: ")
    before = target.read_bytes()
    result = run(model, source, target)
    assert result.exit_code == 0 and f"0 answered, 0 failed, {len(found)} were there" in result.stderr
    assert target.read_bytes() == before


@pytest.mark.parametrize("body", [None, [], "text", {}, {"messages": 3}])
def test_a_body_that_is_none_is_a_400(model: Path, tmp_path: Path, body: Any) -> None:
    source = write(tmp_path / "in.jsonl", {**request("a"), "body": body})
    assert run(model, source, tmp_path / "out.jsonl").exit_code == 0
    (line,) = answers(tmp_path / "out.jsonl")
    assert line["response"]["status_code"] == 400 and "message" in line["response"]["body"]["error"]


def test_a_line_that_is_too_long(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_file, "MAX_LINE", 1000)
    source = write(tmp_path / "in.jsonl", b'{"' + b"x" * 5000, request("a"))
    assert run(model, source, tmp_path / "out.jsonl").exit_code == 0
    refused, answered = answers(tmp_path / "out.jsonl")
    assert refused["error"]["code"] == "line_too_long" and answered["custom_id"] == "a"


def test_a_kill_loses_and_repeats_nothing(model: Path, tmp_path: Path) -> None:
    lines = [request(f"number {i}", max_tokens=150, ignore_eos=True) for i in range(120)]
    lines[60:60] = [request("number 3"), request("number 3")]
    source, target = write(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "pyllamacpu", *arguments(model, source, target), "-np", "4"]
    for least in (5, 40):  # killed twice
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        end = time.monotonic() + PATIENCE
        while not target.exists() or target.read_bytes().count(b"\n") < least:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert target.read_bytes().count(b"\n") < len(lines)
    before = target.read_bytes()
    whole = before[: before.rfind(b"\n") + 1]
    target.write_bytes(whole + whole[:100])  # a torn line
    result = run(model, source, target)
    assert result.exit_code == 0 and f"{whole.count(bytes([10]))} were there" in result.stderr
    assert target.read_bytes().startswith(whole)
    found = answers(target)
    assert Counter(line["custom_id"] for line in found) == Counter(line["custom_id"] for line in lines)
    assert len({line["id"] for line in found}) == len(lines)
    answered = [line for line in found if line["error"] is None]
    assert len(answered) == 120 and all(line["response"]["status_code"] == 200 for line in answered)


def test_a_refused_duplicate_does_not_stand_for_the_first(model: Path, tmp_path: Path) -> None:
    """Its line may be written before the answer is there, and then the kill comes."""
    source, target = write(tmp_path / "in.jsonl", request("a"), request("a")), tmp_path / "out.jsonl"
    assert run(model, source, target).exit_code == 0
    duplicate = [line for line in target.read_bytes().splitlines(True) if b"duplicate_custom_id" in line]
    target.write_bytes(b"".join(duplicate))
    assert run(model, source, target).exit_code == 0
    assert sorted(line["error"] is None for line in answers(target)) == [False, True]


def test_adapters_are_chosen_line_by_line(model: Path, tmp_path: Path) -> None:
    with Llama(model, n_threads=1) as llm:
        adapter = write_adapter(tmp_path / "a.gguf", llm.engine, 4, 0, 1)
    lines = [
        request("all", max_tokens=8),
        request("none", max_tokens=8, lora=[]),
        request("named", max_tokens=8, model="mine"),
    ]
    source, target = write(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    done = run(model, source, target, "--lora", f"mine={adapter}:8")
    assert done.exit_code == 0, done.output
    found = {
        line["custom_id"]: line["response"]["body"]
        for line in map(json.loads, target.read_text().splitlines())
    }
    texts = {name: body["choices"][0]["message"]["content"] for name, body in found.items()}
    assert texts["all"] == texts["named"] != texts["none"]
    before = adapter.read_bytes()
    assert run(model, source, adapter, "--force", "--lora", str(adapter)).exit_code == 1
    assert adapter.read_bytes() == before


def test_lines_may_be_added(model: Path, tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", request("a")), tmp_path / "out.jsonl"
    assert run(model, source, target).exit_code == 0
    write(source, request("b"), request("a", max_tokens=3))
    assert run(model, source, target).exit_code == 0
    assert [line["custom_id"] for line in answers(target)] == ["a", "b"]


def test_requests_that_were_edited_are_told(model: Path, tmp_path: Path) -> None:
    """Their lines stay, errors too; without its line a request is asked again."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    bad, good = request("b", max_tokens="many"), request("b", max_tokens=2)
    run(model, write(source, request("a", max_tokens=2), bad), target)
    again = run(model, source, target)
    assert "0 answered, 0 failed, 2 were there (1 of them failed: without" in again.output
    assert "warning" not in again.output
    before = target.read_bytes()
    edited = run(model, write(source, request("a", max_tokens=2), good), target)
    assert "1 request has another content than when the line in" in " ".join(edited.output.split())
    assert target.read_bytes() == before
    target.write_bytes(b"".join(line for line in before.splitlines(True) if b'"custom_id":"a"' in line))
    assert "1 answered, 0 failed, 1 were there\n" in run(model, source, target).output
    assert {line["custom_id"]: line["response"]["status_code"] for line in answers(target)} == {
        "a": 200,
        "b": 200,
    }


def test_what_is_not_an_output_stays(model: Path, tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", request("a")), tmp_path / "diary.txt"
    target.write_text("Dear diary")
    result = run(model, source, target)
    assert result.exit_code != 0 and target.read_text() == "Dear diary"
    assert run(model, source, target, "--force").exit_code == 0 and len(answers(target)) == 1
    for other in (source, model):
        before = other.read_bytes()
        assert run(model, source, other, "--force").exit_code != 0 and other.read_bytes() == before
    with open(target, "ab") as file:
        file.write(b"a note\n")
    before = target.read_bytes()
    result = run(model, source, target)
    assert "line 2" in str(result.exception) and target.read_bytes() == before


def test_one_run_at_a_time(model: Path, tmp_path: Path) -> None:
    source, target = write(tmp_path / "in.jsonl", request("a")), tmp_path / "out.jsonl"
    with open(target, "ab") as file:
        if lock_file(file) is None:
            pytest.skip("no locks here")
        result = run(model, source, target)
    assert "another process" in str(result.exception) and target.read_bytes() == b""


def test_an_input_that_is_not_there(model: Path, tmp_path: Path) -> None:
    result = run(model, tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert isinstance(result.exception, OptionError) and not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("names", [("-", "out.jsonl"), ("in.jsonl", "-")])
def test_standard_streams_are_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "in.jsonl", request("a"))
    result = run(model, Path(names[0]), Path(names[1]))
    assert isinstance(result.exception, OptionError) and "files' names" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_two_models_that_have_no_room_beside_each_other(model: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other.gguf", seed=1)
    lines = [request(str(i), model=("tiny", "other")[i % 2]) for i in range(6)]
    source, target = write(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl"
    assert run(model, source, target, "-m", f"other={other}", "--memory", "1").exit_code == 0
    found = answers(target)
    assert [line["response"]["status_code"] for line in found] == [200] * 6
    assert {line["custom_id"]: line["response"]["body"]["model"] for line in found} == {
        str(i): ("tiny", "other")[i % 2] for i in range(6)
    }


def test_requests_run_at_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    plain = batch_engine.ENDPOINTS[CHAT]

    async def watched(service: Any, *given: Any) -> Any:
        nonlocal most
        task = asyncio.ensure_future(plain(service, *given))
        while not task.done():
            most = max(most, *(m.scheduler.n_running for m in service.models.loaded.values()), 0)
            await asyncio.sleep(0.001)
        return await task

    monkeypatch.setattr(batch_engine, "ENDPOINTS", {**batch_engine.ENDPOINTS, CHAT: watched})
    source = write(
        tmp_path / "in.jsonl", *(request(str(i), max_tokens=100, ignore_eos=True) for i in range(12))
    )
    assert run(model, source, tmp_path / "out.jsonl", "-np", "4").exit_code == 0
    assert most == 4
