"""Resizing, bit for bit as Pillow 12 does it."""

from __future__ import annotations

import numpy as np
import pytest

from pyllamacpu.errors import NativeError
from pyllamacpu.images.resize import resize


def test_known_values() -> None:
    row = np.array([[[0, 100, 255], [255, 200, 0]]], np.uint8)
    assert resize(row, 4, 1)[0, :, 0].tolist() == [0, 64, 191, 255]
    assert resize(row, 1, 1)[0, 0].tolist() == [128, 150, 128]
    assert resize(row, 2, 3).shape == (3, 2, 3)


def test_the_same_size_is_a_copy() -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    resize(pixels, 3, 2)[:] = 1
    assert not pixels.any()


def test_impossible_sizes_are_refused() -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    with pytest.raises(NativeError):
        resize(pixels, 0, 2)
    with pytest.raises(ValueError, match="uint8"):
        resize(pixels.astype(np.float32), 1, 1)  # type: ignore[arg-type]
