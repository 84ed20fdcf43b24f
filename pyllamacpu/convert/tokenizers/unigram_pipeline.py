"""tokenizer.json of a Unigram model, carried into the file whole: text/unigram_pipeline.py runs it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyllamacpu.convert.formats.json_file import read_optional_json
from pyllamacpu.convert.tokenizers.token_table import check_ids
from pyllamacpu.convert.tokenizers.unigram import pieces_of
from pyllamacpu.errors import CheckpointError, TokenizerError
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.text.unigram_pipeline import CHARSMAP, MODEL, PIPELINE, UnigramPipeline
from pyllamacpu.text.vocab import TokenType

_CARRIED = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor")
_NO_FILE = "there is no tokenizer.json: the result serves token ids only"


def read_unigram_pipeline(folder: Path, n_rows: int) -> tuple[list[KeyValue], list[str]]:
    """Metadata of the tokenizer in `folder`, and what must be said; no metadata when there is none.

    Raises CheckpointError for one that cannot be run here, or has ids beyond `n_rows`.
    """
    path = folder / "tokenizer.json"
    values = read_optional_json(path)
    if not values:
        return [], [_NO_FILE]
    model = values.get("model")
    if (
        not isinstance(model, dict)
        or model.get("type") != "Unigram"
        or not isinstance(model.get("vocab"), list)
    ):
        raise CheckpointError(path, "is not a Unigram tokenizer, as DeBERTa's are")
    pieces, scores = pieces_of(path, model["vocab"])
    pipeline = {name: values.get(name) for name in _CARRIED}
    pipeline |= {name: model.get(name) for name in ("unk_id", "byte_fallback")}
    pipeline |= {"n_pieces": len(pieces)}
    charsmap = _take_charsmap(path, pipeline["normalizer"])
    numbers = np.array(scores, np.float64)
    try:
        UnigramPipeline(pipeline, pieces, numbers, charsmap, str(path))
    except TokenizerError as error:
        raise CheckpointError(path, str(error).removeprefix(f"{path}: ")) from None
    texts, types = _with_added(path, pieces, pipeline, n_rows)
    exact = bool((numbers.astype(np.float32) == numbers).all())
    found = [
        KeyValue("tokenizer.ggml.model", MODEL),
        KeyValue("tokenizer.ggml.tokens", texts, ValueType.STRING),
        KeyValue("tokenizer.ggml.scores", scores, ValueType.FLOAT32 if exact else ValueType.FLOAT64),
        KeyValue("tokenizer.ggml.token_type", types, ValueType.INT32),
        KeyValue(PIPELINE, json.dumps(pipeline, ensure_ascii=False)),
    ]
    if charsmap is not None:
        found.append(KeyValue(CHARSMAP, list(charsmap), ValueType.UINT8))
    return found, []


def _take_charsmap(path: Path, normalizer: Any) -> bytes | None:
    """Takes the bytes of `Precompiled` out of a normalizer. Raises CheckpointError when there are several."""
    found = list(_precompiled(normalizer))
    texts = {str(part.pop("precompiled_charsmap", "")) for part in found}
    if len(texts) > 1:
        raise CheckpointError(path, "has several maps of characters")
    for text in texts:
        try:
            return base64.b64decode(text, validate=True)
        except ValueError:
            raise CheckpointError(path, "precompiled_charsmap is not base64; download it again") from None
    return None


def _precompiled(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        if part.get("type") == "Precompiled":
            yield part
        listed = part.get("normalizers")
        for inner in listed if isinstance(listed, list) else ():
            yield from _precompiled(inner)


def _with_added(
    path: Path, pieces: list[str], pipeline: Mapping[str, Any], n_rows: int
) -> tuple[list[str], list[int]]:
    """Texts and types by id, added tokens among them. Raises CheckpointError for ids beyond the rows."""
    added = {token["id"]: token for token in pipeline["added_tokens"] or ()}
    n_tokens = max(len(pieces), *(token + 1 for token in added), 0)
    check_ids(path, n_tokens, len(pieces) + len(added))
    if n_tokens > n_rows or min(added, default=0) < 0:
        raise CheckpointError(path, f"has ids up to {n_tokens - 1}, the model's embedding only {n_rows} rows")
    texts = pieces + [f"[PAD{i}]" for i in range(len(pieces), n_tokens)]
    types = [int(TokenType.NORMAL)] * len(pieces) + [int(TokenType.UNUSED)] * (n_tokens - len(pieces))
    for token, item in added.items():
        texts[token] = item["content"]
        types[token] = int(TokenType.CONTROL if item.get("special") else TokenType.USER_DEFINED)
    return texts, types
