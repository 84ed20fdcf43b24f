"""The tiny Llama 4 checkpoints with a vision tower of tools/make_llama4_vision_fixtures.py, converted."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pyllamacpu import Llama
from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.sources import plan_conversion

FOLDER = Path(__file__).parent / "fixtures" / "llama4_vision"
PATCH, SIZE, PER_TILE = 99, 56, 4


@cache
def expected() -> dict[str, np.ndarray]:
    """pixels, ids, rows of the tower and logits, by Meta's code."""
    with np.load(FOLDER / "vision.npz") as data:
        return {name: data[name] for name in ("pixels", "ids", "rows", "logits")}


def converted(layout: str, folder: Path, outtype: str = "f32") -> Path:
    """The text model's file; the tower's is beside it."""
    path = folder / f"{layout}-{outtype}.gguf"
    plan_conversion(FOLDER / layout, ConvertOptions(outfile=str(path), outtype=outtype)).run()
    return path


def opened(path: Path, **options: object) -> Llama:
    usual = {"n_ctx": 256, "n_threads": 2, "kv_type": "f32"}
    return Llama(str(path), **usual | options)  # type: ignore[arg-type]


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest one, as a share of the spread."""
    return float(np.abs(found - wanted).max() / wanted.std())


@pytest.fixture(scope="session")
def llama4_vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """transformers' checkpoint in float32."""
    return converted("hf", tmp_path_factory.mktemp("llama4_vision"))


@pytest.fixture(scope="module")
def llm(llama4_vision: Path) -> Iterator[Llama]:
    with opened(llama4_vision) as model:
        yield model
