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

from pyllamacpu.bench.cost import Cost, costs, steps_of
from pyllamacpu.bench.formats import markdown_table
from pyllamacpu.bench.machine import Limits, measure
from pyllamacpu.bench.runner import RandomTokens
from pyllamacpu.engine.engine import Engine
from pyllamacpu.engine.pages import PAGE, Sequence

READ = 16 * PAGE  # tokens whose pages are copied
_RATES = ("ms", "GB/s", "of limit")
COLUMNS = ("keys, values", "depth", "test", *_RATES, "tokens/s", *(f"attention: {name}" for name in _RATES))


@dataclass
class Test:
    """A prompt of `n_prompt` tokens, or `n_gen` single ones, behind `depth` others."""

    cache_type: str
    depth: int
    n_prompt: int
    n_gen: int

    def costs(self, engine: Engine) -> tuple[Cost, Cost]:
        """Of all that the test runs, and of its attention."""
        whole, attention = Cost(), Cost()
        for step, times in steps_of(self.n_prompt, self.n_gen, self.depth, engine.n_batch):
            found = costs(engine, step)
            whole += sum(found.values(), Cost()) * times
            attention += found["attention"] * times
        return whole, attention


def _share(cost: Cost, seconds: float, limits: Limits) -> float:
    """Of the speed at which nothing but the limits would hold it up."""
    return cost.least_seconds(limits) / seconds


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", type=Path, required=True)
    add("--depth", default="16384", help="numbers of tokens, with commas (default: %(default)s)")
    add("-ct", "--cache-type", default="f16,q8_0,q4_0", help="default: %(default)s")
    add("--prompt", type=int, default=0, help="also a prompt of so many tokens")
    add("-n", "--n-gen", type=int, default=16, help="tokens of a round (default: %(default)s)")
    add("--rounds", type=int, default=5, help="default: %(default)s")
    add("-t", "--threads", type=int, help="default: as many as there are cores")
    options = parser.parse_args(arguments)
    depths = [int(word) for word in options.depth.split(",")]
    if min(depths) < 1:
        parser.error("--depth: numbers above 0")
    rows = [
        row
        for cache_type in options.cache_type.split(",")
        for depth in depths
        for row in _rows(options, cache_type, depth)
    ]
    print(markdown_table(COLUMNS, rows), end="")


def _rows(options: argparse.Namespace, cache_type: str, depth: int) -> Iterator[tuple[str, ...]]:
    room = depth + max(options.prompt, options.n_gen)
    engine = Engine.open(
        options.model, n_ctx=room, n_threads=options.threads, type_k=cache_type, type_v=cache_type
    )
    try:
        sequence = _long_sequence(engine, depth)
        if options.prompt:
            yield _measured(engine, sequence, Test(cache_type, depth, options.prompt, 0), options.rounds)
        yield _measured(engine, sequence, Test(cache_type, depth, 0, options.n_gen), options.rounds)
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


def _measured(engine: Engine, sequence: Sequence, test: Test, rounds: int) -> tuple[str, ...]:
    n = test.n_prompt + test.n_gen
    tokens = RandomTokens(engine.n_vocab, 2).take(0, n)
    pieces = [tokens] if test.n_prompt else [[token] for token in tokens]
    whole, attention = test.costs(engine)

    def run() -> None:
        for piece in pieces:
            engine.eval(sequence, piece)

    run()
    sequence.truncate(test.depth)
    times, attention_times, shares, attention_shares = [], [], [], []
    for _ in range(rounds):
        limits = measure(engine.n_threads, 0.4)
        start = time.perf_counter()
        profile = engine.profile(run)
        times.append(time.perf_counter() - start)
        attention_times.append(profile["attention"])
        sequence.truncate(test.depth)
        shares.append(_share(whole, times[-1], limits))
        attention_shares.append(_share(attention, attention_times[-1], limits))
    return (
        test.cache_type,
        str(test.depth),
        f"prompt of {test.n_prompt}" if test.n_prompt else "1 token",
        *_rate(whole, times, shares, len(pieces)),
        f"{n / statistics.median(times):.1f}",
        *_rate(attention, attention_times, attention_shares, len(pieces)),
    )


def _rate(cost: Cost, times: list[float], shares: list[float], n_pieces: int) -> tuple[str, str, str]:
    """Milliseconds of a piece, GB/s read, and the share of the limit."""
    took = statistics.median(times)
    return (
        f"{1e3 * took / n_pieces:.1f}",
        f"{cost.read / took / 1e9:.1f}",
        f"{100 * statistics.median(shares):.0f} %",
    )


if __name__ == "__main__":
    main()
