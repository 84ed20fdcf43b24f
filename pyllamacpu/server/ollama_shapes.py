"""What all endpoints of Ollama's dialect share: names, times, errors, and the progress of long work."""

from __future__ import annotations

import asyncio
import math
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import datetime, timezone
from typing import Any, Protocol

from fastapi.responses import Response

from pyllamacpu.errors import Abandoned
from pyllamacpu.server import http
from pyllamacpu.server.errors import HTTPError, as_http_error
from pyllamacpu.server.fields import Fields
from pyllamacpu.store.hub import is_hub_name, parse_hub_ref
from pyllamacpu.store.model_names import NAME_RULE, is_name, short_name

NDJSON = "application/x-ndjson"
_DURATION = re.compile(r"(-?\d+(?:\.\d+)?)(ns|us|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_EVERY = 0.1  # seconds between two reports of the same step
_HEARTBEAT = 5.0  # seconds of silence after which the last report is repeated


def model_name(fields: Fields) -> str:
    """The name in `model`, or in the older `name`. Raises HTTPError."""
    name = fields.text("model") or fields.text("name")
    if not name:
        raise fields.wrong("model", "is missing")
    return name


def new_name(fields: Fields, field: str, name: str) -> str:
    """A name for a model that is to be made, given in `field`. Raises HTTPError."""
    short = short_name(name)
    if not is_name(short):
        raise fields.wrong(field, NAME_RULE)
    if is_hub_name(short):
        raise fields.wrong(field, f"{name!r:.80} is the name of a model on the hub")
    return short


def wanted_name(fields: Fields, field: str, name: str) -> str:
    """The name of a model that may have to be fetched, given in `field`. Raises HTTPError, StoreError."""
    short = short_name(name)
    if not (is_name(short) or parse_hub_ref(short)):
        raise fields.wrong(field, f"{name!r:.80} is not the name of a model")
    return short


def keep_alive(fields: Fields) -> float | None:
    """Seconds; below 0 for good, None when it is not given."""
    value = fields.raw("keep_alive")
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return fields.number("keep_alive", -math.inf, sys.float_info.max)
    if isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?", value):
        return float(value)
    if isinstance(value, str) and re.fullmatch(f"(?:{_DURATION.pattern})+", value):
        return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(value))
    raise fields.wrong("keep_alive", f'{value!r:.40} is not a duration such as 300 or "5m"')


def failed(error: HTTPError) -> bytes:
    """The line of a stream that says what went wrong."""
    return http.ndjson({"error": str(error)})


def timestamp(seconds: float) -> str:
    """Of seconds since 1970, as RFC 3339 has it."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


def now() -> str:
    return timestamp(time.time())


def nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


class Report(Protocol):
    """Says what is being done, with more fields of the line. Raises `Abandoned` when nobody listens."""

    def __call__(self, status: str, **more: Any) -> None: ...


class _Reports:
    """From a thread that works to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._left = threading.Event()
        self._last: tuple[str, float] = ("", 0.0)
        self.lines: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def __call__(self, status: str, **more: Any) -> None:
        if self._left.is_set():
            raise Abandoned
        begun, at = self._last
        moment, whole = time.monotonic(), more.get("completed") == more.get("total")
        if status == begun and moment - at < _EVERY and not whole:
            return
        self._last = status, moment
        self._loop.call_soon_threadsafe(self.lines.put_nowait, {"status": status, **more})

    def leave(self) -> None:
        self._left.set()


def downloads(report: Report) -> Callable[[str, int, int], None]:
    """Reports a download as Ollama does: by the digest of each file, its bytes here and in all."""

    def tell(digest: str, done: int, total: int) -> None:
        named = {"digest": digest} if digest else {}
        report(f"pulling {digest.removeprefix('sha256:')[:12]}".strip(), **named, total=total, completed=done)

    return tell


async def progress(work: Callable[[Report], object], stream: bool) -> Response:
    """The answer of work in a thread that reports its steps: lines as they come, and at the end "success"; or
    without `stream` that alone.
    """
    if stream:
        return http.Stream(AsyncExitStack(), _lines(work), failed, NDJSON)
    async for line in _lines(work):
        last = line
    return Response(last, media_type="application/json")


async def _lines(work: Callable[[Report], object]) -> AsyncIterator[bytes]:
    reports = _Reports()
    running = asyncio.get_running_loop().run_in_executor(None, work, reports)
    running.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may ask for it
    line: dict[str, Any] | None = None
    try:
        while not running.done() or not reports.lines.empty():
            waiting: asyncio.Future[dict[str, Any]] = asyncio.ensure_future(reports.lines.get())
            both: list[asyncio.Future[Any]] = [running, waiting]
            await asyncio.wait(both, timeout=_HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                line = waiting.result()
            elif running.done():
                waiting.cancel()
                continue
            else:
                waiting.cancel()
            if line is not None:
                yield http.ndjson(line)
        try:
            running.result()
        except Exception as error:
            raise as_http_error(error) from error
        yield http.ndjson({"status": "success"})
    finally:
        reports.leave()
