"""Matrices and importance weights of test_quantize_iq.py and of the tool that makes its fixture."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pyllamacpu.gguf.types import TensorType

Floats = npt.NDArray[np.float32]
T = TensorType

WITH_IMPORTANCE_ONLY = (T.IQ2_XXS, T.IQ2_XS, T.IQ1_S, T.IQ1_M)
KINDS = (T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S)
MATRICES = ("normal", "heavy", "columns")


def matrix(name: str) -> Floats:
    """(12, 512): normal, heavy-tailed, or with columns of unequal size."""
    rng = np.random.default_rng(MATRICES.index(name) + 11)
    x = rng.standard_normal((12, 512)) if name != "heavy" else rng.standard_t(4, (12, 512))
    if name == "columns":
        x *= np.exp(rng.normal(0, 0.7, 512))
    return (0.02 * x).astype(np.float32)


def importance() -> Floats:
    """(512,): log-normal, so that some columns count a hundred times as much as others."""
    return np.exp(np.random.default_rng(10).normal(0, 1.2, 512)).astype(np.float32)


def cases() -> list[tuple[TensorType, str, bool]]:
    """(type, matrix, with importance)"""
    return [
        (kind, name, weighted)
        for kind in KINDS
        for name in MATRICES
        for weighted in ((True,) if kind in WITH_IMPORTANCE_ONLY else (True, False))
    ]


def reference_weights(x: Floats, kind: TensorType, columns: Floats | None) -> npt.NDArray[np.float64]:
    """What llama.cpp's quantizer of `kind` weighs squared errors with (ggml-quants.c): (rows, cols)."""
    square = x.astype(np.float64) ** 2
    mean = np.repeat(square.reshape(len(x), -1, 256).mean(axis=2), 256, axis=1)
    if columns is not None:
        factor = 1 if kind in (T.IQ2_XXS, T.IQ2_XS) else 2
        return np.asarray(columns * np.sqrt(factor * mean + square))
    return 0.5 * mean + square if kind is T.IQ2_S else square


def errors(x: Floats, values: Floats, kind: TensorType, columns: Floats | None) -> tuple[float, float]:
    """Shares of the squares that are lost: with the reference's weights, and with importance (or 1) alone."""
    lost = (x.astype(np.float64) - values) ** 2
    plain = np.ones(x.shape) if columns is None else np.broadcast_to(columns, x.shape).astype(np.float64)
    weights = reference_weights(x, kind, columns), plain
    first, second = (float((w * lost).sum() / (w * x.astype(np.float64) ** 2).sum()) for w in weights)
    return first, second
