"""The steps that look back: penalties and DRY, against hand-made and brute-force results; logit bias."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sampler_reference import Pairs, pairs_of, ref_top_k, row, same

from pyllamacpu.errors import OptionError
from pyllamacpu.sampling.sampler import Sampler, SamplingOptions


def test_penalties_by_hand() -> None:
    options = SamplingOptions(
        samplers="penalties",
        repeat_penalty=2.0,
        presence_penalty=0.25,
        frequency_penalty=0.5,
        repeat_last_n=4,
    )
    sampler = Sampler(options, 6)
    sampler.accept_prompt([5, 0, 1, 1])
    sampler.accept(2)  # 5 is out of the window of four now
    logits = np.array([4, 4, -4, 0, 1, 1], np.float32)
    same(logits, [(0, 1.25), (1, 0.75), (2, -8.75), (3, 0), (4, 1), (5, 1)], sampler)
    assert logits.tolist() == [4, 4, -4, 0, 1, 1]
    sampler.reset()
    same(logits, pairs_of(logits), sampler)


@pytest.mark.parametrize("order", ["penalties", "top_k;penalties", "penalties;top_k"])
@pytest.mark.parametrize("last_n", [0, 1, 7, 64, -1])
def test_penalties_over_a_moving_window(order: str, last_n: int) -> None:
    rng, n, n_ctx = np.random.default_rng(3), 300, 100
    options = SamplingOptions(samplers=order, repeat_penalty=1.3, frequency_penalty=0.1, repeat_last_n=last_n)
    sampler, tokens = Sampler(options, n, n_ctx=n_ctx), rng.integers(0, 30, 250).tolist()
    sampler.accept_prompt(tokens)
    window = tokens[len(tokens) - (n_ctx if last_n < 0 else last_n) :]
    logits = row(31, n)

    def penalize(pairs: Pairs) -> Pairs:
        hit = [(i, (x * 1.3 if x <= 0 else x / 1.3) - 0.1 * window.count(i)) for i, x in pairs]
        return [new if new[0] in window else old for new, old in zip(hit, pairs, strict=True)]

    pairs = ref_top_k(pairs_of(logits), 40) if order.startswith("top_k") else pairs_of(logits)
    expected = penalize(pairs)
    same(logits, ref_top_k(expected, 40) if order.endswith("top_k") else expected, sampler)


def test_logit_bias() -> None:
    logits = row(14, 100)
    expected = logits.copy()
    expected[3] += 2.5
    expected[4] = -np.inf
    same(logits, pairs_of(expected), samplers="", logit_bias={"3": 2.5, 4: False})
    assert SamplingOptions(logit_bias={1: 2, "1": 3}).logit_bias == ((1, 5.0),)
    with pytest.raises(OptionError, match="100"):
        Sampler(SamplingOptions(logit_bias={100: 1.0}), 100)
    for bad in ({-1: 0.0}, {1: math.inf}, {1: math.nan}, {"x": 1}):
        with pytest.raises(OptionError, match="logit_bias"):
            SamplingOptions(logit_bias=bad)


# ---- DRY ---------------------------------------------------------------------------------------------------


def dry_sampler(n_vocab: int, **options: object) -> Sampler:
    breakers = options.pop("breakers", ())
    chosen = SamplingOptions(
        samplers="dry",
        dry_multiplier=1.0,
        dry_base=2.0,
        dry_sequence_breakers=(),
        **options,  # type: ignore[arg-type]
    )
    return Sampler(chosen, n_vocab, n_ctx=4096, breakers=breakers)  # type: ignore[arg-type]


def penalties_found(sampler: Sampler) -> dict[int, float]:
    got = sampler.candidates(np.zeros(sampler.n_vocab, np.float32))
    return {i: -x for i, x in zip(got.ids.tolist(), got.logits.tolist(), strict=True) if x}


def ref_dry(tokens: list[int], allowed: int, limit: int) -> dict[int, float]:
    """Longest repeated ending before each token, by comparing everything with everything."""
    best: dict[int, int] = {}
    for end in range(1, len(tokens)):
        length = 0
        while length < end and tokens[end - 1 - length] == tokens[len(tokens) - 1 - length]:
            length += 1
        best[tokens[end]] = max(best.get(tokens[end], 0), min(length, limit))
    if len(tokens) <= allowed or limit < allowed:
        return {}
    return {t: 2.0 ** (length - allowed) for t, length in best.items() if length >= allowed}


def test_dry_by_hand() -> None:
    a, b, c, y = 0, 1, 2, 3
    sampler = dry_sampler(5, dry_allowed_length=1)
    sampler.accept_prompt([a, b, c, c, b, c, y, a, b, c])
    assert penalties_found(sampler) == {c: 4.0, b: 1.0, y: 2.0}
    sampler = dry_sampler(5, dry_allowed_length=1, breakers=((b,),))
    sampler.accept_prompt([a, b, c, c, b, c, y, a, b, c])
    assert penalties_found(sampler) == {c: 1.0, y: 1.0}  # repeats end at the breaker, which stays free
    sampler = dry_sampler(5, dry_allowed_length=1, breakers=((b, c),))
    sampler.accept_prompt([a, b, c, c, b, c, y, a, b, c])
    assert penalties_found(sampler) == {}  # the breaker of two tokens is just complete
    for breakers in (((c,), (c, a)), ((c, a), (c,))):  # of two that begin alike the longer one counts
        sampler = dry_sampler(5, dry_allowed_length=1, breakers=breakers)
        sampler.accept_prompt([c, a, b, y, c, a, b])
        assert penalties_found(sampler) == {y: 1.0}
    single = dry_sampler(5, dry_allowed_length=1, breakers=((b, a), (b,)))
    single.accept_prompt([y, b, a, y, y, b, a])
    assert penalties_found(single) == {}


@pytest.mark.parametrize("seed", range(10))
def test_dry_against_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 3, 120).tolist()
    allowed, last_n = int(rng.integers(0, 4)), int(rng.integers(1, 140))
    sampler = dry_sampler(6, dry_allowed_length=allowed, dry_penalty_last_n=last_n)
    sampler.accept_prompt(tokens)
    window = tokens[-last_n:]
    assert penalties_found(sampler) == ref_dry(window, allowed, len(window))
    sampler = dry_sampler(6, dry_allowed_length=allowed, dry_penalty_last_n=-1, breakers=((4,), (5, 5)))
    sampler.accept_prompt([*tokens, 4, *tokens[:9]])
    assert penalties_found(sampler) == {
        t: p for t, p in ref_dry([*tokens, 4, *tokens[:9]], allowed, 9).items() if t != 4
    }


def test_dry_after_top_k_and_with_a_huge_repeat() -> None:
    options = SamplingOptions(
        samplers="top_k;dry", top_k=3, dry_multiplier=0.5, dry_penalty_last_n=-1, dry_sequence_breakers=()
    )
    sampler = Sampler(options, 10, n_ctx=1000)
    sampler.accept_prompt([7] * 900)
    got = sampler.candidates(np.arange(10, dtype=np.float32))
    assert got.ids.tolist() == [9, 8, 7] and np.isfinite(got.logits).all() and got.logits[2] < -1e37


def test_dry_breakers_that_span_tokens() -> None:
    pieces = [b"a", b"x<", b"<e", b"nd>", b"end>", b"say <end> now", b"<<", b">", b"\xff"]
    tokens_of = {b"end>": [4], b"nd>": [3], b">": [7]}
    options = SamplingOptions(dry_multiplier=1.0, dry_sequence_breakers=("<end>",))
    sampler = Sampler(options, len(pieces), pieces, tokens_of.__getitem__)
    assert set(sampler.breakers) == {(1, 4), (2, 3), (5,), (6, 4)}
    single = SamplingOptions(dry_multiplier=1.0, dry_sequence_breakers=("a", ">"))
    assert set(Sampler(single, len(pieces), pieces.__getitem__).breakers) == {(0,), (3,), (4,), (5,), (7,)}
    with pytest.raises(OptionError, match="dry_sequence_breakers"):
        Sampler(options, len(pieces))
    assert Sampler(SamplingOptions(), len(pieces)).breakers == ()


def test_history_is_bounded_and_checked() -> None:
    sampler = Sampler(SamplingOptions(), 1000)
    assert sampler.history == []
    sampler.accept_prompt(range(500))  # type: ignore[arg-type]
    assert sampler.history == list(range(436, 500))
    for bad in (-1, 1000):
        with pytest.raises(OptionError, match=str(bad)):
            sampler.accept(bad)
    for tokens in ([1, 2**40], [2**70], np.array([2**32 + 1])):
        with pytest.raises(OptionError, match="outside the vocabulary"):
            sampler.accept_prompt(tokens)
    sampler.accept_prompt([])
    assert sampler.history[-1] == 499
    with pytest.raises(OptionError, match="n_ctx"):
        Sampler(SamplingOptions(repeat_penalty=1.1, repeat_last_n=-1), 1000)


@pytest.mark.parametrize("before", ["", "top_k;"])
@pytest.mark.parametrize(
    "options",
    [
        {"samplers": "penalties", "repeat_penalty": 1e-30, "logit_bias": {5: 1e28}},
        {"samplers": "penalties", "repeat_penalty": 1e-30, "frequency_penalty": -1e28},
        {"samplers": "dry", "dry_multiplier": -1e28, "dry_base": 1e9, "dry_allowed_length": 1},
    ],
)
def test_penalties_that_raise_logits_beyond_all_floats(before: str, options: dict[str, Any]) -> None:
    options = {**options, "samplers": before + options["samplers"], "temperature": 0.5}
    sampler = Sampler(SamplingOptions(seed=1, **options), 100, lambda token: b"x", n_ctx=64)
    sampler.accept_prompt([5, 6, 7, 5, 6, 7, 5, 6, 7])
    logits = row(12, 100)
    logits[:10] += 50
    logits[20] = -np.inf
    assert sampler.sample(logits) in (5, 6, 7)
