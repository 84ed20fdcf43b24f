"""Greedy text with 8-bit activations (`--precision fast` and `exact`) against the same weights in float32.

    pyllamacpu convert MODEL.gguf -o MODEL-F32.gguf --outtype f32
    python benchmarks/precision.py MODEL.gguf MODEL-F32.gguf [--prompts 200] [--tokens 64] [--modes exact]

A mode is a precision, and behind a colon the type of keys and values if it is not the usual one (exact:f16).
The reference computes in float32 and keeps f32 keys and values. Prompts are of eight kinds: pieces of a
story, a manual, Python, C and a change log, questions in a chat's format, sums and lists to go on with,
sentences to translate. Where an answer leaves the reference's, the gap counts: by how much the reference's
logit of its own token is above that of the other. Below 1e-3 it is a tie, which rounding may decide; the exit
code is 1 if `exact` differs anywhere else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.engine import Engine, Entry
from pyllamacpu.engine.pages import Sequence
from pyllamacpu.engine.precision import kv_types_of
from pyllamacpu.text.load import load_tokenizer

ROOT = Path(__file__).parent.parent
TIE = 1e-3  # of logits
PIECE = 200  # characters of a prompt that is part of a text, about
BATCH = 20  # prompts at a time
TOPICS = ("rivers", "volcanoes", "violins", "bees", "bridges", "the moon", "bread", "glass", "chess", "maps")
ASKED = (
    "Explain {} to a child in two sentences.",
    "Write a short poem about {}.",
    "What are three common mistakes of people who write about {}?",
    "Give a list of five facts on {}, numbered.",
    "Who should not care about {}, and why?",
)
SENTENCES = (
    "The train to {} leaves at nine, and I have lost my ticket.",
    "My sister has bought a small house near {}.",
    "Is the road to {} still closed because of the snow?",
)
PLACES = ("Lyon", "Porto", "Graz", "Leeds", "Turin", "Gdansk")
LANGUAGES = ("French", "German", "Spanish")


def pieces(folder: str, pattern: str) -> Iterator[str]:
    """Of texts of the repository, each from the beginning of a line to the middle of another."""
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / folder).glob(pattern))]
    text = "\n".join(texts)
    step = max(PIECE, len(text) // 64)
    for at in range(0, len(text) - 2 * PIECE, step):
        start = text.find("\n", at) + 1 if at else 0
        yield text[start : start + PIECE]


def sums_and_lists() -> Iterator[str]:
    for i in range(64):
        a, b = 17 + 23 * i, 5 + 9 * i
        yield (
            f"{a} + {b} = {a + b}\n{a + 1} + {b} = ",
            f"{b}, {2 * b}, {3 * b}, {4 * b},",
            f'{{"id": {a}, "name": "{TOPICS[i % 10]}", "tags": [',
            f"| year | {TOPICS[i % 10]} |\n|---|---|\n| {1900 + i} | {a} |\n|",
        )[i % 4]


def translations() -> Iterator[str]:
    for sentence, place, language in product(SENTENCES, PLACES, LANGUAGES):
        yield f"English: {sentence.format(place)}\n{language}:"


def chats() -> Iterator[str]:
    """In ChatML, the starter model's format; to another model it is a text like any other."""
    for asked, topic in product(ASKED, TOPICS):
        yield f"<|im_start|>user\n{asked.format(topic)}<|im_end|>\n<|im_start|>assistant\n"


KINDS: tuple[tuple[str, Callable[[], Iterator[str]]], ...] = (
    ("story", lambda: pieces("tests/fixtures/smollm2", "text.txt")),
    ("manual", lambda: pieces(".", "README.md")),
    ("Python", lambda: pieces("pyllamacpu/engine", "*.py")),
    ("C", lambda: pieces("csrc/exec", "*.c")),
    ("change log", lambda: pieces(".", "CHANGELOG.md")),
    ("chat", chats),
    ("sums, lists", sums_and_lists),
    ("translation", translations),
)


def prompts_of_kinds(n: int) -> list[tuple[str, str]]:
    """(kind, text), all different, as many of each kind as there can be."""
    found: dict[str, str] = {}
    for row in zip(*(islice(texts(), n) for _, texts in KINDS), strict=False):
        for (kind, _), text in zip(KINDS, row, strict=True):
            found.setdefault(text, kind)
    if len(found) < n:
        raise SystemExit(f"there are {len(found)} different prompts; ask for no more with --prompts")
    return [(kind, text) for text, kind in islice(found.items(), n)]


def opened(path: str, mode: str) -> Engine:
    precision, _, kv_type = mode.partition(":")
    type_k, type_v = kv_types_of(precision, kv_type, kv_type)
    return Engine.open(path, n_ctx=512, precision=precision, type_k=type_k, type_v=type_v)


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


@dataclass(frozen=True)
class Difference:
    kind: str
    at: int  # token of the answer
    gap: float  # logits


def difference(
    engine: Engine, kind: str, prompt: list[int], expected: list[int], found: list[int]
) -> Difference | None:
    at = next((i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b), None)
    if at is None:
        return None
    row = engine.eval(engine.sequence(), [*prompt, *expected[:at]])[0]
    return Difference(kind, at, float(row[expected[at]] - row[found[at]]))


def report(mode: str, found: list[Difference], n: int) -> bool:
    """Whether all differences are ties."""
    wide = [one for one in found if one.gap >= TIE]
    print(f"{mode}: {len(found)} of {n} answers differ, {len(wide)} where the gap is {TIE:g} or more")
    for one in sorted(found, key=lambda one: -one.gap)[:8]:
        print(f"    {one.gap:.6f} at token {one.at} ({one.kind})")
    return not wide


def measured(options: argparse.Namespace) -> bool:
    """Whether the answers of `exact` differ at ties only."""
    reference = opened(options.float_model, "fast:f32")
    engines = {mode: opened(options.model, mode) for mode in options.modes.split(",")}
    tokenizer = load_tokenizer(reference.file.metadata)
    assert tokenizer is not None
    prompts = [
        (kind, tokenizer.encode(text, parse_special=True)) for kind, text in prompts_of_kinds(options.prompts)
    ]
    found: dict[str, list[Difference]] = {mode: [] for mode in engines}
    for first in range(0, len(prompts), BATCH):
        part = prompts[first : first + BATCH]
        ids = [prompt for _, prompt in part]
        expected = answers(reference, ids, options.tokens)
        for mode, engine in engines.items():
            ours = answers(engine, ids, options.tokens)
            for (kind, prompt), theirs, mine in zip(part, expected, ours, strict=True):
                if (one := difference(reference, kind, prompt, theirs, mine)) is not None:
                    found[mode].append(one)
        print(f"{first + len(part)} of {len(prompts)} prompts", file=sys.stderr, flush=True)
    same = {mode: report(mode, differences, len(prompts)) for mode, differences in found.items()}
    return same.get("exact", True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("float_model")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--modes", default="fast,exact", metavar="PRECISION[:TYPE],…")
    return 0 if measured(parser.parse_args()) else 1


if __name__ == "__main__":
    sys.exit(main())
