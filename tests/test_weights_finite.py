"""Damaged blocks are known by their scales: as decoding says, for any bytes."""

from __future__ import annotations

import numpy as np
import pytest

from pyllamacpu.errors import ModelError
from pyllamacpu.gguf import TensorType
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.weights.finite import _SCALES, stored_finite

T = TensorType


@pytest.mark.parametrize("kind", _SCALES, ids=lambda kind: kind.name)
def test_scales_tell_what_decoding_tells(kind: TensorType) -> None:
    rng = np.random.default_rng(int(kind))
    seen = set()
    for _ in range(200):
        blocks = rng.integers(0, 256, (4, kind.block_bytes), dtype=np.uint8)
        values = dequantize(blocks.reshape(-1), kind, (4, kind.block_size))
        expected = bool(np.isfinite(values).all())
        assert stored_finite(blocks, kind) is expected
        seen.add(expected)
    assert seen == {True, False}


@pytest.mark.parametrize("kind", _SCALES, ids=lambda kind: kind.name)
@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00])
def test_one_bad_scale_among_many(kind: TensorType, bits: int) -> None:
    for at in _SCALES[kind]:
        blocks = np.zeros((64, kind.block_bytes), np.uint8)
        assert stored_finite(blocks, kind)
        blocks[37, at : at + 2] = np.frombuffer(np.uint16(bits).tobytes(), np.uint8)
        assert stored_finite(blocks.reshape(8, -1), kind) is False


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_plain_numbers(value: float) -> None:
    good = np.full((3, 5), 3e38, np.float32)  # whose sum float32 could not hold
    bad = good.copy()
    bad[2, 1], bad[0, 0] = value, -np.inf
    halves = {
        T.F16: np.float32([1, 65504]).astype(np.float16).view("<u2"),
        T.BF16: np.uint16([0x7F7F, 0xFF7F]),
    }
    for kind, dtype in ((T.F32, "<f4"), (T.F64, "<f8")):
        assert stored_finite(good.astype(dtype), kind) is True
        assert stored_finite(bad.astype(dtype), kind) is False
    wrong = {T.F16: np.float16([value]).view("<u2"), T.BF16: (bad.view("<u4") >> 16).astype("<u2")}
    for kind, numbers in halves.items():
        assert stored_finite(numbers, kind) is True
        assert stored_finite(np.concatenate([numbers, wrong[kind].ravel()]), kind) is False
    assert stored_finite(np.empty((0, 8), np.float32), T.F32) is True


def test_sums_that_overflow() -> None:
    assert stored_finite(np.full((2, 2), 1.7e308), T.F64) is True


def test_every_type_is_told_somehow() -> None:
    """By its scales, or by decoding; whole numbers are always numbers."""
    for kind in TensorType:
        blocks = np.zeros((2, kind.block_bytes), np.uint8)
        if kind.block_size > 1 and kind not in _SCALES:
            assert stored_finite(blocks, kind) is None
            continue
        dtype = {1: "u1", 2: "<u2", 4: "<f4", 8: "<f8"}[kind.block_bytes] if kind.block_size == 1 else "u1"
        assert stored_finite(blocks.reshape(-1).view(dtype), kind) is True


def test_scales_do_not_hide_that_a_type_cannot_be_decoded() -> None:
    for kind in _SCALES:
        try:
            dequantize(np.zeros(kind.block_bytes, np.uint8), kind, (1, kind.block_size))
        except ModelError:  # pragma: no cover
            pytest.fail(f"{kind.name} is in the table, but cannot be decoded")
