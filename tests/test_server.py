"""The server itself: who may use it, its limits, bad weather, several models, its end.

Covers server/app.py, server/guard.py, server/run.py, server/engine_thread.py, server/models.py,
server/metrics.py, server/errors.py, server/fields.py, cli/serve.py.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import PATIENCE, Running, serving, wait_until
from tiny_model import write_model

import pyllamacpu.server.app
import pyllamacpu.server.models
import pyllamacpu.server.run
from pyllamacpu.cli.main import main
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.server.errors import HTTPError, as_http_error, error_body
from pyllamacpu.server.fields import Fields
from pyllamacpu.server.guard import GuardOptions, is_loopback
from pyllamacpu.text.tokenizer import Tokenizer

QUESTION = [{"role": "user", "content": "hello"}]
LONG = {"messages": QUESTION, "max_tokens": 4000, "ignore_eos": True, "temperature": 1}
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_ctx=8192)


@pytest.fixture(scope="module")
def running(path: Path) -> Iterator[Running]:
    with serving(("tiny", path), n_ctx=8192, parallel=4, max_queue=4) as found:
        wait_until(lambda: found.get("/health").status_code == 200)
        yield found


# Who may use it


def head(*lines: str, path: str = "/health", method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1")


@pytest.mark.parametrize(
    "lines, status",
    [
        (["Host: localhost:1"], 200),
        (["Host: 127.0.0.1"], 200),
        (["Host: [::1]:80"], 200),
        (["Host: evil.example"], 403),
        (["Host: 127.0.0.1.evil.example"], 403),
        (["Host: localhost", "Origin: http://localhost"], 200),
        (["Host: localhost", "Origin: http://evil.example"], 403),
        (["Host: localhost", "Origin: null"], 403),
        (["Host: localhost", "Origin: http://[::1"], 403),
        (["Host: localhost", "Origin: https://friend.example"], 200),
        (["Host: localhost", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"], 403),
        (["Host: localhost", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"], 200),
        (["Host: friend.example"], 200),
    ],
)
def test_hosts_and_origins(path: Path, lines: list[str], status: int, friendly: Running) -> None:
    answer = friendly.raw(head(*lines))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    allowed = b"access-control-allow-origin" in answer.lower()
    assert allowed == (status == 200 and any(line.startswith("Origin") for line in lines))


@pytest.fixture(scope="module")
def friendly(path: Path) -> Iterator[Running]:
    guard = GuardOptions(hosts=("friend.example",), origins=("https://friend.example",), keys=("k1", "k2"))
    with serving(("tiny", path), guard=guard) as found:
        wait_until(lambda: found.get("/health").status_code == 200)
        yield found


def test_a_preflight_is_answered(friendly: Running) -> None:
    request = head("Host: localhost", "Origin: https://friend.example", method="OPTIONS", path="/v1/models")
    answer = friendly.raw(request).lower()
    assert answer.startswith(b"http/1.1 204") and b"access-control-allow-headers: authorization" in answer


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 401),
        ({"Authorization": "Bearer k1"}, 200),
        ({"Authorization": "bearer k2"}, 200),
        ({"x-api-key": "k2"}, 200),
        ({"Authorization": "Bearer k"}, 401),
        ({"Authorization": "Basic k1"}, 401),
        ({"x-api-key": "k1k2"}, 401),
    ],
)
def test_keys(friendly: Running, headers: dict[str, str], status: int) -> None:
    with friendly.client(headers=headers) as client:
        response = client.get("/v1/models")
    assert response.status_code == status
    assert status == 200 or response.json()["error"]["code"] == "invalid_api_key"


def test_only_this_machine_without_a_key(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "-m", __file__, "--host", "0.0.0.0"])
    assert ended.value.code == 1 and "--no-api-key" in capfd.readouterr().err
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("::") and not is_loopback("example.org")


# Limits and malformed requests


@pytest.mark.parametrize(
    "body, says",
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "JSON object"),
        (b'"\xff"', "not UTF-8"),
        (b"[" * 100000, "nested too deeply"),
        (b'{"temperature": NaN}', "NaN"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"temperature": 1e400}', "too large"),
        (b'{"user": "a", "n": 1, "user": "b"}', "user: is given twice"),
        (b'{"messages": [{"role": "user", "content": "\\ud800 x"}]}', "surrogate"),
        (b'{"\\uDFFF": 1}', "surrogate"),
        (b'\xef\xbb\xbf{"model": "tiny"}', "BOM"),
    ],
)
def test_bodies_that_are_none(running: Running, body: bytes, says: str) -> None:
    """In the shape of each dialect."""
    with running.client() as client:
        for url in ("/v1/chat/completions", "/v1/messages", "/api/chat", "/completion"):
            response = client.post(url, content=body)
            error = response.json()["error"]
            assert response.status_code == 400 and says in (error if url == "/api/chat" else error["message"])


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 200),
        ({"Content-Type": "application/json; charset=UTF-8"}, 200),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 200),  # of curl -d
        ({"Content-Type": "application/vnd.x+json"}, 200),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "text/html"}, 415),
        ({"Content-Type": "application/json; charset=latin-1"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
    ],
)
def test_kinds_of_bodies(running: Running, headers: dict[str, str], status: int) -> None:
    with running.client() as client:
        response = client.post("/tokenize", content='{"content": "\\ud83d\\ude00"}', headers=headers)
    assert response.status_code == status


@pytest.mark.parametrize("lines", [["bad header"], ["Content-Length: -3"], ["X: " + "y" * 100000], []])
def test_malformed_http_is_refused_in_the_shape_of_the_dialect(running: Running, lines: list[str]) -> None:
    hosts = ["Host: localhost"] if lines else []
    for url in ("/v1/messages", "/api/chat", "/v1/completions"):
        answer = running.whole(head(*hosts, *lines, path=url, method="POST"))
        status, body = answer.split(b" ")[1], json.loads(answer.partition(b"\r\n\r\n")[2])
        assert status in (b"400", b"431") and b"content-type: application/json" in answer.lower()
        assert ("type" in body) == (url == "/v1/messages")
        assert isinstance(body["error"], str) == (url == "/api/chat")


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


def test_sizes_are_limited(running: Running) -> None:
    stated = head("Host: localhost", "Content-Length: 104857600", path="/v1/completions", method="POST")
    assert running.raw(stated).startswith(b"HTTP/1.1 413")
    with running.client() as client:  # in chunks, without a stated length

        def chunks() -> Iterator[bytes]:
            for _ in range(20):
                yield b"x" * (1 << 20)

        try:
            assert client.post("/v1/completions", content=chunks()).status_code == 413
        except Exception as error:  # the server may close before all of it is written
            assert "Write" in type(error).__name__ or "Read" in type(error).__name__
    many = head("Host: localhost", "X: " + "y" * 100000)
    assert running.raw(many)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431")
    assert running.get("/health").status_code == 200


def test_a_text_that_cannot_fit_costs_no_tokens(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(*arguments: Any) -> list[int]:
        raise AssertionError("it was encoded")

    monkeypatch.setattr(Tokenizer, "encode", encode)
    text = "word and more " * 50_000
    for path, body in (
        ("/v1/completions", {"prompt": text}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]},
        ),
    ):
        response = running.post(path, **body)
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["code"] == "context_length_exceeded" and "at least" in error["message"]


def test_half_requests_are_given_up(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyllamacpu.server.run, "HEADER_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE) as connection:
        connection.sendall(b"GET /health HT")
        assert connection.recv(100) == b""


def test_a_half_request_behind_a_whole_one_is_given_up(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyllamacpu.server.run, "HEADER_SECONDS", 0.2)
    whole = head("Host: localhost")
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(whole + whole[:20])
        answer = b""
        while data := connection.recv(1000):
            answer += data
        assert answer.startswith(b"HTTP/1.1 200")
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        for _ in range(2):  # an idle connection is left alone
            connection.sendall(whole)
            answer = connection.recv(1000)
            while not answer.endswith(b"}"):
                answer += connection.recv(1000)
            assert answer.startswith(b"HTTP/1.1 200")
            time.sleep(0.4)


def test_pages_of_the_models_file_are_let_go(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[GGUFFile] = []
    monkeypatch.setattr(pyllamacpu.server.app, "RELEASE_SECONDS", 0.05)
    with serving(("tiny", path)) as running:
        wait_until(lambda: running.get("/health").status_code == 200)
        service = running.server.service
        assert service is not None
        file = service.models.loaded["tiny"].engine.file
        monkeypatch.setattr(file, "release_all", lambda: released.append(file))
        wait_until(lambda: len(released) > 1)


def test_who_reads_nothing_of_an_answer_loses_it(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyllamacpu.server.run, "UNREAD_SECONDS", 0.2)
    held = hold(running, 2)
    try:
        running.wait_idle()
    finally:
        for connection in held:
            connection.close()


def test_a_body_that_does_not_come_is_given_up(path: Path) -> None:
    with serving(("tiny", path), guard=GuardOptions(body_seconds=0.2)) as running:
        started = head("Host: localhost", "Content-Length: 50", path="/v1/completions", method="POST")
        assert running.raw(started + b'{"x"').startswith(b"HTTP/1.1 408")


def test_unknown_paths_and_methods(running: Running) -> None:
    assert running.get("/v1/chat/completions").headers["allow"] == "POST"
    for url, status in (("/nope", 404), ("/v1/chat/completions", 405), ("/../../etc/passwd", 404)):
        response = running.get(url)
        assert response.status_code == status and response.json()["error"]["message"]
    assert running.get("/v1/messages/nope").json()["type"] == "error"
    assert isinstance(running.get("/api/nope").json()["error"], str)


def test_names_are_never_paths(running: Running, path: Path) -> None:
    for name in (str(path), f"../{path.parent.name}/{path.name}", "/etc/passwd", "x" * 5000, "\x00"):
        response = running.post("/v1/completions", prompt="x", model=name)
        assert response.status_code == 404, name
        assert response.json()["error"]["code"] == "model_not_found"


# The queue, cancelling


def hold(running: Running, n: int) -> list[socket.socket]:
    """`n` streams that nobody reads."""
    body = json.dumps({**LONG, "stream": True}).encode()
    request = head(
        "Host: localhost", f"Content-Length: {len(body)}", path="/v1/chat/completions", method="POST"
    )
    held = []
    for _ in range(n):
        connection = socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(request + body)
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        held.append(connection)
    return held


def test_a_full_queue_says_when_to_come_back(running: Running) -> None:
    held = hold(running, 8)
    try:
        response = running.post("/v1/completions", prompt="x")
        assert response.status_code == 503 and response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == "queue_full"
        started = time.monotonic()
        assert running.get("/health").status_code == 200
        assert time.monotonic() - started < 1
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
    assert response.status_code == 500 and "error" in response.json()
    assert running.post("/v1/completions", prompt="x", max_tokens=2).status_code == 200


# Models


def test_models_are_loaded_when_asked_for_and_unloaded_when_idle(path: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other.gguf", seed=5)
    with serving(("one", path), ("two", other), keep_alive=0.1) as running:
        service = running.server.service
        assert service is not None
        arguments: dict[str, Any] = {"prompt": "hello", "max_tokens": 6, "temperature": 0}
        first = running.post("/v1/completions", model="one", **arguments).json()
        second = running.post("/v1/completions", model="two", **arguments).json()
        assert (first["model"], second["model"]) == ("one", "two")
        assert first["choices"][0]["text"] != second["choices"][0]["text"]
        wait_until(lambda: not service.models.loaded)
        again = running.post("/v1/completions", model="TWO.gguf", **arguments).json()
        assert again["choices"] == second["choices"]


def test_models_that_do_not_fit_together_have_turns(path: Path, tmp_path: Path) -> None:
    """Also while one of them is never idle."""
    other = write_model(tmp_path / "other.gguf", n_ctx=512, seed=7)
    with serving(("one", path), ("two", other), memory=path.stat().st_size + 1000) as running:
        wait_until(lambda: running.get("/health").status_code == 200)
        over = threading.Event()
        statuses: list[int] = []

        def ask(model: str) -> None:
            while not over.is_set():
                body = {"prompt": "x", "model": model, "max_tokens": 20, "ignore_eos": True}
                statuses.append(running.post("/v1/completions", **body).status_code)

        threads = [threading.Thread(target=ask, args=("one",)) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(2):
                answer = running.post("/v1/completions", prompt="x", model="two", max_tokens=2)
                assert answer.status_code == 200, answer.text
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert set(statuses) == {200}


def test_a_model_waits_only_so_long_for_another_ones_place(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyllamacpu.server.models, "ROOM_SECONDS", 0.2)
    other = write_model(tmp_path / "other.gguf", n_ctx=512, seed=7)
    with serving(("one", path), ("two", other), n_ctx=8192, memory=path.stat().st_size + 1000) as running:
        wait_until(lambda: running.get("/health").status_code == 200)
        held = hold(running, 1)
        try:
            answer = running.post("/v1/completions", prompt="x", model="two")
            assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
            assert running.post("/v1/completions", prompt="x", max_tokens=2).status_code == 200
        finally:
            held[0].close()


def test_models_take_turns_in_little_memory(path: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other.gguf", seed=5)
    with serving(("one", path), ("two", other), memory=path.stat().st_size + 1000) as running:
        service = running.server.service
        assert service is not None
        threads = [
            threading.Thread(
                target=running.post, args=("/v1/completions",), kwargs={"prompt": "x", "model": m}
            )
            for m in ("one", "two")
        ]
        for model in ("one", "two", "one"):
            assert running.post("/v1/completions", prompt="x", model=model).status_code == 200
            assert list(service.models.loaded) == [model]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF nonsense")
    with serving(("broken", broken)) as running:
        wait_until(lambda: running.get("/health").json()["status"] == "model failed to load")
        assert running.get("/health").status_code == 503
        assert running.post("/v1/completions", prompt="x").status_code == 500


# The parts


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_streams_finish_and_exits_0(path: Path, number: signal.Signals) -> None:
    process, port = start(path)
    try:
        body = json.dumps({**LONG, "stream": True, "max_tokens": 1500, "messages": QUESTION}).encode()
        request = head(
            "Host: localhost", f"Content-Length: {len(body)}", path="/v1/chat/completions", method="POST"
        )
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as connection:
            connection.sendall(request + body)
            received = connection.recv(1000)
            process.send_signal(number)
            while chunk := connection.recv(1 << 16):
                received += chunk
        assert b"data: [DONE]" in received
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()


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
