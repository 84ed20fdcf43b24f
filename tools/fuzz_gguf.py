"""Changes random bytes of small GGUF files and opens them: anything but success or GGUFError is a bug.

    python tools/fuzz_gguf.py --iterations 20000 --seed 1

Prints each bug with the bytes that show it (as a file beside the report) and exits with 1 when there was one.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from fuzz_mutations import mutate_bytes
from gguf_build import small_file

from pyllamacpu.errors import ModelError, PyllamacpuError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.strings import StringArray
from pyllamacpu.model.config import ModelConfig

SLOW = 2.0  # seconds


def read_all(path: Path) -> None:
    """Opens a file and reads everything that is in it."""
    with GGUFFile.open(path) as file:
        for key in file.metadata:
            value = file.metadata[key]
            if isinstance(value, StringArray):
                value.str_list()
                value.bytes_list()
        for name, info in file.tensors.items():
            assert file.data(name).nbytes == info.n_bytes
        with suppress(ModelError):
            ModelConfig.from_metadata(file.metadata, file.tensors)


def seeds() -> list[bytes]:
    """Small files of all versions and byte orders, with a Llama's keys in them."""
    files = []
    for version in (1, 2, 3):
        for big in (False, True):
            build = small_file(version, big)
            for key, value in {
                "block_count": 2, "embedding_length": 64, "attention.head_count": 4, "context_length": 128,
                "feed_forward_length": 96, "vocab_size": 5,
            }.items():  # fmt: skip
                build.add(f"llama.{key}", 4, build.pack("I", value))
            build.add("llama.attention.layer_norm_rms_epsilon", 6, build.pack("f", 1e-5))
            build.add_numbers("llama.attention.head_count_kv", 5, "i", [2, 4])
            files.append(build.bytes())
    return files


def fuzz(iterations: int, seed: int, directory: Path) -> int:
    """Returns the number of bugs found; the files that show them stay in `directory`."""
    rng, originals, bugs = random.Random(seed), seeds(), 0
    path = directory / "fuzz.gguf"
    opened = 0
    for i in range(iterations):
        path.write_bytes(mutate_bytes(rng.choice(originals), rng))
        start = time.perf_counter()
        try:
            read_all(path)
            opened += 1
        except PyllamacpuError:
            pass
        except Exception:
            bugs += 1
            kept = path.rename(directory / f"bug-{seed}-{i}.gguf")
            print(f"{kept}:\n{traceback.format_exc()}")
        if (seconds := time.perf_counter() - start) > SLOW:
            bugs += 1
            print(f"iteration {i} of seed {seed} took {seconds:.1f} s")
    print(f"{iterations} files: {opened} opened, {iterations - opened - bugs} refused, {bugs} bugs")
    return bugs


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz the GGUF reader.")
    parser.add_argument("--iterations", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, help="where files that show a bug are kept")
    options = parser.parse_args()
    directory = options.directory or Path(tempfile.mkdtemp(prefix="fuzz_gguf_"))
    sys.exit(1 if fuzz(options.iterations, options.seed, directory) else 0)


if __name__ == "__main__":
    main()
