"""The files of a batch: requests as JSON lines in, answers as JSON lines out, in OpenAI's format.

The output grows by whole lines, in the order in which answers are ready. A later run with the same files goes
on where an earlier one ended, however it ended: a torn last line is cut off, and what has a line is not asked
again.
Source: https://platform.openai.com/docs/api-reference/batch (request input and output objects).
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pyllamacpu.errors import OptionError, OutputError
from pyllamacpu.files import FileKind, lock_file, read_problem, read_start
from pyllamacpu.server import http
from pyllamacpu.server.batch_engine import ENDPOINTS
from pyllamacpu.server.errors import HTTPError
from pyllamacpu.server.fields import Fields

MAX_LINE = 64 << 20  # bytes
_DUPLICATE = "duplicate_custom_id"
_STARTS = (b'{"id":"batch_req_', b'{"id": "batch_req_')


def _is_output(path: Path) -> bool:
    """Whether a file begins like a batch's output; its only line may be torn."""
    start = read_start(path, max(map(len, _STARTS)))
    return any(start[: len(known)] == known[: len(start)] for known in _STARTS)


BATCH_OUTPUT = FileKind("the output of a batch", _is_output)


@dataclass
class Finished:
    """What the output has. A refused duplicate does not answer the line that had its custom_id first."""

    ids: set[str] = field(default_factory=set)
    custom_ids: dict[str, str] = field(default_factory=dict)  # with the ids of their lines
    n_lines: int = 0
    n_failed: int = 0  # of the lines

    def add(self, line: dict[str, Any]) -> None:
        self.n_lines += 1
        self.ids.add(str(line["id"]))
        refusal, custom_id = line.get("error"), line.get("custom_id")
        duplicate = isinstance(refusal, dict) and refusal.get("code") == _DUPLICATE
        if isinstance(custom_id, str) and not duplicate:
            self.custom_ids[custom_id] = str(line["id"])
        response = line.get("response")
        self.n_failed += not isinstance(response, dict) or response.get("status_code") != 200


@dataclass(frozen=True)
class Line:
    """A line of the input: a request, or why it is none. The id follows from its bytes, so that a later run
    finds it again.
    """

    id: str
    custom_id: str | None
    url: str = ""
    body: Any = None
    refusal: HTTPError | None = None

    def output(self, response: dict[str, Any] | None, error: dict[str, Any] | None = None) -> bytes:
        return http.ndjson({"id": self.id, "custom_id": self.custom_id, "response": response, "error": error})


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of the lines that are not empty; of one that is too long, its beginning."""
    number = 0
    try:
        with open(path, "rb") as file:
            while raw := file.readline(MAX_LINE + 1):
                number, end = number + 1, raw
                while len(end) > MAX_LINE and not end.endswith(b"\n"):
                    end = file.readline(MAX_LINE + 1)
                if raw.strip():
                    yield number, raw
    except OSError as error:
        raise OptionError(f"{path}: {read_problem(error)}") from error


def read_lines(path: Path, finished: Finished, changed: set[str] | None = None) -> Iterator[Line]:
    """The lines of the input that have none in the output. Of those that have one, but had another content
    then, `changed` gets the custom_ids.
    """
    times: Counter[bytes] = Counter()
    seen: set[str] = set()
    for number, raw in _raw_lines(path):
        digest = hashlib.sha256(raw.strip()).digest()
        times[digest] += 1
        name = hashlib.sha256(digest + str(times[digest]).encode()).hexdigest()
        line = _read_line(f"batch_req_{name[:24]}", number, raw, seen)
        if line.refusal is None and line.custom_id in finished.custom_ids:
            if changed is not None and finished.custom_ids[line.custom_id] != line.id:
                changed.add(line.custom_id)
            continue
        if line.id not in finished.ids:
            yield line


def _read_line(line_id: str, number: int, raw: bytes, seen: set[str]) -> Line:
    """Reads one line; `seen` are the custom_ids before it."""
    custom_id = None
    try:
        if len(raw) > MAX_LINE:
            raise HTTPError(f"the line is longer than {MAX_LINE} bytes", code="line_too_long")
        value = http.parse_json(raw.strip(), "the line")
        if not isinstance(value, dict):
            raise HTTPError("the line must be a JSON object")
        fields = Fields(value)
        custom_id = _custom_id(fields)
        if custom_id in seen:
            raise HTTPError(f"custom_id: {custom_id!r} is an earlier line's", code=_DUPLICATE)
        seen.add(custom_id)
        if fields.text("method") != "POST":
            raise fields.wrong("method", "must be POST")
        url = fields.text("url")
        if url is None or url not in ENDPOINTS:
            raise fields.wrong("url", f"must be one of {', '.join(ENDPOINTS)}")
        return Line(line_id, custom_id, url, fields.raw("body"))
    except HTTPError as error:
        code = error.code or "invalid_line"
        refusal = HTTPError(f"line {number}: {error}", param=error.param, code=code)
        return Line(line_id, custom_id, refusal=refusal)


def _custom_id(fields: Fields) -> str:
    custom_id = fields.text("custom_id")
    if not custom_id:
        raise fields.wrong("custom_id", "is missing")
    try:
        custom_id.encode("utf-8")
    except UnicodeEncodeError:
        raise fields.wrong("custom_id", "has half of a surrogate pair") from None
    return custom_id


class BatchOutput:
    """The output file, locked while it is open. Raises OutputError."""

    def __init__(self, path: Path, force: bool) -> None:
        self.path = path
        self.finished = Finished()
        try:
            # unbuffered: a line that is written is the system's, whatever becomes of this process
            self._file: BinaryIO = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            if lock_file(self._file) is False:
                raise OutputError(path, "is being written by another process; wait for its end")
            if not _is_output(path):
                assert force  # or check_output would have refused it
                self._file.truncate(0)
            self._read()
        except BaseException:
            self._file.close()
            raise

    def _read(self) -> None:
        """Finds what is finished, and cuts off what a kill left of the last line."""
        whole = 0
        with open(self.path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.endswith(b"\n"):
                    break
                self.finished.add(self._parse(number, raw))
                whole += len(raw)
        self._file.truncate(whole)

    def _parse(self, number: int, raw: bytes) -> dict[str, Any]:
        try:
            value = http.parse_json(raw, "it")
        except HTTPError:
            value = None
        if not isinstance(value, dict) or not {"id", "custom_id", "response", "error"} <= value.keys():
            reason = f"line {number} is not one of a batch's output; remove it, or choose another name"
            raise OutputError(self.path, reason)
        return value

    def write(self, line: bytes) -> None:
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            self._file.close()

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(self.path, f"cannot be written: {error.strerror or error}")
