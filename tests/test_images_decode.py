"""Image files of all formats, modes and faults."""

from __future__ import annotations

import struct
import threading
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

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
        expected = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))))
        assert np.array_equal(decode(data).pixels, expected)
        assert np.array_equal(decode(data, orient=False).pixels, colours())


@pytest.mark.parametrize(
    ("kind", "value", "turned"),
    [(3, b"\6\0\0\0", True), (4, b"\6\0\0\0", True), (5, b"\x1a\0\0\0", True), (2, b"6\0\0\0", False)],
    ids=["short", "long", "fraction", "text"],
)
def test_orientation_in_other_types(kind: int, value: bytes, turned: bool) -> None:
    """As Pillow's exif_transpose takes them."""
    entry = b"\x12\x01" + kind.to_bytes(2, "little") + b"\1\0\0\0" + value
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4) + b"\6\0\0\0\1\0\0\0"
    data = encoded(Image.fromarray(colours()), "JPEG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))))
    assert np.array_equal(decode(data).pixels, expected) and (expected.shape == (5, 4, 3)) is turned


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_damaged_exif_leaves_the_picture(exif: bytes) -> None:
    """Pillow warns of it, which is an error here, or raises."""
    data = encoded(Image.fromarray(colours()), "PNG", exif=exif)
    assert np.array_equal(decode(data).pixels, colours())


def test_alpha_lies_on_white() -> None:
    image = Image.fromarray(np.dstack([colours(), np.array([[0, 128, 255, 255, 1]] * 4, np.uint8)]), "RGBA")
    pixels = decode(encoded(image, "PNG")).pixels
    assert (pixels[:, 0] == 255).all() and np.array_equal(pixels[:, 2], colours()[:, 2])
    assert np.array_equal(from_pil(image).pixels, pixels)


def test_16_bits_are_scaled() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    assert decode(encoded(Image.fromarray(values), "PNG")).pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize(
    ("numbers", "levels"),
    [
        (np.float32([0, 0.25, 0.5, 1]), [0, 64, 128, 255]),
        (np.arange(256, dtype=np.float32) / np.float32(255), list(range(256))),
        (np.float32([0, 1, 127.6, 255]), [0, 1, 127, 255]),
        (np.float32([-1, 0.5, 256, np.inf]), [0, 0, 255, 255]),
        (np.float32([0, 1]), [0, 1]),
        (np.int32([-1, 0, 1, 255, 256, 70000]), [0, 0, 1, 255, 255, 255]),
    ],
)
def test_modes_of_numbers(numbers: Any, levels: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels, clipped as Pillow does; but fractions from 0 to 1, which it makes black, are shares."""
    monkeypatch.setattr("pyllamacpu.images.decode._STRIP", 1)
    image = Image.fromarray(np.array([numbers, numbers[::-1]]))
    assert image.mode in "FI"
    found = from_pil(image).pixels
    assert found[0, :, 0].tolist() == levels == found[1, ::-1, 2].tolist()


def test_pixels_that_are_no_numbers() -> None:
    with pytest.raises(ImageError, match="photo: has pixels that are not a number"):
        from_pil(Image.fromarray(np.float32([[0, np.nan]])), where="photo")


def png_of(head: bytes, transparent: bytes, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    chunks = [(b"IHDR", head), (b"tRNS", transparent), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def test_a_transparent_colour_of_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """All bits of its samples count, also those that the picture does not keep."""
    levels = np.random.default_rng(3).choice([0, 0x0102, 0x0103, 0x0201, 0xFFFF], (40, 31, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    data = png_of(
        struct.pack(">IIBBBBB", 31, 40, 16, 2, 0, 0, 0), struct.pack(">HHH", 0x0102, 0, 0x0103), rows
    )
    hidden = (levels == [0x0102, 0, 0x0103]).all(-1, keepdims=True)
    wanted = np.where(hidden, 255, levels >> 8)
    assert hidden.any() and np.array_equal(decode(data).pixels, wanted)
    with pytest.raises(ImageError, match=r"photo.*truncated"):
        decode(data[:-200], where="photo")
    monkeypatch.setattr("pyllamacpu.images.picture.MAX_PIXELS", 1000)
    with pytest.raises(ImageError, match="too large"):
        decode(data)


@pytest.mark.parametrize(("bits", "value", "raw"), [(1, 1, 0b10 << 6), (2, 1, 0b0110 << 4), (4, 3, 0x3F)])
def test_a_transparent_grey_of_few_bits(bits: int, value: int, raw: int) -> None:
    """As its PNG says it: a sample, not a level."""
    head = struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0)
    data = png_of(head, struct.pack(">H", value), bytes([0, raw]))
    first, second = decode(data).pixels[0, :, 0]
    assert first == 255 and second == {1: 0, 2: 170, 4: 255}[bits]


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\0\0\0\x18ftypheic", b"%PDF-1.7", b"GIF89a", b"BM", b"\xff\xd8\xff"]
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="photo"):
        decode(data, where="photo")


def two_frames(format: str, **options: Any) -> bytes:
    frames = [Image.fromarray(colours()), Image.fromarray(255 - colours())]
    if format == "GIF":
        frames = [frame.quantize() for frame in frames]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize(
    "format, options", [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("MPO", {})]
)
def test_the_first_frame_of_several(format: str, options: dict[str, Any]) -> None:
    data = two_frames(format, **options)
    first = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode(data).pixels, first) and first.shape == (4, 5, 3)


def test_cmyk_as_pillow_converts_it() -> None:
    data = encoded(Image.fromarray(colours(40, 30)).convert("CMYK"), "JPEG")
    assert np.array_equal(decode(data).pixels, np.asarray(Image.open(BytesIO(data)).convert("RGB")))


def test_very_long_images() -> None:
    for width, height in ((30_000, 10), (10, 30_000), (1, 60_000), (1, 1)):
        pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)
        assert np.array_equal(decode(encoded(Image.fromarray(pixels), "PNG")).pixels, pixels)


def test_large_images_are_converted_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    rgba = np.random.default_rng(4).integers(0, 256, (50, 40, 4), np.uint8)
    for image in (
        Image.fromarray(rgba),
        Image.fromarray(rgba[..., 0]),
        Image.fromarray(rgba[..., :3]).quantize(),
    ):
        whole = from_pil(image).pixels
        monkeypatch.setattr("pyllamacpu.images.decode._STRIP", 7 * 40)
        assert np.array_equal(from_pil(image).pixels, whole)
        monkeypatch.undo()


FILES = {
    "PNG": encoded(Image.fromarray(colours()), "PNG"),
    "PNG of 16 bits": encoded(Image.fromarray(colours()[..., 0].astype(np.uint16) * 99), "PNG"),
    "animated PNG": two_frames("PNG"),
    "BMP": encoded(Image.fromarray(colours()), "BMP"),
    "GIF": two_frames("GIF"),
    "WebP": encoded(Image.fromarray(colours()), "WEBP"),
    "animated WebP": two_frames("WEBP"),
    "JPEG": encoded(Image.fromarray(colours()), "JPEG"),
    "progressive JPEG": encoded(Image.fromarray(colours(30, 20)), "JPEG", progressive=True),
}


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused_or_has_all_its_pixels(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a library has told Pillow to take such files, as Meta's code does when it is imported."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = FILES[name]
    whole = decode(data).digest
    refused = 0
    for end in range(0, len(data), 1 + len(data) // 200):
        try:
            assert decode(data[:end]).digest == whole
        except ImageError:
            refused += 1
    assert refused >= 60 and ImageFile.LOAD_TRUNCATED_IMAGES
    with pytest.raises(ImageError):
        decode(data[: len(data) // 3])


def test_threads_decode_side_by_side() -> None:
    found: list[bytes] = []
    work = lambda: found.extend(decode(FILES["JPEG"]).digest for _ in range(20))  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80 and len(set(found)) == 1


def test_images_of_pillow_that_cannot_be_loaded() -> None:
    image = Image.open(BytesIO(encoded(Image.fromarray(colours(64, 48)), "JPEG")[:-60]))
    with pytest.raises(ImageError, match="truncated"):
        from_pil(image)
