"""Small opened models and helpers for the tests of the `Llama` class. Import the fixtures that you use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_model import PIECES, write_model

import pyllamacpu
import pyllamacpu.api.compat
from pyllamacpu import Llama

N_VOCAB = len(PIECES)
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def no_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "no-text.gguf", text=False)


@pytest.fixture
def llm(path: Path) -> Iterator[Llama]:
    with Llama(str(path), n_ctx=128, n_threads=1, kv_type="f32") as opened:
        yield opened


@pytest.fixture(autouse=True)
def nothing_was_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyllamacpu.api.compat, "_warned", set())


def text_of(answer: Any) -> str:
    return str(answer["choices"][0]["text"])


def greedy(llm: Llama, prompt: Any, n: int = 12, **more: Any) -> str:
    return text_of(llm(prompt, max_tokens=n, temperature=0.0, **more))


@pytest.fixture(scope="module")
def starter(starter_model: Path) -> Iterator[Llama]:
    with Llama(str(starter_model), n_ctx=512) as opened:
        yield opened
