"""Bilinear resizing, bit for bit as Pillow 12.2 and 12.3 do it.

The width comes first, but for pictures more than 100 times as high as wide; older versions of Pillow know no
such exception, and Pillow 13 has another one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyllamacpu.native import check, ffi, lib


def resize(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """pixels: (h, w, 3) uint8 -> (height, width, 3) uint8. The same size gives a copy."""
    pixels = np.ascontiguousarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"uint8 of shape (h, w, 3) can be resized, not {pixels.dtype} of {pixels.shape}")
    if pixels.shape[:2] == (height, width):
        return np.array(pixels)
    if pixels.shape[0] > 100 * pixels.shape[1] and height < pixels.shape[0]:
        pixels = _passes(pixels, pixels.shape[1], height)
    return _passes(pixels, width, height)


def _passes(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """The width, then the height."""
    resized = np.empty((height, width, 3), np.uint8)
    source, target = ffi.from_buffer("uint8_t[]", pixels), ffi.from_buffer("uint8_t[]", resized)
    check(lib.pl_resize_rgb(source, *pixels.shape[:2], target, height, width), "resize")
    return resized
