"""Looks at a server's /health every quarter of a second from a process of its own, so that what its other
clients compute does not count; until its input ends. Used by `serve_weather.py`.

    python benchmarks/health_watch.py PORT KEY

Each line of output is the look's start (seconds of the system's monotonic clock), how long it took (seconds),
and the status, 0 for none.
"""

from __future__ import annotations

import http.client
import select
import subprocess
import sys
import time
from typing import NamedTuple

INTERVAL = 0.25  # seconds between two looks
PATIENCE = 120.0  # seconds for an answer


class Look(NamedTuple):
    """`start`: of time.monotonic."""

    start: float
    seconds: float
    status: int

    @property
    def end(self) -> float:
        return self.start + self.seconds


class HealthWatch:
    """The process that looks."""

    def __init__(self, port: int, key: str) -> None:
        command = [sys.executable, __file__, str(port), key]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def stop(self) -> list[Look]:
        """All that it saw."""
        lines = self._process.communicate(timeout=2 * PATIENCE)[0].splitlines()
        return [Look(float(a), float(b), int(c)) for a, b, c in map(str.split, lines)]


def look(port: int, key: str) -> Look:
    started, status = time.monotonic(), 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", "/health", headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        answer.read()
        status = answer.status
    except (OSError, http.client.HTTPException):
        pass
    finally:
        connection.close()
    return Look(started, time.monotonic() - started, status)


def main() -> None:
    port, key = int(sys.argv[1]), sys.argv[2]
    while not select.select([sys.stdin], [], [], INTERVAL)[0]:
        print(*look(port, key), flush=True)


if __name__ == "__main__":
    main()
