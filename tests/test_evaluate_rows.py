"""Log-sums and divergences of rows of logits against float64 arithmetic, on every tier of this CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pyllamacpu.errors import ModelError
from pyllamacpu.evaluate.rows import divergences, log_probabilities, log_sums
from pyllamacpu.native import isa_names, isa_selected, thread_pool

SIZES = [1, 2, 3, 15, 16, 17, 33, 300, 4095, 4096, 4097, 4113, 9001, 128256]


@pytest.fixture(scope="module")
def pool() -> Iterator[Any]:
    yield thread_pool(2)


def exact(a: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """ln p of a row, in float64."""
    x = a.astype(np.float64)
    top = x.max(-1, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(-1, keepdims=True))


def rows(n: int, n_rows: int = 5, spread: float = 4.0, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed + n).normal(3.0, spread, (n_rows, n)).astype(np.float32)


@pytest.mark.parametrize("n", SIZES)
def test_log_sums_and_tops(pool: Any, n: int) -> None:
    a = rows(n)
    sums, tops = log_sums(pool, a)
    assert np.array_equal(tops, a.argmax(1))
    tokens = np.random.default_rng(1).integers(0, n, 5)
    want = exact(a)[np.arange(5), tokens]
    assert log_probabilities(a, sums, tokens) == pytest.approx(want, rel=1e-6, abs=2e-6)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("noise", [3.0, 0.1, 1e-3])
def test_divergences(pool: Any, n: int, noise: float) -> None:
    a = rows(n)
    b = a + np.random.default_rng(2).normal(0.0, noise, a.shape).astype(np.float32)
    la, lb = exact(a), exact(b)
    d = la - lb
    want = (np.exp(la) * (d + np.expm1(-d))).sum(1)  # what is added is 0 in all, and makes the sum exact
    found = divergences(pool, a, log_sums(pool, a)[0], b, log_sums(pool, b)[0])
    assert found == pytest.approx(want, rel=3e-5 if noise > 0.01 else 1e-3, abs=1e-13)


def test_equal_rows_do_not_diverge(pool: Any) -> None:
    a = rows(5000)
    sums, _ = log_sums(pool, a)
    assert np.array_equal(divergences(pool, a, sums, a, sums), np.zeros(5))


def test_probabilities_too_small_for_float32(pool: Any) -> None:
    """e^-100 under one model and e^-0.7 under the other, both ways."""
    a, b = np.full((1, 100), -110.0, np.float32), np.full((1, 100), -110.0, np.float32)
    a[0, 7], b[0, [7, 9]] = 0.0, -1.0
    for first, second in ((a, b), (b, a)):
        la, lb = exact(first), exact(second)
        want = (np.exp(la) * (la - lb)).sum(1)
        found = divergences(pool, first, log_sums(pool, first)[0], second, log_sums(pool, second)[0])
        assert found == pytest.approx(want, rel=1e-5)


def test_rows_cut_out_of_wider_ones(pool: Any) -> None:
    wide = rows(128)
    wide[:, 100:] = np.nan
    sums, tops = log_sums(pool, wide[:, :100])
    whole, same = log_sums(pool, wide[:, :100].copy())
    assert np.array_equal(sums, whole) and np.array_equal(tops, same)
    assert not divergences(pool, wide[:, :100], sums, wide[:, :100], sums).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 3000, 4999])
def test_logits_that_are_no_numbers_are_refused(pool: Any, bad: float, at: int) -> None:
    a = rows(5000)
    a[3, at] = bad
    with pytest.raises(ModelError, match="not finite"):
        log_sums(pool, a)


def test_the_first_of_equal_logits_is_the_top(pool: Any) -> None:
    a = np.zeros((1, 10000), np.float32)
    a[0, [4200, 8300]] = 1.0
    assert log_sums(pool, a)[1].tolist() == [4200]
    assert log_sums(pool, np.zeros((1, 77), np.float32))[1].tolist() == [0]


def test_threads_change_nothing(pool: Any) -> None:
    a, b = rows(9001, 40), rows(9001, 40, seed=5)
    alone = thread_pool(1)
    for function in (
        lambda p: log_sums(p, a)[0],
        lambda p: divergences(p, a, log_sums(p, a)[0], b, log_sums(p, b)[0]),
    ):
        assert np.array_equal(function(pool), function(alone))


@pytest.mark.parametrize("isa", [name for name in isa_names() if name != isa_selected()])
def test_other_tiers(isa: str) -> None:
    """These tests again, in a process that uses another tier."""
    if "PYLLAMACPU_TIER_TEST" in os.environ:
        pytest.skip("this is such a process")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", Path(__file__).name]
    environment = os.environ | {"PYLLAMACPU_ISA": isa, "PYLLAMACPU_TIER_TEST": "1"}
    folder = Path(__file__).parent
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
