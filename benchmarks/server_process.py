"""A server of this machine that runs as a process of its own, for measurements."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from streaming_client import Client, ServerFailure

START_SECONDS = 120.0


@dataclass
class Server:
    """A server that runs."""

    name: str
    process: subprocess.Popen[bytes]
    client: Client

    def cpu_seconds(self) -> float:
        """Of all its threads so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
    return port


@contextmanager
def running(name: str, command: Sequence[str], port: int, wait: bool = True) -> Iterator[Server]:
    """The server, once it is healthy unless not to `wait`. Raises ServerFailure."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, env=environment)
    try:
        server = Server(name, process, Client(port))
        if wait:
            wait_healthy(server)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_healthy(server: Server) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise ServerFailure(f"{server.name} ended with exit code {server.process.returncode}")
        try:
            if asyncio.run(server.client.get("/health"))[0] == 200:
                return
        except (OSError, IndexError):
            pass
        time.sleep(0.1)
    raise ServerFailure(f"{server.name} was not healthy within {START_SECONDS:g} s")
