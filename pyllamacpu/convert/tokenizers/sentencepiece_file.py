"""tokenizer.model files of SentencePiece (sentencepiece_model.proto), read field by field.

Only what a GGUF file can say is read: pieces, scores, types, special ids, and how text is normalized.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from pyllamacpu.convert.tokenizers.token_table import TokenTable
from pyllamacpu.errors import CheckpointError

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_BPE, _KINDS = 2, {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}
_MODEL_TYPE, _SPACE_IS_SUFFIX, _IDS = 3, 24, {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}
_MAX_BYTES = 1 << 28


def read_sentencepiece(path: Path) -> TokenTable:
    """The table of a SentencePiece BPE model. Raises CheckpointError for damage and for other models."""
    data = path.read_bytes() if path.stat().st_size <= _MAX_BYTES else b""
    texts: list[str] = []
    types: list[int] = []
    scores: list[float] = []
    trainer: dict[int, int] = {}
    normalizer: dict[int, int | bytes] = {}
    try:
        for field, value in _fields(data):
            if field == 1 and isinstance(value, bytes):
                text, score, kind = _piece(value)
                texts.append(text)
                scores.append(score)
                types.append(kind)
            elif field == 2 and isinstance(value, bytes):
                trainer.update((n, v) for n, v in _fields(value) if isinstance(v, int))
            elif field == 3 and isinstance(value, bytes):
                normalizer.update(_fields(value))
    except (ValueError, IndexError, struct.error) as error:
        raise CheckpointError(path, f"is no SentencePiece model: {error}; download it again") from None
    if not texts:
        raise CheckpointError(path, "is no SentencePiece model: it holds no pieces")
    kind = trainer.get(_MODEL_TYPE, 1)
    if kind != _BPE:
        raise CheckpointError(
            path, f"is a SentencePiece {_KINDS.get(kind, kind)} model; Llama models have BPE ones"
        )
    table = TokenTable(path, "llama", "default", texts, types, scores)
    table.special = {role: trainer.get(field, usual) for role, (field, usual) in _IDS.items()}
    table.special = {role: token for role, token in table.special.items() if 0 <= token < len(texts)}
    if trainer.get(_SPACE_IS_SUFFIX):
        table.notes.append(
            "warning: the tokenizer puts spaces behind words (treat_whitespace_as_suffix); GGUF files cannot "
            "state that, and texts will be cut with spaces before words"
        )
    _read_normalizer(table, normalizer)
    return table


def _read_normalizer(table: TokenTable, normalizer: dict[int, int | bytes]) -> None:
    """add_dummy_prefix (3) and remove_extra_whitespaces (4) are on unless stated; 2 maps characters."""
    if normalizer.get(3, 1) == 0:
        table.flags["add_space_prefix"] = False
    if normalizer and normalizer.get(4, 1) == 1:
        table.flags["remove_extra_whitespaces"] = True
    if normalizer.get(2):
        name = normalizer.get(1, b"")
        said = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
        table.notes.append(
            f"the tokenizer normalizes text ({said}); GGUF files cannot state that and text is left as it is"
        )


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, 1
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif field == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif field == 3 and isinstance(value, int):
            if not 1 <= value <= 6:
                raise ValueError(f"a piece has the type {value}")
            kind = value
    return text, score, kind


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protobuf message: integers, or bytes for everything else."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        field, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield field, value - (1 << 64) if value >> 63 else value
            continue
        if wire == _LENGTH:
            size, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"byte {at} is not a field")
        if size > end - at:
            raise ValueError(f"a field at byte {at} ends beyond the file")
        yield field, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (1 << 64) - 1, at
        shift += 7
        if shift > 63:
            raise ValueError(f"byte {at} is not a number")
