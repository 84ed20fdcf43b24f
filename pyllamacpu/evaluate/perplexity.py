"""Perplexity of a model on a text, by llama-perplexity's method (see windows.py), so that numbers compare."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.engine import Engine
from pyllamacpu.evaluate.rows import Doubles
from pyllamacpu.evaluate.statistics import Estimate, mean
from pyllamacpu.evaluate.windows import Windows, blocks, windows

Progress = Callable[[int, int, float], None]
"""Called with the windows done, the windows in all, and the perplexity so far."""


@dataclass(frozen=True)
class Perplexity:
    """nll: mean of minus ln p over the scored tokens, with its error. n_tokens: tokens of the windows."""

    nll: Estimate
    n_ctx: int
    n_chunks: int
    n_tokens: int
    n_scored: int
    seconds: float

    @property
    def ppl(self) -> Estimate:
        return self.nll.exp()

    @property
    def tokens_per_second(self) -> float:
        return self.n_tokens / self.seconds if self.seconds else 0.0

    def row(self) -> dict[str, Any]:
        """What is reported as JSON. Errors are standard errors; `nll` is in nats."""
        return {
            "ppl": self.ppl.value,
            "ppl_error": self.ppl.error,
            "nll": self.nll.value,
            "nll_error": self.nll.error,
            "n_ctx": self.n_ctx,
            "n_chunks": self.n_chunks,
            "n_tokens": self.n_tokens,
            "n_scored": self.n_scored,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
        }


def perplexity(
    engine: Engine,
    tokens: Windows | Sequence[int] | npt.NDArray[np.integer],
    *,
    n_ctx: int = 512,
    bos: int | None = None,
    n_chunks: int = -1,
    stride: int = 0,
    on_window: Progress | None = None,
) -> Perplexity:
    """Perplexity on `tokens`: windows made beforehand, or ids with their leading BOS (then the other
    arguments are those of `windows`).

    Raises ContextError for a text too short or windows too long, ModelError for logits that are NaN.
    """
    cut = as_windows(tokens, n_ctx, bos=bos, n_chunks=n_chunks, stride=stride)
    start = time.perf_counter()
    nll: Doubles = np.empty(cut.targets.shape, np.float64)
    for block in blocks(engine, cut):
        block.of(nll)[:] = block.nll(cut)
        if on_window and block.start + block.n_places == cut.n_scored:
            for done in range(block.window + 1, block.window + block.n_windows + 1):
                on_window(done, cut.n_windows, float(np.exp(nll[:done].mean())))
    return Perplexity(
        nll=mean(nll),
        n_ctx=cut.n_ctx,
        n_chunks=cut.n_windows,
        n_tokens=cut.tokens.size,
        n_scored=nll.size,
        seconds=time.perf_counter() - start,
    )


def as_windows(tokens: Windows | Sequence[int] | npt.NDArray[np.integer], n_ctx: int, **how: Any) -> Windows:
    """`tokens` if they are windows already, else windows over them."""
    return tokens if isinstance(tokens, Windows) else windows(tokens, n_ctx, **how)
