"""Means with their errors, as llama-perplexity reports them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pyllamacpu.evaluate.rows import Doubles

Z_95 = 1.959963984540054  # of the normal distribution: 95 % lie within
MIN_VALUES = 10  # below, an error means nothing


@dataclass(frozen=True)
class Estimate:
    """A mean of `n` values and its standard error (0 where there are too few to tell)."""

    value: float
    error: float

    def times(self, factor: float) -> Estimate:
        return Estimate(self.value * factor, self.error * abs(factor))

    def exp(self) -> Estimate:
        """e to this, with the error to first order."""
        value = math.exp(self.value) if self.value < 700 else math.inf
        return Estimate(value, value * self.error)

    def root(self) -> Estimate:
        """The square root, with the error to first order."""
        value = math.sqrt(self.value)
        return Estimate(value, 0.5 / value * self.error if value else 0.0)


def mean(values: Doubles) -> Estimate:
    """The mean of `values` and its error."""
    n = values.size
    if n == 0:
        return Estimate(math.nan, 0.0)
    value = float(values.mean())
    return Estimate(value, math.sqrt(float(values.var()) / (n - 1)) if n > MIN_VALUES else 0.0)


def share(hits: int, n: int) -> Estimate:
    """hits / n, with the error of a proportion."""
    if n == 0:
        return Estimate(math.nan, 0.0)
    p = hits / n
    return Estimate(p, math.sqrt(p * (1.0 - p) / (n - 1)) if n > 1 else 0.0)


def covariance(a: Doubles, b: Doubles) -> float:
    """Covariance of the means of `a` and `b`, values side by side."""
    n = a.size
    return float(np.mean(a * b) - a.mean() * b.mean()) / (n - 1) if n >= MIN_VALUES else 0.0


def error_of_difference(a: float, b: float, cov: float) -> float:
    """Error of a difference of two estimates with the errors `a` and `b` and their covariance."""
    return math.sqrt(max(0.0, a * a + b * b - 2.0 * cov))


def wilson(hits: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """The Wilson score interval of a proportion: where it lies with 95 % confidence.

    E. B. Wilson, Probable inference, JASA 22 (1927).
    """
    if n == 0:
        return 0.0, 1.0
    p, zz = hits / n, z * z / n
    half = z * math.sqrt(p * (1.0 - p) / n + zz / (4.0 * n))
    return (p + zz / 2.0 - half) / (1.0 + zz), (p + zz / 2.0 + half) / (1.0 + zz)
