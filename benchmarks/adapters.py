"""What LoRA adapters cost: the same model with and without one, in turn, in one process.

    python benchmarks/adapters.py --model model.gguf --rank 16

The adapter has random A and B for every linear weight of the layers. Three ways run in turn: a model without
adapters, one with the adapter loaded and used by no sequence, and one whose sequences use it. Printed are the
best tokens/s of prompts and of single tokens (other programs only ever slow them), and what the adapter
costs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from pyllamacpu.engine.engine import Engine
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.gguf.writer import GGUFWriter
from pyllamacpu.model.weights import Matrix


def write_adapter(path: Path, engine: Engine, rank: int, kind: str) -> None:
    """A and B for the layers' linear weights, B so small that activations stay sane."""
    rng = np.random.default_rng(0)
    form = np.float32 if kind == "f32" else np.float16
    with GGUFWriter(path, engine.config.arch) as writer:
        for key, text in (("general.type", "adapter"), ("adapter.type", "lora")):
            writer.add(key, text)
        writer.add("adapter.lora.alpha", float(rank), ValueType.FLOAT32)
        for name, weight in engine.model.weights.items():
            if isinstance(weight, Matrix) and name.startswith("blk."):
                a = rng.standard_normal((rank, weight.cols)) / weight.cols**0.5
                b = rng.standard_normal((weight.rows, rank)) * 1e-3
                writer.add_array(f"{name}.lora_a", a.astype(form))
                writer.add_array(f"{name}.lora_b", b.astype(form))


class Way:
    """An engine with a sequence: seconds of a prompt, and of single tokens behind it."""

    def __init__(
        self, path: Path, n_prompt: int, n_gen: int, n_threads: int, adapter: Path | None, scale: float
    ) -> None:
        self.engine = Engine.open(path, n_ctx=n_prompt + n_gen, n_batch=n_prompt, n_threads=n_threads)
        self.n_gen, self.times, self.clock = n_gen, ([], []), time.perf_counter
        if adapter is not None:
            self.engine.load_adapters([(adapter, scale)])
        rng = np.random.default_rng(1)
        self.prompt = rng.integers(0, self.engine.n_vocab, n_prompt).tolist()

    def run(self) -> None:
        sequence = self.engine.sequence()
        start = self.clock()
        self.engine.eval(sequence, self.prompt)
        middle = self.clock()
        steps = []
        for token in self.prompt[: self.n_gen]:
            begin = self.clock()
            self.engine.eval(sequence, [token])
            steps.append(self.clock() - begin)
        self.times[0].append(middle - start)
        self.times[1].append(min(steps))
        sequence.close()

    def best(self) -> tuple[float, float]:
        """Seconds of a prompt, and of a token."""
        return min(self.times[0]), min(self.times[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--type", choices=("f16", "f32"), default="f16", help="of A and B")
    parser.add_argument("--n-prompt", type=int, default=512)
    parser.add_argument("--n-gen", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cpu-time", action="store_true", help="of one thread: for a machine that is busy")
    given = parser.parse_args()
    given.threads = 1 if given.cpu_time else given.threads
    sizes = given.n_prompt, given.n_gen, given.threads
    with tempfile.TemporaryDirectory() as folder:
        adapter = Path(folder) / "adapter.gguf"
        plain = Way(given.model, *sizes, None, 0.0)
        write_adapter(adapter, plain.engine, given.rank, given.type)
        ways = {
            "without": plain,
            "loaded, not used": Way(given.model, *sizes, adapter, 0.0),
            "used": Way(given.model, *sizes, adapter, 1.0),
        }
        for way in ways.values() if given.cpu_time else ():
            way.clock = time.process_time
        for i in range(given.rounds + 1):
            for way in ways.values():
                way.run()
                if i == 0:  # pages and caches are warm now
                    way.times = ([], [])
        base = plain.best()
        for name, way in ways.items():
            prompt, token = way.best()
            shares = [
                f"{seconds / own - 1:+6.1%} time" for seconds, own in zip((prompt, token), base, strict=True)
            ]
            print(
                f"{name:17} prompt {given.n_prompt / prompt:8.1f} tokens/s ({shares[0]}), "
                f"decoding {1 / token:7.2f} tokens/s ({shares[1]})"
            )


if __name__ == "__main__":
    main()
