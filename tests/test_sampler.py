"""The sampling chain against slow, plain numpy: each step's candidates and probabilities, and the draws.

Covers sampling/dry.py.
"""

from __future__ import annotations

import math
import pickle
import time

import numpy as np
import pytest
from sampler_reference import (
    by_logit,
    pairs_of,
    ref_dynatemp,
    ref_min_p,
    ref_temperature,
    ref_top_k,
    ref_top_n_sigma,
    ref_top_p,
    ref_typical,
    ref_xtc,
    row,
    same,
    softmax,
)

from pyllamacpu.errors import NativeError, OptionError
from pyllamacpu.sampling.sampler import Sampler, SamplingOptions, top_logprobs

SIZES = [1, 2, 63, 64, 65, 1000, 5003]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("k", [1, 2, 16, 40, 78, 79, 500, 10000])
def test_top_k(n: int, k: int) -> None:
    logits = row(n + k, n)
    same(logits, ref_top_k(pairs_of(logits), k), samplers="top_k", top_k=k)


def test_top_k_orders_equal_logits_by_id() -> None:
    logits = np.zeros(3000, np.float32)
    logits[:20] = -0.0
    got = Sampler(SamplingOptions(samplers="top_k", top_k=50), 3000).candidates(logits)
    assert got.ids.tolist() == list(range(50))
    coarse = np.round(row(3, 3000))
    assert Sampler(SamplingOptions(samplers="top_k", top_k=300), 3000).candidates(coarse).ids.tolist() == [
        i for i, _ in ref_top_k(pairs_of(coarse), 300)
    ]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("before", ["", "top_k;"])
@pytest.mark.parametrize("min_keep", [0, 7])
def test_top_p(n: int, p: float, before: str, min_keep: int) -> None:
    logits = row(n, n)
    pairs = ref_top_k(pairs_of(logits), 40) if before else pairs_of(logits)
    same(logits, ref_top_p(pairs, p, min_keep), samplers=before + "top_p", top_p=p, min_keep=min_keep)


def test_probabilities_are_exact_to_a_few_ulp() -> None:
    logits = (np.arange(5000, dtype=np.float32) - 4999) / 64  # exact, so only the exponential rounds
    got = Sampler(SamplingOptions(samplers=""), 5000).candidates(logits)
    assert got.ids.tolist() == list(range(4999, -1, -1))
    np.testing.assert_allclose(got.probs, softmax(by_logit(pairs_of(logits))), rtol=2.5e-7)


