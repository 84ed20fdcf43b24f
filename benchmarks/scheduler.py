"""The scheduler against bare steps of the same shape: what requests, sampling and events cost.

    python benchmarks/scheduler.py --model model.gguf --sequences 1,4,8,16

For each number of sequences the two run in turn: `engine.step` over that many sequences with given tokens, as
`pyllamacpu bench --batched` does, and a scheduler with that many requests. Printed are the medians of tokens
per second while all of them decode, and their ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from pyllamacpu.engine.batch import Entry
from pyllamacpu.engine.engine import Engine
from pyllamacpu.engine.generate import Request
from pyllamacpu.engine.scheduler import Scheduler
from pyllamacpu.sampling.options import SamplingOptions

ROOM = 512
"""Tokens that the first requests may make while the last prompts are read."""


def prompts(engine: Engine, n: int, length: int) -> list[list[int]]:
    return np.random.default_rng(n).integers(0, engine.n_vocab, (n, length)).tolist()


def bare(engine: Engine, n: int, n_prompt: int, n_gen: int) -> float:
    """Seconds of `n_gen` steps over `n` sequences."""
    sequences = [engine.sequence() for _ in range(n)]
    for sequence, prompt in zip(sequences, prompts(engine, n, n_prompt), strict=True):
        engine.eval(sequence, prompt)
    tokens = prompts(engine, n, n_gen)
    buffer = engine.logits_buffer(n)
    start = time.perf_counter()
    for i in range(n_gen):
        engine.step([Entry(s, [row[i]]) for s, row in zip(sequences, tokens, strict=True)], buffer)
    seconds = time.perf_counter() - start
    for sequence in sequences:
        sequence.close()
    return seconds


def scheduled(engine: Engine, n: int, n_prompt: int, n_gen: int, options: SamplingOptions) -> float:
    """Seconds in which a scheduler makes `n_gen` tokens for each of `n` requests, once all of them decode."""
    scheduler = Scheduler(engine, None)
    requests = [Request(p, options, None) for p in prompts(engine, n, n_prompt)]
    handles = [scheduler.submit(request) for request in requests]
    while any(h.state != "decoding" for h in handles):
        scheduler.step()
    before = sum(len(h.history) for h in handles)
    start = time.perf_counter()
    for _ in range(n_gen):
        scheduler.step()
    seconds = time.perf_counter() - start
    made = sum(len(h.history) for h in handles) - before
    scheduler.close()
    return seconds * n * n_gen / made


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--sequences", default="1,4,8,16", help="numbers, separated by commas")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens to generate for each")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--temperature", type=float, default=0.0)
    given = parser.parse_args(arguments)
    engine = Engine.open(given.model, n_ctx=given.prompt + ROOM + given.tokens)
    options = SamplingOptions(temperature=given.temperature)
    print("sequences  bare tokens/s  scheduler tokens/s  ratio")
    for n in map(int, given.sequences.split(",")):
        pairs = []
        for _ in range(given.rounds):
            one = bare(engine, n, given.prompt, given.tokens)
            pairs.append((one, scheduled(engine, n, given.prompt, given.tokens, options)))
        total = n * given.tokens
        rates = [statistics.median(total / p[i] for p in pairs) for i in (0, 1)]
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{n:9}  {rates[0]:13.1f}  {rates[1]:18.1f}  {ratio:5.3f}")
    engine.close()


if __name__ == "__main__":
    main()
