"""An hour of mixed load on `pyllamacpu serve`, and what of memory is left: everything that its dialects have.

    python benchmarks/serve_load.py --model model.gguf --minutes 60 --share 0.3 --json load.json

A few clients ask at random for chats, completions, answers, embeddings and the small services of each
dialect: streamed and whole, with tools and grammars that are all different, short prompts and long ones;
some hang up, some send what is refused (`weather_clients.py`). Between requests they wait, so that the server
uses `--share` of one core. Memory is looked at each minute; at the end what is resident must be no more than
weights, scratch, pages and 120 MB. Exit code 1 when it is more, or when a request got what it must not get.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compare import find_model
from serve_weather import MARGIN
from server_process import Server as Process
from server_process import free_port, running
from streaming_client import Client
from weather_clients import BEHAVIOURS, Behaviour, Fault, Server

KEY = "load"
SETTLE_SECONDS = 30.0
_WORDS = ("river", "light", "stone", "bird", "home", "rain", "under", "every", "small", "knows", "of", "hill")
_RUDE = (
    "leave_",
    "slow_reader",
    "half_request",
    "bad_body",
    "grammar_bomb",
    "stranger",
    "malformed",
    "large",
)

Request = tuple[str, Any]  # path, and body; None: GET
Random = random.Random


# What is asked


def words(chance: Random, least: int = 3, most: int = 30) -> str:
    """Now and then of a length that takes many pages."""
    n = chance.randrange(300, 1200) if chance.random() < 0.04 else chance.randrange(least, most)
    return " ".join(chance.choice(_WORDS) for _ in range(n))


def messages(chance: Random) -> list[dict[str, Any]]:
    said = [{"role": "user", "content": words(chance)}]
    if chance.random() < 0.4:
        said += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": words(chance)}]
    return said


def system(chance: Random) -> str:
    """One of few, as programs have them, whose pages are shared."""
    return f"You are helper number {chance.randrange(4)}. " + "You answer in a few words. " * 10


def schema(chance: Random) -> dict[str, Any]:
    names = chance.sample(_WORDS, chance.randrange(1, 4))
    kinds: list[dict[str, Any]] = [
        {"type": "integer", "maximum": chance.randrange(10, 10**6)},
        {"type": "boolean"},
    ]
    kinds.append({"enum": [f"{chance.choice(_WORDS)}{chance.randrange(1000)}" for _ in range(3)]})
    properties = {name: chance.choice(kinds) for name in names}
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def function(chance: Random) -> dict[str, Any]:
    return {
        "name": f"find_{chance.choice(_WORDS)}",
        "description": words(chance),
        "parameters": schema(chance),
    }


def _chat(chance: Random) -> Request:
    said = [{"role": "system", "content": system(chance)}, *messages(chance)]
    body = {"messages": said, "max_tokens": chance.randrange(4, 40), "stream": chance.random() < 0.6}
    kind = chance.randrange(5)
    if kind == 0:
        body["tools"] = [{"type": "function", "function": function(chance)}]
        body["tool_choice"] = chance.choice(("auto", "required", "none"))
    elif kind == 1:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": schema(chance)},
        }
    elif kind == 2:
        body |= {"logprobs": True, "top_logprobs": 3, "n": chance.randrange(1, 3), "temperature": 1.2}
    return "/v1/chat/completions", body


def _completion(chance: Random) -> Request:
    body = {"prompt": words(chance), "max_tokens": chance.randrange(4, 40), "stream": chance.random() < 0.5}
    more: list[dict[str, Any]] = [{}, {"logprobs": 2}, {"echo": True}, {"json_schema": schema(chance)}]
    more.append({"structured_outputs": {"regex": f"[a-z]{{1,{chance.randrange(2, 30)}}}"}})
    more.append({"grammar": f'root ::= "{chance.choice(_WORDS)}" [0-9]{{1,{chance.randrange(2, 9)}}}'})
    return "/v1/completions", body | chance.choice(more)


def _response(chance: Random) -> Request:
    body = {
        "input": words(chance),
        "instructions": system(chance),
        "max_output_tokens": chance.randrange(16, 40),
    }
    body |= {"stream": chance.random() < 0.6, "store": False}
    if chance.random() < 0.3:
        body["tools"] = [{"type": "function", **function(chance)}]
    return "/v1/responses", body


def _message(chance: Random) -> Request:
    body = {"messages": messages(chance), "system": system(chance), "max_tokens": chance.randrange(4, 40)}
    body |= {"model": "first", "stream": chance.random() < 0.6}
    if chance.random() < 0.3:
        tool = function(chance)
        body["tools"] = [{"name": tool["name"], "input_schema": tool["parameters"]}]
        body["tool_choice"] = {"type": chance.choice(("auto", "any"))}
    if chance.random() < 0.2:
        counted = {name: body[name] for name in ("messages", "system", "model")}
        return "/v1/messages/count_tokens", counted
    return "/v1/messages", body


def _ollama(chance: Random) -> Request:
    options = {"num_predict": chance.randrange(4, 40), "seed": chance.randrange(99)}
    body: dict[str, Any] = {"model": "first", "stream": chance.random() < 0.6, "options": options}
    if chance.random() < 0.3:
        body["format"] = schema(chance)
    if chance.random() < 0.5:
        return "/api/generate", {**body, "prompt": words(chance), "system": system(chance)}
    if "format" not in body and chance.random() < 0.3:  # both is refused
        body["tools"] = [{"type": "function", "function": function(chance)}]
    return "/api/chat", {**body, "messages": messages(chance)}


def _embedding(chance: Random) -> Request:
    texts = [words(chance) for _ in range(chance.randrange(1, 5))]
    if chance.random() < 0.3:
        return "/api/embed", {"model": "first", "input": texts}
    return "/v1/embeddings", {"input": texts, "encoding_format": chance.choice(("float", "base64"))}


def _native(chance: Random) -> Request:
    body = {"prompt": words(chance), "n_predict": chance.randrange(4, 40), "stream": chance.random() < 0.5}
    return "/completion", body | chance.choice(({}, {"n_probs": 3}, {"json_schema": schema(chance)}))


def _service(chance: Random) -> Request:
    found: list[Request] = [(path, None) for path in _PLAIN]
    found += [("/tokenize", {"content": words(chance)}), ("/detokenize", {"tokens": [1, 2, 3, 40]})]
    found += [("/apply-template", {"messages": messages(chance)}), ("/api/show", {"model": "first"})]
    return chance.choice(found)


_PLAIN = (
    "/v1/models",
    "/health",
    "/props",
    "/slots",
    "/metrics",
    "/api/tags",
    "/api/ps",
    "/api/version",
    "/",
)
_KINDS: tuple[tuple[Callable[[Random], Request], int], ...] = (
    (_chat, 6), (_completion, 4), (_response, 3), (_message, 3), (_ollama, 4), (_embedding, 3), (_native, 2),
    (_service, 3),
)  # fmt: skip


# A run


class Load:
    """The clients of a server, and what they have seen."""

    def __init__(self, server: Server, process: Process, share: float) -> None:
        self.server, self.process, self.share = server, process, share
        self.started = time.monotonic()
        self.cpu_before = process.cpu_seconds()
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.samples: list[dict[str, float]] = []
        self.behaviours: list[Behaviour] = [b for b in BEHAVIOURS if b.__name__.startswith(_RUDE)]

    async def client(self, number: int, end: float) -> None:
        chance = random.Random(number)
        makers, weights = zip(*_KINDS, strict=True)
        while time.monotonic() < end:
            if chance.random() < 0.15:
                await self._misbehave(chance.choice(self.behaviours))
            else:
                await self._ask(*chance.choices(makers, weights)[0](chance))
            await asyncio.sleep(chance.uniform(0.2, 1.0))
            while time.monotonic() < end and self._used() > self.share:
                await asyncio.sleep(0.5)

    def _used(self) -> float:
        """Cores, since the beginning."""
        return (self.process.cpu_seconds() - self.cpu_before) / (time.monotonic() - self.started + 10)

    async def _ask(self, path: str, body: Any) -> None:
        self.counts[path] += 1
        try:
            status, answer = await self.server.ask(self.server.request(path, body))
        except (OSError, asyncio.TimeoutError) as error:
            status, answer = 0, repr(error).encode()
        if status != 200:
            self.faults.append(f"{path} {json.dumps(body)[:200]}: status {status}: {answer[:200]!r}")

    async def _misbehave(self, behaviour: Behaviour) -> None:
        self.counts[behaviour.__name__] += 1
        try:
            await behaviour(self.server)
        except Fault as fault:
            self.faults.append(f"{behaviour.__name__}: {fault}")
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            self.counts[f"{behaviour.__name__}: {type(error).__name__}"] += 1

    async def watch(self, end: float, interval: float) -> None:
        while time.monotonic() < end:
            await asyncio.sleep(min(interval, max(0.0, end - time.monotonic())))
            await self.look()

    async def look(self) -> float:
        """Bytes beside weights, scratch and pages."""
        gauges = await Client(self.server.port, {"Authorization": f"Bearer {KEY}"}).gauges()
        parts = {name: gauges[f"pyllamacpu_{name}_bytes"] for name in ("weight", "scratch", "kv")}
        resident = self.process.resident_bytes()
        other = resident - sum(parts.values())
        minutes = (time.monotonic() - self.started) / 60
        sample = {"minutes": round(minutes, 1), "resident": resident, **parts, "other": other}
        self.samples.append(sample | {"requests": self.counts.total(), "cores": round(self._used(), 3)})
        shown = ", ".join(
            f"{name} {value / 2**20:.1f}" for name, value in sample.items() if name != "minutes"
        )
        print(
            f"{minutes:5.1f} minutes, {self.counts.total()} requests, MiB: {shown}",
            file=sys.stderr,
            flush=True,
        )
        return other


async def run(load: Load, given: argparse.Namespace) -> float:
    """Bytes beside weights, scratch and pages when everything has been over for a while."""
    end = load.started + 60 * given.minutes
    clients = [load.client(number, end) for number in range(given.clients)]
    await asyncio.gather(load.watch(end, 60.0), *clients)
    await asyncio.sleep(SETTLE_SECONDS)
    return await load.look()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--share", type=float, default=2.0, help="of one core that the server may use")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--cache-ram", type=int, default=200_000_000)
    parser.add_argument("-c", "--context", type=int, default=2048)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    port = free_port()
    command = [sys.executable, "-m", "pyllamacpu", "serve", "-m", f"first={find_model(given.model)}"]
    command += ["--port", str(port), "--api-key", KEY, "-c", str(given.context), "-t", str(given.threads)]
    command += ["--cache-ram", str(given.cache_ram)]
    with running("pyllamacpu", command, port) as process:
        load = Load(Server(port, KEY, ("first",)), process, given.share)
        other = asyncio.run(run(load, given))
    if other > MARGIN:
        load.faults.append(f"{other / 2**20:.0f} MiB of memory beside weights, scratch and pages")
    result = {"samples": load.samples, "counts": load.counts, "faults": load.faults}
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1))
    for name, value in sorted(load.counts.items()):
        print(f"{name:40} {value:,}")
    print(f"{other / 2**20:.1f} MiB beside weights, scratch and pages; {len(load.faults)} faults")
    for fault, n in Counter(load.faults).most_common(40):
        print(f"- {n} x {fault}")
    return 1 if load.faults else 0


if __name__ == "__main__":
    sys.exit(main())
