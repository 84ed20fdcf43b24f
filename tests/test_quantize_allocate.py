"""The knapsack over types, against trying everything."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from pyllamacpu.errors import OptionError
from pyllamacpu.gguf import TensorType
from pyllamacpu.quantize.allocate import Candidate, allocate, hull

KINDS = (TensorType.Q2_K, TensorType.Q3_K, TensorType.Q4_K, TensorType.Q6_K)


def problem(seed: int, n: int, smooth: bool) -> list[list[Candidate]]:
    """Tensors whose costs fall by about a factor of 4 per bit, or anyhow."""
    random = np.random.default_rng(seed)
    tensors = []
    for _ in range(n):
        size, weight = int(random.integers(1, 9)) * 100, float(random.exponential())
        fall = 4 if smooth else float(random.uniform(0.5, 6))
        costs = [weight * fall**-kind.bits_per_weight for kind in KINDS]
        tensors.append(
            [Candidate(k, int(size * k.bits_per_weight), c) for k, c in zip(KINDS, costs, strict=True)]
        )
    return tensors


def total(chosen: tuple[Candidate, ...] | list[Candidate]) -> tuple[int, float]:
    return sum(c.n_bytes for c in chosen), sum(c.cost for c in chosen)


@pytest.mark.parametrize("seed", range(12))
def test_close_to_the_best_of_all(seed: int) -> None:
    tensors = problem(seed, 6, smooth=seed % 2 == 0)
    smallest = sum(min(c.n_bytes for c in t) for t in tensors)
    largest = sum(max(c.n_bytes for c in t) for t in tensors)
    everything = [total(choice) for choice in product(*tensors)]
    for share in (0.0, 0.1, 0.35, 0.6, 0.9, 1.0):
        budget = smallest + int(share * (largest - smallest))
        n_bytes, cost = total(allocate(tensors, budget))
        best = min(cost for n, cost in everything if n <= budget)
        worst = max(cost for n, cost in everything if n <= budget)
        assert n_bytes <= budget
        assert cost - best <= 0.15 * (worst - best) + 1e-12


def test_every_point_of_the_hull_is_exact() -> None:
    tensors = problem(99, 6, smooth=True)
    everything = [total(choice) for choice in product(*tensors)]
    # At a common price per byte, each tensor's best choice is the best of all of that size.
    for price in (1e-7, 1e-6, 1e-5, 1e-4):
        chosen = [min(t, key=lambda c: c.cost + price * c.n_bytes) for t in tensors]
        n_bytes, cost = total(chosen)
        assert total(allocate(tensors, n_bytes))[1] == pytest.approx(
            min(cost for n, cost in everything if n <= n_bytes)
        )
        assert total(allocate(tensors, n_bytes))[1] == pytest.approx(cost)


def test_hull_leaves_out_what_is_never_best() -> None:
    points = [Candidate(KINDS[0], n, c) for n, c in ((10, 8.0), (10, 9.0), (20, 6.5), (30, 4.9), (40, 1.0))]
    assert [(p.n_bytes, p.cost) for p in hull(points)] == [(10, 8.0), (40, 1.0)]
    points = [Candidate(KINDS[0], n, c) for n, c in ((10, 8.0), (20, 2.0), (30, 2.0), (40, 1.0), (50, 3.0))]
    assert [p.n_bytes for p in hull(points)] == [10, 20, 40]


def test_what_is_left_is_spent() -> None:
    small = [Candidate(KINDS[0], 10, 1.0), Candidate(KINDS[1], 20, 0.9), Candidate(KINDS[3], 100, 0.0)]
    assert [c.n_bytes for c in allocate([small], 99)] == [20]  # not on the hull, but it fits
    assert [c.n_bytes for c in allocate([small], 100)] == [100]
    assert allocate([], 0) == []


def test_too_small_a_budget_is_an_error() -> None:
    with pytest.raises(OptionError, match="take 20 bytes, which is more than the 19 allowed"):
        allocate([[Candidate(KINDS[0], 10, 1.0)]] * 2, 19)
