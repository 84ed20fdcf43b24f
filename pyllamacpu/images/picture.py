"""A decoded picture: what every source becomes, and all that models see of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pyllamacpu.errors import ImageError

MAX_PIXELS = 89_478_485  # 256 MiB of RGB
MAX_SIDE = 65_535  # pixels; the most that JPEG and GIF can hold


def check_size(width: int, height: int, where: str) -> None:
    """Raises ImageError for a picture without pixels, or with too many; called before pixels are decoded."""
    if width < 1 or height < 1:
        raise ImageError(where, f"has no pixels: it is {width} x {height}")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageError(
            where,
            f"is too large: {width} x {height} pixels, where {MAX_PIXELS / 1e6:.0f} million are allowed, and "
            f"{MAX_SIDE} a side; make it smaller first",
        )


@dataclass(frozen=True, eq=False)
class Picture:
    """pixels: (height, width, 3) uint8, RGB, contiguous and read-only. digest: what tells it from others."""

    pixels: NDArray[np.uint8]
    digest: bytes = field(init=False)  # SHA-256 of size and pixels

    def __post_init__(self) -> None:
        pixels = self.pixels
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ImageError("image", f"has {pixels.dtype} of shape {pixels.shape}, not uint8 (h, w, 3)")
        check_size(self.width, self.height, "image")
        if pixels.flags.writeable or not pixels.flags.c_contiguous:
            pixels = pixels.copy(order="C")
            pixels.flags.writeable = False
        size = b"%d x %d\n" % (self.width, self.height)
        object.__setattr__(self, "pixels", pixels)
        object.__setattr__(self, "digest", hashlib.sha256(size + pixels.data).digest())

    def __deepcopy__(self, memo: object) -> Picture:
        return self

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])
