"""Tokens behind many others: how fast one is generated, and a prompt read, where a sequence is long already.

    python benchmarks/depth.py --model model.gguf --depth 16384,65536 -ct f16,q8_0,q4_0 -t 2
    python benchmarks/depth.py --model model.gguf --depth 16384 --prompt 512

To read 65536 tokens first would take many minutes, so a few hundred are read and their pages of keys and
values copied until the sequence is that long: each page is memory of its own, as after a real prompt, though
what it says is not what such a text would say. Reading alone is timed between the rounds (its rate moves by
the second), and shares of it are medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyllamacpu.bench.cost import Cost, Step, costs
from pyllamacpu.bench.formats import markdown_table
from pyllamacpu.bench.machine import Limits, measure
from pyllamacpu.bench.runner import RandomTokens
from pyllamacpu.engine.engine import Engine
from pyllamacpu.engine.pages import PAGE, Sequence

READ = 16 * PAGE  # tokens whose pages are copied
COLUMNS = (
    "keys, values",
    "depth",
    "test",
    "ms",
    "tokens/s",
    "GB/s",
    "of limit",
    "attention ms",
    "GB/s",
    "of limit",
)


@dataclass
class Test:
    """`n_tokens` at a time, behind `depth` others whose keys and values are of a type."""

    cache_type: str
    depth: int
    n_tokens: int
    cost: Cost
    attention: Cost


def _share(cost: Cost, seconds: float, limits: Limits) -> float:
    """Of the speed at which nothing but the limits would hold it up."""
    return cost.least_seconds(limits) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument(
        "--depth", default="16384", help="numbers of tokens, with commas (default: %(default)s)"
    )
    parser.add_argument("-ct", "--cache-type", default="f16,q8_0,q4_0", help="default: %(default)s")
    parser.add_argument("--prompt", type=int, default=0, help="also a prompt of so many tokens")
    parser.add_argument(
        "-n", "--n-gen", type=int, default=16, help="tokens of a round (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("-t", "--threads", type=int, help="default: as many as there are cores")
    options = parser.parse_args()
    rows = []
    for cache_type in options.cache_type.split(","):
        for depth in map(int, options.depth.split(",")):
            rows += list(_rows(options, cache_type, depth))
    print(markdown_table(COLUMNS, rows), end="")


def _rows(options: argparse.Namespace, cache_type: str, depth: int) -> Iterator[tuple[str, ...]]:
    room = depth + max(options.prompt, options.n_gen)
    engine = Engine.open(
        options.model, n_ctx=room, n_threads=options.threads, type_k=cache_type, type_v=cache_type
    )
    try:
        sequence = _long_sequence(engine, depth)
        for n_tokens in filter(None, (options.prompt, 1)):
            step = costs(engine, Step(n_tokens, depth, 1))
            test = Test(cache_type, depth, n_tokens, sum(step.values(), Cost()), step["attention"])
            yield _measured(engine, sequence, test, options)
        sequence.close()
    finally:
        engine.close()


def _long_sequence(engine: Engine, depth: int) -> Sequence:
    tokens = RandomTokens(engine.n_vocab, 1).take(0, depth)
    sequence = engine.sequence()
    engine.eval(sequence, tokens[: min(READ, depth)], logits="none")
    for start in range(READ, depth, PAGE):
        sequence.extend_copied(
            tokens[start : start + PAGE], sequence.page_set(start // PAGE % (READ // PAGE))
        )
    return sequence


def _measured(engine: Engine, sequence: Sequence, test: Test, options: argparse.Namespace) -> tuple[str, ...]:
    depth, times = test.depth, options.n_gen if test.n_tokens == 1 else 1
    tokens = RandomTokens(engine.n_vocab, 2).take(0, test.n_tokens * times)
    pieces = [tokens[i * test.n_tokens : (i + 1) * test.n_tokens] for i in range(times)]

    def run() -> None:
        for piece in pieces:
            engine.eval(sequence, piece)

    run()
    sequence.truncate(depth)
    seconds, attention, shares, attention_shares = [], [], [], []
    for _ in range(options.rounds):
        limits = measure(engine.n_threads, 0.4)
        start = time.perf_counter()
        profile = engine.profile(run)
        seconds.append((time.perf_counter() - start) / times)
        sequence.truncate(depth)
        attention.append(profile["attention"] / times)
        shares.append(_share(test.cost, seconds[-1], limits))
        attention_shares.append(_share(test.attention, attention[-1], limits))
    took, of_it = statistics.median(seconds), statistics.median(attention)
    return (
        test.cache_type,
        str(depth),
        "1 token" if test.n_tokens == 1 else f"prompt of {test.n_tokens}",
        f"{1e3 * took:.1f}",
        f"{test.n_tokens / took:.1f}",
        f"{test.cost.read / took / 1e9:.1f}",
        f"{100 * statistics.median(shares):.0f} %",
        f"{1e3 * of_it:.1f}",
        f"{test.attention.read / of_it / 1e9:.1f}",
        f"{100 * statistics.median(attention_shares):.0f} %",
    )


if __name__ == "__main__":
    main()
