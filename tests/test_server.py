"""The server itself: its queue, who leaves, what it tells of itself, its end.

Covers server/app.py, server/engine_thread.py, server/metrics.py, server/errors.py, server/fields.py,
server/run.py, cli/serve.py.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from serving import LONG, PATIENCE, QUESTION, Running, head, hold, serving, tiny_path, tiny_server, wait_until

from pyllamacpu.server import http
from pyllamacpu.server.errors import HTTPError, as_http_error, error_body
from pyllamacpu.server.fields import Fields

ROOT = Path(__file__).parent.parent

path, running = tiny_path(n_ctx=8192), tiny_server(parallel=4, max_queue=4)


# The queue, cancelling


def test_a_full_queue_says_when_to_come_back(running: Running) -> None:
    held = hold(running, 8)
    try:
        response = running.post("/v1/completions", prompt="x")
        assert response.status_code == 503 and response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == "queue_full"
        assert running.get("/health").status_code == 200
        service = running.server.service
        assert service is not None and service.n_active == 8, "it did not wait for a place"
    finally:
        for connection in held:
            connection.close()
    running.wait_idle()
    assert running.post("/v1/completions", prompt="x", max_tokens=2).status_code == 200


def test_who_leaves_is_forgotten_in_every_phase(running: Running) -> None:
    """While it streams, while it does not, and while it waits in the queue."""
    held = hold(running, 4)
    body = json.dumps(LONG).encode()
    request = head(
        "Host: localhost", f"Content-Length: {len(body)}", path="/v1/chat/completions", method="POST"
    )
    for _ in range(2):
        connection = socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE)
        connection.sendall(request + body)
        held.append(connection)
    service = running.server.service
    assert service is not None
    wait_until(lambda: service.n_active == 6)
    for connection in held:
        connection.close()
    running.wait_idle()
    model = service.models.loaded["tiny"]
    in_tree = len(model.scheduler.prefixes) * model.engine.cache.page_bytes
    assert model.engine.cache.bytes_in_use <= in_tree


def test_half_a_body_is_no_fault_of_the_server(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    started = head("Host: localhost", "Content-Length: 50", path="/v1/completions", method="POST")
    with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE) as connection:
        connection.sendall(started + b'{"pro')
    name = 'pyllamacpu_requests_total{path="/v1/completions",status="499"}'
    wait_until(lambda: name in running.get("/metrics").text)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_slow_readers_stop_only_themselves(running: Running) -> None:
    held = hold(running, 3)
    try:
        time.sleep(0.3)
        answer = running.post("/v1/completions", prompt="hello", max_tokens=5, temperature=0)
        assert answer.json()["usage"]["completion_tokens"] == 5
    finally:
        for connection in held:
            connection.close()
    running.wait_idle()


def test_a_processor_that_fails_ends_its_own_request_only(running: Running) -> None:
    """Every token is forbidden: the sampler has none to choose."""
    everything = {str(token): False for token in range(281)}
    response = running.post("/v1/completions", prompt="x", logit_bias=everything)
    assert response.status_code == 400 and response.json()["error"]["param"] == "logit_bias"
    assert running.post("/v1/completions", prompt="x", max_tokens=2).status_code == 200


# The parts


def test_large_lists_are_parsed_off_the_loop(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    parse = http.parse_json

    def noting(data: bytes, name: str) -> Any:
        names.append(threading.current_thread().name)
        return parse(data, name)

    monkeypatch.setattr(http, "parse_json", noting)
    with running.client() as client:
        for blanks in (0, 1 << 18):
            assert client.post("/lora-adapters", content=b"[" + b" " * blanks + b"]").status_code == 200
    assert names[0] != names[1] and names[1].startswith("asyncio")


def test_fields_name_what_is_wrong() -> None:
    fields = Fields({"a": None, "b": 3.0, "c": "x", "d": {"e": 1}, "f": 1})
    assert fields.integer("a", 0, 9, 4) == 4 and fields.integer("b", 0, 9) == 3
    with pytest.raises(HTTPError, match=r"d\.e: must be a string"):
        fields.nested("d").text("e")
    with pytest.raises(HTTPError, match="c: 'x' is not known; allowed: y, z"):
        fields.choice("c", ("z", "y"))
    with pytest.raises(HTTPError, match="f: there is no such field"):
        fields.finish(strict=True)


def test_errors_have_the_shape_of_their_dialect() -> None:
    error = HTTPError("no", status=404)
    assert error_body("/v1/messages", error)["error"] == {"type": "not_found_error", "message": "no"}
    assert error_body("/api/chat", error) == {"error": "no"}
    assert error_body("/v1/models", error)["error"]["type"] == "not_found_error"
    assert as_http_error(RuntimeError("secret")).status == 500
    assert "secret" not in str(as_http_error(RuntimeError("secret")))


def test_internal_errors_are_answers(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also of routes that belong to no dialect."""

    def broken(*_: object) -> None:
        raise KeyError("bug")

    with serving(("tiny", path)) as running:
        wait_until(lambda: running.get("/health").status_code == 200)
        running.server.metrics.text = broken  # type: ignore[assignment]
        running.server.service.models.files = broken  # type: ignore[union-attr,assignment]
        for url in ("/metrics", "/v1/models", "/api/tags"):
            response = running.get(url)
            assert response.status_code == 500 and "KeyError" in response.text
        running.server.health = broken  # type: ignore[assignment]
        assert running.get("/health").status_code == 500
    assert "bug" in caplog.text


