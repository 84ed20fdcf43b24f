"""Spending a budget of bytes on tensors: the types that make the sum of costs least.

The knapsack with one choice per tensor. On the lower convex hull of each tensor's (bytes, cost) points, the
steps that save most per byte are taken first, which is the exact answer for the budgets that it hits
(Lagrange multipliers: Everett, Operations Research 11, 1963; for bits: Shoham and Gersho, IEEE ASSP 36,
1988). What is left of the budget goes to single improvements.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from pyllamacpu.errors import OptionError
from pyllamacpu.gguf.types import TensorType


@dataclass(frozen=True)
class Candidate:
    """A type that a tensor can have: its bytes, and what it costs in KL divergence (nats)."""

    kind: TensorType
    n_bytes: int
    cost: float


def allocate(tensors: Sequence[Sequence[Candidate]], budget: int) -> list[Candidate]:
    """One candidate per tensor, of `budget` bytes together at most, with the least sum of costs.

    Raises OptionError when even the smallest candidates are larger.
    """
    hulls = [hull(candidates) for candidates in tensors]
    at = [0] * len(hulls)
    left = budget - sum(candidates[0].n_bytes for candidates in hulls)
    if left < 0:
        raise OptionError(
            f"the smallest types take {budget - left} bytes, which is more than the {budget} allowed; "
            "choose a larger target"
        )
    steps = [(_slope(points, 0), i) for i, points in enumerate(hulls) if len(points) > 1]
    heapq.heapify(steps)
    while steps:
        _, i = heapq.heappop(steps)
        more = hulls[i][at[i] + 1].n_bytes - hulls[i][at[i]].n_bytes
        if more > left:
            continue  # and with it all that would follow it; others may still fit
        left -= more
        at[i] += 1
        if at[i] + 1 < len(hulls[i]):
            heapq.heappush(steps, (_slope(hulls[i], at[i]), i))
    chosen = [points[k] for points, k in zip(hulls, at, strict=True)]
    return _fill(tensors, chosen, left)


def hull(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The lower convex hull: from the smallest on, each step saves less per byte than the one before it."""
    found: list[Candidate] = []
    for point in sorted(candidates, key=lambda c: (c.n_bytes, c.cost)):
        if found and point.cost >= found[-1].cost:
            continue  # no smaller, and no better
        while len(found) > 1 and _between(found[-2], point) <= _between(found[-2], found[-1]):
            found.pop()
        found.append(point)
    return found


def _between(a: Candidate, b: Candidate) -> float:
    """Change of the cost per byte; negative."""
    return (b.cost - a.cost) / (b.n_bytes - a.n_bytes) if b.n_bytes > a.n_bytes else float("inf")


def _slope(points: Sequence[Candidate], i: int) -> float:
    return _between(points[i], points[i + 1])


def _fill(tensors: Sequence[Sequence[Candidate]], chosen: list[Candidate], left: int) -> list[Candidate]:
    """Takes the best single improvement that fits, until none does."""
    while True:
        best: tuple[float, int, Candidate] | None = None
        for i, (candidates, now) in enumerate(zip(tensors, chosen, strict=True)):
            for other in candidates:
                gain = now.cost - other.cost
                if gain > 0 and other.n_bytes - now.n_bytes <= left and (best is None or gain > best[0]):
                    best = (gain, i, other)
        if best is None:
            return chosen
        _, i, other = best
        left -= other.n_bytes - chosen[i].n_bytes
        chosen[i] = other
