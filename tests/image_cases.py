"""200 images of all modes, formats and shapes, the same everywhere: made from a seed, and lossless."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

N_CASES = 200
# What an image is made as: the mode, and how it is handed over (a file format, or as it is).
FORMS = (
    *(("RGB", form) for form in ("PNG", "BMP", "WEBP", "as it is")),
    *(("RGBA", form) for form in ("PNG", "WEBP", "as it is")),
    *(("L", form) for form in ("PNG", "BMP", "GIF", "as it is")),
    *(("P", form) for form in ("PNG", "BMP", "GIF", "as it is")),
    *((mode, "PNG") for mode in ("1", "LA", "I;16", "L transparent", "RGB transparent", "P alpha")),
    *(("P transparent", form) for form in ("PNG", "GIF")),
    *((mode, "as it is") for mode in ("1", "LA", "La", "PA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV")),
    *((mode, "as it is") for mode in ("I", "F", "I;16", "I;16B")),
)
_BYTES = {"1": 0, "LA": 2, "La": 2, "PA": 2, "I;16": 2, "I;16B": 2, "RGB": 3, "YCbCr": 3, "HSV": 3}
_BYTES |= {"RGBA": 4, "RGBa": 4, "RGBX": 4, "CMYK": 4, "I": 4, "F": 4}


@dataclass(frozen=True)
class Case:
    name: str
    source: bytes | Image.Image  # a file, or an image of Pillow


def cases(unit: int, n: int = N_CASES) -> Iterator[Case]:
    """Images whose sides are around multiples of `unit` pixels, very long, or one pixel."""
    for i in range(n):
        rng = random.Random(f"{unit} {i}")
        mode, form = FORMS[i % len(FORMS)]
        width, height = _sides(rng, unit)
        image = _image(rng, mode, width, height)
        orientation = i % 9 if form in ("PNG", "WEBP") and i % 3 == 0 else 0
        source = image if form == "as it is" else _file(image, form, orientation)
        yield Case(f"{i} {mode} {form} {width} x {height} turned {orientation}", source)


def _sides(rng: random.Random, unit: int) -> tuple[int, int]:
    near = [max(1, unit * k + d) for k in (1, 2, 3, 4) for d in (-1, 0, 1)]
    free = lambda: rng.randint(1, unit * 8)  # noqa: E731
    kinds = (
        lambda: (rng.choice(near), rng.choice(near)),
        lambda: (free(), free()),
        lambda: (free(), rng.choice((1, 2, 3))),
        lambda: (rng.choice((1, 2, 3)), free()),
        lambda: (unit * 40, rng.randint(1, 40)),
    )
    return rng.choice(kinds)()


def _image(rng: random.Random, mode: str, width: int, height: int) -> Image.Image:
    mode, _, extra = mode.partition(" ")
    if mode in ("I", "F"):  # values that a byte holds, and others
        return Image.frombytes("I", (width, height), _numbers(rng, width * height)).convert(mode)
    n_bytes = (width + 7) // 8 * height if mode == "1" else width * height * _BYTES.get(mode, 1)
    image = Image.frombytes(mode, (width, height), rng.randbytes(n_bytes))
    if mode in ("P", "PA"):
        image.putpalette(rng.randbytes(768))
    if extra == "alpha":
        image.info["transparency"] = rng.randbytes(256)
    if extra == "transparent":
        some = image.getpixel((width // 2, height // 2))
        image.info["transparency"] = some
    return image


def _numbers(rng: random.Random, n: int) -> bytes:
    return b"".join(
        rng.choice((rng.randint(0, 255), -5, 256, 70000)).to_bytes(4, "little", signed=True) for _ in range(n)
    )


def _file(image: Image.Image, form: str, orientation: int) -> bytes:
    options: dict[str, object] = {"lossless": True, "exact": True} if form == "WEBP" else {}
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    if "transparency" in image.info:
        options["transparency"] = image.info["transparency"]
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()
