"""Seeded matrices for the tests of the quantizers and for the script that records a peer's errors on them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

ROWS, COLS = 24, 1024
DISTRIBUTIONS = ("normal", "outliers", "shifted", "ternary")


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
