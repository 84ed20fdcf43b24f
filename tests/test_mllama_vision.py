"""Llama 3.2's vision tower against Meta's code (tools/make_mllama_fixtures.py).

Covers model/mllama_vision.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mllama_files import converted, difference, expected, llm, mllama, ollama_older, opened
from mllama_models import RATIOS, VISION, processed

from pyllamacpu import Llama
from pyllamacpu.engine.batch import Entry
from pyllamacpu.engine.tower import TowerFile
from pyllamacpu.errors import ImageError, ModelError, OptionError
from pyllamacpu.gguf.reader import GGUFFile

__all__ = ["llm", "mllama"]
TOLERANCE = 3e-5  # of the spread


@pytest.mark.parametrize("ratio", RATIOS, ids=str)
def test_states_are_those_of_metas_code(llm: Llama, ratio: tuple[int, int]) -> None:
    found = llm.image_features(processed(RATIOS.index(ratio), ratio))
    assert difference(found, expected()[f"states_{ratio[0]}x{ratio[1]}"]) < TOLERANCE


def test_padding_that_one_row_stands_for_is_as_if_it_were_all_computed(
    mllama: Path, llm: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYLLAMACPU_WHOLE_TILES", "1")
    with opened(mllama) as whole:
        assert whole.vision.opened.config.whole_tiles
        assert whole.vision.opened.config.computed_tiles(1) == 4
        assert whole.vision.opened.identity != llm.vision.opened.identity  # caches on disk tell them apart
        for ratio in ((1, 1), (1, 3), (2, 2)):
            image = processed(3, ratio)
            assert difference(llm.image_features(image), whole.image_features(image)) < 1e-5


def test_the_switch_for_all_padding_takes_words(mllama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLLAMACPU_WHOLE_TILES", "false")
    with opened(mllama) as llm:
        assert not llm.vision.opened.config.whole_tiles
    monkeypatch.setenv("PYLLAMACPU_WHOLE_TILES", "perhaps")
    with pytest.raises(OptionError, match="PYLLAMACPU_WHOLE_TILES=perhaps"), opened(mllama):
        pass


def test_a_tower_in_eight_bits_keeps_its_states(tmp_path: Path, llm: Llama) -> None:
    with opened(converted(tmp_path, "q8_0")) as eight:
        for ratio in ((1, 1), (2, 2)):
            a, b = (model.image_features(processed(1, ratio)) for model in (llm, eight))
            cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
            assert cosines.min() > 0.99


def test_a_picture_becomes_the_states_of_its_tiles(llm: Llama) -> None:
    size = VISION["image_size"]
    picture = np.random.default_rng(1).integers(0, 256, (size, 2 * size, 3), np.uint8)
    tiles = llm.vision.tiles(picture)
    assert (tiles.rows, tiles.cols) == (1, 2)
    assert llm.image_features(picture).shape == (2 * llm.vision.opened.config.rows_per_tile, llm.n_embd())


def test_arrays_of_processors_that_make_no_sense_are_refused(llm: Llama) -> None:
    image = processed(0, (1, 2))
    for broken, said in (
        ({**image, "aspect_ratio_ids": np.array([[0]])}, "aspect_ratio_ids from 1 to 8"),
        ({**image, "aspect_ratio_ids": np.array([[1, 1]])}, "of 2 images"),
        ({**image, "aspect_ratio_ids": [[2.5]]}, "give whole numbers"),
        ({**image, "aspect_ratio_ids": ["2"]}, "give whole numbers"),
        ({**image, "aspect_ratio_ids": np.array([[4]])}, "aspect_ratio_mask"),
        ({"pixel_values": image["pixel_values"]}, "aspect_ratio_ids"),
        ({**image, "pixel_values": image["pixel_values"][:, :, :3]}, "3 tiles"),
    ):
        with pytest.raises(ImageError, match=said):
            llm.image_features(broken)


def test_ollamas_older_towers(mllama: Path, llm: Llama, tmp_path: Path) -> None:
    text, tower = ollama_older(mllama, tmp_path / "text.gguf", tmp_path / "projector.gguf")
    assert "v.blk.0.ln1.weight" in GGUFFile.open(tower).tensors
    image = processed(2, (2, 1))
    with opened(text, mmproj=tower) as older:
        assert np.array_equal(older.image_features(image), llm.image_features(image))


def test_a_tower_of_another_model_is_refused(mllama: Path) -> None:
    tower = TowerFile(GGUFFile.open(mllama))
    with pytest.raises(ModelError, match="width 64; this one has 128"):
        tower.check_fits("mllama", 128)
    with pytest.raises(ModelError, match="does not fit a llama4 model"):
        tower.check_fits("llama4", 64)


def test_other_steps_come_between_the_ops_of_an_image(
    mllama: Path, llm: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = llm.image_features(processed(5, (2, 2)))
    monkeypatch.setattr("pyllamacpu.engine.tower._SLICE_OPERATIONS", 1e5)
    runs: list[int] = []

    def step(*_: object) -> None:
        runs.append(1)
        other.engine.step([Entry(other.engine.sequence(), [1, 2, 3], "last")])

    with opened(mllama) as other:
        monkeypatch.setattr("pyllamacpu.engine.tower.time.sleep", step)
        assert np.array_equal(other.image_features(processed(5, (2, 2))), whole)
    assert len(runs) > 20
