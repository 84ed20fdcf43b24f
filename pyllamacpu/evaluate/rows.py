"""Rows of logits as distributions: what C computes of whole vocabularies, with numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import ModelError
from pyllamacpu.native import check, ffi, lib

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]


def log_sums(pool: Any, logits: Floats) -> tuple[Doubles, Ints]:
    """ln of the sum of e^x over each row, and the place of each row's largest; logits (n_rows, n_vocab).

    Rows may be cut out of wider ones. Raises ModelError when a logit is NaN or infinite.
    """
    n_rows, n_vocab = logits.shape
    sums, tops = np.empty(n_rows, np.float64), np.empty(n_rows, np.int32)
    code = lib.pl_log_sums(
        pool,
        _at(logits, "float"),
        _stride(logits),
        n_vocab,
        n_rows,
        _at(sums, "double"),
        _at(tops, "int32_t"),
    )
    if code == lib.PL_SAMPLE_ENAN:
        raise ModelError("the model's logits are not finite (NaN or inf): its weights are damaged")
    check(code, f"the log-sums of {n_rows} rows of {n_vocab} logits")
    return sums, tops


def divergences(pool: Any, base: Floats, base_sums: Doubles, logits: Floats, sums: Doubles) -> Doubles:
    """Kullback-Leibler divergence, in nats, of each row of `logits` from the same row of `base`.

    base, logits: (n_rows, n_vocab), both finite; their log-sums as `log_sums` returned them.
    """
    n_rows, n_vocab = logits.shape
    assert base.shape == logits.shape
    result = np.empty(n_rows, np.float64)
    code = lib.pl_divergences(
        pool,
        _at(base, "float"),
        _stride(base),
        _at(base_sums, "double"),
        _at(logits, "float"),
        _stride(logits),
        _at(sums, "double"),
        n_vocab,
        n_rows,
        _at(result, "double"),
    )
    check(code, f"the divergences of {n_rows} rows of {n_vocab} logits")
    return result


def log_probabilities(logits: Floats, sums: Doubles, tokens: npt.ArrayLike) -> Doubles:
    """ln of the probability that each row gives to its own one of `tokens` (n_rows,)."""
    picked: Doubles = logits[np.arange(len(logits)), np.asarray(tokens)].astype(np.float64)
    return picked - sums


def _at(array: npt.NDArray[Any], kind: str) -> Any:
    return ffi.cast(f"{kind} *", array.ctypes.data)


def _stride(rows: Floats) -> int:
    assert rows.dtype == np.float32 and rows.strides[1] == 4
    return rows.strides[0] // 4 if len(rows) > 1 else rows.shape[1]
