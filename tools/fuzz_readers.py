"""Damages the files that this package reads, and the values in them: anything but success or a typed error is
a bug, and so is what takes long or much memory.

    python tools/fuzz_readers.py --iterations 1000 --seed 1
    python tools/fuzz_readers.py --only config,tokenizer_json

Prints each kind of bug once with what shows it, and exits with 1 when there was one. `fuzz_gguf.py` does the
same for the bytes of GGUF files.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from fuzz_targets import TARGETS

from pyllamacpu.errors import PyllamacpuError

SLOW = 3.0  # seconds
LARGE = 300 << 10  # KiB more at its peak than at the beginning of a target

Attempt = Callable[[random.Random], None]


class Findings:
    """What went wrong, each kind of it once: a kind is the place in our code that it comes from."""

    def __init__(self) -> None:
        self.kinds: dict[str, int] = {}

    def add(self, kind: str, details: str) -> None:
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        if self.kinds[kind] == 1:
            print(f"{kind}\n{details}", flush=True)

    def add_error(self, target: str, seed: str) -> None:
        lines = traceback.format_exc().splitlines()
        ours = [line.strip() for line in lines if "/pyllamacpu/" in line]
        details = "\n".join([f"seed {seed}", *lines[-14:]])
        self.add(f"{target}: {lines[-1][:100]} {ours[-1] if ours else ''}", details)


def fuzz(name: str, iterations: int, seed: int, folder: Path, findings: Findings) -> tuple[int, int]:
    """Runs a target; how many inputs were accepted, and how many refused."""
    attempt: Attempt = TARGETS[name](folder)
    accepted = refused = 0
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(iterations):
        label = f"{name}:{seed}:{i}"
        start = time.perf_counter()
        try:
            attempt(random.Random(label))
            accepted += 1
        except PyllamacpuError:
            refused += 1
        except Exception:
            findings.add_error(name, label)
        if (seconds := time.perf_counter() - start) > SLOW:
            findings.add(f"{name}: slow", f"seed {label} took {seconds:.1f} s")
        if (peak := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) > memory + LARGE:
            findings.add(f"{name}: much memory", f"seed {label} took {(peak - memory) >> 10} MB")
            memory = peak
    return accepted, refused


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz all readers.")
    parser.add_argument("--iterations", type=int, default=1000, help="of each reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help=f"some of {','.join(TARGETS)}")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    findings, total = Findings(), 0
    for name in options.only.split(",") if options.only else TARGETS:
        with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
            begin = time.monotonic()
            accepted, refused = fuzz(name, options.iterations, options.seed, Path(folder), findings)
            seconds = time.monotonic() - begin
        total += options.iterations
        print(f"{name}: {accepted} read, {refused} refused, {seconds:.1f} s", flush=True)
    print(f"{total} inputs, {sum(findings.kinds.values())} bugs of {len(findings.kinds)} kinds")
    sys.exit(1 if findings.kinds else 0)


if __name__ == "__main__":
    main()
