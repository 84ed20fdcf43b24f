"""Between FastAPI and the dialects: bodies as `Fields`, streams, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect

from pyllamacpu.server.errors import HTTPError, as_http_error, error_body
from pyllamacpu.server.fields import Fields

log = logging.getLogger("pyllamacpu.server")

Result = TypeVar("Result")

_SMALL = 1 << 17  # bytes of JSON that are parsed in the event loop
_IMPOSSIBLE = -9999.0  # a logarithm
_KINDS = ("", "application/json", "text/json", "text/plain", "application/x-www-form-urlencoded")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
LEFT = 499  # the status of a request whose client has left; nobody reads it


async def read_fields(request: Request) -> Fields:
    """The body as a JSON object. Raises HTTPError."""
    return Fields(await _read_body(request))


async def read_list(request: Request) -> list[Any]:
    """The body as a JSON list. Raises HTTPError."""
    value = await _read_body(request)
    if not isinstance(value, list):
        raise HTTPError("the body must be a JSON list")
    return value


async def _read_body(request: Request) -> Any:
    """The value in the body; a large one is parsed in a thread. Raises HTTPError."""
    _check_kind(request)
    try:
        body = await request.body()
    except ClientDisconnect:
        raise HTTPError("the client left before its request was whole", status=LEFT) from None
    if len(body) <= _SMALL:
        return parse_json(body, "the body")
    return await asyncio.get_running_loop().run_in_executor(None, parse_json, body, "the body")


def _check_kind(request: Request) -> None:
    """Raises HTTPError for a body that says it is something other than JSON. One that says nothing, or what
    `curl -d` says of every body, is read as JSON.
    """
    stated = request.headers.get("content-type", "")
    kind, _, rest = stated.partition(";")
    kind = kind.strip().lower()
    if kind not in _KINDS and not kind.endswith("+json"):
        raise HTTPError(
            f"the body must be JSON (Content-Type: application/json), not {kind[:80]}", status=415
        )
    charset = re.search(r"charset=\"?([\w-]+)", rest, re.IGNORECASE)
    if charset is not None and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise HTTPError(f"the body must be UTF-8, not {charset[1]}", status=415)
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise HTTPError(f"the body must be plain: {coding[:40]} is not read", status=415)


def parse_json(data: bytes, name: str) -> Any:
    """A value from JSON in UTF-8; messages call the text by `name`. Raises HTTPError."""
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_number, object_pairs_hook=_without_doubles
        )
        if _SURROGATE.search(text):
            _dump(value).encode("utf-8")  # pairs are letters, lone ones are none
        return value
    except UnicodeDecodeError as error:
        raise HTTPError(f"{name} is not UTF-8: byte {error.start}") from None
    except UnicodeEncodeError:
        raise HTTPError(f"{name} has a lone surrogate (\\ud800 to \\udfff), which is not text") from None
    except RecursionError:
        raise HTTPError(f"{name} is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, integers of thousands of digits
        raise HTTPError(f"{name} is not JSON: {error}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is too large for a number")
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two fields with one name nobody knows which is meant. Raises HTTPError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        name = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise HTTPError(f"{name[:80]}: is given twice in one object", param=name[:80], code="invalid_value")
    return found


def dump(value: Any) -> str:
    try:
        return _dump(value)
    except ValueError:  # infinite: the bias and the log-probability of a token that is forbidden
        return _dump(_finite(value))


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    """`value` with numbers that JSON has: instead of -inf the one that OpenAI uses, null for the others."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return _IMPOSSIBLE if value < 0 else None
    return value


def encode(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # lone surrogates of a client's own text


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(encode(dump(value)), status, headers, "application/json")


def error_response(path: str, error: BaseException, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a request (with these headers) that failed, in its dialect's shape."""
    refusal = as_http_error(error)
    if refusal.status >= 500 and not isinstance(error, HTTPError):
        log.error("%s failed", path, exc_info=error)
    return json_response(error_body(path, refusal, headers or {}), refusal.status, refusal.headers)


def sse(data: Any, event: str | None = None) -> bytes:
    """One server-sent event."""
    head = "" if event is None else f"event: {event}\n"
    return encode(f"{head}data: {data if isinstance(data, str) else dump(data)}\n\n")


def ndjson(data: Any) -> bytes:
    return encode(dump(data) + "\n")


async def while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """The result of `work`, which is cancelled when the client leaves (asyncio.CancelledError then). The body
    must have been read.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait([task, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
        return await task
    finally:
        leaving.cancel()
        if not task.done():
            task.cancel()
        del task  # its error's traceback has this frame: a circle that would keep the body for a while


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def answer(request: Request, work: Awaitable[Response]) -> Response:
    """The response of `work`, or an empty one when the client left before it was there."""
    try:
        return await while_connected(request, work)
    except asyncio.CancelledError:
        if not await request.is_disconnected():
            raise
        return JSONResponse(None, LEFT)


class Stream(StreamingResponse):
    """A streaming response that closes `stack` at its end, however it ends. `failed` shapes an error that
    comes after the status has been sent.
    """

    def __init__(
        self,
        stack: AsyncExitStack,
        body: AsyncIterator[bytes],
        failed: Callable[[HTTPError], bytes],
        media_type: str = "text/event-stream",
    ) -> None:
        super().__init__(_guarded(body, failed), media_type=media_type, headers={"Cache-Control": "no-cache"})
        self._stack = stack

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._stack.aclose()


async def _guarded(body: AsyncIterator[bytes], failed: Callable[[HTTPError], bytes]) -> AsyncIterator[bytes]:
    try:
        async for chunk in body:
            yield chunk
    except Exception as error:
        refusal = as_http_error(error)
        if refusal.status >= 500:
            log.error("a stream failed", exc_info=error)
        yield failed(refusal)
