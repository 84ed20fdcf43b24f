"""sampling/rows.py: many rows in one call give each what it gives alone, with and without masks; padding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sampler_reference import row

from pyllamacpu.errors import NativeError, OptionError
from pyllamacpu.native import ffi, lib, thread_pool
from pyllamacpu.sampling.rows import Mask, sample_rows, top_logprobs_rows
from pyllamacpu.sampling.sampler import Sampler, SamplingOptions, top_logprobs

N = 1003  # not whole words, not whole blocks

CHAINS: list[dict[str, Any]] = [
    {},
    {"top_k": 0},
    {"temperature": 0},
    {"samplers": "temperature", "temperature": 1.5},
    {"top_k": 0, "min_p": 0, "top_p": 0.9},
    {"repeat_penalty": 1.3, "logit_bias": {5: -math.inf, 7: 3}},
    {"samplers": "typ_p;xtc", "typical_p": 0.7, "xtc_probability": 0.5},
    {"mirostat": 2},
    {"samplers": "top_k;adaptive_p", "adaptive_target": 0.3},
]


@pytest.fixture(params=[None, 1, 3])
def pool(request: pytest.FixtureRequest) -> Any:
    if request.param is None:
        return None
    return thread_pool(request.param)


def samplers(n: int) -> list[Sampler]:
    return [Sampler(SamplingOptions(seed=i, **CHAINS[i % len(CHAINS)]), N) for i in range(n)]


def words(allowed: np.ndarray) -> Mask:
    """Bit i % 32 of word i / 32."""
    bits = np.zeros(-(-allowed.size // 32) * 32, np.uint8)
    bits[: allowed.size] = allowed
    return np.packbits(bits, bitorder="little").view("<u4")


def test_each_row_gives_what_it_gives_alone(pool: Any) -> None:
    n, random = 2 * len(CHAINS), np.random.default_rng(1)
    together, alone = samplers(n), samplers(n)
    for step in range(12):
        logits = random.normal(0, 2.5, (n, N + 13)).astype(np.float32)  # rows are wider than the vocabulary
        rows = random.permutation(n).tolist()
        some = random.permutation(n)[: n - step].tolist()
        got = sample_rows(pool, [together[i] for i in some], logits, [rows[i] for i in some])
        assert got == [alone[i].sample(logits[rows[i], :N]) for i in some]
        for i, token in zip(some, got, strict=True):
            together[i].accept(token)
            alone[i].accept(token)
    assert [s.get_state() for s in together] == [s.get_state() for s in alone]
    assert sample_rows(pool, [], np.zeros((0, N), np.float32), []) == []


@pytest.mark.parametrize("kind", [np.uint32, np.int32])
def test_a_mask_is_what_logits_of_minus_infinity_are(pool: Any, kind: Any) -> None:
    n, random = 3 * len(CHAINS), np.random.default_rng(2)
    together, alone = samplers(n), samplers(n)
    for _ in range(8):
        logits = random.normal(0, 2.5, (n, N)).astype(np.float32)
        allowed = random.random((n, N)) < random.choice([0.003, 0.5, 0.999], (n, 1))
        allowed[:, N - 1] = True
        masks: list[Mask | None] = [words(row).view(kind) for row in allowed]
        masks[3] = None
        cut = np.where(allowed, logits, np.float32(-np.inf))
        cut[3] = logits[3]
        got = sample_rows(pool, together, logits, range(n), masks)
        assert got == [s.sample(row) for s, row in zip(alone, cut, strict=True)]
        assert all(i == 3 or allowed[i, token] for i, token in enumerate(got))


def test_masks_that_leave_one_or_none() -> None:
    one, none, all_of_them = np.zeros((3, N), bool)
    one[N - 1] = all_of_them[:] = True
    logits = np.stack([row(1, N), row(2, N), row(3, N)])
    logits[0, :5] = np.nan  # masked, so as good as -inf
    got = sample_rows(None, samplers(3), logits, [0, 1, 2], [words(m) for m in (one, none, all_of_them)])
    assert got[0] == N - 1 and isinstance(got[1], NativeError) and "excluded" in str(got[1])
    assert got[2] == samplers(3)[2].sample(logits[2])


def test_an_error_concerns_its_row_only(pool: Any) -> None:
    logits = np.stack([row(i, N) for i in range(6)])
    logits[1, 77] = np.nan
    logits[2] = -np.inf
    logits[3, N - 1] = np.inf
    together = samplers(6)
    before = [s.get_state() for s in together]
    got = sample_rows(pool, together, logits, range(6))
    alone = samplers(6)
    assert [got[i] for i in (0, 4, 5)] == [alone[i].sample(logits[i]) for i in (0, 4, 5)]
    for i, message in ((1, "NaN"), (2, "excluded"), (3, "NaN")):
        with pytest.raises(NativeError, match=message) as error:
            alone[i].sample(logits[i])
        assert isinstance(got[i], NativeError) and str(got[i]) == str(error.value)
        assert together[i].get_state() == before[i]


def test_processors_run_and_fail_by_row() -> None:
    def only_seven(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        logits[np.arange(N) != 7] = -np.inf
        return logits

    def broken(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        raise ValueError("no")

    logits = np.stack([row(i, N) for i in range(3)])
    kept = logits.copy()
    three = [
        Sampler(SamplingOptions(seed=1, xtc_probability=0.5), N, processors=p)
        for p in ([], [only_seven], [broken])
    ]
    before = three[2].get_state()
    got = sample_rows(None, three, logits, [0, 1, 2])
    assert got[0] == Sampler(SamplingOptions(seed=1, xtc_probability=0.5), N).sample(logits[0])
    assert got[1] == 7 and isinstance(got[2], ValueError)
    assert three[2].get_state() == before and np.array_equal(logits, kept)


def test_arguments_that_do_not_fit() -> None:
    two, logits = samplers(2), np.zeros((2, N), np.float32)
    short = np.zeros((N - 1) // 32, np.uint32)
    for arguments in (
        (two, logits, [0]),
        (two, logits, [0, 2]),
        (two, logits, [-1, 0]),
        (two, logits[:, 1:], [0, 1]),
        (two, logits.astype(np.float64), [0, 1]),
        (two, np.zeros((2, 2 * N), np.float32)[:, ::2], [0, 1]),
        ([two[0], two[0]], logits, [0, 1]),
        (two, logits, [0, 1], [None]),
        (two, logits, [0, 1], [None, short]),
        (two, logits, [0, 1], [None, np.zeros(N, np.uint64)]),
    ):
        with pytest.raises(OptionError):
            sample_rows(None, *arguments)
    assert two[0].get_state() == samplers(1)[0].get_state()


def test_a_sampler_in_two_rows_is_refused_in_the_second() -> None:
    one, logits, tokens = samplers(1)[0], row(1, N), ffi.new("int32_t[2]")
    rows = ffi.new("float *[2]", [ffi.from_buffer("float[]", logits)] * 2)
    states = ffi.new("pl_sampler *[2]", [one.handle] * 2)
    for _ in range(2):
        assert lib.pl_sample_rows(ffi.NULL, states, rows, ffi.NULL, 2, tokens) == 0
        assert tokens[0] >= 0 and tokens[1] == lib.PL_EINVAL


def test_top_logprobs_of_many_rows(pool: Any) -> None:
    logits = np.stack([row(i, N + 9) for i in range(7)])
    logits[2, 5] = np.nan
    logits[:, N:] = 1e9  # padding
    tokens, counts = [0, 5, 5, N - 1, 9, N, 3], [0, 1, 3, 20, 2000, 2, 5]
    got = top_logprobs_rows(pool, logits, range(7), tokens, counts, N)
    for i, (token, n) in enumerate(zip(tokens, counts, strict=True)):
        if i in (2, 5):  # NaN, a token outside the vocabulary
            assert isinstance(got[i], NativeError)
        else:
            assert got[i] == top_logprobs(logits[i], token, n, N) == top_logprobs(logits[i, :N], token, n)
    assert top_logprobs_rows(pool, logits, [], [], []) == []
    for bad in (([0], [1], []), ([7], [1], [1]), ([0], [1], [-1])):
        with pytest.raises(OptionError):
            top_logprobs_rows(pool, logits, *bad)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("padding", [1000.0, np.inf, np.nan])
def test_padding_is_never_a_candidate(chain: dict[str, Any], padding: float) -> None:
    options, n = SamplingOptions(seed=3, **chain), 200
    padded, plain = Sampler(options, 256, n_tokens=n), Sampler(options, n)
    for seed in range(30):
        logits = row(seed, 256)
        logits[n:] = padding
        expected = plain.candidates(logits[:n])
        for name in ("ids", "logits", "probs"):
            assert np.array_equal(getattr(padded.candidates(logits), name), getattr(expected, name))
        token = plain.sample(logits[:n])
        assert sample_rows(None, [padded], logits[None], [0]) == [token]
        padded.accept(token)
        plain.accept(token)
    twin = padded.clone()
    assert twin.n_tokens == n and twin.sample(logits) == padded.sample(logits)


def test_what_a_sampler_of_padded_rows_refuses() -> None:
    sampler = Sampler(SamplingOptions(), 256, n_tokens=200)
    for bad in (lambda: sampler.accept(200), lambda: sampler.accept_prompt([3, 255])):
        with pytest.raises(OptionError, match=r"token (200|255) is"):
            bad()
    with pytest.raises(OptionError, match="logit_bias"):
        Sampler(SamplingOptions(logit_bias={200: 1}), 256, n_tokens=200)
    for n in (0, 257):
        with pytest.raises(OptionError, match="n_tokens"):
            Sampler(SamplingOptions(), 256, n_tokens=n)
    seen = []
    Sampler(
        SamplingOptions(), 256, n_tokens=200, processors=[lambda ids, x: seen.append(x.shape) or x]
    ).sample(row(1, 256))
    assert seen == [(256,)]
