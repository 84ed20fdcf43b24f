"""Many sequences at once: their prompts, then a token of each per step. Columns as in llama-batched-bench."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from pyllamacpu.bench.cases import Setup
from pyllamacpu.bench.cost import Cost, Step, total
from pyllamacpu.bench.formats import Column, setting_columns
from pyllamacpu.bench.machine import Limits, measure
from pyllamacpu.bench.runner import Progress, RandomTokens, open_engine
from pyllamacpu.engine.engine import Engine, Entry
from pyllamacpu.engine.pages import Sequence
from pyllamacpu.errors import OptionError
from pyllamacpu.topology import threads_running

TABLE = "llama_batched_bench"


@dataclass(frozen=True)
class BatchedOptions:
    """n_prompt: tokens of each prompt (0: none). n_gen: tokens that each sequence generates."""

    setup: Setup
    n_prompt: tuple[int, ...] = (128,)
    n_gen: tuple[int, ...] = (128,)
    n_sequences: tuple[int, ...] = (1, 2, 4, 8)
    shared: bool = False  # one prompt for all sequences
    repetitions: int = 1
    warmup: bool = True
    limits: bool = True
    limit_seconds: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class BatchedResult:
    """Seconds are medians over the repetitions."""

    setup: Setup
    n_threads: int
    n_kv_max: int
    shared: bool
    pp: int
    tg: int
    pl: int
    t_pp: float
    t_tg: float
    gen_cost: Cost
    limits: Limits | None

    @property
    def n_prompt(self) -> int:
        """Prompt tokens that were computed."""
        return self.pp if self.shared else self.pl * self.pp

    @property
    def n_kv(self) -> int:
        return self.n_prompt + self.pl * self.tg

    def row(self) -> dict[str, Any]:
        """llama-batched-bench's keys, then ours."""
        t = self.t_pp + self.t_tg
        limiting = self.gen_cost.limiting(self.limits) if self.limits and self.tg else None
        rate = self.gen_cost.of(limiting) / self.t_tg if limiting else 0.0
        return {
            "n_kv_max": self.n_kv_max,
            "n_batch": self.setup.n_batch,
            "n_ubatch": self.setup.n_ubatch,
            "is_pp_shared": int(self.shared),
            "n_threads": self.n_threads,
            "type_k": self.setup.type_k,
            "type_v": self.setup.type_v,
            "precision": self.setup.precision,
            "pp": self.pp,
            "tg": self.tg,
            "pl": self.pl,
            "n_kv": self.n_kv,
            "t_pp": self.t_pp,
            "speed_pp": _rate(self.n_prompt, self.t_pp),
            "t_tg": self.t_tg,
            "speed_tg": _rate(self.pl * self.tg, self.t_tg),
            "t": t,
            "speed": _rate(self.n_kv, t),
            "limited_by": limiting or "",
            "limit_rate": rate,
            "limit_share": rate / self.gen_cost.limit(limiting, self.limits)
            if self.limits and limiting
            else None,
        }


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds else 0.0


def run_batched(options: BatchedOptions, progress: Progress | None = None) -> Iterator[BatchedResult]:
    """Results as they come, in llama-batched-bench's order. OptionError for sizes that cannot be run."""
    todo = list(product(options.n_prompt, options.n_gen, options.n_sequences))
    check(options)
    say = progress or (lambda text, done, total: None)
    runs = options.repetitions + int(options.warmup)
    n_ctx = max(pp + tg for pp, tg, _ in todo)
    say(f"loading {options.setup.model.name}", 0, runs * len(todo))
    engine = open_engine(options.setup, n_ctx)
    try:
        limits = measure(engine.n_threads, options.limit_seconds) if options.limits else None
        tokens = RandomTokens(engine.n_vocab, options.seed)
        n_kv_max = max(_result(options, engine, *sizes).n_kv for sizes in todo)
        for i, sizes in enumerate(todo):
            times = []
            for j in range(runs):
                say("pp{} tg{} of {} sequences".format(*sizes), i * runs + j, runs * len(todo))
                times.append(_timed(engine, tokens, *sizes, shared=options.shared))
            times = times[int(options.warmup) :]
            t_pp, t_tg = (statistics.median(values) for values in zip(*times, strict=True))
            yield _result(options, engine, *sizes, t_pp=t_pp, t_tg=t_tg, limits=limits, n_kv_max=n_kv_max)
    finally:
        engine.close()


