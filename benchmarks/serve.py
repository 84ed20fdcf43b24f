"""Runs `pyllamacpu serve` and a llama-server in turn, and prints what their clients see.

    python benchmarks/serve.py --model 1B:Q4_K_M --model model.gguf --peer /path/to/llama-server --json a.json
    python benchmarks/serve.py --model model.gguf --parts throughput,cancel --clients 1,8 --rounds 1

Prompts are random tokens, all distinct, answers greedy and of a fixed length. The parts:

throughput   tokens/s, of prompts and answers together, of 1, 4, 8, 16 clients that ask at the same moment,
             beside `pyllamacpu bench --batched` of the same sizes in the same round
first-token  of one request to an idle server, beside the bench's time for its prompt
long-prompt  a long prompt arrives among 4 streams: the time between their tokens meanwhile, and its own first
             token beside that of a long prompt alone
cached       first token of a long prompt that is in the cache, with 32 new tokens behind it
load         first tokens of 8 clients whose requests come at random, at 70 % of the rate that the server has
cancel       from hanging up to a free engine, the longest of three: in the middle of a long prompt, of an
             answer that is streamed, and of one that is not; beside about a step's time then
memory       resident memory at the end, beside weights, scratch and pages of keys and values (ours only)

Servers and the bench run in turn, so that a slow minute of the machine hits all of them. Shown are medians
over the rounds; ratios are medians of the rounds' ratios. The peer is llama-server with any further options,
in quotes. Models are files, or SHAPE:TYPE of synthetic.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from compare import find_model
from serve_parts import NEW_TOKENS, PARTS, Prompts, Row, Sizes, Target, throughput
from server_process import free_port, running
from streaming_client import ServerFailure

from pyllamacpu.bench.formats import markdown_table
from pyllamacpu.bench.ranges import numbers
from pyllamacpu.errors import OptionError, PyllamacpuError
from pyllamacpu.gguf.reader import GGUFFile

OURS, PEER, BENCH = "pyllamacpu", "llama-server", "bench"


# Programs


def our_command(model: Path, port: int, sizes: Sizes) -> list[str]:
    options = ["-c", str(sizes.n_ctx), "-np", str(sizes.parallel), "-t", str(sizes.n_threads)]
    return [sys.executable, "-m", "pyllamacpu", "serve", "-m", str(model), "--port", str(port), *options]


def peer_command(program: str, model: Path, port: int, sizes: Sizes) -> list[str]:
    """`program`: llama-server with further options. Its context is that of all slots together."""
    n_ctx, n_slots = str(sizes.n_ctx * sizes.parallel), str(sizes.parallel)
    options = ["-c", n_ctx, "-np", n_slots, "-t", str(sizes.n_threads), "--slots"]
    return [*shlex.split(program), "-m", str(model), "--host", "127.0.0.1", "--port", str(port), *options]


def bench(model: Path, sizes: Sizes) -> list[Row]:
    """`pyllamacpu bench --batched` of the same sizes. Raises ServerFailure."""
    clients = ",".join(str(n) for n in sorted({1, *sizes.clients}))
    shape = ["-npp", str(sizes.n_prompt), "-ntg", str(sizes.n_answer), "-npl", clients]
    command = [sys.executable, "-m", "pyllamacpu", "bench", "-m", str(model), "--batched", *shape]
    command += ["-t", str(sizes.n_threads), "--no-limits", "-o", "json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ServerFailure(f"the bench failed: {done.stderr[-500:]}")
    keys = {"clients": "pl", "tokens_per_second": "speed", "seconds": "t", "prompt_seconds": "t_pp"}
    return [{name: row[key] for name, key in keys.items()} for row in json.loads(done.stdout)]


# Rounds


def run_round(model: Path, peer: str | None, sizes: Sizes, parts: Sequence[str], number: int) -> list[Row]:
    """All parts, with the programs in turn."""
    commands: list[tuple[str, Callable[[int], list[str]]]]
    commands = [(OURS, lambda port: our_command(model, port, sizes))]
    if peer is not None:
        commands.append((PEER, lambda port: peer_command(peer, model, port, sizes)))
    rows = []
    for name, command in commands if number % 2 == 0 else commands[::-1]:
        port = free_port()
        with running(name, command(port), port) as server:
            target = Target(server, sizes, Prompts(vocabulary(model), 1000 + number))
            found = asyncio.run(run_parts(target, parts))
            rows += [{"program": name, **row} for row in found]
    if {"throughput", "first-token"} & {*parts}:
        rows += [{"program": BENCH, "part": "throughput", **row} for row in bench(model, sizes)]
    return [{"model": model.name, "round": number, **row} for row in rows]


async def run_parts(target: Target, parts: Sequence[str]) -> list[Row]:
    few = replace(target.sizes, clients=(2,), n_answer=min(8, target.sizes.n_answer))
    await throughput(replace(target, sizes=few))  # warms up
    rows = []
    for part in parts:
        print(f"{target.server.name}: {part}", file=sys.stderr)
        try:
            rows += [{"part": part, **row} for row in await PARTS[part](target)]
        except ServerFailure as error:
            if target.server.name == OURS:
                raise
            print(f"{target.server.name}: {part} is left out: {error}", file=sys.stderr)
    return rows


def vocabulary(model: Path) -> int:
    with GGUFFile.open(model) as file:
        return len(file.metadata["tokenizer.ggml.tokens"])


# Tables


class Figures:
    """The rows of all rounds of one model."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def median(self, name: str, **where: object) -> float | None:
        """Over the rounds; None without any."""
        found = self._by_round(name, where)
        return statistics.median(found.values()) if found else None

    def ratio(self, name: str, where: Row, other_name: str, other: Row) -> float | None:
        """The median of the rounds' ratios."""
        ours, theirs = self._by_round(name, where), self._by_round(other_name, other)
        both = [ours[number] / theirs[number] for number in ours if theirs.get(number)]
        return statistics.median(both) if both else None

    def _by_round(self, name: str, where: Row) -> dict[int, float]:
        return {
            row["round"]: row[name]
            for row in self._rows
            if name in row and all(row.get(key) == value for key, value in where.items())
        }


