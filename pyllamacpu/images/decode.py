"""Image files to pictures: JPEG, PNG, WebP, GIF and BMP, whatever the file's name says.

As a person sees it: turned as its EXIF data says, alpha and transparent colours on white, 16 bits scaled to
8, the first frame of several. Pillow's modes of numbers, F and I, hold levels from 0 to 255, and what is
beyond is black or white, as Meta's code has it by Pillow; but fractions from 0 to 1 in F are shares of white.
The number of pixels is checked on the header, before any is decoded; a file that ends early is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyllamacpu.errors import ImageError
from pyllamacpu.forks import fork_safe_lock
from pyllamacpu.images.headers import check_cost, image_format
from pyllamacpu.images.picture import Picture, check_size

if TYPE_CHECKING:
    from PIL.Image import Image

_STRIP = 1 << 20  # pixels that are converted at once
MAX_READS = 500_000  # of a file: a second or two; a PNG of 100 MB takes some 50,000
_BMP_READS = 4_000_000  # two for each run of pixels, which are short work
_PNG_BITS = 24  # where a PNG has the bits of a sample
_ORIENTATION = 0x0112  # the EXIF tag
_strict = fork_safe_lock()


def decode(data: bytes, *, orient: bool = True, where: str = "image") -> Picture:
    """The picture in the bytes of an image file. Raises ImageError, which names it as `where`."""
    kind = image_format(data, where)
    check_cost(kind, data, where)
    with _reported(where, kind):
        image = _open(kind, _Counted(data, where, _BMP_READS if kind == "BMP" else MAX_READS))
        if kind == "PNG":
            _fit_transparent_colour(image, data, where)
    return from_pil(image, orient=orient, where=where)


def from_pil(image: Image, *, orient: bool = True, where: str = "image") -> Picture:
    """The picture in a PIL image of any mode."""
    check_size(*image.size, where)
    with _reported(where, image.format or f"image of mode {image.mode}"):
        with _refusing_truncated():
            image.load()
        pixels = _rgb(image, where)
        if orient:
            pixels = np.ascontiguousarray(_oriented(pixels, _orientation(image)))
        pixels.flags.writeable = False  # so that it is not copied
        return Picture(pixels)


def _fit_transparent_colour(image: Image, data: bytes, where: str) -> None:
    """Makes a PNG's transparent colour one of its pixels' colours: Pillow scales greys of few bits and cuts
    colours of 16, and leaves that one as it stands in the file.
    """
    colour, bits = image.info.get("transparency"), data[_PNG_BITS]
    if image.mode == "L" and isinstance(colour, int):
        image.info["transparency"] = colour * (255 // ((1 << bits) - 1))
    elif image.mode == "RGB" and isinstance(colour, tuple) and bits == 16:
        check_size(*image.size, where)
        low: Any = _open("PNG", _Counted(data, where, MAX_READS))
        low.tile = [(*tile[:3], "RGB;16L") for tile in low.tile]  # the other byte of each sample
        with _refusing_truncated():
            image.load()
            low.load()
        is_seen = np.zeros(image.size[::-1], bool)
        for part, shift in ((image, 8), (low, 0)):
            for channel, level in enumerate(colour):
                is_seen |= np.asarray(part.getchannel(channel)) != (level >> shift & 255)
        del image.info["transparency"]
        image.putalpha(_mask(is_seen))


def _mask(is_seen: NDArray[np.bool_]) -> Image:
    from PIL import Image as PillowImage

    return PillowImage.fromarray(np.where(is_seen, 255, 0).astype(np.uint8))


class _Counted(BytesIO):
    """A file for Pillow, which ends when it was read too often: what takes Pillow long (millions of segments,
    chunks, blocks or runs, or what lies between them) it reads in a loop of Python, piece by piece.
    """

    def __init__(self, data: bytes, where: str, max_reads: int) -> None:
        super().__init__(data)
        self._where, self._left, self._most = where, max_reads, max_reads

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ImageError(self._where, f"takes too long to decode: it has more than {self._most} pieces")
        return super().read(size)


def _open(kind: str, file: _Counted) -> Image:
    """Reads the header with the one plugin, so that no other format's is tried."""
    if kind == "JPEG":
        from PIL.JpegImagePlugin import jpeg_factory

        return jpeg_factory(file)
    if kind == "PNG":
        from PIL.PngImagePlugin import PngImageFile

        return PngImageFile(file)
    if kind == "WebP":
        from PIL.WebPImagePlugin import WebPImageFile

        return WebPImageFile(file)
    if kind == "GIF":
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


def _rgb(image: Image, where: str) -> NDArray[np.uint8]:
    """(h, w, 3) of an image of any mode, on white where it is transparent. Raises ImageError."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    is_shares = image.mode == "F" and _is_shares(image, where)
    for top, strip in _strips(image):
        shown = _levels(strip) if is_shares else strip
        pixels[top : top + strip.size[1]] = np.asarray(_on_white(shown))
    return pixels


def _strips(image: Image) -> Iterator[tuple[int, Image]]:
    """Strip by strip, with its first row: large images take no more memory than Pillow's pixels and ours."""
    width, height = image.size
    n_rows = max(_STRIP // width, 1)
    for top in range(0, height, n_rows):
        yield top, image.crop((0, top, width, min(top + n_rows, height)))


def _is_shares(image: Image, where: str) -> bool:
    """Whether floats go from 0 to 1, with fractions between. Raises ImageError when one is not a number."""
    found, whole = True, True
    for _, strip in _strips(image):
        values = np.asarray(strip)
        if np.isnan(values).any():
            raise ImageError(where, "has pixels that are not a number (NaN)")
        found = found and bool((values >= 0).all() and (values <= 1).all())
        whole = whole and bool((values == np.rint(values)).all())
    return found and not whole


def _levels(image: Image) -> Image:
    from PIL import Image as PillowImage

    return PillowImage.fromarray(np.rint(np.asarray(image) * 255.0).astype(np.uint8))


def _on_white(image: Image) -> Image:
    """Of any mode to RGB."""
    from PIL import Image as PillowImage

    if image.mode.startswith("I;16"):
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    white = PillowImage.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


def _eight_bits(image: Image) -> Image:
    """The upper 8 of 16 bits, as Pillow itself takes them of colours; Pillow's own conversion clips greys."""
    from PIL import Image as PillowImage

    values = np.asarray(image).astype(np.uint16)  # in the machine's order of bytes
    grey = PillowImage.fromarray((values >> 8).astype(np.uint8))
    if "transparency" not in image.info:
        return grey
    alpha = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
    return PillowImage.merge("LA", (grey, PillowImage.fromarray(alpha)))


def _orientation(image: Image) -> object:
    """What EXIF data says, and nothing where they are damaged: the picture itself is not."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # of any kind, warnings that are errors included
        return 1


def _oriented(pixels: NDArray[np.uint8], orientation: object) -> NDArray[np.uint8]:
    """Turned and mirrored as the EXIF orientation (1 to 8) says; other values mean nothing."""
    number = next((i for i in range(2, 9) if i == orientation), 1)  # also of one that is stored as a fraction
    if number == 1:
        return pixels
    if number >= 5:  # sides change places
        pixels = pixels.transpose(1, 0, 2)
    if number in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if number in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
