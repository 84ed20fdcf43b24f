"""Hashes of what Meta's own preprocessing makes of the images in tests/image_cases.py.

    python tools/make_image_fixtures.py tests/fixtures/image_tiles.json
    python tools/make_image_fixtures.py --check 336 560

Needs llama-models, torchvision and Pillow 12.2 or 12.3 (Pillow 13 resizes otherwise). What Meta's code leaves
open is decided as pyllamacpu decides it: orientation applied, alpha on white, the upper 8 of 16 bits. With
`--check` every image is compared at once, at the full size of the tiles of Llama 4 and Llama 3.2.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

UNIT = 28  # pixels of a tile's side in the fixture
_TORCHVISION = torch.library.Library("torchvision", "DEF")  # what it defines goes when it does


def _torchvision() -> None:
    """Lets a torchvision that was built for another torch be imported: only its Python code is used."""
    for name in ("nms", "qnms"):
        _TORCHVISION.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def rgb(source: bytes | Image.Image) -> Image.Image:
    """An image as Meta's code is to see it."""
    from models.llama4.chat_format import convert_image_to_rgb

    image = Image.open(BytesIO(source)) if isinstance(source, bytes) else source
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
    return convert_image_to_rgb(image)


def tiles(image: Image.Image, size3: int, size4: int) -> tuple[Any, Any]:
    """(canvas, tiles) of Llama 3.2, whose code fails where a side would get no pixels, and of Llama 4."""
    from models.llama3.multimodal.image_transform import VariableSizeImageTransform as Llama32
    from models.llama4.preprocess import ResizeNormalizeImageTransform, VariableSizeImageTransform

    try:
        found = Llama32(size3)(image, 4)
        llama32 = found[1], found[0].numpy()
    except ValueError:
        llama32 = None
    pixels, canvas = VariableSizeImageTransform(size4)(image, 16)
    if len(pixels) > 1:
        whole = ResizeNormalizeImageTransform(size4, size4)(image)
        pixels = torch.cat([pixels, whole[None]])
    return llama32, (canvas, pixels.numpy())


def digest(found: Any) -> Any:
    if found is None:
        return None
    (rows, cols), pixels = found
    return [int(rows), int(cols), hashlib.sha256(np.ascontiguousarray(pixels, "<f4")).hexdigest()[:24]]


def fixture() -> dict[str, Any]:
    from image_cases import cases

    found = {case.name: [digest(one) for one in tiles(rgb(case.source), UNIT, UNIT)] for case in cases(UNIT)}
    versions = f"Pillow {PIL.__version__}, torch {torch.__version__}, llama-models 0.3.0"
    return {"made by": f"tools/make_image_fixtures.py, {versions}", "unit": UNIT, "cases": found}


def check(size4: int, size3: int) -> Iterator[str]:
    """The images that pyllamacpu prepares otherwise, at full size."""
    from image_cases import cases

    from pyllamacpu.images.sources import open_picture
    from pyllamacpu.images.tiles import llama4_tiles, llama32_tiles

    for case in cases(size4):
        expected = tiles(rgb(case.source), size3, size4)
        picture = open_picture(case.source)
        own = llama32_tiles(picture, size3), llama4_tiles(picture, size4)
        for name, theirs, ours in zip(("Llama 3.2", "Llama 4"), expected, own, strict=True):
            mine = (ours.rows, ours.cols), ours.pixels
            if theirs is not None and digest(theirs) != digest(mine):
                yield f"{case.name}: {name}"


def main() -> int:
    _torchvision()
    if sys.argv[1] == "--check":
        wrong = list(check(int(sys.argv[2]), int(sys.argv[3])))
        print("\n".join([*wrong, f"{len(wrong)} differ"]))
        return bool(wrong)
    text = json.dumps(fixture()).replace("]], ", "]],\n").replace("{", "{\n")
    Path(sys.argv[1]).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
