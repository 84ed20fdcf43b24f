"""Cutting a text into windows, and running a model over the part of each window that is scored.

The method is llama-perplexity's: windows of `n_ctx` tokens side by side, the first token of each replaced by
BOS where the model wants one, and the second half scored, so that every scored token has at least half a
window before it. With a stride the windows overlap, and the last `stride` tokens of each are scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.engine import Engine, Entry, Wanted
from pyllamacpu.engine.pages import Sequence as KVSequence
from pyllamacpu.errors import ContextError, OptionError
from pyllamacpu.evaluate.rows import Doubles, Floats, Ints, log_probabilities, log_sums

LOGIT_BYTES = 96 << 20  # of logits held at a time, unless a single row takes more
STRIDE_ROUNDING = 256  # llama.cpp's contexts, and so its overlapping windows, are multiples of this


@dataclass(frozen=True, eq=False)
class Windows:
    """tokens: (n_windows, n_ctx); the logits at positions [first, last) of each are scored on the next
    token.
    """

    tokens: Ints
    first: int
    last: int
    bos: int | None

    @property
    def n_windows(self) -> int:
        return len(self.tokens)

    @property
    def n_ctx(self) -> int:
        return int(self.tokens.shape[1])

    @property
    def n_scored(self) -> int:
        """Tokens scored in each window."""
        return self.last - self.first

    @cached_property
    def inputs(self) -> Ints:
        """What the model reads."""
        if self.bos is None:
            return self.tokens
        inputs: Ints = self.tokens.copy()
        inputs[:, 0] = self.bos
        return inputs

    @cached_property
    def targets(self) -> Ints:
        """(n_windows, n_scored): the tokens whose probabilities count."""
        return self.tokens[:, self.first + 1 : self.last + 1]


def windows(
    tokens: Sequence[int] | npt.NDArray[np.integer],
    n_ctx: int = 512,
    *,
    bos: int | None = None,
    n_chunks: int = -1,
    stride: int = 0,
) -> Windows:
    """Windows over `tokens` (with their own leading BOS, as the tokenizer adds it); `n_chunks` of them at
    most, -1: all.

    `bos` replaces the first token of each window, except with a stride, where llama-perplexity has none.
    Raises OptionError for impossible sizes, ContextError when the text is too short for one window.
    """
    if n_ctx < 4:
        raise OptionError(f"a context of {n_ctx} tokens is too small to score anything: take at least 4 (-c)")
    if n_chunks == 0 or n_chunks < -1:
        raise OptionError(f"--chunks {n_chunks}: give a positive number, or -1 for all")
    if not 0 <= stride < n_ctx:
        raise OptionError(f"--ppl-stride {stride}: must be from 1 to {n_ctx - 1}, less than the context")
    ids = np.ascontiguousarray(tokens, np.int32)
    if stride:
        return _overlapping(ids, n_ctx, n_chunks, stride)
    _check_length(len(ids), n_ctx)
    n = len(ids) // n_ctx
    n = n if n_chunks < 0 else min(n, n_chunks)
    return Windows(ids[: n * n_ctx].reshape(n, n_ctx), n_ctx // 2, n_ctx - 1, bos)


def _overlapping(ids: Ints, n_ctx: int, n_chunks: int, stride: int) -> Windows:
    width = strided_width(n_ctx, stride)
    _check_length(len(ids), width + 1)
    n = -(-(len(ids) - width) // stride)
    n = n if n_chunks < 0 else min(n, n_chunks)
    rows = np.stack([ids[i * stride : i * stride + width] for i in range(n)])
    return Windows(rows, width - stride - 1, width - 1, None)


def strided_width(n_ctx: int, stride: int) -> int:
    """Tokens of a window when windows overlap: half a stride is added, and the sum rounded up."""
    return -(-(n_ctx + stride // 2) // STRIDE_ROUNDING) * STRIDE_ROUNDING


def _check_length(n_tokens: int, needed: int) -> None:
    if n_tokens < needed:
        raise ContextError(
            f"the text has {n_tokens} tokens and a window takes {needed}: give a longer text (-f), or "
            "smaller windows (-c)"
        )


@dataclass(frozen=True, eq=False)
class Block:
    """Logits of the windows [window, window + n_windows) at their scored places [start, start + n_places).

    logits: (n_windows * n_places, n_vocab), window after window, valid until the next block; log_sums, tops:
    a value for each row. `start` counts from the first scored place.
    """

    window: int
    n_windows: int
    start: int
    n_places: int
    logits: Floats
    log_sums: Doubles
    tops: Ints

    def of(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """The part of `values` (all windows, all scored places) that this block fills: a view."""
        return values[self.window : self.window + self.n_windows, self.start : self.start + self.n_places]

    def nll(self, windows: Windows) -> Doubles:
        """(n_windows, n_places): minus ln of the probability of the tokens that follow."""
        targets = self.of(windows.targets).ravel()
        result: Doubles = -log_probabilities(self.logits, self.log_sums, targets)
        return result.reshape(self.n_windows, self.n_places)


@dataclass(frozen=True)
class Steps:
    """How windows are run: `group` of them side by side, `places` positions of each at a time."""

    group: int
    places: int
    scored_places: int

    @classmethod
    def of(cls, windows: Windows, *engines: Engine) -> Steps:
        """The largest steps that all the engines take, with logits that stay below LOGIT_BYTES."""
        n_batch = min(engine.n_batch for engine in engines)
        group = max(1, min(n_batch // windows.n_ctx, windows.n_windows))
        rows = max(1, min(LOGIT_BYTES // (4 * max(engine.n_vocab for engine in engines)), n_batch))
        return cls(group, n_batch // group, max(1, rows // group))


def check_context(engine: Engine, n_ctx: int) -> None:
    """Raises ContextError for windows larger than the model was trained for, or than the engine has room
    for.
    """
    trained = engine.config.n_ctx_train
    if n_ctx > min(trained, engine.n_ctx):
        what = (
            f"the model was trained with {trained}" if n_ctx > trained else f"it has room for {engine.n_ctx}"
        )
        raise ContextError(
            f"{engine.file.paths[0]}: windows of {n_ctx} tokens are too long, {what}: take a smaller -c"
        )


def blocks(engine: Engine, windows: Windows, steps: Steps | None = None) -> Iterator[Block]:
    """Runs the model over the windows. Blocks follow window after window; those of one group by place."""
    check_context(engine, windows.n_ctx)
    steps = steps or Steps.of(windows, engine)
    logits = engine.logits_buffer(steps.group * steps.scored_places)
    for window in range(0, windows.n_windows, steps.group):
        rows = windows.inputs[window : window + steps.group]
        sequences = [engine.sequence() for _ in rows]
        try:
            for begin in range(0, windows.first, steps.places):
                end = min(begin + steps.places, windows.first)
                engine.step(_entries(sequences, rows[:, begin:end], scored=False), logits)
            for begin in range(windows.first, windows.last, steps.scored_places):
                end = min(begin + steps.scored_places, windows.last)
                found = engine.step(_entries(sequences, rows[:, begin:end], scored=True), logits)
                place = begin - windows.first
                yield Block(window, len(rows), place, end - begin, found, *log_sums(engine.pool, found))
        finally:
            for sequence in sequences:
                sequence.close()


def _entries(sequences: list[KVSequence], tokens: Ints, scored: bool) -> list[Entry]:
    wanted: Wanted = "all" if scored else "none"
    return [Entry(s, row.tolist(), wanted) for s, row in zip(sequences, tokens, strict=True)]
