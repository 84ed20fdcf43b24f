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
from pyllamacpu.gguf import GGUFWriter
from pyllamacpu.gguf.reader import GGUFFile

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


SPECIAL = (
    *(
        "<unk>",
        "<s>",
        "</s>",
        "<|header_start|>",
        "<|header_end|>",
        "<|eot|>",
        "<|image_start|>",
        "<|image_end|>",
    ),
    *("<|image|>", "<|tile_x_separator|>", "<|tile_y_separator|>"),
)
READS_PARTS = (
    "{{ bos_token }}{% for m in messages %}<|header_start|>{{ m.role }}<|header_end|>"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<|image|>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
    "<|eot|>{% endfor %}<|header_start|>assistant<|header_end|>"
)


def with_words(path: Path, folder: Path, template: str = READS_PARTS) -> Path:
    """The model with letters for tokens, and its tower beside it."""
    tokens = [*SPECIAL, *"▁abcdefghijklmnopqrstuvwxyz.,:;!?0123456789"]
    tokens += [f"<{i}>" for i in range(len(tokens), 131)]
    tokens[PATCH] = "<|patch|>"
    found = folder / "words.gguf"
    with GGUFFile.open(path) as file, GGUFWriter(found, "llama4") as writer:
        own = ("general.architecture", "llama4.image_token_id", "tokenizer.ggml.model")
        writer.copy_metadata(file.metadata, skip=own)
        special = [token.startswith("<") for token in tokens]
        values = {"model": "llama", "tokens": tokens, "scores": -np.arange(131, dtype=np.float32)}
        values |= {"token_type": np.array([3 if x else 1 for x in special], np.int32)}
        values |= {"bos_token_id": 1, "eos_token_id": 5, "unknown_token_id": 0, "add_space_prefix": False}
        for name, value in values.items():
            writer.add(f"tokenizer.ggml.{name}", value)
        if template:
            writer.add("tokenizer.chat_template", template)
        for name, info in file.tensors.items():
            writer.add_array(name, file.data(name).view(np.float32).reshape(info.shape))
    tower = path.with_name(f"mmproj-{path.name}")
    (folder / "mmproj-words.gguf").write_bytes(tower.read_bytes())
    return found


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