def check(options: BatchedOptions) -> None:
    """Raises OptionError for sizes that cannot be run."""
    largest = max(options.n_sequences)
    if largest > options.setup.step_tokens:
        raise OptionError(
            f"-npl {largest}: a step takes at most {options.setup.step_tokens} tokens (-b, -ub), and every "
            "sequence has one in it"
        )
    if not any(options.n_prompt) and not any(options.n_gen):
        raise OptionError("there is nothing to measure: give -npp or -ntg a number of tokens")
    if 0 in options.n_gen and 0 in options.n_prompt:
        raise OptionError("-npp 0 with -ntg 0 is not a test; give one of them a number of tokens")


def _result(
    options: BatchedOptions,
    engine: Engine,
    pp: int,
    tg: int,
    pl: int,
    t_pp: float = 0.0,
    t_tg: float = 0.0,
    limits: Limits | None = None,
    n_kv_max: int = 0,
) -> BatchedResult:
    step = Step(1, pp + max(tg - 1, 0) // 2, pl, sequences=pl)
    return BatchedResult(
        options.setup,
        threads_running(engine.n_threads),
        n_kv_max,
        options.shared,
        pp,
        tg,
        pl,
        t_pp,
        t_tg,
        total(engine, step) * tg,
        limits,
    )


def _timed(
    engine: Engine, tokens: RandomTokens, pp: int, tg: int, pl: int, *, shared: bool
) -> tuple[float, float]:
    """Seconds of the prompts, and of the generation."""
    sequences = [engine.sequence() for _ in range(1 if shared else pl)]
    logits = engine.logits_buffer(pl)
    try:
        start = time.perf_counter()
        for entries in prompt_steps(sequences, pp, engine.n_batch, tokens.take):
            engine.step(entries, logits)
        prompts = time.perf_counter()
        if shared:
            sequences += [sequences[0].fork() for _ in range(pl - 1)]
        generated = [tokens.take(pl * pp + i * pl, pl) for i in range(tg)]
        began = time.perf_counter()
        for step in generated:
            engine.step([Entry(s, [token]) for s, token in zip(sequences, step, strict=True)], logits)
        return prompts - start, time.perf_counter() - began
    finally:
        for sequence in sequences:
            sequence.close()


def prompt_steps(
    sequences: list[Sequence], n: int, n_batch: int, take: Callable[[int, int], list[int]]
) -> Iterator[list[Entry]]:
    """Steps of at most `n_batch` tokens in which every sequence gets its own `n` tokens."""
    entries: list[Entry] = []
    room = n_batch
    for i, sequence in enumerate(sequences):
        done = 0
        while done < n:
            part = min(room, n - done)
            wanted = take(i * n + done, part)
            done += part
            room -= part
            entries.append(Entry(sequence, wanted, "last" if done == n else "none"))
            if room == 0:
                yield entries
                entries, room = [], n_batch
    if entries:
        yield entries


def batched_columns(first: BatchedResult) -> list[Column]:
    """llama-batched-bench's columns, settings that are not the usual ones, and how near generation came to
    its limit.
    """
    whole = (("PP", "pp", 5), ("TG", "tg", 5), ("B", "pl", 4), ("N_KV", "n_kv", 6))
    columns = [(title.rjust(width), True, _cell(key, "d")) for title, key, width in whole]
    timed = (("PP", "pp"), ("TG", "tg"))
    for title, key in timed:
        columns.append((f"  T_{title} s", True, _cell(f"t_{key}", ".3f")))
        columns.append((f"S_{title} t/s", True, _cell(f"speed_{key}", ".2f")))
    columns += [("     T s", True, _cell("t", ".3f")), ("   S t/s", True, _cell("speed", ".2f"))]
    columns += setting_columns(first.setup, lambda result: result.setup)
    if first.limits:
        columns.append(("          TG of limit", True, _limit))
    return columns


def _cell(key: str, form: str) -> Callable[[BatchedResult], str]:
    return lambda result: format(result.row()[key], form)


def _limit(result: BatchedResult) -> str:
    row = result.row()
    return f"{100 * row['limit_share']:.1f} % {row['limited_by']}" if row["limit_share"] is not None else ""