def test_top_p_on_a_peaked_vocabulary() -> None:
    logits = row(8, 20000, 1.0)
    logits[::900] += 15
    same(logits, ref_top_p(pairs_of(logits), 0.97), samplers="top_p", top_p=0.97)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("p", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("before", ["", "top_k;", "typ_p;"])
@pytest.mark.parametrize("min_keep", [0, 9])
def test_min_p(n: int, p: float, before: str, min_keep: int) -> None:
    logits = row(n, n)
    pairs = ref_top_k(pairs_of(logits), 40) if before == "top_k;" else pairs_of(logits)
    same(logits, ref_min_p(pairs, p, min_keep), samplers=before + "min_p", min_p=p, min_keep=min_keep)


@pytest.mark.parametrize("n", [1, 2, 65, 1000, 5003])
@pytest.mark.parametrize("p", [0.0, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("before", ["", "top_k;"])
@pytest.mark.parametrize("min_keep", [0, 5])
def test_typical(n: int, p: float, before: str, min_keep: int) -> None:
    logits = row(n + 7, n)
    pairs = ref_top_k(pairs_of(logits), 40) if before else pairs_of(logits)
    same(logits, ref_typical(pairs, p, min_keep), samplers=before + "typ_p", typical_p=p, min_keep=min_keep)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("sigma", [-1.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("before", ["", "top_k;"])
def test_top_n_sigma(n: int, sigma: float, before: str) -> None:
    logits = row(n, n)
    logits[1::5] = -np.inf  # not part of the mean
    pairs = ref_top_k(pairs_of(logits), 40) if before else pairs_of(logits)
    same(logits, ref_top_n_sigma(pairs, sigma), samplers=before + "top_n_sigma", top_n_sigma=sigma)


@pytest.mark.parametrize("threshold", [0.001, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("before", ["", "top_k;"])
def test_xtc(threshold: float, before: str) -> None:
    logits = row(11, 300, 3)
    pairs = ref_top_k(pairs_of(logits), 40) if before else pairs_of(logits)
    same(
        logits,
        ref_xtc(pairs, threshold),
        samplers=before + "xtc",
        xtc_probability=1.0,
        xtc_threshold=threshold,
    )


def test_xtc_is_off_above_half_and_respects_min_keep_and_probability() -> None:
    logits = np.array([3, 3, 3, 0], np.float32)
    same(logits, pairs_of(logits), samplers="xtc", xtc_probability=1.0, xtc_threshold=0.51)
    same(logits, pairs_of(logits), samplers="xtc", xtc_probability=1.0, min_keep=3)
    sampler = Sampler(SamplingOptions(seed=5, samplers="xtc", xtc_probability=0.3), 4)
    cut = 0
    for _ in range(4000):
        cut += len(sampler.candidates(logits).ids) == 2
        sampler.sample(logits)
    assert abs(cut / 4000 - 0.3) < 0.03


@pytest.mark.parametrize("t", [-1.0, 0.0, 1e-30, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("order", ["temperature", "temperature;top_k", "top_k;temperature"])
def test_temperature(t: float, order: str) -> None:
    logits = row(12, 777)
    pairs = pairs_of(logits) if order == "temperature" else ref_top_k(pairs_of(logits), 40)
    same(logits, ref_temperature(pairs, t if t > 1e-20 else 0), samplers=order, temperature=t)


@pytest.mark.parametrize("order", ["temperature", "temperature;top_k;top_p", "top_k;temperature", "min_p"])
@pytest.mark.parametrize("bias", [1e28, -1e28])
@pytest.mark.parametrize("mirostat", [0, 1, 2])
def test_quotients_that_are_no_floats_leave_the_best_token(order: str, bias: float, mirostat: int) -> None:
    """Divided by a tiny temperature they were infinite: an error, or 0 / 0."""
    logits = row(12, 777)
    biases = dict.fromkeys(range(777), bias) if bias < 0 else {7: bias, 8: bias / 2}
    options = {"samplers": order, "temperature": 1e-12, "logit_bias": biases, "mirostat": mirostat}
    sampler = Sampler(SamplingOptions(seed=1, **options), 777)
    best = 7 if bias > 0 else int(np.argmax(logits + np.float32(bias)))
    if order != "min_p" or mirostat:
        assert sampler.candidates(logits).ids.tolist() == [best]
    assert sampler.sample(logits) in ([best] if bias > 0 else range(777))


@pytest.mark.parametrize("spread, exponent", [(0.5, 1.0), (0.8, 2.0), (2.0, 0.5)])
@pytest.mark.parametrize("n", [2, 50, 4000])
def test_dynamic_temperature(n: int, spread: float, exponent: float) -> None:
    logits = row(13, n)
    same(
        logits,
        ref_dynatemp(pairs_of(logits), 0.8, spread, exponent),
        samplers="temperature",
        dynatemp_range=spread,
        dynatemp_exponent=exponent,
    )


SIGMA = {"top_n_sigma": 1.0}


@pytest.mark.parametrize(
    "before, options, counted",
    [
        ("top_n_sigma;", SIGMA, 500),
        ("top_n_sigma;top_k;", SIGMA | {"top_k": 300}, 300),
        ("top_k;top_n_sigma;", SIGMA | {"top_k": 300}, 300),
        ("top_n_sigma;xtc;", SIGMA | {"xtc_probability": 1.0, "xtc_threshold": 0.1}, 500),
        ("top_n_sigma;top_p;min_p;typ_p;", SIGMA | {"top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}, 500),
        ("top_n_sigma;min_p;", SIGMA | {"min_p": 1e-9}, None),
        ("top_n_sigma;min_p;", SIGMA | {"min_p": 1e-9, "min_keep": 200}, 200),
        ("top_n_sigma;top_p;", SIGMA | {"top_p": 0.9}, None),
        ("", {"logit_bias": dict.fromkeys(range(0, 500, 2), float("-inf"))}, 500),
    ],
)
def test_dynamic_temperature_counts_what_llama_cpp_counts(
    before: str, options: dict[str, object], counted: int | None
) -> None:
    """There a candidate at -inf (top-n-sigma's, a bias's) stays in the list until a step cuts it off: the
    largest entropy is that of the whole list. Worked out here from the logits alone.
    """
    logits = row(21, 500)
    x = logits.astype(np.float64)
    if "logit_bias" in options:
        x[::2] = -np.inf
    else:
        within = np.argsort(-x)[:300] if before.startswith("top_k") else np.arange(500)
        x[x < x.max() - x[within].std()] = -np.inf
    if "xtc" in before:
        p = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
        dropped = np.argsort(-p)[: int((p >= 0.1).sum()) - 1]
        x[dropped], counted = -np.inf, 500 - len(dropped)
    if "top_p;" in before and options["top_p"] == 0.9:
        order = np.argsort(-x)
        mass = np.cumsum(np.exp(x - x.max())[order]) / np.exp(x - x.max()).sum()
        x[order[int((mass < 0.9).sum()) + 1 :]] = -np.inf
    kept = x[x > -np.inf]
    p = np.exp(kept - kept.max()) / np.exp(kept - kept.max()).sum()
    h = -(p * np.log(p)).sum() / np.log(counted or len(kept))
    t = 0.3 + (1.3 - 0.3) * h**1.5
    expected = [(int(i), float(x[i] / t)) for i in np.flatnonzero(x > -np.inf)]
    dynamic = {"temperature": 0.8, "dynatemp_range": 0.5, "dynatemp_exponent": 1.5}
    same(logits, expected, samplers=before + "temperature", **options, **dynamic)


@pytest.mark.parametrize("seed", range(8))
def test_default_chain(seed: int) -> None:
    logits = row(seed, 32000)
    logits[seed :: 1 + seed] -= 3
    pairs = ref_min_p(ref_top_p(ref_top_k(pairs_of(logits), 40), 0.95), 0.05)
    same(logits, ref_temperature(pairs, 0.8))


@pytest.mark.parametrize("n", [5, 1000, 20000])
@pytest.mark.parametrize("top_p", [0.1, 0.9, 0.95, 0.9999])
@pytest.mark.parametrize("min_p", [1e-6, 0.05, 0.7])
@pytest.mark.parametrize("min_keep", [0, 9, 400])
def test_top_p_may_look_at_min_p_candidates_only(n: int, top_p: float, min_p: float, min_keep: int) -> None:
    """When min-p follows, top-p does not sort what that drops; any step between them prevents it."""
    options = {"seed": 1, "top_p": top_p, "min_p": min_p, "min_keep": min_keep, "temperature": 1.0}
    short, long = (
        Sampler(SamplingOptions(samplers=chain, **options), n)
        for chain in ("top_p;min_p", "top_p;temperature;min_p")
    )
    for seed, scale in enumerate((0.3, 2.0, 6.0)):
        logits = row(seed, n, scale)
        one, other = short.candidates(logits), long.candidates(logits)
        assert np.array_equal(one.ids, other.ids) and np.array_equal(one.probs, other.probs)
        assert short.sample(logits) == long.sample(logits)
        if n <= 1000:
            same(logits, ref_min_p(ref_top_p(pairs_of(logits), top_p, min_keep), min_p, min_keep), short)


def test_the_order_is_followed() -> None:
    logits = row(20, 500)
    hot_first = ref_top_p(ref_temperature(pairs_of(logits), 3.0), 0.6)
    hot_last = ref_temperature(ref_top_p(pairs_of(logits), 0.6), 3.0)
    assert len(hot_first) > len(hot_last)
    same(logits, hot_first, samplers="temperature;top_p", top_p=0.6, temperature=3.0)
    same(logits, hot_last, samplers="top_p;temperature", top_p=0.6, temperature=3.0)
    same(logits, pairs_of(logits), samplers="")


# ---- mirostat, adaptive-p ----------------------------------------------------------------------------------


def test_mirostat_2_cuts_by_surprise_and_learns() -> None:
    logits = row(40, 2000)
    sampler = Sampler(
        SamplingOptions(seed=3, mirostat=2, mirostat_tau=3.0, mirostat_eta=0.2, temperature=0.9), 2000
    )
    mu = 6.0
    for _ in range(30):
        pairs = ref_temperature(pairs_of(logits), 0.9)
        kept = [p for p, prob in zip(pairs, softmax(pairs), strict=True) if -math.log2(prob) <= mu]
        same(logits, kept or by_logit(pairs)[:1], sampler)
        kept = by_logit(kept) or by_logit(pairs)[:1]
        token = sampler.sample(logits)
        surprise = -math.log2(softmax(kept)[[i for i, _ in kept].index(token)])
        mu -= 0.2 * (surprise - 3.0)
        assert sampler.get_state()["mu"] == pytest.approx(mu, rel=1e-5)


def test_mirostat_1_cuts_by_the_zipf_exponent_and_learns() -> None:
    n, tau, eta = 3000, 4.0, 0.1
    logits = row(41, n)
    sampler = Sampler(
        SamplingOptions(seed=3, mirostat=1, mirostat_tau=tau, mirostat_eta=eta, temperature=1.0), n
    )
    mu, best, sizes = 2 * tau, by_logit(pairs_of(logits)), set()
    for _ in range(40):
        t = np.log((np.arange(99) + 2) / (np.arange(99) + 1))
        b = np.array([best[i][1] - best[i + 1][1] for i in range(99)])
        s = float((t * b).sum() / (t * t).sum())
        k = ((s - 1) * 2**mu / (1 - n ** -(s - 1))) ** (1 / s)
        kept = best[: max(int(k), 1)]
        same(logits, kept, sampler)
        sizes.add(len(kept))
        token = sampler.sample(logits)
        mu -= eta * (-math.log2(softmax(kept)[[i for i, _ in kept].index(token)]) - tau)
        assert sampler.get_state()["mu"] == pytest.approx(mu, rel=1e-5)
    assert len(sizes) > 3


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_on_odd_rows(version: int) -> None:
    for logits in (np.zeros(500, np.float32), np.float32([1.0]), np.float32([-np.inf, 2, -np.inf])):
        sampler = Sampler(SamplingOptions(seed=1, mirostat=version), len(logits))
        for _ in range(200):
            assert logits[sampler.sample(logits)] > -np.inf
        assert math.isfinite(sampler.get_state()["mu"])
    cold = Sampler(SamplingOptions(mirostat=version, temperature=0), 900)
    assert {cold.sample(row(2, 900)) for _ in range(20)} == {int(row(2, 900).argmax())}


def test_adaptive_p_transforms_and_learns() -> None:
    logits = row(42, 200)
    options = SamplingOptions(
        seed=9, samplers="top_k;adaptive_p", top_k=20, adaptive_target=0.2, adaptive_decay=0.5
    )
    sampler = Sampler(options, 200)
    best = ref_top_k(pairs_of(logits), 20)
    probs, total, weight = softmax(best), 0.2 / 0.5, 1 / 0.5
    for _ in range(20):
        target = min(max(2 * 0.2 - total / weight, 0.0), 1.0)
        distance = np.abs(probs - target) / 0.3
        expected = 5 - 10 * distance**2 / (1 + distance)
        same(logits, [(i, float(x)) for (i, _), x in zip(best, expected, strict=True)], sampler)
        token = sampler.sample(logits)
        sampler.accept(token)
        total = probs[[i for i, _ in best].index(token)] + 0.5 * total
        weight = 1 + 0.5 * weight
        assert sampler.get_state()["ema"] == pytest.approx((total, weight), rel=1e-5)


# ---- drawing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["temperature", "top_k;temperature", "temperature;top_p"])
def test_frequencies_follow_the_probabilities(order: str) -> None:
    logits = row(50, 12, 1.0)
    sampler = Sampler(SamplingOptions(seed=123, samplers=order, top_k=9, top_p=0.9), 12)
    expected = sampler.candidates(logits)
    n = 20000
    counts = np.bincount([sampler.sample(logits) for _ in range(n)], minlength=12)
    assert counts.sum() == counts[expected.ids].sum() == n
    observed, wanted = counts[expected.ids], expected.probs.astype(np.float64) * n
    chi2 = float(((observed - wanted) ** 2 / wanted).sum())
    freedom = len(wanted) - 1
    assert chi2 < freedom + 4.5 * math.sqrt(2 * freedom)


def test_frequencies_over_a_large_vocabulary() -> None:
    logits = row(51, 4000, 1.0)
    sampler = Sampler(SamplingOptions(seed=5, samplers="temperature", temperature=1.0), 4000)
    probs = softmax(pairs_of(logits))
    counts = np.bincount([sampler.sample(logits) for _ in range(8000)], minlength=4000)
    groups = np.arange(4000) // 100
    observed, wanted = np.bincount(groups, counts), np.bincount(groups, probs) * 8000
    assert ((observed - wanted) ** 2 / wanted).sum() < 39 + 4.5 * math.sqrt(78)


@pytest.mark.parametrize("mirostat", [0, 1, 2])
def test_a_seed_repeats(mirostat: int) -> None:
    rows = [row(i, 1000) for i in range(40)]
    options = SamplingOptions(seed=77, mirostat=mirostat, xtc_probability=0.0 if mirostat else 0.5)

    def run(sampler: Sampler) -> list[int]:
        tokens = []
        for logits in rows:
            tokens.append(sampler.sample(logits))
            sampler.accept(tokens[-1])
        return tokens

    sampler = Sampler(options, 1000)
    first = run(sampler)
    assert run(Sampler(options, 1000)) == first
    assert run(sampler) != first
    sampler.reset()
    assert run(sampler) == first
    assert run(Sampler(SamplingOptions(seed=78, mirostat=mirostat), 1000)) != first


def test_a_random_seed_is_told_and_repeats() -> None:
    one, two = Sampler(SamplingOptions(), 500), Sampler(SamplingOptions(), 500)
    assert one.seed != two.seed and 0 <= one.seed < 2**32
    again = Sampler(SamplingOptions(seed=one.seed), 500)
    logits = row(1, 500)
    assert [one.sample(logits) for _ in range(20)] == [again.sample(logits) for _ in range(20)]
    before = one.seed
    one.reset()
    assert one.seed != before


def test_clone_and_saved_state_go_on_alike() -> None:
    options = SamplingOptions(
        seed=4,
        repeat_penalty=1.2,
        dry_multiplier=0.8,
        xtc_probability=0.5,
        adaptive_target=0.3,
        samplers="penalties;dry;top_k;xtc;adaptive_p",
    )
    pieces = [bytes([i % 256]) for i in range(300)]
    sampler = Sampler(options, 300, pieces, list)
    sampler.accept_prompt(np.arange(250))
    rng = np.random.default_rng(1)

    def go(which: Sampler, rows: list[np.ndarray]) -> list[int]:
        out = []
        for logits in rows:
            out.append(which.sample(logits))
            which.accept(out[-1])
        return out

    go(sampler, [rng.normal(0, 2, 300).astype(np.float32) for _ in range(30)])
    sampler.sample(np.zeros(300, np.float32))  # drawn, not accepted: part of the state
    state = pickle.loads(pickle.dumps(sampler.get_state()))
    twin = sampler.clone()
    restored = Sampler(options, 300, pieces, list)
    restored.set_state(state)
    rows = [rng.normal(0, 2, 300).astype(np.float32) for _ in range(30)]
    expected = go(sampler, rows)
    assert go(twin, rows) == expected and go(restored, rows) == expected
    assert twin.history == sampler.history and twin.seed == sampler.seed
    for broken in (
        {},
        {**state, "version": 99},
        {**state, "rng": [1]},
        {**state, "history": [300]},
        {**state, "mu": "x"},
    ):
        with pytest.raises(OptionError):
            restored.set_state(broken)


# ---- hostile rows, processors, log-probabilities -----------------------------------------------------------


@pytest.mark.parametrize(
    "order", ["", "top_k", "top_p", "min_p", "typ_p", "xtc", "temperature", "top_n_sigma", "penalties"]
)
def test_rows_that_cannot_be_sampled(order: str) -> None:
    options = SamplingOptions(
        samplers=order, xtc_probability=1.0, typical_p=0.5, top_n_sigma=1.0, repeat_penalty=2.0
    )
    sampler = Sampler(options, 200)
    sampler.accept(5)
    for bad in (np.nan, -np.nan, np.inf):
        for at in (0, 5, 199):
            logits = row(1, 200)
            logits[at] = bad
            with pytest.raises(NativeError, match="NaN"):
                sampler.sample(logits)
    with pytest.raises(NativeError, match="excluded"):
        sampler.sample(np.full(200, -np.inf, np.float32))
    only = np.full(200, -np.inf, np.float32)
    only[150] = -3.0
    assert {sampler.sample(only) for _ in range(50)} == {150}


@pytest.mark.parametrize(
    "options", [{}, {"samplers": ""}, {"samplers": "typ_p", "typical_p": 0.5}, {"mirostat": 2}]
)
def test_extreme_but_finite_logits(options: dict) -> None:
    logits = np.array([3e38, -3e38, 0.0, 1e-40] * 40, np.float32) / np.float32(4)
    sampler = Sampler(SamplingOptions(seed=1, **options), 160)
    assert all(sampler.sample(logits) % 4 == 0 for _ in range(100))


def test_the_row_must_fit() -> None:
    sampler = Sampler(SamplingOptions(seed=1), 100)
    for bad in (np.zeros(99, np.float32), np.zeros((1, 100), np.float32)):
        with pytest.raises(OptionError, match="shape"):
            sampler.sample(bad)
    strided, half = row(1, 200)[::2], row(1, 200)[::2].astype(np.float64)
    assert sampler.clone().sample(strided) == sampler.clone().sample(half)


def test_processors_see_the_tokens_and_change_only_a_copy() -> None:
    seen = []

    def forbid_last(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        seen.append(ids.tolist())
        logits[ids[-1]] = -np.inf
        return logits

    sampler = Sampler(SamplingOptions(temperature=0), 5, processors=[forbid_last, lambda ids, x: x * 2])
    logits = np.array([0, 1, 2, 3, 4], np.float32)
    sampler.accept_prompt([0, 4])
    assert sampler.sample(logits) == 3
    sampler.accept(3)
    assert sampler.sample(logits) == 4 and logits.tolist() == [0, 1, 2, 3, 4]
    assert seen == [[0, 4], [0, 4, 3]]
    assert sampler.clone().candidates(logits).logits.tolist() == [8.0]
    short = Sampler(SamplingOptions(), 5, processors=[lambda ids, x: x[:3]])
    with pytest.raises(OptionError, match="shape"):
        short.sample(logits)


def test_top_logprobs() -> None:
    logits = row(60, 5000)
    logits[17] = -np.inf
    exact = logits - (np.log(np.exp(logits.astype(np.float64)).sum()))
    got = top_logprobs(logits, 42, 10)
    assert got.logprob == pytest.approx(exact[42], abs=1e-5)
    assert [i for i, _ in got.top] == np.argsort(-exact, kind="stable")[:10].tolist()
    assert [x for _, x in got.top] == pytest.approx(np.sort(exact)[::-1][:10].tolist(), abs=1e-5)
    assert top_logprobs(logits, 17, 0).logprob == -math.inf and top_logprobs(logits, 1, 0).top == ()
    assert len(top_logprobs(np.array([1, 2, -np.inf], np.float32), 0, 10).top) == 2
    for token, n in ((-1, 1), (5000, 1), (0, -1)):
        with pytest.raises(OptionError):
            top_logprobs(logits, token, n)


def test_the_default_chain_does_not_sort_the_vocabulary() -> None:
    """In this thread's CPU time, in turn with a sort, which takes many times as long."""
    logits = row(1, 128256)
    sampler = Sampler(SamplingOptions(seed=1), 128256)
    times, sorts = [], []
    for _ in range(20):
        start = time.thread_time()
        sampler.sample(logits)
        between = time.thread_time()
        np.sort(logits)
        times.append(between - start)
        sorts.append(time.thread_time() - between)
    assert min(times) < min(sorts)


def test_a_guesser_chooses_alike_and_moves_nothing() -> None:
    """What a sampler will choose next, as often as it is asked, without calling its processors."""
    calls = []

    def counted(ids: np.ndarray, values: np.ndarray) -> np.ndarray:
        calls.append(len(ids))
        return values

    options = SamplingOptions(temperature=1.5, seed=7, top_k=0, min_p=0.0, repeat_penalty=1.3)
    sampler = Sampler(options, 50, processors=[counted])
    sampler.accept_prompt([1, 2, 3])
    guesser = sampler.guesser()
    tries = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32)
    for logits in tries:
        guesser.take_numbers_of(sampler)
        guessed = guesser.sample(logits)
        before = len(calls)
        assert sampler.sample(logits) == guessed and len(calls) == before + 1
        for each in (sampler, guesser):
            each.accept(guessed)
