"""Running the server until it is told to stop: uvicorn, signals, the grace time of running answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from pyllamacpu.server.guard import MAX_HEADERS

log = logging.getLogger("pyllamacpu.server")

HEADER_SECONDS = 15.0  # that a request's headers may take to come


class Protocol(H11Protocol):
    """HTTP/1.1, with a limit to the time that the first headers take."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._impatience = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._impatience.cancel()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


class _Uvicorn(uvicorn.Server):
    """uvicorn, whose end by a signal is a clean one."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[str], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Like uvicorn's, without raising the signals again at the end."""
        try:
            kept = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread
            yield
            return
        try:
            yield
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets running answers finish, the second does not."""
        service = self.config.app.state.server.service  # type: ignore[union-attr]
        if service is not None:
            service.draining = True
        super().handle_exit(sig, frame)
        if self.should_exit and sig == signal.SIGTERM:
            log.info("shutting down")

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            for server in self.servers:
                for bound in server.sockets:
                    host, port = bound.getsockname()[:2]
                    self._on_ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")


def make_server(
    app: FastAPI,
    host: str,
    port: int,
    grace: float,
    on_ready: Callable[[str], None],
    access_log: bool = False,
) -> uvicorn.Server:
    """A server for `app`. `on_ready` is told its address; port 0 is any free one."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=access_log,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(grace)),
        h11_max_incomplete_event_size=MAX_HEADERS,
    )
    return _Uvicorn(config, on_ready)


def run(app: FastAPI, host: str, port: int, grace: float, on_ready: Callable[[str], None]) -> bool:
    """Serves until a signal; whether it could start."""
    server = make_server(app, host, port, grace, on_ready)
    try:
        asyncio.run(server.serve())
    except SystemExit:  # uvicorn's way to say that it cannot listen; the log has the reason
        return False
    return server.started
