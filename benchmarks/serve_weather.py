"""Bad weather for `pyllamacpu serve`: clients that do everything wrong, among others that check every bit.

    python benchmarks/serve_weather.py --model model.gguf --model other.gguf --minutes 10 --json weather.json

First each question is asked alone. Then, for the given time, most of the clients (`weather_clients.py`) read
slowly, leave in every phase, send halves and garbage, bombs of grammars and bodies, and fill the memory; the
healthy ones ask the same questions, of two models of which only one fits, and must get the same text,
log-probabilities and vectors. In the middle the server is killed and started again over its disk cache. At
the end nothing may be left: no request, page, thread or file handle, and no memory beyond weights, scratch,
pages and 120 MB. Exit code 1 when something is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compare import find_model
from health_watch import HealthWatch, Look
from serve_parts import percentile
from server_process import Server as Process
from server_process import free_port, running
from streaming_client import Client
from weather_clients import BEHAVIOURS, PATIENCE, Behaviour, Fault, Server

KEY = "weather"
MARGIN = 120 << 20  # bytes of memory beside weights, scratch and pages
POOLED = 12  # threads for prompts and bodies, which come with the first work that needs them, and stay
SETTLE_SECONDS = 90.0
_NAMES = ("first", "second")


# Questions and answers


def questions(models: Sequence[str], n_answer: int) -> list[tuple[str, dict[str, Any]]]:
    """(path, body) of requests whose answers never change."""
    found: list[tuple[str, dict[str, Any]]] = []
    rules = "You answer in one word. " * 8
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    for model in models:
        seen = {"model": model, "max_tokens": n_answer}
        chat = {**seen, "logprobs": True, "top_logprobs": 2}
        for i, text in enumerate(("Hello!", "What is rain?", "Name a river.")):
            messages = [{"role": "system", "content": rules}, {"role": "user", "content": text}]
            body = {**chat, "messages": messages, "temperature": i * 0.5, "seed": i, "stream": i == 1}
            found.append(("/v1/chat/completions", body))
        drawn = {"temperature": 1.2, "seed": 7, "n": 2, "logprobs": 2}
        found.append(("/v1/completions", {**seen, "prompt": "Once upon a time", **drawn}))
        form = {"json_schema": schema, "temperature": 0}
        found.append(("/v1/completions", {**seen, "prompt": "A number:", **form}))
        found.append(("/v1/embeddings", {"model": model, "input": ["one text", "and another one"]}))
        native = {"model": model, "prompt": "The sea", "n_predict": n_answer, "temperature": 0, "n_probs": 1}
        found.append(("/completion", native))
    return found


def essence(body: bytes, stream: bool) -> Any:
    """The part of an answer that must be the same every time."""
    if not stream:
        answer = json.loads(body)
        kept = ("choices", "data", "content", "completion_probabilities")
        return {name: answer[name] for name in kept if name in answer}
    events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
    text, probabilities = "", []
    for event in map(json.loads, events):
        for choice in event["choices"]:
            text += choice["delta"].get("content") or ""
            probabilities += (choice["logprobs"] or {}).get("content") or []
    return {"text": text, "logprobs": probabilities}


def plain(body: bytes) -> bytes:
    """Without the framing of chunks, whose lines are sizes."""
    lines = body.split(b"\r\n")
    return b"".join(lines[1::2]) if len(lines) > 1 else body


# A run


@dataclass
class Weather:
    """A server, its clients, and what they have seen. `faults`: what went wrong."""

    server: Server
    command: list[str]
    questions: list[tuple[str, dict[str, Any]]]
    behaviours: Sequence[Behaviour] = BEHAVIOURS
    quiet: list[Any] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    down_time: tuple[float, float] = (0.0, 0.0)  # monotonic seconds
    over: bool = False
    down: bool = False  # killed, and not yet back

    async def ask(self, number: int) -> Any:
        """The essence of an answer; asks again after a 503, which says so, and while the server is down."""
        path, body = self.questions[number]
        end = time.monotonic() + PATIENCE
        status = 0
        while time.monotonic() < end:
            was_down = self.down
            try:
                status, answer = await self.server.ask(self.server.request(path, body))
            except OSError:
                status, answer = 0, b""
            if status == 200:
                answer, streamed = plain(answer), bool(body.get("stream"))
                with contextlib.suppress(ValueError):
                    if not streamed or b"data: [DONE]" in answer:
                        return essence(answer, streamed)
                status = 0  # cut off
            if status != 503 and not (status == 0 and (was_down or self.down)):
                return {"status": status, "body": answer[:300].decode("utf-8", "replace")}
            self.counts[f"retried after {status or 'the kill'}"] += 1
            await asyncio.sleep(0.5)
        return {"status": status, "body": f"no answer in {PATIENCE:g} s"}

    async def healthy(self) -> None:
        numbers = random.Random(self.counts["healthy clients"])
        self.counts["healthy clients"] += 1
        while not self.over:
            number = numbers.randrange(len(self.questions))
            started = time.monotonic()
            answer = await self.ask(number)
            self.counts["healthy answers"] += 1
            if answer != self.quiet[number]:
                seconds = time.monotonic() - started
                path, body = self.questions[number]
                self.faults.append(
                    f"{path} {body.get('model')} after {seconds:.1f} s: {str(answer)[:300]} instead of "
                    f"{str(self.quiet[number])[:300]}"
                )

    async def nasty(self) -> None:
        while self.behaviours and not self.over:
            behaviour = self.server.random.choice(self.behaviours)
            try:
                await behaviour(self.server)
            except Fault as fault:
                if not self.down:
                    self.faults.append(f"{behaviour.__name__}: {fault}")
            except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
                if not self.down:
                    self.counts[f"{behaviour.__name__}: {type(error).__name__}"] += 1
                await asyncio.sleep(0.1)
            self.counts["nasty requests"] += 1

    def judge_health(self, looks: Sequence[Look]) -> list[float]:
        """Seconds of the looks at /health but for those of the time when the server was down."""
        start, end = self.down_time
        seen = [one for one in looks if one.end < start or one.start > end]
        self.faults += [f"/health: {one.status}" for one in seen if one.status != 200]
        return [one.seconds for one in seen]

    async def until_healthy(self) -> None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                if (await self.server.ask(self.server.request("/health")))[0] == 200:
                    return
            except OSError:
                pass
            await asyncio.sleep(0.1)
        raise Fault("the server did not come back")


async def storm(
    weather: Weather, stack: ExitStack, process: Process, n_clients: int, seconds: float
) -> Process:
    """The server that runs at the end."""
    n_healthy = max(1, n_clients // 4)
    clients = [weather.healthy() for _ in range(n_healthy)]
    clients += [weather.nasty() for _ in range(n_clients - n_healthy)]
    tasks = [asyncio.create_task(client) for client in clients]
    await asyncio.sleep(seconds / 2)
    weather.down, killed = True, time.monotonic()
    process.process.send_signal(signal.SIGKILL)
    process.process.wait()
    process = stack.enter_context(running("pyllamacpu", weather.command, weather.server.port, wait=False))
    await weather.until_healthy()
    await asyncio.sleep(1)  # requests that the old one had accepted fail a little later
    weather.down, weather.down_time = False, (killed, time.monotonic())
    await asyncio.sleep(seconds / 2)
    weather.over = True
    await asyncio.gather(*tasks)
    return process


# What is left


def handles(process: Process) -> tuple[int, int]:
    """File handles and threads."""
    own = Path(f"/proc/{process.process.pid}")
    return len(os.listdir(own / "fd")), len(os.listdir(own / "task"))


async def check_settled(weather: Weather, process: Process, before: tuple[int, int]) -> dict[str, float]:
    """Adds to the faults what is left of requests that are over."""
    client = Client(weather.server.port, {"Authorization": f"Bearer {KEY}"})
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        gauges = await client.gauges()
        n_handles, n_threads = handles(process)
        figures = {name: gauges.get(f"pyllamacpu_{name}", -1.0) for name in _GAUGES}
        left = {
            "requests": figures["requests_running"] + figures["requests_waiting"],
            "pages": figures["kv_bytes"] - figures["prefix_bytes"],
            "file handles": n_handles - before[0] - 2,  # the connection that asks, and one that was not there
            "threads": n_threads - before[1] - POOLED,
        }
        wrong = {name: value for name, value in left.items() if value > 0}
        resident = process.resident_bytes()
        other = resident - figures["weight_bytes"] - figures["scratch_bytes"] - figures["kv_bytes"]
        if (not wrong and other <= MARGIN) or time.monotonic() > end:
            break
        await asyncio.sleep(0.5)
    weather.faults += [f"left over: {value:g} {name}" for name, value in wrong.items()]
    if other > MARGIN:
        weather.faults.append(f"{other / 2**20:.0f} MiB of memory beside weights, scratch and pages")
    return {**figures, "resident_bytes": resident, "other_bytes": other, "file_handles": n_handles,
            "threads": n_threads}  # fmt: skip


_GAUGES = (
    "requests_running",
    "requests_waiting",
    "kv_bytes",
    "prefix_bytes",
    "weight_bytes",
    "scratch_bytes",
)


def command(models: Sequence[Path], port: int, folder: str, given: argparse.Namespace) -> list[str]:
    largest = max(model.stat().st_size for model in models)
    options = [
        "--port",
        str(port),
        "--api-key",
        KEY,
        "-c",
        str(given.context),
        "-t",
        str(given.threads),
        "-np",
        "8",
    ]
    options += [
        "--cache-disk",
        str(folder),
        "--max-queue",
        "256",
        "--memory",
        str(largest * 3 // 2),
        "--cache-ram",
        str(given.cache),
    ]
    named = [word for name, path in zip(_NAMES, models, strict=False) for word in ("-m", f"{name}={path}")]
    return [sys.executable, "-m", "pyllamacpu", "serve", *named, *options]


async def run(
    stack: ExitStack, weather: Weather, process: Process, given: argparse.Namespace
) -> dict[str, Any]:
    await weather.until_healthy()
    weather.quiet = [await weather.ask(number) for number in range(len(weather.questions))]
    strange = [answer for answer in weather.quiet if "status" in answer]
    weather.faults += [f"alone: {answer}" for answer in strange]
    await asyncio.gather(*(weather.ask(number) for number in range(len(weather.questions)) for _ in range(2)))
    before = handles(process)
    print(f"{len(weather.questions)} questions asked alone; the storm begins", file=sys.stderr)
    watch = HealthWatch(weather.server.port, KEY)
    try:
        process = await storm(weather, stack, process, given.clients, 60 * given.minutes)
    finally:
        health_seconds = weather.judge_health(watch.stop())
    print("the storm is over", file=sys.stderr)
    left = await check_settled(weather, process, before)
    health = {f"health_p{p}": percentile(health_seconds, p / 100) for p in (50, 90, 99)}
    return {
        **weather.counts,
        **health,
        "health_longest": max(health_seconds),
        **left,
        "faults": weather.faults,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", action="append", required=True, help="one or two")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=12, help="of a healthy answer")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--cache", type=int, default=64 << 20, help="bytes of keys and values")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--behaviours", help="which of them only, separated by commas")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    models = [find_model(name) for name in given.model[:2]]
    port, names = free_port(), _NAMES[: len(models)]
    wanted = given.behaviours.split(",") if given.behaviours else [b.__name__ for b in BEHAVIOURS]
    behaviours = [behaviour for behaviour in BEHAVIOURS if behaviour.__name__ in wanted]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        line = command(models, port, folder, given)
        weather = Weather(Server(port, KEY, names), line, questions(names, given.tokens), behaviours)
        process = stack.enter_context(running("pyllamacpu", line, port, wait=False))
        result = asyncio.run(run(stack, weather, process, given))
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1))
    faults = result.pop("faults")
    for name, value in sorted(result.items()):
        print(f"{name:40} {value:,.4f}" if isinstance(value, float) else f"{name:40} {value:,}")
    print(f"{len(faults)} faults")
    for fault, n in Counter(faults).most_common(40):
        print(f"- {n} x {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
