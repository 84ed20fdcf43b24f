"""Running the server until it is told to stop: uvicorn, signals, the grace time of running answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from types import FrameType
from typing import Any, cast

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from pyllamacpu.limits import return_freed_memory
from pyllamacpu.server.access import MAX_HEADERS
from pyllamacpu.server.errors import HTTPError, error_body

log = logging.getLogger("pyllamacpu.server")

HEADER_SECONDS = 15.0  # that a request's headers may take to come
_MAX_LINE = 4096  # bytes of a request's first line that are looked at for its path
UNREAD_SECONDS = 60.0  # that an answer may wait for a client which reads nothing of it
ENDING_SECONDS = 1.0  # that answers may take to end after two signals
SWITCH_SECONDS = 0.001  # that threads with prompts may keep the interpreter from the engine's, after a step


Told = Callable[[str], None]  # an address of the server


class Protocol(H11Protocol):
    """HTTP/1.1, with limits to the time that a request's headers take, and that a client may take no bytes of
    its answer.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head = b""  # the beginning of the request that comes
        self._impatience = self.loop.call_later(HEADER_SECONDS, self._give_up)
        self._unread: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self._head = data[:_MAX_LINE].lstrip(b"\r\n")
            self._impatience.cancel()
            self._impatience = self.loop.call_later(HEADER_SECONDS, self._give_up)
        super().data_received(data)

    def handle_events(self) -> None:
        """Empty lines before a request are none (RFC 9112, 2.2): some clients send one behind a body."""
        waiting = self.conn.trailing_data[0] if self.conn.their_state is h11.IDLE else b""
        if n_empty := len(waiting) - len(waiting.lstrip(b"\r\n")):
            self.conn._receive_buffer.maybe_extract_at_most(n_empty)
        super().handle_events()

    def connection_lost(self, exc: Exception | None) -> None:
        self._impatience.cancel()
        self._forget_unread()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read: what waits for it keeps its place among the answers only so long."""
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._forget_unread()
        super().resume_writing()

    def _forget_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def send_400_response(self, msg: str) -> None:
        """For what is not HTTP: the reason, in the shape of the path's dialect as far as there is a path."""
        error = sys.exc_info()[1]
        hint = getattr(error, "error_status_hint", 400)
        words = re.sub(r"bytearray\(b(.*)\)", r"\1", str(error or msg))
        refusal = HTTPError(f"malformed HTTP: {words}", status=hint if 400 <= hint < 500 else 400)
        data = json.dumps(error_body(self._path(), refusal)).encode("ascii", "replace")
        reason = HTTPStatus(refusal.status).phrase
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        headers.append((b"connection", b"close"))
        with contextlib.suppress(h11.LocalProtocolError):  # an answer that has begun ends where it is
            start = h11.Response(status_code=refusal.status, headers=headers, reason=reason.encode())
            events = (start, h11.Data(data=data), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()

    def _path(self) -> str:
        """Of the request whose body comes, or of the one whose headers cannot be read."""
        if self.cycle is not None and not self.cycle.response_complete:
            return str(self.scope["path"])
        words = self._head.split(b"\r\n")[0].split(b" ")
        return words[1].decode("latin-1") if len(words) > 1 else ""

    def _give_up(self) -> None:
        half = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]
        if (half or self.cycle is None) and not self.transport.is_closing():
            self.transport.close()


class _Uvicorn(uvicorn.Server):
    """uvicorn, whose end by a signal is a clean one."""

    def __init__(self, config: uvicorn.Config, on_listening: Told, on_ready: Told) -> None:
        super().__init__(config)
        self._on_listening, self._on_ready = on_listening, on_ready
        self._addresses: list[str] = []  # at which it is not ready yet

    @property
    def _server(self) -> Any:
        """Ours; uvicorn knows only that there is an application, which may also be a name."""
        return cast(Any, self.config.app).state.server

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
        service = self._server.service
        if service is not None:
            service.draining = True
        super().handle_exit(sig, frame)
        if self.should_exit and sig == signal.SIGTERM:
            log.info("shutting down")

    async def shutdown(self, sockets: Any = None) -> None:
        """After two signals too the application ends in order, where uvicorn would cancel it."""
        await super().shutdown(sockets)
        if self.force_exit:
            for connection in list(self.server_state.connections):
                connection.transport.abort()
            await self.lifespan.shutdown()
            if self.server_state.tasks:
                await asyncio.wait(list(self.server_state.tasks), timeout=ENDING_SECONDS)

    async def on_tick(self, counter: int) -> bool:
        """Whether to end: also when the application has nothing to serve."""
        if self._server.serves_nothing:
            return True
        if self._server.settled:
            while self._addresses:
                self._on_ready(self._addresses.pop(0))
        return await super().on_tick(counter)

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            for server in self.servers:
                for bound in server.sockets:
                    host, port = bound.getsockname()[:2]
                    host = f"[{host}]" if ":" in host else host
                    self._addresses.append(f"http://{host}:{port}")
                    self._on_listening(self._addresses[-1])


def make_server(
    app: FastAPI,
    host: str,
    port: int,
    grace: float,
    on_listening: Told,
    on_ready: Told = lambda address: None,
    access_log: bool = False,
) -> uvicorn.Server:
    """A server for `app`; port 0 is any free one. Its address is told when it listens, and when it is ready:
    the default model is loaded, or cannot be, and others can.
    """
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
    return _Uvicorn(config, on_listening, on_ready)


def run(app: FastAPI, host: str, port: int, grace: float, on_ready: Told) -> bool:
    """Serves until a signal; whether it could start."""
    server = make_server(app, host, port, grace, partial(log.info, "listening at %s"), on_ready)
    sys.setswitchinterval(SWITCH_SECONDS)
    return_freed_memory()
    try:
        asyncio.run(server.serve())
    except SystemExit:  # uvicorn's way to say that it cannot listen; the log has the reason
        return False
    return server.started
