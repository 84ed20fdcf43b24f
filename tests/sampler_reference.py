"""The sampling steps in plain numpy. Candidates are (id, logit) pairs, best first, equal logits by id."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pyllamacpu.sampling.sampler import Sampler, SamplingOptions

Pairs = list[tuple[int, float]]


def by_logit(pairs: Pairs) -> Pairs:
    return sorted(pairs, key=lambda p: (-p[1], p[0]))


def softmax(pairs: Pairs) -> np.ndarray:
    x = np.array([logit for _, logit in pairs], np.float64)
    e = np.exp(x - x.max())
    return e / e.sum()


def ref_top_k(pairs: Pairs, k: int) -> Pairs:
    return by_logit(pairs)[:k] if k > 0 else pairs


def ref_top_p(pairs: Pairs, p: float, min_keep: int = 0) -> Pairs:
    pairs = by_logit(pairs)
    if p >= 1:
        return pairs
    total = 0.0
    for i, prob in enumerate(softmax(pairs)):
        total += prob
        if total >= p and i + 1 >= min_keep:
            return pairs[: i + 1]
    return pairs


def ref_min_p(pairs: Pairs, p: float, min_keep: int = 0) -> Pairs:
    pairs = by_logit(pairs)
    probs = softmax(pairs)
    return [pair for i, pair in enumerate(pairs) if p <= 0 or probs[i] >= p * probs[0] or i < min_keep]


def ref_typical(pairs: Pairs, p: float, min_keep: int = 0) -> Pairs:
    if p >= 1:
        return pairs
    probs = softmax(pairs)
    entropy = -sum(x * math.log(x) for x in probs)
    order = sorted(range(len(pairs)), key=lambda i: abs(-math.log(probs[i]) - entropy))
    total, kept = 0.0, []
    for i in order:
        kept.append(pairs[i])
        total += probs[i]
        if total > p and len(kept) >= min_keep:
            break
    return by_logit(kept)


def ref_top_n_sigma(pairs: Pairs, n: float) -> Pairs:
    x = np.array([logit for _, logit in pairs], np.float64)
    return [p for p in pairs if p[1] >= x.max() - n * x.std()] if n > 0 else pairs


def ref_xtc(pairs: Pairs, threshold: float) -> Pairs:
    pairs = by_logit(pairs)
    above = int((softmax(pairs) >= threshold).sum())
    return pairs[max(above - 1, 0) :]


def ref_temperature(pairs: Pairs, t: float) -> Pairs:
    return [(i, float(np.float32(x) / np.float32(t))) for i, x in pairs] if t > 0 else by_logit(pairs)[:1]


def ref_dynatemp(pairs: Pairs, t: float, spread: float, exponent: float) -> Pairs:
    probs = softmax(pairs)
    h = -sum(x * math.log(x) for x in probs if x > 0) / math.log(len(pairs))
    low, high = max(0.0, t - spread), t + spread
    return ref_temperature(pairs, low + (high - low) * h**exponent)


def row(seed: int, n: int, scale: float = 2.5) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, n).astype(np.float32)


def pairs_of(logits: np.ndarray) -> Pairs:
    return [(i, float(x)) for i, x in enumerate(logits) if x > -np.inf]


def same(logits: np.ndarray, expected: Pairs, sampler: Sampler | None = None, **options: object) -> None:
    """The chain with `options` leaves exactly the expected candidates, with the softmax of their logits."""
    sampler = sampler or Sampler(SamplingOptions(seed=1, **options), len(logits))  # type: ignore[arg-type]
    got = sampler.candidates(logits)
    expected = by_logit(expected)
    assert sorted(got.ids.tolist()) == sorted(i for i, _ in expected)
    ours = dict(zip(got.ids.tolist(), zip(got.logits.tolist(), got.probs.tolist(), strict=True), strict=True))
    for (i, logit), prob in zip(expected, softmax(expected), strict=True):
        assert ours[i][0] == pytest.approx(logit, rel=2e-6, abs=2e-6)
        assert ours[i][1] == pytest.approx(prob, rel=2e-5, abs=1e-30)
    assert np.all(np.diff(got.logits) <= 0)
