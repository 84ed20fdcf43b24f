"""What image files say before anything is decoded: their format, and what decoding costs."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pyllamacpu.errors import ImageError
from pyllamacpu.images.picture import check_size

_MAX_SCANNED = 2_000_000_000  # pixels times scans of a JPEG; every scan goes over all pixels
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # none of those that stand alone or inside a scan
_MAX_SEGMENTS = 100_000  # of a JPEG
_MAX_TABLES = 4 << 20  # bytes of a JPEG's tables and EXIF data, which Pillow copies again and again
_MAX_PROFILES = 16  # of a PNG, which may take a megabyte each
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers before the size
_SCAN, _END = 0xDA, 0xD9

_FTYP_BRANDS = {b"avif": "an AVIF image", b"heic": "a HEIC photo", b"mif1": "a HEIC photo"}
_OTHER_KINDS = {
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"%PDF": "a PDF document",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML file",
    b"8BPS": "a Photoshop file",
    b"GGUF": "a model",
    b"\0\0\1\0": "an icon",
    b"\xff\x0a": "a JPEG XL image",
    b"\0\0\0\x0cJXL": "a JPEG XL image",
    b"<!DOC": "a web page",
    b"<html": "a web page",
}


def image_format(data: bytes, where: str) -> str:
    """JPEG, PNG, WebP, GIF or BMP. Raises ImageError for anything else."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM"):
        return "BMP"
    raise ImageError(where, f"is {_other_kind(data)}; JPEG, PNG, WebP, GIF and BMP are read")


def _other_kind(data: bytes) -> str:
    """What bytes are that hold none of the formats that are read, with its article."""
    if not data:
        return "empty"
    if data[4:8] == b"ftyp":
        return _FTYP_BRANDS.get(data[8:12], "a video, or a HEIC photo")
    text = data[:1000].removeprefix(b"\xef\xbb\xbf").lstrip().lower()  # of SVG and HTML
    known = (kind for magic, kind in _OTHER_KINDS.items() if data.startswith(magic))
    return next(
        known, next((k for m, k in _OTHER_KINDS.items() if text.startswith(m.lower())), "not an image")
    )


def check_cost(kind: str, data: bytes, where: str) -> None:
    """Raises ImageError for files whose decoder takes much before it tells the size, or much for its size."""
    if kind == "WebP":  # its decoder makes room for all pixels when it is made
        check_size(*webp_size(data), where)
    if kind == "PNG" and data.count(b"iCCP") > _MAX_PROFILES:
        raise ImageError(where, "takes too long to decode: it has many colour profiles")
    if kind == "JPEG":
        if _jpeg_tables(data) > _MAX_TABLES:
            raise ImageError(where, "takes too long to decode: its tables are too large")
        pixels, scans = jpeg_cost(data)
        if pixels * scans > _MAX_SCANNED:
            raise ImageError(
                where, f"takes too long to decode: {scans} scans of {pixels / 1e6:.0f} million pixels"
            )


def webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels, from the first chunk of a WebP file (its container's specification)."""
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


def jpeg_cost(data: bytes) -> tuple[int, int]:
    """(pixels, scans) of a JPEG (ITU T.81, annex B): one scan, or some ten when it is progressive."""
    pixels = scans = 0
    for marker, body in _jpeg_segments(data):
        if marker in _FRAMES and not pixels:
            pixels = int.from_bytes(data[body + 1 : body + 3], "big") * int.from_bytes(
                data[body + 3 : body + 5], "big"
            )
        scans += marker == _SCAN
    return pixels, scans


def _jpeg_tables(data: bytes) -> int:
    """Bytes of the segments before the first scan whose content Pillow reads."""
    n_bytes = 0
    for marker, body in _jpeg_segments(data):
        if marker == _SCAN:
            break
        is_read = marker < 0xE0 or marker == 0xED or data.startswith(b"Exif", body)
        n_bytes += int.from_bytes(data[body - 2 : body], "big") if is_read else 0
    return n_bytes


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The markers up to the end of the image, and where what follows their length begins."""
    position, n_segments = 2, 0
    while n_segments < _MAX_SEGMENTS and (found := _MARKER.search(data, position)) is not None:
        n_segments += 1
        marker, end = data[found.start() + 1], found.end()
        if marker == _END:
            return
        yield marker, end + 2
        position = end + max(int.from_bytes(data[end : end + 2], "big"), 2)
