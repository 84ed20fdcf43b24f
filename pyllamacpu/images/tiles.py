"""Pictures as the tiles that vision towers read, to the bit as Meta's code makes them.

Sources: meta-llama/llama-models, models/llama3/multimodal/image_transform.py and models/llama4/preprocess.py.
A picture is fitted without distortion into one of the canvases of whole tiles, at the top left of black.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyllamacpu.images.picture import Picture
from pyllamacpu.images.resize import resize

LLAMA32_MEAN, LLAMA32_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LLAMA4_MEAN = LLAMA4_STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True, eq=False)
class Tiles:
    """pixels: (n, 3, size, size) float32, normalised: the canvas' tiles, row by row, then the global one."""

    pixels: NDArray[np.float32]
    rows: int  # of the canvas, in tiles
    cols: int
    has_global: bool = False  # the last tile is the whole picture


def llama32_tiles(picture: Picture, size: int = 560, max_tiles: int = 4) -> Tiles:
    """The rows * cols real tiles; those that are missing up to `max_tiles` are zeros, and are not here."""
    canvas = _canvas(picture, size, max_tiles)
    pixels = _cut(canvas, size, _levels(LLAMA32_MEAN, LLAMA32_STD))
    return Tiles(pixels, canvas.shape[0] // size, canvas.shape[1] // size)


def llama4_tiles(picture: Picture, size: int = 336, max_tiles: int = 16) -> Tiles:
    """The canvas' tiles and, when there are several, the whole picture squeezed into a last one."""
    canvas, levels = _canvas(picture, size, max_tiles), _levels(LLAMA4_MEAN, LLAMA4_STD)
    rows, cols = canvas.shape[0] // size, canvas.shape[1] // size
    pixels = _cut(canvas, size, levels)
    if rows * cols == 1:
        return Tiles(pixels, rows, cols)
    whole = _cut(resize(picture.pixels, size, size), size, levels)
    return Tiles(np.concatenate([pixels, whole]), rows, cols, has_global=True)


def canvas_tiles(width: int, height: int, size: int, max_tiles: int) -> tuple[int, int]:
    """(rows, cols) of the canvas for a picture of width x height pixels.

    Where a canvas can hold the picture without shrinking it, the one that enlarges it least; otherwise the
    one that shrinks it least; among equals the smallest.
    """
    grids = np.array([(r, c) for r in range(1, max_tiles + 1) for c in range(1, max_tiles // r + 1)])
    sides = (grids * size).astype(np.float32)
    scales = np.minimum(sides[:, 0] / np.float32(height), sides[:, 1] / np.float32(width))
    enlarging = scales[scales >= 1]
    scale = enlarging.min() if len(enlarging) else scales.max()
    rows, cols = min(grids[scales == scale].tolist(), key=math.prod)
    return rows, cols


def fitted_size(width: int, height: int, max_width: int, max_height: int) -> tuple[int, int]:
    """(width, height) of a picture that fills one side of a space and keeps its shape; at least one pixel."""
    scale_w, scale_h = max_width / width, max_height / height
    if scale_w < scale_h:
        return max_width, max(min(math.floor(height * scale_w), max_height), 1)
    return max(min(math.floor(width * scale_h), max_width), 1), max_height


def _canvas(picture: Picture, size: int, max_tiles: int) -> NDArray[np.uint8]:
    """(rows * size, cols * size, 3): the picture at the top left; enlarged to one tile's side at the most."""
    width, height = picture.width, picture.height
    rows, cols = canvas_tiles(width, height, size, max_tiles)
    canvas = np.zeros((rows * size, cols * size, 3), np.uint8)
    space_w, space_h = min(max(width, size), cols * size), min(max(height, size), rows * size)
    new_width, new_height = fitted_size(width, height, space_w, space_h)
    canvas[:new_height, :new_width] = resize(picture.pixels, new_width, new_height)
    return canvas


def _levels(mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float32]:
    """(256, 3): what each level of each colour becomes, computed in float32 as torchvision does."""
    level = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
    levels: NDArray[np.float32] = (level - np.array(mean, np.float32)) / np.array(std, np.float32)
    return levels


def _cut(canvas: NDArray[np.uint8], size: int, levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows * size, cols * size, 3) uint8 -> (rows * cols, 3, size, size) float32"""
    rows, cols = canvas.shape[0] // size, canvas.shape[1] // size
    tiles = canvas.reshape(rows, size, cols, size, 3).transpose(0, 2, 1, 3, 4).reshape(-1, size, size, 3)
    pixels = np.empty((rows * cols, 3, size, size), np.float32)
    for channel in range(3):
        pixels[:, channel] = levels[:, channel][tiles[..., channel]]
    return pixels
