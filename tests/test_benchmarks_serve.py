"""What measures the server in benchmarks/: serve.py, same_answers.py, serve_weather.py."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark_scripts import ROOT, needs_scripts
from tiny_model import write_model

pytestmark = needs_scripts


# serve.py and same_answers.py


def test_a_server_is_measured_beside_the_bench(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    model = write_model(tmp_path / "tiny.gguf", n_ctx=1024)
    sizes = ["--clients", "1,2", "--prompt", "8", "--tokens", "64", "--long", "256", "--streams", "2"]
    more = ["--requests", "4", "-t", "1", "--rounds", "1", "--json", str(tmp_path / "rows.json")]
    assert script("serve").main(["--model", str(model), *sizes, *more]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["clients"] for row in rows if row["program"] == "bench"] == [1, 2]
    found = {row["part"] for row in rows if row["program"] == "pyllamacpu"}
    assert found == set(script("serve_parts").PARTS)
    numbers = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert numbers and min(numbers) >= 0
    shown = capsys.readouterr().out
    assert "| 1 " in shown and "cancelled while it streams" in shown and "memory: scratch" in shown


def test_ratios_of_servers_are_taken_within_rounds(script: Any) -> None:
    rows = [
        {"round": i, "program": name, "part": "throughput", "tokens_per_second": speed}
        for name, speeds in (("pyllamacpu", (10.0, 100.0, 30.0)), ("bench", (20.0, 100.0, 40.0)))
        for i, speed in enumerate(speeds)
    ]
    figures = script("serve").Figures(rows)
    name = "tokens_per_second"
    assert figures.median(name, program="pyllamacpu") == 30.0
    assert figures.ratio(name, {"program": "pyllamacpu"}, name, {"program": "bench"}) == 0.75
    assert figures.median(name, program="nobody") is None


def test_times_of_a_streamed_answer(script: Any) -> None:
    """An event that comes in two pieces came with the second."""
    client = script("streaming_client")
    one = b'data: {"choices":[{"text":"a"}]}\n\n'
    end = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
    pieces = [(1.5, b"HTTP/1.1 200 OK\r\n\r\n" + one[:9]), (2.0, one[9:] + one), (3.0, end)]
    answer = client.Answer(1.0, pieces)
    assert answer.text_times == [2.0, 2.0] and answer.first == 1.0 and answer.n_tokens == (3, 2)
    with pytest.raises(client.ServerFailure, match="503"):
        client.Answer(1.0, [(1.1, b"HTTP/1.1 503 no")]).events  # noqa: B018


def test_answers_are_the_same_after_a_kill(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone, at once, from the cache, and from the disk after kill -9."""
    model = write_model(tmp_path / "tiny.gguf", n_ctx=1024)
    options = ["--answers", "3", "--tokens", "10", "--long", "0", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["same_answers.py", "--model", str(model), *options])
    assert script("same_answers").main() == 0
    shown = capsys.readouterr().out
    assert shown.count("3 of 3 equal") == 3


# serve_weather.py


def test_bad_weather_harms_nobody_and_leaves_nothing(script: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Some seconds of it, with a kill in the middle."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    models = [write_model(tmp_path / f"{name}.gguf", n_ctx=1024) for name in ("a", "b")]
    named = [word for model in models for word in ("--model", str(model))]
    sizes = ["--minutes", "0.06", "--clients", "16", "-t", "1", "--json", str(tmp_path / "weather.json")]
    code = script("serve_weather").main([*named, *sizes])
    seen = json.loads((tmp_path / "weather.json").read_text())
    assert seen["faults"] == [] and code == 0
    assert seen["healthy answers"] > 0 and seen["nasty requests"] > 16 and seen["requests_running"] == 0


@pytest.mark.parametrize(
    ("status", "fault"), [(200, True), (500, True), (400, False), (503, False), (0, True)]
)
def test_what_is_a_fault_in_bad_weather(script: Any, status: int, fault: bool) -> None:
    clients = script("weather_clients")

    class Answering(clients.Server):  # type: ignore[misc]
        async def ask(self, data: bytes) -> tuple[int, bytes]:
            return status, b""

    server = Answering(1, "k", ("m",))
    if not fault:
        asyncio.run(server.refused(b""))
        return
    with pytest.raises(clients.Fault):
        asyncio.run(server.refused(b""))


def test_a_changed_bit_is_a_fault_in_bad_weather(script: Any) -> None:
    weather = script("serve_weather")
    answer = {"choices": [{"text": "a", "logprobs": {"token_logprobs": [-0.25]}}], "id": "1"}
    other = json.loads(json.dumps(answer))
    other["choices"][0]["logprobs"]["token_logprobs"] = [-0.2500001]
    found = [weather.essence(json.dumps(a).encode(), False) for a in (answer, {**answer, "id": "2"}, other)]
    assert found[0] == found[1] != found[2]
    event = {"choices": [{"delta": {"content": "a"}, "logprobs": {"content": [{"logprob": -1.0}]}}]}
    line = b"data: " + json.dumps(event).encode() + b"\n\n"
    chunks = b"".join(f"{len(line):x}\r\n".encode() + line + b"\r\n" for _ in range(2)) + b"0\r\n\r\n"
    assert weather.essence(weather.plain(chunks), True) == {"text": "aa", "logprobs": [{"logprob": -1.0}] * 2}
