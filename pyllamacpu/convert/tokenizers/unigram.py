"""Unigram models in tokenizer.json, as GGUF's tokenizer "t5": pieces with scores, the likeliest ones win.

What GGUF files can say of the text's preparation is a space in front, and that runs of spaces are one; the
rest is an error, or a note where it concerns rare characters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyllamacpu.convert.tokenizers.token_table import TokenTable
from pyllamacpu.errors import CheckpointError
from pyllamacpu.text.spm import BYTE_PIECE
from pyllamacpu.text.vocab import TokenType

_SPACE = "▁"
_RUNS = (" {2,}", " +", "\\s{2,}", "\\s+")
_MAX_PIECES = 1 << 24
_FIRST = (
    "warning: the tokenizer puts a space before the first word of a text only (prepend_scheme first); GGUF "
    "files cannot state that, and there will be one after each special token too"
)


def is_unigram(model: Mapping[str, Any]) -> bool:
    return model.get("type") == "Unigram" and isinstance(model.get("vocab"), list)


def read_unigram(path: Path, values: Mapping[str, Any]) -> TokenTable:
    """The table of a Unigram model. Raises CheckpointError for what a GGUF file cannot say."""
    model = values["model"]
    texts, scores = pieces_of(path, model["vocab"])
    unknown = model.get("unk_id")
    byte = bool(model.get("byte_fallback"))
    if isinstance(unknown, bool) or not isinstance(unknown, int) or not 0 <= unknown < len(texts):
        if not byte:
            raise CheckpointError(path, f"model.unk_id is {unknown!r}, and there are no tokens for bytes")
        unknown = None
    types = [int(TokenType.BYTE if byte and BYTE_PIECE.match(text) else TokenType.NORMAL) for text in texts]
    table = TokenTable(path, "t5", "default", texts, types, scores)
    if unknown is not None:
        types[unknown] = int(TokenType.UNKNOWN)
        table.special["unk"] = unknown
    table.flags["add_space_prefix"] = prepends_space(table, values)
    _read_preparation(table, values)
    return table


def pieces_of(path: Path, vocab: list[Any]) -> tuple[list[str], list[float]]:
    """Texts and scores of a Unigram model's `vocab`. Raises CheckpointError."""
    texts, scores = [], []
    for item in vocab:
        text, score = item if isinstance(item, list) and len(item) == 2 else (None, None)
        number = isinstance(score, (int, float)) and not isinstance(score, bool)
        if not isinstance(text, str) or not number or not math.isfinite(value := float(str(score))):
            raise CheckpointError(path, f"model.vocab holds {item!r:.60}: not a piece with its score")
        texts.append(text)
        scores.append(value)
    if not 0 < len(texts) < _MAX_PIECES or len(set(texts)) != len(texts):
        raise CheckpointError(path, "model.vocab is empty, or gives two tokens the same text")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        held = error.object[error.start]
        raise CheckpointError(path, f"model.vocab holds {held!r}, half of a surrogate pair") from None
    return texts, scores


def _read_preparation(table: TokenTable, values: Mapping[str, Any]) -> None:
    """Normalizers and what cuts words. Raises CheckpointError for others than those of SentencePiece."""
    cutters = {str(part.get("type")) for part in parts_of(values.get("pre_tokenizer"), "pretokenizers")}
    if "WhitespaceSplit" in cutters:
        table.flags["remove_extra_whitespaces"] = True
    if others := sorted(cutters - {"Metaspace", "WhitespaceSplit"}):
        raise CheckpointError(
            table.path, f"is a Unigram model with the pre-tokenizer {others[0]}, which GGUF cannot state"
        )
    for part in parts_of(values.get("normalizer"), "normalizers"):
        kind, pattern = part.get("type"), part.get("pattern")
        pattern = pattern if isinstance(pattern, dict) else {}
        if kind == "Prepend" or (kind == "Replace" and pattern.get("String") == " "):
            continue
        if kind == "Replace" and pattern.get("Regex") in _RUNS:
            table.flags["remove_extra_whitespaces"] = True
            continue
        if kind != "Precompiled" or part.get("precompiled_charsmap"):
            table.notes.append(f"the tokenizer normalizes text ({kind}); text is left as it is")


def parts_of(part: Any, name: str) -> Iterator[dict[str, Any]]:
    """A component of a tokenizer.json, or those of a Sequence, whose list is called `name`."""
    if not isinstance(part, dict):
        return
    if part.get("type") == "Sequence":
        listed = part.get(name)
        for inner in listed if isinstance(listed, list) else ():
            yield from parts_of(inner, name)
    else:
        yield part


def prepends_space(table: TokenTable, values: Mapping[str, Any]) -> bool:
    """Whether a space goes before the text, by a normalizer or by what cuts words. Where that depends, the
    table gets a note.
    """
    for part in parts_of(values.get("normalizer"), "normalizers"):
        if part.get("type") == "Prepend" and part.get("prepend") == _SPACE:
            return True
    for part in parts_of(values.get("pre_tokenizer"), "pretokenizers"):
        if part.get("type") == "Metaspace":
            scheme = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
            if scheme == "first":
                table.notes.append(_FIRST)
            return bool(scheme != "never")
    return False
