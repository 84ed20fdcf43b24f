"""How far a model's predictions are from those of a base model: KL divergence and what goes with it.

Both models read the same windows side by side, a few hundred rows of logits at a time, so no file of logits
is needed. Where one base is compared with many models, `record` keeps its logits of a small text in memory.

The statistics are llama-perplexity's. It keeps the base model's logits in 16 bits and leaves out what is
below e^-16; here both are exact, so that divergences of 1e-6 still differ from none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.engine import Engine
from pyllamacpu.errors import ModelError, OptionError
from pyllamacpu.evaluate.perplexity import as_windows
from pyllamacpu.evaluate.rows import Doubles, divergences
from pyllamacpu.evaluate.statistics import Estimate, covariance, error_of_difference, mean, share
from pyllamacpu.evaluate.windows import Block, Steps, Windows, blocks

KLD_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0, 0.1)
P_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1)


@dataclass(frozen=True, eq=False)
class Divergence:
    """Of each scored token: kld (nats), nll and nll_base (minus ln of its probability), same_top (bool)."""

    kld: Doubles
    nll: Doubles
    nll_base: Doubles
    same_top: npt.NDArray[np.bool_]
    n_ctx: int
    n_chunks: int
    n_tokens: int
    seconds: float

    @property
    def mean_kld(self) -> Estimate:
        return mean(self.kld)

    @property
    def same_top_share(self) -> Estimate:
        return share(int(self.same_top.sum()), self.same_top.size)

    @property
    def p_difference(self) -> Doubles:
        """By how much the probability of each scored token changed."""
        return np.exp(-self.nll) - np.exp(-self.nll_base)

    @property
    def p_difference_rms(self) -> Estimate:
        return mean(self.p_difference**2).root()

    @property
    def ppl(self) -> Estimate:
        return mean(self.nll).exp()

    @property
    def ppl_base(self) -> Estimate:
        return mean(self.nll_base).exp()

    @property
    def ln_ppl_ratio(self) -> Estimate:
        """ln of the perplexity's ratio to the base's; its error knows that both saw the same tokens."""
        a, b = mean(self.nll), mean(self.nll_base)
        error = error_of_difference(a.error, b.error, covariance(self.nll, self.nll_base))
        return Estimate(a.value - b.value, error)

    @property
    def ppl_difference(self) -> Estimate:
        a, b = self.ppl, self.ppl_base
        cov = a.value * b.value * covariance(self.nll, self.nll_base)
        return Estimate(a.value - b.value, error_of_difference(a.error, b.error, cov))

    @property
    def correlation(self) -> float:
        """Of the tokens' surprises under the two models; NaN where one has no spread."""
        errors = mean(self.nll).error * mean(self.nll_base).error
        return covariance(self.nll, self.nll_base) / errors if errors else math.nan

    def row(self) -> dict[str, Any]:
        """What is reported as JSON: nats, and shares from 0 to 1. `…_error` are standard errors."""
        estimates = {
            "ppl": self.ppl,
            "ppl_base": self.ppl_base,
            "ln_ppl_ratio": self.ln_ppl_ratio,
            "ppl_ratio": self.ln_ppl_ratio.exp(),
            "ppl_difference": self.ppl_difference,
            "kld": self.mean_kld,
            "same_top": self.same_top_share,
            "p_difference": mean(self.p_difference),
            "p_difference_rms": self.p_difference_rms,
        }
        found: dict[str, Any] = {}
        for name, estimate in estimates.items():
            found |= {name: estimate.value, f"{name}_error": estimate.error}
        return found | {
            "ppl_correlation": self.correlation,
            "kld_percentiles": percentiles(self.kld, KLD_PERCENTILES),
            "p_difference_percentiles": percentiles(self.p_difference, P_PERCENTILES),
            "n_ctx": self.n_ctx,
            "n_chunks": self.n_chunks,
            "n_tokens": self.n_tokens,
            "n_scored": self.kld.size,
            "seconds": self.seconds,
            "tokens_per_second": self.n_tokens / self.seconds if self.seconds else 0.0,
        }


def percentiles(values: Doubles, of: Iterable[float]) -> dict[str, float]:
    """The largest value, those at percentages `of` (interpolated), the smallest."""
    found = {f"{p:g}": float(np.percentile(values, p)) for p in of}
    return {"max": float(values.max()), **found, "min": float(values.min())}


Progress = Callable[[int, int, Divergence], None]
"""Called with the windows done, the windows in all, and the divergence so far."""


def kl_divergence(
    base: Engine,
    engine: Engine,
    tokens: Windows | Sequence[int] | npt.NDArray[np.integer],
    *,
    n_ctx: int = 512,
    bos: int | None = None,
    n_chunks: int = -1,
    on_window: Progress | None = None,
) -> Divergence:
    """The divergence of `engine` from `base` on `tokens`, both run window by window.

    Arguments as `perplexity` has them. Raises ModelError when the vocabularies differ.
    """
    cut = as_windows(tokens, n_ctx, bos=bos, n_chunks=n_chunks)
    check_vocabulary(base, engine)
    steps = Steps.of(cut, base, engine)
    return compare(_side_by_side(blocks(base, cut, steps), engine, cut), engine, cut, steps, on_window)


