"""Bombs: files that are refused before their pixels are decoded."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO

import pytest
from PIL import Image

from pyllamacpu.errors import ImageError
from pyllamacpu.images.decode import decode
from pyllamacpu.images.headers import jpeg_cost, webp_size

Make = Callable[[int, int], bytes]  # a file of that width and height


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def webp(width: int, height: int) -> bytes:
    body = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + body


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def gif(width: int, height: int) -> bytes:
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x01\0\0;"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + frame


def encoded(kind: str, size: tuple[int, int] = (300, 200), **options: object) -> bytes:
    file = BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(file, kind, **options)
    return file.getvalue()


def jpeg(width: int, height: int) -> bytes:
    data = encoded("JPEG", (8, 8))
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


@pytest.mark.parametrize("make", [png, webp, bmp, gif, jpeg])
def test_bombs_are_refused_on_their_header(make: Make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor does Pillow say anything
        with pytest.raises(ImageError, match=r"photo: is too large: 16383 x 16383 pixels") as caught:
            decode(make(16_383, 16_383), where="photo")
        assert "89 million" in str(caught.value)
        with pytest.raises(ImageError):
            decode(make(60_000, 60_000))


@pytest.mark.parametrize("make", [png, bmp, gif, jpeg])
@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_sides_of_no_pixels(make: Make, size: tuple[int, int]) -> None:
    with pytest.raises(ImageError):
        decode(make(*size))


def test_sizes_of_webp() -> None:
    kinds = ({"lossless": True}, {}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"})
    assert [webp_size(encoded("WEBP", **options)) for options in kinds] == [(300, 200)] * 3
    assert webp_size(b"") == (0, 0)


def test_a_jpeg_of_many_scans() -> None:
    """Each goes over all pixels again."""
    assert jpeg_cost(encoded("JPEG")) == (60_000, 1)
    data = encoded("JPEG", (1, 1), progressive=True)
    _, scans = jpeg_cost(data)
    assert 2 < scans < 20 and jpeg_cost(b"") == (0, 0)
    large = encoded("JPEG", progressive=True)
    at = large.index(b"\xff\xc2") + 5
    large = large[:at] + struct.pack(">HH", 9000, 9000) + large[at + 4 :]
    again = large[large.rindex(b"\xff\xda") : -2]
    assert jpeg_cost(large[:-2] + again * 50 + large[-2:]) == (81_000_000, scans + 50)
    with pytest.raises(ImageError, match="takes too long to decode"):
        decode(large[:-2] + again * 50 + large[-2:])
    hidden = large[:-2] + b"\xff\x01\xfe" + again * 50 + large[-2:]  # a marker that has no length
    assert jpeg_cost(hidden) == (81_000_000, scans + 50)


def test_files_of_a_great_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which Pillow reads in loops of Python: 60 MB of them took it most of a minute."""
    monkeypatch.setattr("pyllamacpu.images.decode.MAX_READS", 5000)
    monkeypatch.setattr("pyllamacpu.images.decode._BMP_READS", 5000)
    good = {kind: encoded(kind) for kind in ("JPEG", "PNG", "GIF", "BMP")}
    for data in good.values():
        decode(data)
    chunk = struct.pack(">I", 0) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))
    colours = 3 << (good["GIF"][10] & 7) + 1
    palette, n = bytes(1024), 6000
    runs = b"\1a" * n
    head = struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078)
    head += struct.pack("<IiiHHIIiiII", 40, 200, 200, 1, 8, 1, len(runs), 0, 0, 256, 0)
    for data in (
        good["JPEG"][:2] + b"\xff\xfe\0\2" * n + good["JPEG"][2:],
        good["JPEG"][:2] + b"\xff" * n + good["JPEG"][2:],
        good["PNG"][:33] + chunk * n + good["PNG"][33:],
        good["GIF"][: 13 + colours] + b"!\xfe\1a\0" * n + good["GIF"][13 + colours :],
        b"BM" + head + palette + runs,
    ):
        with pytest.raises(ImageError, match=r"photo: takes too long to decode: .* pieces"):
            decode(data, where="photo")


def test_files_of_tables_that_are_copied_again_and_again() -> None:
    data = encoded("JPEG")
    tables = b"\xff\xdb" + struct.pack(">H", 2 + 65 * 1000) + bytes(65) * 1000
    exif = b"\xff\xe1" + struct.pack(">H", 0xFFFF) + b"Exif" + bytes(0xFFFF - 6)
    for part in (tables, exif):
        with pytest.raises(ImageError, match="tables are too large"):
            decode(data[:2] + part * 80 + data[2:])
    file = encoded("PNG")
    with pytest.raises(ImageError, match="many colour profiles"):
        decode(file[:33] + b"iCCP" * 20 + file[33:])
