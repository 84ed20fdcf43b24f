"""Speed of a model whose experts stay in its file, beside the speed of the disk that they are read from.

    python benchmarks/expert_memory.py --memory 1GB 4GB                # a Scout-shaped file of 4 layers, 5 GB
    python benchmarks/expert_memory.py --layers 23 --memory 12GB       # 27 GB: larger than many a memory
    python benchmarks/expert_memory.py --model scout.gguf --memory 24GB

For each size of --expert-memory: tokens/s of a prompt and of single tokens, how many of the matrices needed
were in memory, the bytes read for a token, and the share of the disk: bytes read per second over those that
the disk gives with as many reads of 1 MB in flight, at random places of the file, past the system's cache.
Tokens are random, so that routers spread them evenly: real texts find more in memory.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from synthetic import SHAPES, cache_folder, mix_name, write

from pyllamacpu.engine.engine import Engine
from pyllamacpu.errors import OptionError, PyllamacpuError
from pyllamacpu.model.expert_memory import READERS
from pyllamacpu.units import parse_bytes

BLOCK = 1 << 20  # bytes of a read


@dataclass(frozen=True)
class Measured:
    """Of some steps. share: of the disk's rate; waited: of the threads' time; right: of the guesses
    at the next layer's experts.
    """

    tokens_per_second: float
    found: float
    bytes_per_token: float
    share: float
    waited: float
    right: float

    def __str__(self) -> str:
        return (
            f"{self.tokens_per_second:9.2f} tokens/s  {self.found:6.1%} in memory  "
            f"{self.bytes_per_token / 1e6:8.1f} MB read a token  {self.share:6.1%} of the disk  "
            f"{self.waited:6.1%} waiting  {self.right:6.1%} guessed"
        )


def disk_rate(path: Path, in_flight: int = READERS, seconds: float = 2.0) -> float:
    """Bytes per second. Raises OSError where the file system has no reads past its cache."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    n_blocks = os.fstat(file).st_size // BLOCK
    read, end = [0] * in_flight, time.monotonic() + seconds

    def work(i: int) -> None:
        buffer, places = mmap.mmap(-1, BLOCK), random.Random(i)
        while time.monotonic() < end:
            read[i] += os.preadv(file, [buffer], places.randrange(n_blocks) * BLOCK)

    started = time.monotonic()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(in_flight)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(file)
    return sum(read) / (time.monotonic() - started)


def measure(engine: Engine, path: Path, steps: Sequence[Sequence[int]]) -> Measured:
    """Steps of one sequence, after a first one that is not timed, between two measurements of the disk."""
    memory = engine.expert_memory
    assert memory is not None
    sequence = engine.sequence()
    engine.eval(sequence, steps[0])
    rate, before = disk_rate(path), memory.counts()
    started = time.perf_counter()
    for tokens in steps[1:]:
        engine.eval(sequence, tokens)
    took, now = time.perf_counter() - started, memory.counts()
    sequence.close()
    rate = (rate + disk_rate(path)) / 2
    n_tokens = sum(map(len, steps[1:]))
    n_bytes = now.bytes_read - before.bytes_read
    return Measured(
        n_tokens / took,
        (now.found - before.found) / (now.needed - before.needed),
        n_bytes / n_tokens,
        n_bytes / took / rate,
        (now.waited - before.waited) / (took * engine.n_threads),
        now.right,
    )


def model_file(given: argparse.Namespace) -> Path:
    """The model given, or a Scout-shaped one that is made when it is not there yet."""
    if given.model is not None:
        return Path(given.model)
    mix = mix_name(given.type)
    path = (given.folder or cache_folder()) / f"synthetic-SCOUT-{given.layers}-layers-{mix}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, replace(SHAPES["SCOUT4"], n_layers=given.layers), mix)
    return path


def report(given: argparse.Namespace) -> None:
    path = model_file(given)
    print(f"{path.name}: {path.stat().st_size / 1e9:.1f} GB; the disk by reads of 1 MB in flight:")
    for n in (1, 4, READERS, 2 * READERS):
        print(f"  {n:3} {disk_rate(path, n) / 1e6:8.0f} MB/s", flush=True)
    tokens = np.random.default_rng(0).integers(1, 1000, 4 * given.prompt + given.tokens + 1).tolist()
    for size in given.memory:
        engine = Engine.open(
            path, n_ctx=4096, n_batch=given.prompt, n_threads=given.threads, expert_memory=parse_bytes(size)
        )
        print(f"--expert-memory {size}: {engine.weight_bytes / 1e9:.2f} GB of weights in memory", flush=True)
        prompts = [tokens[i * given.prompt : (i + 1) * given.prompt] for i in range(1 + given.prompts)]
        print(f"  prompt of {given.prompt:4} {measure(engine, path, prompts)}", flush=True)
        single = [[token] for token in tokens[-given.tokens - 1 :]]
        print(f"  single tokens  {measure(engine, path, single)}", flush=True)
        engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a Llama 4 with experts; else a synthetic one")
    parser.add_argument("--layers", type=int, default=4, help="of the synthetic one")
    parser.add_argument("--type", default="Q4_K_M", help="of the synthetic one")
    parser.add_argument("--folder", type=Path, help="of the synthetic one; else the cache folder")
    parser.add_argument("--memory", nargs="+", default=["1GB"], help="values of --expert-memory")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt, read in one step")
    parser.add_argument("--prompts", type=int, default=1, choices=(1, 2, 3))
    parser.add_argument("--tokens", type=int, default=16, help="single tokens")
    parser.add_argument("--threads", type=int)
    try:
        report(parser.parse_args())
    except (OptionError, PyllamacpuError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
