"""Seeded matrices for the tests of the quantizers and for the script that records a peer's errors on them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyllamacpu.gguf.types import TensorType
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.quantize.costs import cost_weights

T = TensorType
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

ROWS, COLS = 24, 1024
DISTRIBUTIONS = ("normal", "outliers", "shifted", "ternary")
LEGACY = (T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1)
SUPER = (T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K, T.IQ4_XS)
QUANTIZED = (*LEGACY, T.Q8_0, *SUPER, T.IQ4_NL, T.TQ1_0, T.TQ2_0, T.MXFP4)
SQUARES = (T.Q3_K, T.Q6_K, T.IQ4_NL, T.IQ4_XS)  # where llama.cpp weighs by x^2 without importance


def matrix(distribution: str, rows: int = ROWS, cols: int = COLS, seed: int = 1) -> Floats:
    """(rows, cols) float32. `outliers`: heavy tails, columns and rows of unequal size; `shifted`: groups of
    16 with a mean of their own; `ternary`: -s, 0, s with some noise.
    """
    rng = np.random.default_rng([seed, DISTRIBUTIONS.index(distribution)])
    x = 0.02 * rng.standard_normal((rows, cols))
    if distribution == "outliers":
        x = 0.02 * rng.standard_t(3, (rows, cols)) * np.exp(0.4 * rng.standard_normal(cols))
        x *= np.exp(0.5 * rng.standard_normal((rows, 1)))
    elif distribution == "shifted":
        x += np.repeat(0.03 * rng.standard_normal((rows, cols // 16)), 16, axis=1)
    elif distribution == "ternary":
        x = 0.1 * rng.integers(-1, 2, (rows, cols)) + 0.1 * x
    return x.astype(np.float32)


def importance(cols: int = COLS, seed: int = 1) -> Floats:
    """(cols,) mean squares as an importance matrix has them: log-normal with a few columns far above."""
    rng = np.random.default_rng([seed, 99])
    values = np.exp(rng.standard_normal(cols))
    values[rng.integers(0, cols, cols // 100)] *= 100
    return values.astype(np.float32)


def errors(
    x: Floats, packed: npt.NDArray[np.uint8], kind: TensorType, weights: Floats | None
) -> dict[str, float]:
    """Sums of squared errors by several weights; see tools/make_quantize_fixtures.py."""
    squares = (x - dequantize(packed, kind, x.shape).astype(np.float64)) ** 2
    plain = np.ones_like(squares) if weights is None else np.broadcast_to(weights, x.shape)
    sums = {"cost": cost_weights(x, kind, weights), "plain": plain.astype(np.float64)}
    if weights is None and kind in SQUARES:
        sums["peer_cost"] = x.astype(np.float64) ** 2
    found = {name: float((weight * squares).sum()) for name, weight in sums.items()}
    if weights is None and kind is T.Q2_K:
        found["peer_cost"] = float((np.abs(x) * np.sqrt(squares)).sum())
    return found


def key(kind: TensorType, distribution: str, weighted: bool) -> str:
    return f"{kind.name} {distribution}{' importance' if weighted else ''}"
