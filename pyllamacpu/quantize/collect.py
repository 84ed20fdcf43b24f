"""Collecting an importance matrix: the squares of every weight's input, added up while a text is read.

The windows are those of perplexity, and every token of them counts, as in llama-imatrix. The engine adds up
in float64 and in the order of the tokens (csrc/exec/ops_matmul.c), so neither threads nor the length of the
text change or blur the sums.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyllamacpu.engine.engine import Engine, Entry
from pyllamacpu.errors import ModelError, OptionError
from pyllamacpu.evaluate.rows import Doubles, Floats, log_probabilities, log_sums
from pyllamacpu.evaluate.statistics import Estimate, mean
from pyllamacpu.evaluate.windows import Steps, Windows, check_context
from pyllamacpu.graph.passes import InputSquares
from pyllamacpu.quantize.imatrix import Imatrix, ImatrixEntry

OnWindow = Callable[[int, int, float | None], None]
"""Called with the windows done, the windows in all, and the perplexity so far if it is measured."""


@dataclass(frozen=True)
class Collected:
    """What a text taught about a model. nll: as Perplexity has it; None if it was not measured."""

    imatrix: Imatrix
    nll: Estimate | None


class Collector:
    """An engine made to collect, and what it has collected so far.

    process_output: also for the output matrix. Tied weights go by the name that their tensor has in the file.
    """

    def __init__(self, path: str | os.PathLike[str], *, process_output: bool = False, **options: Any) -> None:
        """`options` are the engine's. Raises what opening a model raises."""
        self._sums: InputSquares = {}
        self.engine = Engine.open(path, input_squares=self._sums, **options)
        output = self.engine.plan.logits_matrix
        skipped = None if process_output or output is None else output.name
        self.names = [name for name in self._sums if name != skipped]
        self.n_tokens = 0
        self.n_windows = 0

    def close(self) -> None:
        self.engine.close()

    def imatrix(self, chunk_size: int, datasets: Sequence[str] = ()) -> Imatrix:
        """A copy of what has been collected. Raises ModelError for sums that are not numbers."""
        entries = {}
        for name in self.names:
            squares = self._sums[name]
            if not np.isfinite(squares.sums).all():
                raise ModelError(f"{name}: its input holds NaN or infinite values; the weights are damaged")
            counts = np.array([self.n_tokens]) if squares.counts is None else squares.counts
            entries[name] = ImatrixEntry(squares.sums.copy(), counts.astype(np.int64))
        return Imatrix(entries, tuple(datasets), self.n_windows, chunk_size)

    def read(
        self, windows: Windows, *, with_perplexity: bool = True, on_window: OnWindow | None = None
    ) -> Estimate | None:
        """Reads the windows; mean surprise over their second halves, if that is wanted."""
        check_context(self.engine, windows.n_ctx)
        steps = Steps.of(windows, self.engine)
        nll: Doubles = np.empty(windows.targets.shape, np.float64)
        logits = self.engine.logits_buffer(steps.group * steps.scored_places) if with_perplexity else None
        for window in range(0, windows.n_windows, steps.group):
            group = slice(window, min(window + steps.group, windows.n_windows))
            self._read(windows, group, steps, logits, nll[group])
            for done in range(group.start + 1, group.stop + 1):
                self.n_windows += 1
                self.n_tokens += windows.n_ctx
                if on_window:
                    ppl = float(np.exp(nll[:done].mean())) if with_perplexity else None
                    on_window(done, windows.n_windows, ppl)
        return mean(nll) if with_perplexity else None

    def _read(
        self, windows: Windows, group: slice, steps: Steps, logits: Floats | None, nll: Doubles
    ) -> None:
        """One group of windows; fills in `nll` (n_windows, n_scored) if there is room for logits."""
        rows, targets = windows.inputs[group], windows.targets[group]
        first = windows.n_ctx if logits is None else windows.first
        sequences = [self.engine.sequence() for _ in rows]

        def entries(begin: int, end: int) -> list[Entry]:
            parts = zip(sequences, rows[:, begin:end], strict=True)
            return [Entry(sequence, part.tolist(), "all") for sequence, part in parts]

        try:
            for begin in range(0, first, steps.places):
                self.engine.read(entries(begin, min(begin + steps.places, first)))
            for begin in range(first, windows.n_ctx, steps.scored_places):
                end = min(begin + steps.scored_places, windows.n_ctx)
                found = self.engine.step(entries(begin, end), logits)
                place, n = begin - first, min(end, windows.last) - begin  # the last token predicts nothing
                scored = found.reshape(len(rows), end - begin, -1)[:, :n]
                for i, part in enumerate(scored if n else ()):
                    sums, _ = log_sums(self.engine.pool, part)
                    nll[i, place : place + n] = -log_probabilities(part, sums, targets[i, place : place + n])
        finally:
            for sequence in sequences:
                sequence.close()


def collect(
    path: str | os.PathLike[str],
    windows: Windows,
    *,
    datasets: Sequence[str] = (),
    process_output: bool = False,
    with_perplexity: bool = True,
    on_window: OnWindow | None = None,
    **options: Any,
) -> Collected:
    """The importance matrix of the model at `path` on the windows, and its perplexity on them.

    `options` are the engine's (n_threads, n_batch, …).
    """
    collector = Collector(path, process_output=process_output, **options)
    try:
        nll = collector.read(windows, with_perplexity=with_perplexity, on_window=on_window)
        return Collected(collector.imatrix(windows.n_ctx, datasets), nll)
    finally:
        collector.close()


def merged(parts: Sequence[Imatrix], chunk_size: int) -> Imatrix:
    """Several importance matrices as one: sums and counts added up.

    Files in the older format hold means over chunks, which are taken to have had `chunk_size` tokens. Raises
    OptionError when they are of different models.
    """
    entries: dict[str, ImatrixEntry] = {}
    for part in parts:
        scale = chunk_size if part.legacy else 1
        for name, entry in part.entries.items():
            own = ImatrixEntry(entry.sums.astype(np.float64) * scale, entry.counts * scale)
            entries[name] = _added(name, entries[name], own) if name in entries else own
    most = max((int(entry.counts.max()) for entry in entries.values()), default=0)
    datasets = tuple(name for part in parts for name in part.datasets)
    return Imatrix(entries, datasets, most // chunk_size, chunk_size)


def _added(name: str, a: ImatrixEntry, b: ImatrixEntry) -> ImatrixEntry:
    if a.sums.size != b.sums.size or (
        a.counts.size != b.counts.size and 1 not in (a.counts.size, b.counts.size)
    ):
        raise OptionError(
            f"the importance matrices to merge have {a.sums.size} and {b.sums.size} columns for {name}: they "
            "are of different models"
        )
    shape = max(a.sums.shape, b.sums.shape)  # older files do not tell experts apart
    return ImatrixEntry(a.sums.reshape(shape) + b.sums.reshape(shape), a.counts + b.counts)