@dataclass(frozen=True, eq=False)
class Recorded:
    """A base model's logits on a text, in memory: n_windows * n_scored * n_vocab float32."""

    windows: Windows
    steps: Steps
    n_vocab: int
    name: str
    blocks: tuple[Block, ...]

    @property
    def n_bytes(self) -> int:
        return sum(block.logits.nbytes for block in self.blocks)


def record(
    base: Engine,
    tokens: Windows | Sequence[int] | npt.NDArray[np.integer],
    *,
    n_ctx: int = 512,
    bos: int | None = None,
    n_chunks: int = -1,
) -> Recorded:
    """Keeps the base model's logits on `tokens`, to compare many models with (`divergence_from`)."""
    cut = as_windows(tokens, n_ctx, bos=bos, n_chunks=n_chunks)
    steps = Steps.of(cut, base)
    kept = tuple(replace(block, logits=block.logits.copy()) for block in blocks(base, cut, steps))
    return Recorded(cut, steps, base.n_vocab, str(base.file.paths[0]), kept)


def divergence_from(recorded: Recorded, engine: Engine, on_window: Progress | None = None) -> Divergence:
    """The divergence of `engine` from the model that was recorded. It must take steps as large
    (`n_batch`).
    """
    if engine.n_vocab != recorded.n_vocab:
        raise _other_vocabulary(recorded.name, recorded.n_vocab, engine)
    if engine.n_batch < recorded.steps.group * max(recorded.steps.places, recorded.steps.scored_places):
        raise OptionError(f"n_batch is {engine.n_batch}: take what the recorded model was opened with")
    cut = recorded.windows
    return compare(_side_by_side(recorded.blocks, engine, cut), engine, cut, recorded.steps, on_window)


Against = Callable[[Block], tuple[Doubles, Doubles, npt.NDArray[np.bool_]]]
"""Of each row of a block: kld, minus ln of the base's probability of the next token, whether tops agree."""


def compare(
    against: Against, engine: Engine, cut: Windows, steps: Steps, on_window: Progress | None = None
) -> Divergence:
    """Runs the model over the windows and each block against the base's."""
    start = time.perf_counter()
    shape = cut.targets.shape
    kld, nll, nll_base = (np.empty(shape, np.float64) for _ in range(3))
    same = np.empty(shape, np.bool_)

    def result(done: int) -> Divergence:
        n_tokens, seconds = done * cut.n_ctx, time.perf_counter() - start
        surprises = kld[:done].ravel(), nll[:done].ravel(), nll_base[:done].ravel()
        return Divergence(*surprises, same[:done].ravel(), cut.n_ctx, done, n_tokens, seconds)

    for block in blocks(engine, cut, steps):
        block.of(nll)[:] = block.nll(cut)
        for values, found in zip((kld, nll_base, same), against(block), strict=True):
            block.of(values)[:] = found.reshape(block.n_windows, block.n_places)
        if on_window and block.start + block.n_places == cut.n_scored:
            for done in range(block.window + 1, block.window + block.n_windows + 1):
                on_window(done, cut.n_windows, result(done))
    return result(cut.n_windows)


def _side_by_side(base: Iterable[Block], engine: Engine, cut: Windows) -> Against:
    """Against the base's own blocks, which come in the same order."""
    others = iter(base)

    def against(block: Block) -> tuple[Doubles, Doubles, npt.NDArray[np.bool_]]:
        other = next(others)
        assert (other.window, other.start) == (block.window, block.start)
        kld = divergences(engine.pool, other.logits, other.log_sums, block.logits, block.log_sums)
        return kld, other.nll(cut), other.tops == block.tops

    return against


def check_vocabulary(base: Engine, engine: Engine) -> None:
    """Raises ModelError when the two models do not predict the same tokens."""
    if base.n_vocab != engine.n_vocab:
        raise _other_vocabulary(str(base.file.paths[0]), base.n_vocab, engine)
    key = "tokenizer.ggml.tokens"
    ours, theirs = engine.file.metadata.get(key), base.file.metadata.get(key)
    if ours is not None and theirs is not None and list(ours) != list(theirs):
        raise ModelError(
            f"{engine.file.paths[0]} and {base.file.paths[0]} have vocabularies of the same size with "
            "different tokens: their predictions cannot be compared"
        )


def _other_vocabulary(base: str, n_vocab: int, engine: Engine) -> ModelError:
    return ModelError(
        f"{engine.file.paths[0]} has a vocabulary of {engine.n_vocab} tokens and {base} one of {n_vocab}: "
        "their predictions cannot be compared"
    )
