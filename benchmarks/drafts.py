"""Answers with drafts beside the same answers without: speed, and whether every bit is the same.

    python benchmarks/drafts.py --model model.gguf --draft lookup
    python benchmarks/drafts.py --model model.gguf --draft smaller.gguf --batch 4
    python benchmarks/drafts.py --model model.gguf --draft lookup --check 200

Kinds of work from copying (code, a text to be repeated, quotes) to prose, greedy and sampled. For each the
two run in turn, with prompts that are read already; printed are the medians of the ratios of wall time and of
the process's CPU time within a round, and how many drafted tokens came true. `--check N` times nothing: it
compares tokens and log-probabilities, bit by bit, of N prompts with a variety of samplers, in batches, and
ends with status 1 when any differ. `--only WORD` runs the kinds of work with this word in their names.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pyllamacpu.api.loading import LoadedModel, LoadOptions, open_model
from pyllamacpu.engine.cost_model import RowCosts
from pyllamacpu.engine.generate import Request
from pyllamacpu.engine.handle import Handle
from pyllamacpu.engine.scheduler import Scheduler
from pyllamacpu.engine.speculation import Speculation
from pyllamacpu.sampling.options import SamplingOptions
from pyllamacpu.text import encode_chat

ROOT = Path(__file__).resolve().parent.parent
CODE = (ROOT / "pyllamacpu/engine/chunks.py").read_text(encoding="utf-8")[:1800]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")[:1600]
QUESTIONS = (
    "What is the capital of France, and what is it known for?",
    "Explain to a child how rain is made.",
    "Name ten animals that live in Africa, one a line.",
    "Write a short poem about the sea.",
    "How do I cook rice? Give the steps as a list.",
    "Why is the sky blue?",
    "Write a Python function that adds up a list of numbers.",
    "Tell me a joke about computers.",
)
WORK = {
    "code, repeated": f"Repeat this program without any change:\n\n```python\n{CODE}\n```",
    "code, edited": f"Rename `budget` to `limit` in this program and write it:\n\n```python\n{CODE}\n```",
    "text, repeated": f"Repeat this text word for word:\n\n{TEXT}",
    "summary, quotes": f"Sum up this text in sentences that are quoted from it:\n\n{TEXT}",
    "numbers": "Count from 1 to 100, one number a line.",
    "story": "Write a long story about a dog that finds a bone on the moon.",
    "explanation": "Explain in many words how a steam engine works.",
    "questions": QUESTIONS[0],
}
GREEDY = SamplingOptions(temperature=0.0)
SAMPLED = SamplingOptions(temperature=0.8, seed=11)
CHECKED = (
    GREEDY,
    SAMPLED,
    SamplingOptions(temperature=1.3, seed=1, top_k=0, top_p=1.0, min_p=0.0),
    SamplingOptions(temperature=0.7, seed=2, repeat_penalty=1.2, frequency_penalty=0.3),
    SamplingOptions(temperature=0.8, seed=3, dry_multiplier=0.8),
    SamplingOptions(temperature=1.0, seed=4, mirostat=2),
    SamplingOptions(temperature=1.0, seed=5, xtc_probability=0.5, xtc_threshold=0.1),
    SamplingOptions(temperature=0.0, repeat_penalty=1.1, presence_penalty=0.5),
)


@dataclass
class Run:
    """Answers, and the time from their first tokens on."""

    tokens: list[list[int]]
    logprobs: list[list[Any]]
    wall: float = 0.0  # seconds
    cpu: float = 0.0
    n_drafted: int = 0
    n_accepted: int = 0

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.tokens))


@dataclass
class Bench:
    """A model with and without drafts, which share its pages."""

    parts: LoadedModel
    plain: Scheduler = field(init=False)
    drafting: Scheduler = field(init=False)

    def __post_init__(self) -> None:
        assert self.parts.engine is not None
        self.plain = Scheduler(self.parts.engine, self.parts.tokenizer)
        self.drafting = Scheduler(
            self.parts.engine, self.parts.tokenizer, prefixes=self.plain.prefixes, drafts=self.parts.drafts
        )

    def prompt(self, text: str) -> list[int]:
        assert self.parts.tokenizer is not None and self.parts.template is not None
        message = {"role": "user", "content": text}
        return encode_chat(self.parts.tokenizer, self.parts.template, [message])


def run(scheduler: Scheduler, requests: Sequence[Request]) -> Run:
    handles = [scheduler.submit(request) for request in requests]
    found = {handle: Run([[]], [[]]) for handle in handles}
    while any(h.state in ("waiting", "reading") for h in handles):
        take(scheduler, found)
    total, wall, cpu = Run([], []), time.perf_counter(), time.process_time()
    while scheduler.has_work:
        take(scheduler, found)
    total.wall, total.cpu = time.perf_counter() - wall, time.process_time() - cpu
    for one in found.values():
        total.tokens += one.tokens
        total.logprobs += one.logprobs
        total.n_drafted += one.n_drafted
        total.n_accepted += one.n_accepted
    return total


def take(scheduler: Scheduler, found: dict[Handle, Run]) -> None:
    for event in scheduler.step():
        if event.error is not None:
            raise event.error
        if event.text is not None:
            one = found[event.handle]
            one.tokens[0] += event.text.tokens
            one.logprobs[0] += event.text.logprobs
            if event.text.stats is not None:
                one.n_drafted, one.n_accepted = event.text.stats.n_drafted, event.text.stats.n_accepted


def compare(bench: Bench, given: argparse.Namespace) -> None:
    print("work             sampling  tokens  tokens/s  drafted  came true  wall  CPU   same bits")
    for name, text in WORK.items():
        if given.only not in name:
            continue
        for label, options in (("greedy", GREEDY), ("t = 0.8", SAMPLED)):
            ids = bench.prompt(text)
            requests = [
                Request(ids, replace(options, seed=options.seed + i), given.tokens, logprobs=1)
                for i in range(given.batch)
            ]
            run(bench.plain, requests[:1])  # the prompt is read
            pairs = [(run(bench.plain, requests), run(bench.drafting, requests)) for _ in range(given.rounds)]
            plain, drafted = pairs[-1]
            same = all((a.tokens, a.logprobs) == (b.tokens, b.logprobs) for a, b in pairs)
            rate = statistics.median(a.n_tokens / a.wall for a, _ in pairs)
            wall, cpu = (
                statistics.median(getattr(a, kind) / getattr(b, kind) for a, b in pairs)
                for kind in ("wall", "cpu")
            )
            print(
                f"{name:15}  {label:8}  {plain.n_tokens:6}  {rate:8.1f}  {drafted.n_drafted:7}  "
                f"{drafted.n_accepted:9}  {wall:4.2f}  {cpu:4.2f}  {'yes' if same else 'NO'}",
                flush=True,
            )


def check(bench: Bench, n: int, n_tokens: int, batch: int) -> bool:
    """Whether the answers to `n` prompts are the same with drafts, where rows count as cheap: many drafts."""
    assert bench.parts.drafts is not None
    bench.drafting._speculation = Speculation(bench.parts.drafts, RowCosts())
    chance, texts = random.Random(5), [*WORK.values(), *QUESTIONS]
    requests = []
    for i in range(n):
        text = texts[i % len(texts)]
        if i >= len(texts):  # another one: words of it are left out
            text = " ".join(word for word in text.split(" ") if chance.random() < 0.8)
        options = replace(CHECKED[i % len(CHECKED)], seed=i)
        requests.append(Request(bench.prompt(text), options, n_tokens, logprobs=3))
    different = n_drafted = n_accepted = 0
    for i in range(0, n, batch):
        group = requests[i : i + batch]
        plain, drafted = run(bench.plain, group), run(bench.drafting, group)
        pairs = zip(plain.tokens, plain.logprobs, drafted.tokens, drafted.logprobs, strict=True)
        different += sum((a, b) != (c, d) for a, b, c, d in pairs)
        n_drafted += drafted.n_drafted
        n_accepted += drafted.n_accepted
    print(f"{n} prompts, batches of {batch}: {different} differ; {n_drafted} drafted, {n_accepted} came true")
    return different == 0


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--draft", default="lookup", help="lookup, or a model file")
    parser.add_argument("--tokens", type=int, default=200, help="of each answer")
    parser.add_argument("--batch", type=int, default=1, help="answers at a time")
    parser.add_argument("--only", default="", metavar="WORD", help="kinds of work by a word of their names")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--check", type=int, metavar="N", help="compare the bits of N prompts")
    given = parser.parse_args(arguments)
    parts = open_model(given.model, LoadOptions(n_ctx=given.context, draft=given.draft))
    bench = Bench(parts)
    try:
        if given.check is None:
            compare(bench, given)
        elif not check(bench, given.check, given.tokens, given.batch):
            raise SystemExit(1)
    finally:
        bench.drafting.end_all()
        bench.plain.close()
        parts.close()


if __name__ == "__main__":
    main()
