"""Clients that do everything wrong, for `serve_weather.py`: each is a coroutine over some connections.

They raise `Fault` when the server does what it must not: an internal error, or 200 for what it cannot honour.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

PATIENCE = 120.0  # seconds for an answer


Behaviour = Callable[["Server"], Awaitable[None]]


class Fault(Exception):
    """The server did what it must not do."""


@dataclass
class Server:
    """Where the server is, and what its clients know of it."""

    port: int
    key: str
    models: tuple[str, ...]
    random: random.Random = field(default_factory=lambda: random.Random(1))

    def head(self, path: str, length: int | None, key: str | None = None, host: str = "localhost") -> bytes:
        lines = [f"{'GET' if length is None else 'POST'} {path} HTTP/1.1", f"Host: {host}"]
        lines += [f"Authorization: Bearer {self.key if key is None else key}", "Connection: close"]
        if length is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {length}"]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def request(self, path: str, body: Any = None, **more: str) -> bytes:
        """`body`: bytes as they are, or a value to be JSON."""
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        return self.head(path, None if data is None else len(data), **more) + (data or b"")

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def ask(self, data: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to `data`; status 0 when there is none."""
        async with self.connection() as (reader, writer):
            with contextlib.suppress(ConnectionError):  # it may have heard enough
                writer.write(data)
                await writer.drain()
            raw = b""
            with contextlib.suppress(ConnectionError):
                raw = await asyncio.wait_for(reader.read(-1), PATIENCE)
        head, _, body = raw.partition(b"\r\n\r\n")
        words = head.split(b" ", 2)
        return (int(words[1]) if len(words) > 1 and words[1].isdigit() else 0), body

    async def refused(self, data: bytes, silent: bool = False) -> None:
        """`silent`: the connection may be closed without an answer."""
        status, body = await self.ask(data)
        if not (400 <= status < 500 or status == 503 or (silent and status == 0)):
            raise Fault(f"status {status} for {data[:200]!r}: {body[:200]!r}")

    async def served(self, data: bytes) -> None:
        """Honoured or refused, but not failed."""
        status, body = await self.ask(data)
        if status >= 500 and status != 503:
            raise Fault(f"status {status} for {data[:200]!r}: {body[:200]!r}")

    def chat(self, n_tokens: int = 4000, words: int = 5, **more: Any) -> bytes:
        """A chat that would go on for long."""
        text = " ".join(self.random.choice(_WORDS) for _ in range(words))
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": n_tokens, "ignore_eos": True}
        return self.request("/v1/chat/completions", {**body, **more})


_WORDS = (
    "river",
    "of",
    "light",
    "under",
    "stone",
    "every",
    "small",
    "bird",
    "knows",
    "home",
    "before",
    "rain",
)
_SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}}
_FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA}}


# Readers who are slow, and clients who leave


async def slow_reader(server: Server) -> None:
    async with server.connection() as (reader, writer):
        writer.write(server.chat(stream=True, n_tokens=100))
        for _ in range(server.random.randrange(5, 30)):
            if not await reader.read(server.random.randrange(1, 200)):
                break
            await asyncio.sleep(0.1)


async def mute_reader(server: Server) -> None:
    """Reads nothing of an answer that is long."""
    async with server.connection() as (_, writer):
        writer.write(server.chat(stream=True))
        await asyncio.sleep(server.random.uniform(0.5, 4))


async def leave_early(server: Server) -> None:
    """At once: in the queue, or before the prompt is read."""
    async with server.connection() as (_, writer):
        writer.write(server.chat(stream=server.random.random() < 0.5))
        await writer.drain()


async def leave_reading(server: Server) -> None:
    async with server.connection() as (_, writer):
        writer.write(server.chat(words=server.random.randrange(50, 400), n_tokens=8))
        await asyncio.sleep(server.random.uniform(0, 0.2))


async def leave_under_grammar(server: Server) -> None:
    async with server.connection() as (_, writer):
        writer.write(server.chat(stream=server.random.random() < 0.5, response_format=_FORM))
        await asyncio.sleep(server.random.uniform(0, 0.5))


async def leave_streaming(server: Server) -> None:
    async with server.connection() as (reader, writer):
        writer.write(server.chat(stream=True, n=server.random.choice((1, 3))))
        for _ in range(server.random.randrange(1, 5)):
            await reader.read(1000)


async def leave_whole(server: Server) -> None:
    async with server.connection() as (_, writer):
        writer.write(server.chat(n=server.random.choice((1, 3))))
        await asyncio.sleep(server.random.uniform(0.1, 1))


# What is not a request


async def half_request(server: Server) -> None:
    data = server.chat(n_tokens=4)
    async with server.connection() as (reader, writer):
        writer.write(data[: server.random.randrange(1, len(data))])
        with contextlib.suppress(asyncio.TimeoutError, ConnectionError):
            await asyncio.wait_for(reader.read(100), server.random.uniform(0.1, 4))


async def half_request_later(server: Server) -> None:
    """On a connection that has had an answer."""
    async with server.connection() as (reader, writer):
        whole = server.request("/health").replace(b"Connection: close\r\n", b"")
        writer.write(whole + whole[: server.random.randrange(1, len(whole))])
        with contextlib.suppress(asyncio.TimeoutError, ConnectionError):
            await asyncio.wait_for(reader.readuntil(b"}"), 5)
            await asyncio.sleep(server.random.uniform(0.1, 4))


