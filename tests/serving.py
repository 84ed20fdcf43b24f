"""A server on loopback for tests, in this process; and small helpers to speak to it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from pyllamacpu.api.loading import LoadOptions
from pyllamacpu.server.app import ServeOptions, Server, make_app
from pyllamacpu.server.guard import GuardOptions
from pyllamacpu.server.models import PoolOptions, ServedFile
from pyllamacpu.server.run import make_server

PATIENCE = 60.0  # seconds


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
    pool = {name: more.pop(name) for name in ("parallel", "keep_alive", "memory") if name in more}
    load = LoadOptions(n_ctx=n_ctx, n_threads=1, type_k="f32", type_v="f32")
    guard = more.pop("guard", GuardOptions())
    files = tuple(ServedFile(name, path) for name, path in models)
    running = Running(ServeOptions(files, PoolOptions(load, **pool), guard, **more))
    try:
        yield running
    finally:
        running.stop()
