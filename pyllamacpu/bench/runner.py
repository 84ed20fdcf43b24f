"""Running tests: tokens per second of prompts and of generation, on engines loaded once per setup."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from itertools import groupby
from typing import Any

import numpy as np

from pyllamacpu.bench.cases import BenchOptions, Case, Setup, cases
from pyllamacpu.bench.cost import Cost, costs, steps_of, test_cost
from pyllamacpu.bench.machine import Limits, measure
from pyllamacpu.bench.models import model_facts
from pyllamacpu.bench.result import OpTime, Result
from pyllamacpu.bench.system import cpu_name, peak_memory, reset_peak_memory
from pyllamacpu.engine.engine import Engine
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.native import isa_selected
from pyllamacpu.topology import threads_running, threads_usable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the runs done, and the runs in all."""


def run(options: BenchOptions, progress: Progress | None = None) -> Iterator[Result]:
    """Results as they come. Raises what opening and running a model can raise; OptionError for no test."""
    todo = cases(options)
    watch = _Watch(progress, len(todo) * (options.repetitions + int(options.warmup)))
    limits: dict[int, Limits] = {}
    for setup, group in groupby(todo, key=lambda case: case.setup):
        threads = setup.n_threads or threads_usable()
        if options.limits and threads not in limits:
            watch.say("measuring the machine")
            limits[threads] = measure(threads, options.limit_seconds)
        watch.say(f"loading {setup.model.name}")
        own = list(group)
        bench = _Bench(options, setup, max(case.n_ctx for case in own), limits.get(threads))
        try:
            for case in own:
                yield bench.result(case, watch)
        finally:
            bench.close()
            del bench  # before the next model is loaded


class _Watch:
    """Counts runs for whoever shows progress."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self._text = ""

    def say(self, text: str) -> None:
        self._text = text
        self._show()

    def advance(self) -> None:
        self._done += 1
        self._show()

    def _show(self) -> None:
        if self._progress:
            self._progress(self._text, self._done, self._total)


class RandomTokens:
    """Token ids that are the same for the same seed, of one long stream."""

    def __init__(self, n_vocab: int, seed: int) -> None:
        self._n_vocab = n_vocab
        self._random = np.random.default_rng(seed)
        self._known: list[int] = []

    def take(self, start: int, n: int) -> list[int]:
        """Tokens [start, start + n) of the stream."""
        missing = start + n - len(self._known)
        if missing > 0:
            self._known += self._random.integers(0, self._n_vocab, missing).tolist()
        return self._known[start : start + n]


class _Bench:
    """An engine, and the sequence whose first tokens stand at the depth of the test."""

    def __init__(self, options: BenchOptions, setup: Setup, n_ctx: int, limits: Limits | None) -> None:
        self.options = options
        self.limits = limits
        reset_peak_memory()
        start = time.perf_counter_ns()
        self.engine = open_engine(setup, n_ctx)
        self.load_ns = time.perf_counter_ns() - start
        self.model = model_facts(self.engine.file)
        self.tokens = RandomTokens(self.engine.n_vocab, options.seed)
        self.sequence = self.engine.sequence()

    def close(self) -> None:
        self.sequence.close()
        self.engine.close()

    def result(self, case: Case, watch: _Watch) -> Result:
        options, engine = self.options, self.engine
        time.sleep(options.delay)
        watch.say(f"{case.name} ({engine.file.paths[0].name})")
        self._fill(case.n_depth)
        if options.warmup:
            self._timed(case.n_prompt, min(case.n_gen, 1))
            watch.advance()
        began = datetime.now(timezone.utc)
        samples = []
        for _ in range(options.repetitions):
            samples.append(self._timed(case.n_prompt, case.n_gen))
            watch.advance()
        return Result(
            case=case,
            model=self.model,
            cpu=cpu_name(),
            isa=isa_selected(),
            n_threads=threads_running(engine.n_threads),
            samples_ns=tuple(samples),
            test_time=began.strftime("%Y-%m-%dT%H:%M:%SZ"),
            load_ns=self.load_ns,
            peak_memory=peak_memory(),
            weight_bytes=engine.weight_bytes,
            scratch_bytes=engine.scratch_bytes,
            cost=test_cost(engine, case.n_prompt, case.n_gen, case.n_depth),
            limits=self.limits,
            profile=self._profile(case) if options.profile else (),
        )

    def _fill(self, depth: int) -> None:
        """Makes the sequence `depth` tokens long. What is there stays: it would be the same bits."""
        self.sequence.truncate(self.sequence.reusable(depth))
        missing = depth - len(self.sequence)
        if missing:
            self.engine.eval(self.sequence, self.tokens.take(depth - missing, missing), logits="none")

    def _timed(self, n_prompt: int, n_gen: int) -> int:
        """Nanoseconds of one run; the sequence is as before afterwards."""
        depth, engine, sequence = len(self.sequence), self.engine, self.sequence
        prompt = self.tokens.take(depth, n_prompt)
        generated = [[token] for token in self.tokens.take(depth + n_prompt, n_gen)]
        start = time.perf_counter_ns()
        if prompt:
            engine.eval(sequence, prompt)
        for token in generated:
            engine.eval(sequence, token)
        took = time.perf_counter_ns() - start
        self._fill(depth)
        return took

    def _profile(self, case: Case) -> tuple[OpTime, ...]:
        """Median seconds of each op: a thread that the system puts aside distorts single runs."""
        engine = self.engine
        runs = [
            engine.profile(lambda: self._timed(case.n_prompt, case.n_gen))
            for _ in range(self.options.repetitions)
        ]
        total: dict[str, Cost] = {}
        for step, times in steps_of(case.n_prompt, case.n_gen, case.n_depth, engine.n_batch):
            for name, cost in costs(engine, step).items():
                total[name] = total.get(name, Cost()) + cost * times
        return tuple(
            OpTime(name, statistics.median(run[name] for run in runs), cost) for name, cost in total.items()
        )


def open_engine(setup: Setup, n_ctx: int) -> Engine:
    """The engine of a setup with room for `n_ctx` tokens."""
    options: dict[str, Any] = {"n_ctx": n_ctx, "n_batch": min(setup.step_tokens, 1 << 16)}
    options |= {"n_threads": setup.n_threads or None, "type_k": setup.type_k, "type_v": setup.type_v}
    options["expert_memory"] = setup.expert_memory
    options |= {"precision": setup.precision, "pack_cache": setup.pack_cache}
    file = GGUFFile.open(setup.model, dict(setup.kv_overrides))
    try:
        engine = Engine(file, **options)
        engine.load_adapters(setup.adapters)
        return engine
    except BaseException:
        file.close()
        raise