def throughput_table(figures: Figures, sizes: Sizes) -> str:
    rows = []
    for n in sizes.clients:
        same = {"part": "throughput", "clients": n}
        ours, peer, bare = ({**same, "program": p} for p in (OURS, PEER, BENCH))
        speed, cpu = "tokens_per_second", "cpu_seconds_per_token"
        rows.append(
            [
                str(n),
                *(_cell(figures.median(speed, **p), ".1f") for p in (ours, peer, bare)),
                _cell(figures.ratio(speed, ours, speed, peer), ".2f"),
                _cell(figures.ratio(speed, ours, speed, bare), ".2f"),
                *(_cell(figures.median(cpu, **p), ".3f", 1e3) for p in (ours, peer)),
            ]
        )
    head = ["clients", f"{OURS} tokens/s", PEER, BENCH, f"of {PEER}", f"of {BENCH}", "CPU ms/token", PEER]
    return str(markdown_table(head, rows))


def other_rows(figures: Figures, sizes: Sizes) -> list[list[str]]:
    """Lines of what was measured beside throughput: its name, ours, the peer's."""
    lines: list[tuple[str, str, str, dict[str, str]]] = [
        ("first token, idle", "first-token", "first", {}),
        (f"first token of {sizes.n_long} alone", "long-prompt", "first_alone", {}),
        (f"first token of {sizes.n_long} among {sizes.n_streams} streams", "long-prompt", "first", {}),
        ("time between tokens meanwhile, p50", "long-prompt", "gap_p50", {}),
        ("time between tokens meanwhile, p99", "long-prompt", "gap_p99", {}),
        ("time between tokens meanwhile, longest", "long-prompt", "gap_longest", {}),
        (f"first token, {sizes.n_long} cached + {NEW_TOKENS}", "cached", "first", {}),
        (f"first token at {100 * sizes.load:.0f} % load, p50", "load", "first_p50", {}),
        (f"first token at {100 * sizes.load:.0f} % load, p99", "load", "first_p99", {}),
        ("cancelled while the prompt is read", "cancel", "seconds", {"phase": "prompt"}),
        ("a step then", "cancel", "step_seconds", {"phase": "prompt"}),
        ("cancelled while it streams", "cancel", "seconds", {"phase": "stream"}),
        ("cancelled while it does not stream", "cancel", "seconds", {"phase": "whole"}),
        ("a step then", "cancel", "step_seconds", {"phase": "whole"}),
    ]
    table = []
    for title, part, name, where in lines:
        found = [figures.median(name, part=part, program=p, **where) for p in (OURS, PEER)]
        if any(value is not None for value in found):
            table.append([title, *(_cell(value, ".1f", 1e3, " ms") for value in found)])
    prompt = figures.median("prompt_seconds", program=BENCH, clients=1)
    if prompt is not None:
        table.append([f"{BENCH}: prompt of {sizes.n_prompt}", _cell(prompt, ".1f", 1e3, " ms"), ""])
    for name in ("resident", "weight", "scratch", "kv", "other"):
        found = [figures.median(f"{name}_bytes", part="memory", program=p) for p in (OURS, PEER)]
        if any(value is not None for value in found):
            table.append(
                [f"memory: {name}", *(_cell(value, ".1f", 1 / (1 << 20), " MiB") for value in found)]
            )
    return table


