"""What `serve.py` measures of a server that runs. A part gives rows of figures: seconds, tokens, bytes."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from server_process import START_SECONDS, Server
from streaming_client import Answer, ServerFailure

from pyllamacpu.engine.pages import PAGE

NEW_TOKENS = 32  # behind a cached prompt
LOAD_CLIENTS = 8
SHORTEST_PAUSE = 0.002  # seconds
CANCELS = 3  # in each phase
STEP_TOKENS = 512  # of a prompt that is read alone
Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """What is asked for: tokens, and numbers of requests."""

    clients: tuple[int, ...]
    n_prompt: int
    n_answer: int
    n_long: int
    n_streams: int
    n_requests: int  # of the part "load"
    load: float  # share of the rate that the server can do
    n_threads: int

    @property
    def parallel(self) -> int:
        return max(*self.clients, self.n_streams + 1, LOAD_CLIENTS)

    @property
    def n_ctx(self) -> int:
        """The context that an answer needs."""
        longest = max(4 * self.n_answer + self.n_prompt, self.n_long + NEW_TOKENS + 2 * PAGE)
        return -(-longest // 256) * 256


class Prompts:
    """Random tokens, never the same twice; without the first and last of a vocabulary, which are special."""

    def __init__(self, n_vocab: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._ids = range(n_vocab // 8, n_vocab * 7 // 8)

    def take(self, n: int) -> list[int]:
        return self._random.choices(self._ids, k=n)


@dataclass
class Target:
    """A server and what it is asked."""

    server: Server
    sizes: Sizes
    prompts: Prompts

    async def stream(self, n_prompt: int, n_answer: int) -> Answer:
        """The answer to a prompt of its own."""
        return await self.server.client.stream(self.prompts.take(n_prompt), n_answer)

    async def until_free(self) -> float:
        """When nothing is in work any more. Raises ServerFailure when that does not come."""
        end = time.perf_counter() + START_SECONDS
        while await self.server.client.n_processing():
            if time.perf_counter() > end:
                raise ServerFailure(f"{self.server.name} goes on with a request whose client has left")
            await asyncio.sleep(0.002)
        return time.perf_counter()


async def throughput(target: Target) -> list[Row]:
    return [await burst(target, n) for n in target.sizes.clients]


async def burst(target: Target, n: int) -> Row:
    """`n` clients ask at the same moment."""
    server, sizes = target.server, target.sizes
    used, own = server.cpu_seconds(), time.process_time()
    start = time.perf_counter()
    answers = await asyncio.gather(*(target.stream(sizes.n_prompt, sizes.n_answer) for _ in range(n)))
    seconds = max(answer.done for answer in answers) - start
    used, own = server.cpu_seconds() - used, time.process_time() - own
    n_tokens = sum(sum(answer.n_tokens) for answer in answers)
    if n_tokens != n * (sizes.n_prompt + sizes.n_answer):
        raise ServerFailure(f"{server.name} counts {n_tokens} tokens")
    return {
        "clients": n,
        "seconds": seconds,
        "tokens_per_second": n_tokens / seconds,
        "answer_tokens_per_second": n * sizes.n_answer / seconds,
        "cpu_seconds_per_token": used / n_tokens,
        "client_cpu_seconds_per_token": own / n_tokens,
        "gap_p99": percentile(gaps(answers), 0.99),
    }


async def first_token(target: Target) -> list[Row]:
    firsts = [(await target.stream(target.sizes.n_prompt, 2)).first for _ in range(5)]
    return [{"first": statistics.median(firsts)}]


async def long_prompt(target: Target) -> list[Row]:
    sizes = target.sizes
    alone = await target.stream(sizes.n_long, 2)
    rest = sizes.n_ctx - sizes.n_prompt - 1
    start = target.server.client.start
    streams = [await start(target.prompts.take(sizes.n_prompt), rest, True) for _ in range(sizes.n_streams)]
    while not all(answer.pieces for _, answer in streams):
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    among = await target.stream(sizes.n_long, 2)
    for transport, _ in streams:
        transport.abort()
    await target.until_free()
    meanwhile = gaps([answer for _, answer in streams], among.sent, among.sent + among.first)
    return [
        {
            "gap_p50": percentile(meanwhile, 0.5),
            "gap_p99": percentile(meanwhile, 0.99),
            "gap_longest": max(meanwhile),
            "n_gaps": len(meanwhile),
            "first": among.first,
            "first_alone": alone.first,
        }
    ]


async def cached(target: Target) -> list[Row]:
    prompt = target.prompts.take(target.sizes.n_long)
    stream = target.server.client.stream
    cold = await stream(prompt, 2)
    warm = [await stream(prompt + target.prompts.take(NEW_TOKENS), 2) for _ in range(3)]
    return [{"first": statistics.median(answer.first for answer in warm), "first_cold": cold.first}]


async def load(target: Target) -> list[Row]:
    sizes = target.sizes
    rate = sizes.load * LOAD_CLIENTS / (await burst(target, LOAD_CLIENTS))["seconds"]
    free = asyncio.Semaphore(LOAD_CLIENTS)

    async def ask() -> Answer:
        async with free:
            return await target.stream(sizes.n_prompt, sizes.n_answer)

    pauses = random.Random(2)
    tasks = []
    for _ in range(sizes.n_requests):
        tasks.append(asyncio.create_task(ask()))
        await asyncio.sleep(pauses.expovariate(rate))
    firsts = [answer.first for answer in await asyncio.gather(*tasks)]
    row = {f"first_p{share}": percentile(firsts, share / 100) for share in (50, 90, 99)}
    return [{**row, "requests_per_second": rate}]


async def cancel(target: Target) -> list[Row]:
    """While a prompt is read, while an answer is streamed, and while one is made that is not; the longest of
    some, and about how long a step takes then.
    """
    sizes = target.sizes
    alone = await target.stream(sizes.n_prompt, 16)
    per_token = alone.first / sizes.n_prompt
    gap = statistics.median(gaps([alone]))
    phases = (  # tokens of the prompt, streamed, seconds from its coming to hanging up, of a step
        ("prompt", sizes.n_long, True, 0.3 * per_token * sizes.n_long, STEP_TOKENS * per_token),
        ("stream", sizes.n_prompt, True, 1.5 * alone.first + 8 * gap, gap),
        ("whole", sizes.n_prompt, False, 1.5 * alone.first + 8 * gap, gap),
    )
    rows = []
    for phase, n_prompt, stream, pause, step in phases:
        found = [await _cancel(target, n_prompt, stream, pause) for _ in range(CANCELS)]
        rows.append({"phase": phase, "seconds": max(found), "step_seconds": step})
    return rows


async def _cancel(target: Target, n_prompt: int, stream: bool, pause: float) -> float:
    """Seconds from hanging up, `pause` seconds after asking, to a free engine."""
    client = target.server.client
    n_answer = target.sizes.n_ctx - n_prompt - 1
    transport, _ = await client.start(target.prompts.take(n_prompt), n_answer, stream)
    await asyncio.sleep(pause)
    at_work = await client.n_processing()
    left = time.perf_counter()
    transport.abort()
    if not at_work and pause > SHORTEST_PAUSE:  # over already: it was faster than expected
        return await _cancel(target, n_prompt, stream, pause / 4)
    return await target.until_free() - left


async def memory(target: Target) -> list[Row]:
    """Resident, and what the server says that it holds: only ours says so."""
    row: Row = {"resident_bytes": target.server.resident_bytes()}
    gauges = await target.server.client.gauges()
    known = {
        name: gauges.get(f"pyllamacpu_{name}", 0) for name in ("weight_bytes", "scratch_bytes", "kv_bytes")
    }
    if known["weight_bytes"]:
        row |= {**known, "other_bytes": row["resident_bytes"] - sum(known.values())}
    return [row]


PARTS: dict[str, Callable[[Target], Awaitable[list[Row]]]] = {
    "throughput": throughput,
    "first-token": first_token,
    "long-prompt": long_prompt,
    "cached": cached,
    "load": load,
    "cancel": cancel,
    "memory": memory,
}


def gaps(answers: Sequence[Answer], start: float = 0.0, end: float = float("inf")) -> list[float]:
    """Seconds between the texts of each answer, of those that end between `start` and `end`."""
    found = []
    for answer in answers:
        times = answer.text_times
        found += [b - a for a, b in pairwise(times) if start <= b <= end]
    return found or [0.0]


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