async def malformed(server: Server) -> None:
    await server.refused(server.random.choice(_MALFORMED), silent=True)


_POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
_MALFORMED = (
    b"\r\n\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"get /health http/1.1\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nX\x00: y\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    _POST + b"Content-Length: -5\r\n\r\n{}",
    _POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    _POST + b"Content-Length: 9999999999999999999999\r\n\r\n{}",
    _POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    _POST + b"Transfer-Encoding: gzip\r\n\r\n{}",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)


async def bad_body(server: Server) -> None:
    path = server.random.choice(("/v1/chat/completions", "/v1/completions", "/api/chat", "/v1/messages"))
    await server.refused(server.request(path, server.random.choice(_BODIES)))


_BODIES = (
    b"",
    b"\xff\xfe{}",
    b'{"prompt": "\xc3\x28"}',
    b"[" * 200_000,
    b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'{"temperature": NaN}',
    b'{"max_tokens": 1e999, "prompt": "x", "messages": []}',
    b'{"prompt": 1, "messages": "x"}',
    b'{"prompt": {"a": 1}, "messages": [{"role": "nobody", "content": "x"}]}',
    b"null",
    b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}]}',
)


async def large_body(server: Server) -> None:
    kind = server.random.randrange(3)
    if kind == 0:  # says so
        await server.refused(server.head("/v1/completions", 100 << 20) + b"{", silent=True)
    elif kind == 1:  # does not say so
        head = server.head("/v1/completions", 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
        await server.refused(head + 20 * chunk, silent=True)
    else:  # a prompt that is far too long
        await server.refused(server.request("/v1/completions", {"prompt": "word and more " * 50_000}))


# Forms that explode


async def grammar_bomb(server: Server) -> None:
    """May be honoured, where it is in the library's powers."""
    more = server.random.choice(_BOMBS)
    body = {"prompt": "x", "max_tokens": 4, **more}
    await server.served(server.request("/v1/completions", body))


def _nested(depth: int) -> dict[str, Any]:
    defs: dict[str, Any] = {"d0": {"type": "string"}}
    for i in range(depth):
        one = {"$ref": f"#/$defs/d{i}"}
        defs[f"d{i + 1}"] = {"type": "object", "properties": {"a": one, "b": one}, "required": ["a", "b"]}
    return {"$defs": defs, "$ref": f"#/$defs/d{depth}"}


_BOMBS: tuple[dict[str, Any], ...] = (
    {"json_schema": _nested(30)},
    {"json_schema": {"enum": [str(i) * 20 for i in range(20_000)]}},
    {"json_schema": {"type": "string", "minLength": 10**9}},
    {"json_schema": {"type": "array", "minItems": 10**8, "items": {"type": "array", "minItems": 10**8}}},
    {"json_schema": {"$ref": "#"}},
    {"json_schema": {"type": "string", "pattern": "(a|aa)*" * 50}},
    {"structured_outputs": {"regex": "(((a{1,100}){1,100}){1,100}){1,100}"}},
    {"structured_outputs": {"regex": "(x+x+)+y" * 20}},
    {"structured_outputs": {"regex": "(?=a)" * 10}},
    {"structured_outputs": {"choice": ["x" * 100_000, "y"]}},
    {"grammar": "root ::= root"},
    {"grammar": "root ::= " + "(" * 3000 + '"a"' + ")" * 3000},
    {"grammar": 'root ::= ("a" | "b" | root root){1000}'},
)


# Places where nobody is to come


async def path_trick(server: Server) -> None:
    status, body = await server.ask(server.request(server.random.choice(_PATHS)))
    if status not in (0, 200, 307, 400, 404, 405) or b"root:" in body:
        raise Fault(f"status {status}: {body[:200]!r}")


_PATHS = (
    "/../../../../etc/passwd",
    "/page/../../../../etc/passwd",
    "/page/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/page/..%2f..%2f..%2fetc%2fpasswd",
    "/page//etc/passwd",
    "/page/%00",
    "/v1/models/..%2f..%2fetc%2fpasswd",
    "//etc/passwd",
    "/v1/models/" + "x" * 10_000,
    "/%ff%fe",
)


async def stranger(server: Server) -> None:
    """Without the key, under another name, from a foreign site."""
    key = server.random.choice(("", "wrong", server.key + "x", "ü"))
    await server.refused(server.request("/v1/models", key=key))
    await server.refused(server.request("/v1/models", host="evil.example"))
    await server.refused(server.request("http://evil.example/v1/models"))
    foreign = server.request("/v1/models").replace(b"\r\n", b"\r\nOrigin: http://evil.example\r\n", 1)
    await server.refused(foreign)


async def many_answers(server: Server) -> None:
    """More keys and values than there is memory for, for a while."""
    n = 3
    asked = [server.ask(server.chat(n_tokens=150, words=60, n=2)) for _ in range(n)]
    for status, body in await asyncio.gather(*asked):
        if status not in (200, 400, 503):
            raise Fault(f"status {status}: {body[:200]!r}")


BEHAVIOURS: tuple[Behaviour, ...] = (
    slow_reader,
    mute_reader,
    leave_early,
    leave_reading,
    leave_under_grammar,
    leave_streaming,
    leave_whole,
    half_request,
    half_request_later,
    malformed,
    bad_body,
    large_body,
    grammar_bomb,
    path_trick,
    stranger,
    many_answers,
)
