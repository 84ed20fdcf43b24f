"""Greedy text with 8-bit activations (`--precision fast` and `exact`) against the same weights in float32.

    pyllamacpu convert MODEL.gguf MODEL-F32.gguf --outtype f32
    python benchmarks/precision.py MODEL.gguf MODEL-F32.gguf TEXT [--prompts 200] [--tokens 32]

Prompts are pieces of the text. Of each answer that differs it tells by how much the logits of the two tokens
differ where the answers part, in float32: a small gap is a tie that rounding decides.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.engine import Engine, Entry
from pyllamacpu.engine.pages import Sequence
from pyllamacpu.text.load import load_tokenizer

PROMPT = 48  # tokens
BATCH = 20  # prompts at a time


def opened(path: str, precision: str) -> Engine:
    return Engine.open(path, n_ctx=512, type_k="f32", type_v="f32", precision=precision)


def begun(engine: Engine, prompts: list[list[int]]) -> tuple[list[Sequence], npt.NDArray[np.float32]]:
    sequences = [engine.sequence() for _ in prompts]
    rows = [engine.eval(s, prompt)[0].copy() for s, prompt in zip(sequences, prompts, strict=True)]
    return sequences, np.stack(rows)


def answers(engine: Engine, prompts: list[list[int]], n: int) -> list[list[int]]:
    sequences, logits = begun(engine, prompts)
    found: list[list[int]] = [[] for _ in prompts]
    for _ in range(n):
        for row, answer in zip(logits, found, strict=True):
            answer.append(int(row.argmax()))
        entries = [Entry(s, answer[-1:]) for s, answer in zip(sequences, found, strict=True)]
        logits = engine.step(entries)
    return found


def gap(engine: Engine, prompt: list[int], expected: list[int], found: list[int]) -> float | None:
    """By how much the expected token is ahead where the two part; None where they don't."""
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b), None)
    if at is None:
        return None
    row = engine.eval(engine.sequence(), [*prompt, *expected[:at]])[0]
    return float(row[expected[at]] - row[found[at]])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("float_model")
    parser.add_argument("text")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    reference = opened(options.float_model, "fast")
    engines = {name: opened(options.model, name) for name in ("fast", "exact")}
    tokenizer = load_tokenizer(reference.file.metadata)
    assert tokenizer is not None
    ids = tokenizer.encode(Path(options.text).read_text(encoding="utf-8"))
    step = (len(ids) - PROMPT) // options.prompts
    prompts = [ids[i * step : i * step + PROMPT] for i in range(options.prompts)]
    gaps: dict[str, list[float]] = {name: [] for name in engines}
    for first in range(0, len(prompts), BATCH):
        part = prompts[first : first + BATCH]
        expected = answers(reference, part, options.tokens)
        for name, engine in engines.items():
            for prompt, mine, theirs in zip(
                part, answers(engine, part, options.tokens), expected, strict=True
            ):
                if (difference := gap(reference, prompt, theirs, mine)) is not None:
                    gaps[name].append(difference)
    for name, found in gaps.items():
        largest = ", ".join(f"{value:.4f}" for value in sorted(found, reverse=True)[:8])
        print(f"{name}: {len(found)} of {len(prompts)} answers differ; largest gaps {largest or 'none'}")


if __name__ == "__main__":
    main()
