"""What stands before every request: who may use the server, limits, malformed requests.

Covers server/access.py, server/run.py.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import PATIENCE, Running, head, hold, serving, tiny_path, tiny_server, wait_until

import pyllamacpu.server.app
import pyllamacpu.server.models
import pyllamacpu.server.run
from pyllamacpu.cli.main import main
from pyllamacpu.server.access import AccessOptions, is_loopback
from pyllamacpu.text import messages
from pyllamacpu.text.tokenizer import Tokenizer

path, running = tiny_path(n_ctx=8192), tiny_server(parallel=4, max_queue=4)


# Who may use it


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
    access = AccessOptions(hosts=("friend.example",), origins=("https://friend.example",), keys=("k1", "k2"))
    with serving(("tiny", path), access=access) as found:
        wait_until(lambda: found.get("/health").status_code == 200)
        yield found


def test_a_preflight_is_answered(friendly: Running) -> None:
    request = head("Host: localhost", "Origin: https://friend.example", method="OPTIONS", path="/v1/models")
    answer = friendly.raw(request).lower()
    assert answer.startswith(b"http/1.1 204") and b"access-control-allow-headers: authorization" in answer


@pytest.mark.parametrize(
    "asked, allowed",
    [
        ("authorization,content-type,x-stainless-lang, anthropic-dangerous-direct-browser-access", True),
        ("x-of-tomorrow", True),
        ("not a name", False),
        ("x; y", False),
    ],
)
def test_a_preflight_is_allowed_the_headers_it_asks_for(friendly: Running, asked: str, allowed: bool) -> None:
    lines = ["Host: localhost", "Origin: https://friend.example", f"Access-Control-Request-Headers: {asked}"]
    answer = friendly.raw(head(*lines, method="OPTIONS", path="/v1/chat/completions")).decode().lower()
    assert answer.startswith("http/1.1 204") and (f"allow-headers: {asked}\r\n" in answer) == allowed
    foreign = [lines[0], "Origin: https://evil.example", lines[2]]
    assert friendly.raw(head(*foreign, method="OPTIONS")).startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize(
    "url",
    ["/health", "/api/version", "/api/tags", "/api/ps", "/v1/models", "/props", "/slots", "/metrics", "/"],
)
def test_head_is_get_without_the_body(running: Running, url: str) -> None:
    with running.client() as client:
        whole, headers = client.get(url), client.head(url)
        assert whole.status_code == headers.status_code == 200 and headers.content == b""
        assert whole.headers.keys() - {"transfer-encoding"} <= headers.headers.keys()
        assert client.head("/v1/models/none").status_code == client.get("/v1/models/none").status_code == 404
        assert client.head("/v1/chat/completions").status_code == 405


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


def test_targets_that_are_whole_urls(path: Path) -> None:
    """As a proxy's clients send them; the URL's host counts, not the header's."""
    with serving(("tiny", path), access=AccessOptions(keys=("key",))) as running:

        def asked(target: str, *more: str) -> bytes:
            return running.whole(head("Connection: close", *more, path=target)).partition(b"\r\n")[0]

        here = f"http://127.0.0.1:{running.port}"
        wait_until(lambda: running.get("/health").status_code == 200)
        assert asked(f"{here}/health", "Host: evil.example").endswith(b"200 OK")
        assert asked(here, "Host: localhost").endswith(b"200 OK")
        assert asked("http://evil.example/health", "Host: localhost").startswith(b"HTTP/1.1 403")
        assert asked(f"{here}/v1/models", "Host: localhost").startswith(b"HTTP/1.1 401")
        key = "Authorization: Bearer key"
        assert asked(f"{here}/v1/models/tiny?a=b", "Host: localhost", key).endswith(b"200 OK")


def test_empty_lines_before_a_request(running: Running) -> None:
    """Some clients send one behind a body: their next request got no answer."""
    body = b'{"content":"hello"}'
    first = head("Host: localhost", f"Content-Length: {len(body)}", path="/tokenize", method="POST") + body
    last = head("Host: localhost.", "Connection: close")
    assert running.whole(b"\r\n" + last).endswith(b'{"status":"ok"}')
    for between in (b"\r\n", b"\r\n\r\n"):
        assert running.whole(first + between + last).count(b"HTTP/1.1 200 OK") == 2
        with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE) as connection:
            connection.sendall(first)
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in between:  # each alone
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
            connection.sendall(last)
            with connection.makefile("rb") as file:
                assert file.read().endswith(b'{"status":"ok"}')


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


def test_sizes_are_limited(running: Running) -> None:
    """A refusal says how large it is, and what is allowed."""
    stated = head("Host: localhost", "Content-Length: 104857600", path="/v1/completions", method="POST")
    refused = running.whole(stated)
    assert refused.startswith(b"HTTP/1.1 413")
    assert b"has 104857600 bytes, where 16777216 are allowed" in refused
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


def test_messages_are_limited_to_what_templates_write(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the context would hold more."""
    monkeypatch.setattr(messages, "MAX_CHARACTERS", 40)
    asked = [{"role": "user", "content": "hello " * 8}]
    for path, code in (("/v1/chat/completions", "text_too_large"), ("/v1/messages", "request_too_large")):
        response = running.post(path, messages=asked, max_tokens=1)
        assert response.status_code == 413 and code in response.text
        assert "have 63 characters, and a chat template is given 40 at the most" in response.text
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


def test_who_reads_nothing_of_an_answer_loses_it(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyllamacpu.server.run, "UNREAD_SECONDS", 0.2)
    held = hold(running, 2)
    try:
        running.wait_idle()
    finally:
        for connection in held:
            connection.close()


def test_a_body_that_does_not_come_is_given_up(path: Path) -> None:
    with serving(("tiny", path), access=AccessOptions(body_seconds=0.2)) as running:
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
