"""Towers of Llama 3.2 Vision with other numbers of tiles than the released ones, and with tables that hold
values for tiles that an image lacks.

Covers model/mllama_vision.py and convert/models/mllama_tensors.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mllama_files import difference, expected, opened
from mllama_models import RATIOS, VISION, Tensors, bfloat16, pixels, processed, save_hf, tensors
from mllama_reference import states

from pyllamacpu import Llama
from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.errors import GGUFError, ImageError, ModelError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.model.mllama_vision import aspect_ratios, read_config
from pyllamacpu.model.towers import TowerKeys

TOLERANCE = 3e-5  # of the spread
PLACES = (
    "gated_positional_embedding.tile_embedding",
    *(f"{p}_tile_positional_embedding.embedding" for p in ("pre", "post")),
)


def checkpoint(max_tiles: int) -> tuple[dict[str, Any], Tensors]:
    """Its tables have values in every row, as transformers makes them of a config."""
    ratios = aspect_ratios(max_tiles)
    vision = VISION | {
        "max_num_tiles": max_tiles,
        "supported_aspect_ratios": [list(ratio) for ratio in ratios],
    }
    found, rng = tensors(), np.random.default_rng(max_tiles)
    for place in PLACES:
        name = f"vision_model.{place}.weight"
        shape = len(ratios) + 1, found[name].shape[1] // 4 * max_tiles
        found[name] = bfloat16(rng.standard_normal(shape))
    return vision, found


def converted(folder: Path, vision: dict[str, Any], found: Tensors) -> Llama:
    path = folder / "tiny.gguf"
    save_hf(folder / "hf", found, vision)
    plan_conversion(folder / "hf", ConvertOptions(outfile=str(path), outtype="f32")).run()
    return opened(path)


def image(number: int, max_tiles: int) -> dict[str, Any]:
    """As transformers' processor gives it."""
    ratio = aspect_ratios(max_tiles)[number - 1]
    n = ratio[0] * ratio[1]
    whole = np.zeros((1, 1, max_tiles, 3, VISION["image_size"], VISION["image_size"]), np.float32)
    whole[0, 0, :n] = pixels(number, ratio)
    mask = (np.arange(max_tiles) < n).astype(int)[None, None]
    return {"pixel_values": whole, "aspect_ratio_ids": np.array([[number]]), "aspect_ratio_mask": mask}


@pytest.mark.parametrize("ratio", [(1, 1), (2, 2), (1, 3)], ids=str)
def test_the_reference_computes_as_metas_code(ratio: tuple[int, int]) -> None:
    number = RATIOS.index(ratio)
    whole = processed(number, ratio)["pixel_values"][0, 0]
    found = states(tensors(), VISION, whole, number + 1, ratio[0] * ratio[1])
    assert difference(found.astype(np.float32), expected()[f"states_{ratio[0]}x{ratio[1]}"]) < TOLERANCE


@pytest.mark.parametrize("max_tiles", [1, 2, 3, 4, 6])
def test_towers_of_any_number_of_tiles(tmp_path: Path, max_tiles: int) -> None:
    vision, found = checkpoint(max_tiles)
    with converted(tmp_path, vision, found) as llm:
        for number, (rows, columns) in enumerate(aspect_ratios(max_tiles), start=1):
            given = image(number, max_tiles)
            wanted = states(found, vision, given["pixel_values"][0, 0], number, rows * columns)
            assert difference(llm.image_features(given), wanted.astype(np.float32)) < TOLERANCE, (
                rows,
                columns,
            )
        wide = np.zeros((10, 60 * max_tiles, 3), np.uint8)
        assert llm.vision.tiles(wide).cols == max_tiles
        with pytest.raises(ImageError, match="aspect_ratio_ids from 1 to"):
            llm.image_features({**image(1, max_tiles), "aspect_ratio_ids": [[99]]})


def test_padding_alike_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that all tiles of padding share, too: one of them stands for all."""
    vision, found = checkpoint(4)
    for place in PLACES:
        table = found[f"vision_model.{place}.weight"].reshape(9, 4, -1)
        table[1, 1:] = table[1, 1]  # of 1 x 1: three tiles are missing
    with converted(tmp_path, vision, found) as llm:
        tower, parts = llm.vision.tower, []
        run = tower.run
        monkeypatch.setattr(tower, "run", lambda part, *more: (parts.append(part), run(part, *more))[1])
        for number in (1, 2):
            given = image(number, 4)
            wanted = states(found, vision, given["pixel_values"][0, 0], number, number)
            assert difference(llm.image_features(given), wanted.astype(np.float32)) < TOLERANCE
        assert parts == ["1", "whole 2"]


def test_too_many_tiles_are_refused(tmp_path: Path) -> None:
    vision, found = checkpoint(2)
    with converted(tmp_path, vision, found), GGUFFile.open(tmp_path / "tiny.gguf") as file:
        for value in (0, 17):
            keys = TowerKeys("x", {**file.metadata, "mllama.vision.max_num_tiles": value}, "mllama.vision.")
            with pytest.raises((ModelError, GGUFError), match="max_num_tiles"):
                read_config(keys)
