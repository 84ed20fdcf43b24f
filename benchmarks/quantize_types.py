"""Every mix of types: size, time, perplexity and KL divergence, beside llama-quantize's file of that name.

    python benchmarks/quantize_types.py model-f16.gguf text.txt --peer llama-quantize --imatrix imatrix.gguf

Both programs write their file with all threads, in turn; both files are then measured by this package,
against the model they were made from. Without --imatrix the types that need one are left out. The text should
be one that the importance matrix was not made from.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyllamacpu.bench.formats import markdown_table
from pyllamacpu.evaluate import Divergence, Recorded, record
from pyllamacpu.gguf import GGUFFile
from pyllamacpu.quantize.calibrate import text_windows
from pyllamacpu.quantize.target import check, open_engine

MIXES = [
    *("F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0"),
    *("IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K"),
    *("Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"),
]
NEED_IMPORTANCE = {"IQ3_XXS", "IQ3_XS", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"}


@dataclass(frozen=True)
class Made:
    """One program's file: bytes, seconds to write it, and how far it is from the model it was made from."""

    n_bytes: int
    seconds: float
    found: Divergence


def make(command: list[str], out: Path, base: Recorded) -> Made:
    started = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"error: {' '.join(command)}: {done.stderr.strip()[-500:]}")
    return Made(out.stat().st_size, seconds, check(out, base))


def commands(given: argparse.Namespace, mix: str, out: Path) -> Iterator[list[str]]:
    """Ours, then the peer's."""
    options = ["--imatrix", str(given.imatrix)] if given.imatrix else []
    yield [sys.executable, "-m", "pyllamacpu", "quantize", *options, str(given.model), str(out), mix]
    if given.peer:
        yield [str(given.peer), *options, str(given.model), str(out), mix]


def row(mix: str, made: list[Made]) -> list[str]:
    cells = [mix, f"{made[0].n_bytes / 1e6:.1f}"]
    cells.append(" / ".join(f"{m.seconds:.1f}" for m in made))
    cells.append(" / ".join(f"{m.found.ppl.value:.2f}" for m in made))
    cells.append(" / ".join(f"{m.found.mean_kld.value:.4f} ± {m.found.mean_kld.error:.4f}" for m in made))
    cells.append(" / ".join(f"{100 * m.found.same_top_share.value:.1f}" for m in made))
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--peer", type=Path, help="llama-quantize")
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--types", default=",".join(MIXES), help="names, separated by commas")
    given = parser.parse_args()
    with GGUFFile.open(given.model) as file:
        engine = open_engine(file)
        base = record(engine, text_windows(file.metadata, given.text, 4096))
        engine.close()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "quantized.gguf"
        for mix in given.types.split(","):
            if mix in NEED_IMPORTANCE and not given.imatrix:
                continue
            rows.append(row(mix, [make(command, out, base) for command in commands(given, mix, out)]))
            print("  ".join(rows[-1]), flush=True)
    print(markdown_table(["type", "MB", "seconds", "PPL", "mean KLD", "same top, %"], rows, left=1))


if __name__ == "__main__":
    main()
