"""Fixtures of the text tests: vocabularies and what independent libraries say about hostile text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyllamacpu.text.load import load_tokenizer

FIXTURES = Path(__file__).parent / "fixtures" / "text"
PRES = ["smollm", "llama-bpe", "llama4", "gpt-2"]
VOCABULARIES = [*(f"bpe-{pre}.json" for pre in PRES), "sentencepiece.json"]


def fixture(name: str) -> dict[str, Any]:
    return dict(json.loads((FIXTURES / name).read_text(encoding="ascii")))


HOSTILE: list[str] = fixture("hostile.json")["texts"]


def load(name: str, **changes: Any) -> Any:
    """Our tokenizer for a fixture's metadata; a change to None removes the key."""
    metadata = {
        **fixture(name)["metadata"],
        **{f"tokenizer.ggml.{key}": value for key, value in changes.items()},
    }
    return load_tokenizer({key: value for key, value in metadata.items() if value is not None}, name)
