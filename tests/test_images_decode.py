"""Image files of all formats, modes and faults."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pyllamacpu.errors import ImageError
from pyllamacpu.images.decode import decode, from_pil


def colours(width: int = 5, height: int = 4) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize("format, options", [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats(format: str, options: dict[str, Any]) -> None:
    data = encoded(Image.fromarray(colours()), format, **options)
    assert np.array_equal(decode(data).pixels, colours())


def test_jpeg_as_pillow_decodes_it() -> None:
    data = encoded(Image.fromarray(colours(64, 48)), "JPEG")
    assert np.array_equal(decode(data).pixels, np.asarray(Image.open(BytesIO(data))))


def test_orientation_of_exif() -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(Image.fromarray(colours()), "PNG", exif=exif)
        from PIL import ImageOps

        expected = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))))
        assert np.array_equal(decode(data).pixels, expected)
        assert np.array_equal(decode(data, orient=False).pixels, colours())


def test_alpha_lies_on_white() -> None:
    image = Image.fromarray(np.dstack([colours(), np.array([[0, 128, 255, 255, 1]] * 4, np.uint8)]), "RGBA")
    pixels = decode(encoded(image, "PNG")).pixels
    assert (pixels[:, 0] == 255).all() and np.array_equal(pixels[:, 2], colours()[:, 2])
    assert np.array_equal(from_pil(image).pixels, pixels)


def test_16_bits_are_scaled() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    assert decode(encoded(Image.fromarray(values), "PNG")).pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\0\0\0\x18ftypheic", b"%PDF-1.7", b"GIF89a", b"BM", b"\xff\xd8\xff"]
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="photo"):
        decode(data, where="photo")
