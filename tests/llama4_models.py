"""The tiny Llama 4 checkpoints of tools/make_llama4_fixtures.py (Hugging Face's layout) and of
tools/make_llama4_meta_fixtures.py (Meta's), converted to GGUF files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.engine.engine import Engine

FOLDER = Path(__file__).parent / "fixtures" / "llama4"
NAMES = sorted(path.stem for path in FOLDER.glob("*.npz"))


def converted(name: str, folder: Path, outtype: str = "f32") -> Path:
    path = folder / f"{name}-{outtype}.gguf"
    plan_conversion(FOLDER / name, ConvertOptions(outfile=str(path), outtype=outtype)).run()
    return path


def expected(name: str) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Token ids, the positions kept, and their logits by transformers or Meta's code (rows, n_vocab)."""
    with np.load(FOLDER / f"{name}.npz") as data:
        return data["ids"].tolist(), data["rows"], data["logits"]


def opened(path: Path, **options: object) -> Engine:
    usual = {"n_ctx": 1024, "n_batch": 256, "n_threads": 2, "type_k": "f32", "type_v": "f32"}
    return Engine.open(path, **usual | options)


@pytest.fixture(scope="session")
def llama4(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files in float32, by the fixture's name."""
    folder = tmp_path_factory.mktemp("llama4")
    return {name: converted(name, folder) for name in NAMES}
