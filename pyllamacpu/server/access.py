"""What stands before every request: hosts, origins, keys, sizes and times.

A web page of any site can make the browser send requests to a local server. So requests whose Host is a
foreign name (DNS rebinding), or that say they come from another site, are refused unless that is allowed.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import math
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pyllamacpu.server.errors import HTTPError, as_http_error, error_body
from pyllamacpu.units import exact

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("pyllamacpu.server")

MAX_HEADERS = 32 << 10  # bytes
_PUBLIC = ("/", "/health", "/v1/health")  # need no key
_PAGE = "/page/"  # nor do the files of the page, which asks for the key itself
_IMAGES = ("/v1/chat/", "/v1/responses", "/v1/messages", "/api/chat", "/api/generate", "/completion")
_FILES = "/api/blobs/"  # whose bodies are files: they are as large as the disk takes
_CORS = {
    "access-control-allow-methods": "GET, HEAD, POST, DELETE, OPTIONS",
    "access-control-max-age": "600",
}
_HEADERS = "authorization, content-type, x-api-key, anthropic-version"  # for a preflight that names none
_ABSOLUTE = re.compile(r"https?://([^/?#]*)(/.*)?", re.IGNORECASE | re.DOTALL)
_HEADER_NAMES = re.compile(r"[\w!#$%&'*+.^`|~-]+(?:[ \t]*,[ \t]*[\w!#$%&'*+.^`|~-]+)*", re.ASCII)


@dataclass(frozen=True)
class AccessOptions:
    """hosts: names by which the server may be called, beside IP addresses and localhost. origins: web origins
    that may use it ("*": any). max_body: bytes; max_image_body: likewise, where images may be sent;
    body_seconds: the time that a body may take to come.
    """

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    max_body: int = 16 << 20
    max_image_body: int = 64 << 20
    body_seconds: float = 30.0


class AccessControl:
    """ASGI middleware. `count(path, status)` is called for every answer."""

    def __init__(self, app: App, options: AccessOptions, count: Callable[[str, int], None]) -> None:
        self._app = app
        self._options = options
        self._count = count
        self._keys = [key.encode() for key in options.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no web sockets here
            return
        scope = _origin_form(scope)
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        cors = self._cors(headers)

        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self._count(_counted_path(scope), message["status"])
                message["headers"] = [*message.get("headers", []), *cors]
            await send(message)

        try:
            self._check_host(headers)
            self._check_origin(headers)
            if scope["method"] == "OPTIONS" and "origin" in headers:
                await _respond(answer, 204, b"", _preflight(headers))
                return
            self._check_key(headers, scope["path"])
            limit = self._limit(scope["path"])
            _check_length(headers, limit)
        except HTTPError as error:
            await _refuse(answer, scope["path"], error, headers)
            return
        try:
            await self._app(scope, self._limited(receive, limit), answer)
        except Exception as error:
            log.error("%s failed", scope["path"], exc_info=error)
            if begun:  # the answer ends where it is
                raise
            await _refuse(answer, scope["path"], as_http_error(error), headers)

    def _limit(self, path: str) -> float:
        """Bytes that a body may have."""
        if path.startswith(_FILES):
            return math.inf
        options = self._options
        return max(options.max_body, options.max_image_body) if path.startswith(_IMAGES) else options.max_body

    def _limited(self, receive: Receive, limit: float) -> Receive:
        """`receive` with the limits of a body's size and time; they raise HTTPError in the application."""
        size, complete = 0, False

        async def limited() -> Message:
            nonlocal size, complete
            if complete:
                return await receive()  # waits for the client to leave
            try:
                message = await asyncio.wait_for(receive(), self._options.body_seconds)
            except asyncio.TimeoutError:
                seconds = self._options.body_seconds
                raise HTTPError(f"the body did not come within {exact(seconds)} s", status=408) from None
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if size > limit:
                    raise _too_large(f"has at least {size} bytes", limit)
            return message

        return limited

    def _check_host(self, headers: dict[str, str]) -> None:
        host = host_name(headers.get("host", ""))
        if host is None or not (_is_local_name(host) or host in self._options.hosts):
            raise HTTPError(
                "this server is not called by that name; allow it with --host or --allowed-hosts",
                status=403,
                code="host_not_allowed",
            )

    def _check_origin(self, headers: dict[str, str]) -> None:
        origin = headers.get("origin")
        if origin is None:
            foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
            top = headers.get("sec-fetch-mode") == "navigate"  # a link that a person follows
            if foreign and not top and "*" not in self._options.origins:
                raise _foreign("another site")
        elif not self._is_allowed(origin, headers):
            raise _foreign(origin[:200])

    def _is_allowed(self, origin: str, headers: dict[str, str]) -> bool:
        allowed = self._options.origins
        same = origin.partition("://")[2].lower() == headers.get("host", "").lower() != ""
        return same or "*" in allowed or origin.lower().rstrip("/") in allowed

    def _cors(self, headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
        origin = headers.get("origin")
        if origin is None or not self._is_allowed(origin, headers):
            return []
        return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"Origin")]

    def _check_key(self, headers: dict[str, str], path: str) -> None:
        if not self._keys or path in _PUBLIC or path.startswith(_PAGE):
            return
        given = headers.get("x-api-key", "")
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = token.strip() or given
        # All keys are compared: the time tells nothing of which one is nearly right.
        matches = [hmac.compare_digest(given.encode("latin-1"), key) for key in self._keys]
        if not any(matches):
            raise HTTPError(
                "the API key is missing or wrong" if given else "an API key is needed",
                status=401,
                code="invalid_api_key",
            )


