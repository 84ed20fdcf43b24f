"""Image files to pictures: JPEG, PNG, WebP, GIF and BMP, whatever the file's name says.

As a person sees it: turned as its EXIF data says, alpha and transparent colours on white, 16 bits scaled to
8, the first frame of several. The number of pixels is checked on the header, before any is decoded; a file
that ends early is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyllamacpu.errors import ImageError
from pyllamacpu.images.picture import Picture, check_size

if TYPE_CHECKING:
    from PIL.Image import Image

_ORIENTATION = 0x0112  # the EXIF tag
_strict = threading.Lock()

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


def decode(data: bytes, *, orient: bool = True, where: str = "image") -> Picture:
    """The picture in the bytes of an image file. Raises ImageError, which names it as `where`."""
    name = _format(data, where)
    with _reported(where, name):
        if name == "WebP":
            check_size(*_webp_size(data), where)  # Pillow makes room for the pixels when it opens one
        image = _open(name, data)
    return from_pil(image, orient=orient, where=where)


def from_pil(image: Image, *, orient: bool = True, where: str = "image") -> Picture:
    """The picture in a PIL image of any mode."""
    check_size(*image.size, where)
    with _reported(where, image.format or f"image of mode {image.mode}"):
        with _refusing_truncated():
            image.load()
        pixels = _rgb(image)
        if orient:
            pixels = _oriented(pixels, image.getexif().get(_ORIENTATION, 1))
        return Picture(pixels)


def _format(data: bytes, where: str) -> str:
    start = data[:32]
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if start.startswith(b"BM"):
        return "BMP"
    raise ImageError(where, f"is {_other_kind(data)}; JPEG, PNG, WebP, GIF and BMP are read")


def _other_kind(data: bytes) -> str:
    """What bytes are that hold none of the formats that are read, with its article."""
    if not data:
        return "empty"
    if data[4:8] == b"ftyp":
        return _FTYP_BRANDS.get(data[8:12], "a video, or a HEIC photo")
    return next((kind for magic, kind in _OTHER_KINDS.items() if data.startswith(magic)), "not an image")


def _webp_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels from the first chunk of a WebP file (its container's specification)."""
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


def _open(name: str, data: bytes) -> Image:
    """Reads the header with the one plugin, so that no other format's is tried."""
    file = BytesIO(data)
    if name == "JPEG":
        from PIL.JpegImagePlugin import jpeg_factory

        return jpeg_factory(file)
    if name == "PNG":
        from PIL.PngImagePlugin import PngImageFile

        return PngImageFile(file)
    if name == "WebP":
        from PIL.WebPImagePlugin import WebPImageFile

        return WebPImageFile(file)
    if name == "GIF":
        from PIL.GifImagePlugin import GifImageFile

        return GifImageFile(file)
    from PIL.BmpImagePlugin import BmpImageFile

    return BmpImageFile(file)


@contextmanager
def _reported(where: str, name: str) -> Iterator[None]:
    """Whatever a decoder raises for a damaged file, as an ImageError: Pillow's have no common base."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(where, "does not fit in memory") from error
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ImageError(where, f"is damaged or cannot be read as {name}: {reason}") from error


@contextmanager
def _refusing_truncated() -> Iterator[None]:
    """Pillow's switch is one for the whole process, and other libraries turn it on."""
    from PIL import ImageFile

    with _strict:
        kept, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = kept


def _rgb(image: Image) -> NDArray[np.uint8]:
    """(h, w, 3) of an image of any mode, on white where it is transparent."""
    from PIL import Image as PillowImage

    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    white = PillowImage.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return np.asarray(white)


def _eight_bits(image: Image) -> Image:
    """The upper 8 of 16 bits, as Pillow itself takes them of colours; Pillow's own conversion clips greys."""
    from PIL import Image as PillowImage

    values = np.asarray(image).astype(np.uint16)  # in the machine's order of bytes
    grey = PillowImage.fromarray((values >> 8).astype(np.uint8))
    if "transparency" not in image.info:
        return grey
    alpha = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
    return PillowImage.merge("LA", (grey, PillowImage.fromarray(alpha)))


def _oriented(pixels: NDArray[np.uint8], orientation: object) -> NDArray[np.uint8]:
    """Turned and mirrored as the EXIF orientation (1 to 8) says; other values mean nothing."""
    if not isinstance(orientation, int) or orientation not in range(2, 9):
        return pixels
    if orientation >= 5:  # sides change places
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
