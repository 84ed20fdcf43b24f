"""A server on loopback for tests, in this process; small helpers to speak to it; fixtures of both."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tiny_model import write_model

from pyllamacpu import Llama
from pyllamacpu.api.loading import LoadOptions
from pyllamacpu.server.access import AccessOptions
from pyllamacpu.server.app import ServeOptions, Server, make_app
from pyllamacpu.server.models import PoolOptions
from pyllamacpu.server.run import make_server
from pyllamacpu.server.served_files import ServedFile

PATIENCE = 60.0  # seconds
QUESTION = [{"role": "user", "content": "hello"}]
LONG = {"messages": QUESTION, "max_tokens": 4000, "ignore_eos": True, "temperature": 1}  # tokens that last


class Running:
    """A server that runs in a thread."""

    def __init__(self, options: ServeOptions) -> None:
        self.app = make_app(options)
        self.url = ""
        self._server = make_server(self.app, "127.0.0.1", 0, 5, self._started)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        assert self._ready.wait(PATIENCE)

    def _started(self, address: str) -> None:
        self.url = address
        self._ready.set()

    @property
    def server(self) -> Server:
        server: Server = self.app.state.server
        return server

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, **more: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE, **more)

    def post(self, path: str, **body: Any) -> httpx.Response:
        with self.client() as client:
            return client.post(path, json=body)

    def get(self, path: str) -> httpx.Response:
        with self.client() as client:
            return client.get(path)

    def raw(self, data: bytes, n: int = 1 << 16) -> bytes:
        """What comes back for `data` on a fresh connection, until it is closed or some came."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            connection.sendall(data)
            return connection.recv(n)

    def whole(self, data: bytes) -> bytes:
        """All that comes back for `data` on a fresh connection, which the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as connection:
            connection.sendall(data)
            with connection.makefile("rb") as file:
                return file.read()

    def wait_idle(self) -> None:
        """Until nothing is running: a client's leaving takes a moment to be noticed."""
        service = self.server.service
        assert service is not None
        wait_until(
            lambda: (
                service.n_active == 0
                and all(not m.scheduler.unfinished() for m in service.models.loaded.values())
            )
        )

    def stop(self) -> None:
        self._server.should_exit = True
        self.wait_end()

    def wait_end(self) -> None:
        """Until it has ended by itself."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


def wait_until(condition: Any, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@contextlib.contextmanager
def serving(*models: tuple[str, Path], n_ctx: int = 256, **more: Any) -> Iterator[Running]:
    """A server of these (name, path), in f32 caches. `more`: fields of its options."""
    names = ("parallel", "keep_alive", "memory", "stop_loops", "cache_disk", "cache_disk_limit", "pooling")
    pool = {name: more.pop(name) for name in names if name in more}
    loading = {name: more.pop(name) for name in ("draft", "expert_memory", "pack_cache") if name in more}
    load = LoadOptions(n_ctx=n_ctx, n_threads=1, type_k="f32", type_v="f32", **loading)
    access = more.pop("access", AccessOptions())
    files = tuple(ServedFile(name, path) for name, path in models)
    running = Running(ServeOptions(files, PoolOptions(load, **pool), access, **more))
    try:
        yield running
    finally:
        running.stop()


# Requests byte by byte


def head(*lines: str, path: str = "/health", method: str = "GET") -> bytes:
    """The first lines of a request, to the empty one."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1")


def hold(running: Running, n: int, max_tokens: int = 4000, **more: Any) -> list[socket.socket]:
    """`n` streams that nobody reads."""
    body = json.dumps({**LONG, "stream": True, "max_tokens": max_tokens, **more}).encode()
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


# Makers of a module's fixtures: `path, running = tiny_path(n_ctx=1024), tiny_server()`.


def tiny_path(n_ctx: int = 256) -> Any:
    """`path`, the file of a tiny model."""

    @pytest.fixture(scope="module", name="path")
    def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
        return write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf", n_ctx=n_ctx)

    return path


def tiny_server(**more: Any) -> Any:
    """`running`, a server of the model `path` with its whole context, idle again when the module is done.

    `more`: fields of its options.
    """

    @pytest.fixture(scope="module", name="running")
    def running(path: Path) -> Iterator[Running]:
        with serving(("tiny", path), n_ctx=0, **more) as found:
            wait_until(lambda: found.get("/health").status_code == 200)
            yield found
            found.wait_idle()

    return running


def tiny_llama() -> Any:
    """`llm`, the model of `path` in the class, with the numbers of the server."""

    @pytest.fixture(scope="module", name="llm")
    def llm(path: Path) -> Iterator[Llama]:
        with Llama(str(path), n_ctx=0, n_threads=1, kv_type="f32") as opened:
            yield opened

    return llm


def openai_client() -> Any:
    """`client`, OpenAI's for the server `running`."""
    import openai

    @pytest.fixture(scope="module", name="client")
    def client(running: Running) -> Iterator[openai.OpenAI]:
        url = f"{running.url}/v1"
        with openai.OpenAI(base_url=url, api_key="k", timeout=PATIENCE, max_retries=0) as found:
            yield found

    return client


def anthropic_client() -> Any:
    """`client`, Anthropic's for the server `running`."""
    import anthropic

    @pytest.fixture(scope="module", name="client")
    def client(running: Running) -> Iterator[anthropic.Anthropic]:
        with anthropic.Anthropic(base_url=running.url, api_key="k", timeout=PATIENCE, max_retries=0) as found:
            yield found

    return client


def ollama_client() -> Any:
    """`client`, Ollama's for the server `running` of each test."""
    import ollama

    @pytest.fixture(name="client")
    def client(running: Running) -> Iterator[ollama.Client]:
        found = ollama.Client(host=running.url, timeout=PATIENCE)
        yield found
        found._client.close()

    return client
