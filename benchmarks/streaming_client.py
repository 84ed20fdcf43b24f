"""A client of completion servers that costs little beside them: bytes are kept with their times as they come,
and are only read when everything is over.

It speaks the part of OpenAI's completions that pyllamacpu and llama-server share.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

_EVENT = re.compile(rb"data: (\{.*?\})\r?\n\r?\n", re.DOTALL)
_GAUGE = re.compile(r"(\w+)(?:\{.*\})? (\S+)$")
_NO_HEADERS: Mapping[str, str] = {}


class ServerFailure(Exception):
    """A server did not do what was asked of it."""


@dataclass
class Answer:
    """A streamed answer: when its request was sent, its bytes as they came, and when (seconds)."""

    sent: float
    pieces: list[tuple[float, bytes]]

    @cached_property
    def events(self) -> list[tuple[float, dict[str, Any]]]:
        """Raises ServerFailure for an answer that is an error."""
        raw = b"".join(data for _, data in self.pieces)
        if not raw.startswith(b"HTTP/1.1 200"):
            raise ServerFailure(f"the server refused a request: {raw[:500]!r}")
        found = [(match.end(), json.loads(match[1])) for match in _EVENT.finditer(raw)]
        ends, end = [], 0
        for seconds, data in self.pieces:
            end += len(data)
            ends.append((end, seconds))
        times = iter(ends)
        upto, seconds = next(times)
        events = []
        for position, event in found:
            while upto < position:
                upto, seconds = next(times)
            events.append((seconds, event))
        return events

    @cached_property
    def text_times(self) -> list[float]:
        """When each piece of text came."""
        return [seconds for seconds, event in self.events if any(c.get("text") for c in event["choices"])]

    @property
    def first(self) -> float:
        """Seconds to the first piece of text; without any (half a character), to the end of the answer."""
        return (self.text_times or [self.events[-1][0]])[0] - self.sent

    @property
    def done(self) -> float:
        return self.pieces[-1][0]

    @property
    def n_tokens(self) -> tuple[int, int]:
        """Of the prompt and of the answer, as the server counts them."""
        usage: dict[str, int] = next((e["usage"] for _, e in reversed(self.events) if e.get("usage")), {})
        return usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)


class _Exchange(asyncio.Protocol):
    """One request on a connection of its own, until the server closes it."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.answer = Answer(0.0, [])
        self.over: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.answer.sent = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.answer.pieces.append((time.perf_counter(), data))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(self.answer)


def http_request(port: int, path: str, body: Any = None, headers: Mapping[str, str] = _NO_HEADERS) -> bytes:
    """The bytes of a request for JSON, after which the server closes the connection."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [
        f"{'GET' if body is None else 'POST'} {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content


def completion_body(prompt: Sequence[int], n_tokens: int, stream: bool = True) -> dict[str, Any]:
    """A request for exactly `n_tokens` greedy tokens behind `prompt`."""
    body = {"prompt": list(prompt), "max_tokens": n_tokens, "temperature": 0, "ignore_eos": True}
    return {**body, "stream": True, "stream_options": {"include_usage": True}} if stream else body


class Client:
    """Requests to the server on a port of this machine."""

    def __init__(self, port: int, headers: Mapping[str, str] = _NO_HEADERS) -> None:
        self.port = port
        self.headers = headers

    async def stream(self, prompt: Sequence[int], n_tokens: int) -> Answer:
        """The answer to `prompt`, streamed."""
        transport, exchange = await self._open("/v1/completions", completion_body(prompt, n_tokens))
        try:
            return await exchange.over
        finally:
            transport.abort()

    async def start(
        self, prompt: Sequence[int], n_tokens: int, stream: bool
    ) -> tuple[asyncio.Transport, Answer]:
        """Asks, and leaves it to the caller when to hang up."""
        body = completion_body(prompt, n_tokens, stream)
        transport, exchange = await self._open("/v1/completions", body)
        return transport, exchange.answer

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        transport, exchange = await self._open(path, None)
        try:
            answer = await exchange.over
        finally:
            transport.abort()
        head, _, body = b"".join(data for _, data in answer.pieces).partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    async def json(self, path: str) -> Any:
        """The JSON behind `path`. Raises ServerFailure unless the status is 200."""
        status, body = await self.get(path)
        if status != 200:
            raise ServerFailure(f"{path}: status {status}")
        start = min(i for i in (body.find(b"["), body.find(b"{")) if i >= 0)
        return json.JSONDecoder().raw_decode(body[start:].decode())[0]

    async def gauges(self) -> dict[str, float]:
        """The figures of `/metrics`, those of all labels added up; none where there are none."""
        status, body = await self.get("/metrics")
        found: dict[str, float] = {}
        for line in body.decode().splitlines() if status == 200 else ():
            if match := _GAUGE.match(line):
                found[match[1]] = found.get(match[1], 0.0) + float(match[2])
        return found

    async def n_processing(self) -> int:
        """Answers that are in work, as `/slots` has it."""
        return sum(bool(slot["is_processing"]) for slot in await self.json("/slots"))

    async def _open(self, path: str, body: Any) -> tuple[asyncio.Transport, _Exchange]:
        request = http_request(self.port, path, body, self.headers)
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_connection(lambda: _Exchange(request), "127.0.0.1", self.port)
        return transport, protocol
