"""What `perplexity` and `imatrix` have in common: options, and tokens of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from text_oracle import load

from pyllamacpu.cli.evaluation import engine_options, required, text_tokens, window_bos
from pyllamacpu.errors import OptionError

GIVEN = {
    "batch_size": 2048,
    "ubatch_size": 512,
    "threads": None,
    "cache_type_k": "Q8_0",
    "cache_type_v": "f16",
    "expert_memory": None,
    "kv_overrides": None,
    "pack_cache": None,
    "precision": None,
}


@pytest.mark.parametrize(
    ("given", "width", "expected"),
    [
        ({}, 512, {"n_ctx": 512, "n_batch": 512, "n_threads": None, "type_k": "q8_0", "type_v": "f16"}),
        ({"ubatch_size": 4096}, 512, {"n_ctx": 2048, "n_batch": 2048}),
        ({"batch_size": 64}, 4096, {"n_ctx": 4096, "n_batch": 64}),
        ({"threads": 0}, 8, {"n_threads": None}),
        ({"threads": 3}, 8, {"n_threads": 3}),
    ],
)
def test_engine_options(given: dict[str, Any], width: int, expected: dict[str, Any]) -> None:
    found = engine_options({**GIVEN, **given}, width)
    assert found | expected == found


def test_a_text_begins_with_one_bos_and_its_last_newline_does_not_count() -> None:
    tokenizer = load("sentencepiece.json")
    assert window_bos(tokenizer) == tokenizer.bos == 1
    ids = text_tokens(tokenizer, b"the end\n")
    assert ids == tokenizer.encode("the end") and ids[0] == 1
    assert text_tokens(tokenizer, b"the end\n\n") == tokenizer.encode("the end\n")
    assert text_tokens(tokenizer, b"<s>the", parse_special=True) == tokenizer.encode("the")
    without = load("bpe-gpt-2.json", add_bos_token=False)
    assert window_bos(without) is None
    assert text_tokens(without, b"the") == without.encode("the", add_special=False)


def test_a_text_is_required() -> None:
    assert required(Path("x")) == Path("x")
    with pytest.raises(OptionError, match="-f FILE"):
        required(None)