def test_metrics(running: Running) -> None:
    before = running.get("/metrics").text
    running.post("/v1/completions", prompt="hello", max_tokens=3, ignore_eos=True)
    after = running.get("/metrics").text

    def value(text: str, name: str) -> float:
        found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    name = "pyllamacpu_generated_tokens_total"
    assert value(after, name) == value(before, name) + 3
    assert 'pyllamacpu_requests_running{model="tiny"} 0.0' in after
    assert '{path="/v1/completions",status="200"}' in after


def test_health_knows_a_stuck_engine(running: Running) -> None:
    service, server = running.server.service, running.server
    assert service is not None
    release = threading.Event()
    service.thread.call(release.wait)
    wait_until(lambda: service.thread.busy_seconds > 0.05)
    assert server.health() == (200, "ok")
    assert service.thread.busy_seconds < server.options.stuck_after
    object.__setattr__(server.options, "stuck_after", 0.01)
    assert running.get("/health").status_code == 503
    release.set()
    wait_until(lambda: running.get("/health").status_code == 200)
    object.__setattr__(server.options, "stuck_after", 120.0)


# As a process


def start(path: Path, *more: str) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-m", "pyllamacpu", "serve", "-m", f"tiny={path}", "--port", "0", "-t", "1"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True, env=env)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"serving tiny at http://127\.0\.0\.1:(\d+)", line):
            return process, int(found[1])
    raise AssertionError("it did not start")


def asked_for_a_stream(port: int, n_tokens: int) -> socket.socket:
    body = json.dumps({**LONG, "stream": True, "max_tokens": n_tokens, "messages": QUESTION}).encode()
    request = head(
        "Host: localhost", f"Content-Length: {len(body)}", path="/v1/chat/completions", method="POST"
    )
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    connection.sendall(request + body)
    return connection


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_streams_finish_and_exits_0(path: Path, number: signal.Signals) -> None:
    process, port = start(path)
    try:
        with asked_for_a_stream(port, 1500) as connection:
            received = connection.recv(1000)
            process.send_signal(number)
            while chunk := connection.recv(1 << 16):
                received += chunk
        assert b"data: [DONE]" in received
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()


def test_two_interrupts_do_not_wait_for_streams(path: Path) -> None:
    """And nothing breaks."""
    process, port = start(path, "--grace", "60")
    try:
        with asked_for_a_stream(port, 100_000) as connection:
            connection.recv(1000)
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)  # at once they could arrive as one
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
    finally:
        process.kill()
        log = process.communicate()[1]
    assert "Traceback" not in log and "unloaded tiny" in log


def test_a_port_in_use_is_an_error(path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "pyllamacpu", "serve", "-m", str(path), "--port", port]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        result = subprocess.run(
            command, capture_output=True, text=True, env=env, timeout=PATIENCE, check=False
        )
    assert result.returncode == 1 and f"cannot listen on 127.0.0.1 port {port}" in result.stderr


def test_nothing_of_the_server_is_imported_elsewhere() -> None:
    script = (
        "import sys, pyllamacpu.api.llama, pyllamacpu.cli.main, pyllamacpu.cli.chat, pyllamacpu.cli.serve\n"
        "assert not {'fastapi', 'uvicorn', 'prometheus_client', 'starlette'} & set(sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], env=env, check=True, capture_output=True)
