"""Tiles as Meta's code makes them; pictures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from image_cases import cases

from pyllamacpu.errors import ImageError
from pyllamacpu.images.picture import MAX_PIXELS, Picture, check_size
from pyllamacpu.images.sources import open_picture
from pyllamacpu.images.tiles import Tiles, canvas_tiles, fitted_size, llama4_tiles, llama32_tiles


def picture(width: int, height: int, seed: int = 0) -> Picture:
    return Picture(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize(
    "size, max_tiles, shapes",
    [
        (560, 4, {(560, 560): (1, 1), (561, 560): (1, 2), (1120, 1120): (2, 2), (4000, 3000): (2, 2)}),
        (560, 4, {(3000, 700): (1, 4), (700, 3000): (4, 1), (1, 1): (1, 1), (1200, 500): (1, 3)}),
        (336, 16, {(336, 336): (1, 1), (4000, 3000): (3, 4), (30000, 10): (1, 16), (1344, 1344): (4, 4)}),
    ],
)
def test_canvas(size: int, max_tiles: int, shapes: dict[tuple[int, int], tuple[int, int]]) -> None:
    assert {shape: canvas_tiles(*shape, size, max_tiles) for shape in shapes} == shapes


def test_fitted_size_keeps_the_shape_and_at_least_a_pixel() -> None:
    assert fitted_size(200, 300, 450, 200) == (133, 200)
    assert fitted_size(800, 600, 450, 1300) == (450, 337)
    assert fitted_size(30000, 10, 2240, 560) == (2240, 1)


def test_llama32_tiles_are_normalised_and_padded_with_black() -> None:
    tiles = llama32_tiles(picture(560, 100))
    assert tiles.pixels.shape == (1, 3, 560, 560) and tiles.pixels.dtype == np.float32
    black = -np.array([0.48145466 / 0.26862954, 0.4578275 / 0.26130258, 0.40821073 / 0.27577711], np.float32)
    assert np.allclose(tiles.pixels[0, :, 100:], black[:, None, None], atol=1e-6)
    assert (llama32_tiles(picture(1120, 560)).rows, llama32_tiles(picture(1120, 560)).cols) == (1, 2)


def test_llama4_tiles_end_with_the_whole_picture() -> None:
    large = picture(672, 336)
    tiles = llama4_tiles(large)
    assert (tiles.rows, tiles.cols, tiles.has_global) == (1, 2, True) and len(tiles.pixels) == 3
    expected = large.pixels[:, 336:].transpose(2, 0, 1).astype(np.float32) / 255 * 2 - 1
    assert np.allclose(tiles.pixels[1], expected, atol=1e-6)  # not resized: the second half as it is
    assert not llama4_tiles(picture(300, 200)).has_global


def test_pictures_are_told_apart_by_size_and_pixels() -> None:
    zeros = np.zeros((2, 3, 3), np.uint8)
    assert Picture(zeros).digest == Picture(zeros.copy()).digest
    assert Picture(zeros).digest != Picture(zeros.reshape(3, 2, 3)).digest
    with pytest.raises(ValueError):
        Picture(zeros).pixels[0] = 1
    zeros[0] = 1
    assert Picture(zeros).digest != Picture(np.zeros_like(zeros)).digest


def test_sizes_are_checked() -> None:
    check_size(9459, 9459, "x")
    for width, height in ((0, 1), (1, 0), (MAX_PIXELS + 1, 1), (65_536, 1), (10_000, 10_000)):
        with pytest.raises(ImageError, match="photo: "):
            check_size(width, height, "photo")
    with pytest.raises(ImageError, match="not uint8"):
        Picture(np.zeros((2, 3, 4), np.uint8))


# ---- against Meta's code ----

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "image_tiles.json").read_text())


def digest(tiles: Tiles) -> list[object]:
    return [tiles.rows, tiles.cols, hashlib.sha256(tiles.pixels.astype("<f4").data).hexdigest()[:24]]


def test_200_images_are_prepared_as_metas_code_prepares_them() -> None:
    """To the bit; tools/make_image_fixtures.py says what the open questions were answered with."""
    unit, wrong = FIXTURE["unit"], []
    for case in cases(unit):
        picture = open_picture(case.source)
        found = [digest(llama32_tiles(picture, unit)), digest(llama4_tiles(picture, unit))]
        expected = FIXTURE["cases"][case.name]
        if any(one not in (None, own) for one, own in zip(expected, found, strict=True)):
            wrong.append(case.name)
    assert wrong == [] and len(FIXTURE["cases"]) == 200
    assert sum(llama32 is None for llama32, _ in FIXTURE["cases"].values()) < 20  # shapes that it fails at