class HeadAsGet:
    """ASGI middleware: HEAD is answered as GET, without the body, where nothing takes HEAD itself."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
        elif not await self._has_answered(dict(scope), scope, receive, send, last=False):
            await self._has_answered({**scope, "method": "GET"}, scope, receive, send, last=True)

    async def _has_answered(
        self, inner: Scope, outer: Scope, receive: Receive, send: Send, last: bool
    ) -> bool:
        """False when the method is not taken and this is not the `last` one that is tried."""
        is_taken = True

        async def answer(message: Message) -> None:
            nonlocal is_taken
            if message["type"] == "http.response.start":
                is_taken = last or message["status"] != 405
                outer.update({key: inner[key] for key in ("route",) if key in inner})
            elif message["type"] == "http.response.body":
                message = {**message, "body": b""}
            if is_taken:
                await send(message)

        await self._app(inner, receive, answer)
        return is_taken


def _origin_form(scope: Scope) -> Scope:
    """`scope` as if its target were a path: clients of proxies name the whole URL (RFC 9112, 3.2.2), whose
    host stands for that of the Host header.
    """
    found = _ABSOLUTE.fullmatch(scope["path"])
    if found is None:
        return scope
    host, path = found[1].encode("utf-8", "replace"), found[2] or "/"
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"host"]
    target = _ABSOLUTE.fullmatch(scope["raw_path"].decode("latin-1"))
    raw = path.encode() if target is None else (target[2] or "/").encode("latin-1")
    return {**scope, "path": path, "raw_path": raw, "headers": [(b"host", host), *headers]}


def _preflight(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """What an allowed origin may send: the headers that it asks for, as clients have their own."""
    asked = headers.get("access-control-request-headers", "").strip()
    names = asked if _HEADER_NAMES.fullmatch(asked) else _HEADERS
    shown = {**_CORS, "access-control-allow-headers": names}
    return [(name.encode(), value.encode()) for name, value in shown.items()]


def _check_length(headers: dict[str, str], limit: float) -> None:
    """Raises HTTPError for headers that are too large, or a stated body of more than `limit` bytes."""
    if sum(len(name) + len(value) for name, value in headers.items()) > MAX_HEADERS:
        raise HTTPError(f"the headers are larger than {MAX_HEADERS} bytes", status=431)
    stated = headers.get("content-length", "0")
    if stated.isdecimal() and int(stated[:20]) > limit:
        raise _too_large(f"has {int(stated[:20])} bytes", limit)


def host_name(header: str) -> str | None:
    """The host of a Host header, without its port; None for what is none."""
    try:
        name = urlsplit(f"//{header}").hostname
        return name and name.removesuffix(".")  # which only says that the name is whole
    except ValueError:
        return None


def _is_local_name(host: str) -> bool:
    """Names that no foreign DNS server answers for."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(host)
        return True
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether a server bound to `host` can only be reached from this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _foreign(origin: str) -> HTTPError:
    return HTTPError(
        f"requests from {origin} are not allowed; allow it with --cors-origins",
        status=403,
        code="origin_not_allowed",
    )


def _too_large(stated: str, limit: float) -> HTTPError:
    return HTTPError(
        f"the body {stated}, where {limit:.0f} are allowed at the most", status=413, code="body_too_large"
    )


def _counted_path(scope: Scope) -> str:
    """The path of a known route: others are one, so that a client cannot make endless labels."""
    route = scope.get("route")
    return getattr(route, "path", None) or "other"


async def _refuse(send: Send, path: str, error: HTTPError, headers: dict[str, str]) -> None:
    """An error in the shape of the caller's dialect; the connection ends, as its request may not be read."""
    body = json.dumps(error_body(path, error, headers)).encode()
    more = [(k.encode(), v.encode()) for k, v in error.headers.items()]
    more += [(b"content-type", b"application/json"), (b"connection", b"close")]
    await _respond(send, error.status, body, more)


async def _respond(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
