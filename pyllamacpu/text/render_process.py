"""Rendering strangers' templates in a child process that the system keeps within limits of time and memory.

The sandbox counts steps, but one step can be a single C call without end (two deeply shared lists compared, a
number rounded to a billion places). Whatever a template does, the child ends after `CPU_SECONDS` of
computing or `WALL_SECONDS`, and gets no more than `MEMORY` bytes; this process stays as it was. The child
lives on between renderings, which then cost a pipe's round trip (about 0.1 ms).

Requests go to the child as pickles, which it may trust; answers come back as JSON, because the child may
not be trusted.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

from pyllamacpu.forks import fork_safe_lock
from pyllamacpu.text.render import CompiledTemplate
from pyllamacpu.text.render_error import RenderError
from pyllamacpu.units import exact

if TYPE_CHECKING:
    import subprocess

CPU_SECONDS = 3.0
WALL_SECONDS = 30.0
MEMORY = 1 << 29  # bytes of address space beyond what the idle child has
MAX_ANSWER = 1 << 28  # bytes
MAX_TEMPLATES = 16  # that a child keeps compiled

_LENGTH = struct.Struct("<Q")


class RemoteTemplate:
    """A template in the shared child process; the same methods and errors as `CompiledTemplate`."""

    def __init__(self, source: str, child: RenderProcess | None = None) -> None:
        self.source = source
        self._child = _shared if child is None else child
        self._child.ask({"source": source, "values": None})

    def render(self, values: Mapping[str, Any]) -> str:
        return self._child.ask({"source": self.source, "values": dict(values)})


class RenderProcess:
    """The child process; started when first needed, and again after it was ended."""

    def __init__(self, cpu_seconds: float = CPU_SECONDS) -> None:
        self.cpu_seconds = cpu_seconds
        self._lock = fork_safe_lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any]) -> str:
        """The rendered text ("" for a compilation alone). Raises RenderError."""
        try:
            data = pickle.dumps({**request, "seconds": self.cpu_seconds})
        except Exception as error:
            raise RenderError("failed", f"a value for the template cannot be passed on ({error})") from error
        with self._lock:
            answer = self._exchange(data)
        if answer is None:
            reason = f"it takes more than {exact(self.cpu_seconds)} seconds or {MEMORY >> 20} MB"
            raise RenderError("stopped", reason)
        if "error" in answer:
            raise RenderError(*answer["error"])
        return str(answer["text"])

    def _exchange(self, data: bytes) -> dict[str, Any] | None:
        """The child's answer; None when it was ended."""
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(WALL_SECONDS, process.kill)
        timer.daemon = True
        timer.start()
        try:
            _write(process.stdin, data)
            reply = _read(process.stdout, MAX_ANSWER)
        except OSError:
            reply = None
        except BaseException:  # Ctrl-C: the answer must not be taken for the next request's
            self._end()
            raise
        finally:
            timer.cancel()
        if reply is None:
            self._end()
            return None
        answer = json.loads(reply.decode("utf-8", "surrogatepass"))
        return answer if isinstance(answer, dict) else None

    def _running(self) -> subprocess.Popen[bytes]:
        import subprocess  # known templates, most of them, never come here

        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; "
                 "from pyllamacpu.text.render_process import serve; serve()"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def close(self) -> None:
        """Ends the child; the next request starts another."""
        with self._lock:
            self._end()

    def forget(self) -> None:
        """After a fork: the pipes are the parent's, and so is the lock."""
        self.__init__(self.cpu_seconds)  # type: ignore[misc]


_shared = RenderProcess()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_shared.forget)


def _write(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(_LENGTH.pack(len(data)) + data)
    pipe.flush()


def _read(pipe: IO[bytes], limit: int) -> bytes | None:
    """One message; None at the end of the stream, or when it is longer than `limit`."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    data = pipe.read(length) if length <= limit else b""
    return data if len(data) == length else None


# ---- the child's side ----


def serve() -> None:
    """Answers requests until the pipe is closed."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _limit_memory()
    templates: dict[str, CompiledTemplate] = {}
    while (data := _read(requests, 1 << 62)) is not None:
        request = pickle.loads(data)
        with _computing_time(request["seconds"]):
            answer = json.dumps(_answer(request, templates), ensure_ascii=False).encode(
                "utf-8", "surrogatepass"
            )
        _write(answers, answer)


def _answer(request: dict[str, Any], templates: dict[str, CompiledTemplate]) -> dict[str, Any]:
    try:
        source, values = request["source"], request["values"]
        template = templates.get(source)
        if template is None:
            if len(templates) >= MAX_TEMPLATES:
                templates.clear()
            template = templates[source] = CompiledTemplate(source)
        return {"text": "" if values is None else template.render(values)}
    except RenderError as error:
        return {"error": [error.kind, error.words[:4000], error.line]}
    except (MemoryError, RecursionError):
        return {"error": ["stopped", "it takes too much memory", 0]}


@contextlib.contextmanager
def _computing_time(seconds: float) -> Iterator[None]:
    """Ends this process by a signal after `seconds` of computing inside the block."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory() -> None:
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            idle = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (idle + MEMORY, idle + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):
        pass  # not a Linux: time is limited all the same