def _cell(value: float | None, form: str, scale: float = 1.0, unit: str = "") -> str:
    return "" if value is None else format(value * scale, form) + unit


def report(rows: Sequence[Row], sizes: Sizes) -> str:
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        figures = Figures([row for row in rows if row["model"] == model])
        lines += [f"{model}: {sizes.n_prompt} tokens in, {sizes.n_answer} out", ""]
        if any(row["part"] == "throughput" and row["program"] != BENCH for row in rows):
            lines += [throughput_table(figures, sizes), ""]
        if others := other_rows(figures, sizes):
            lines += [str(markdown_table(["", OURS, PEER], others)), ""]
    return "\n".join(lines)


# Command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-m", "--model", action="append", required=True)
    parser.add_argument("--peer", help="path of llama-server; further options of it in the same word")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, separated by commas")
    parser.add_argument("--clients", default="1,4,8,16")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--long", type=int, default=4096, help="tokens of a long prompt")
    parser.add_argument("--streams", type=int, default=4, help="streams that a long prompt meets")
    parser.add_argument("--requests", type=int, default=100, help="requests of the part load")
    parser.add_argument("--load", type=float, default=0.7, help="share of the server's rate")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="all rows of all rounds")
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    clients = numbers([given.clients], "--clients", 1)
    sizes = Sizes(
        clients,
        given.prompt,
        given.tokens,
        given.long,
        given.streams,
        given.requests,
        given.load,
        given.threads,
    )
    parts = given.parts.split(",")
    if unknown := {*parts} - {*PARTS}:
        raise OptionError(f"--parts {','.join(sorted(unknown))}: known are {', '.join(PARTS)}")
    rows: list[Row] = []
    for model in map(find_model, given.model):
        for number in range(given.rounds):
            print(f"{model.name}, round {number + 1} of {given.rounds}", file=sys.stderr)
            rows += run_round(model, given.peer, sizes, parts, number)
            if given.json is not None:
                given.json.write_text(json.dumps({"sizes": vars(sizes), "rows": rows}, indent=1))
    print(report(rows, sizes))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (PyllamacpuError, ServerFailure, OSError) as error:
        sys.exit(f"error: {error}")
