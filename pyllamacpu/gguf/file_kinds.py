"""What a GGUF file is (a model, a vocabulary, an adapter, an importance matrix), for rules on replacing."""

from __future__ import annotations

from pathlib import Path

from pyllamacpu.errors import GGUFError
from pyllamacpu.files import FileKind, read_start
from pyllamacpu.gguf.metadata import read_metadata
from pyllamacpu.gguf.source import Cursor, Source
from pyllamacpu.gguf.values import MAGIC

MODEL, VOCABULARY, IMATRIX, TOWER = "model", "vocabulary", "imatrix", "mmproj"
_NAMES = {IMATRIX: "an importance matrix", "adapter": "a GGUF adapter", TOWER: "a vision tower (mmproj)"}


def kind_name(general_type: object, has_tensors: bool) -> str:
    """By `general.type`, which models need not have; a model without tensors is a vocabulary."""
    if isinstance(general_type, bytes):
        general_type = general_type.decode("utf-8", "replace")
    if isinstance(general_type, str) and general_type not in ("", MODEL):
        return general_type
    return MODEL if has_tensors else VOCABULARY


def stored_kind(path: Path) -> str | None:
    """Of a file that is there, by its own header, also for one part of a split model. None: it is not GGUF.

    A GGUF file that is damaged counts as a model: nothing else may replace it.
    """
    if read_start(path, len(MAGIC)) != MAGIC:
        return None
    try:
        source = Source(path)
    except GGUFError:
        return MODEL
    try:
        cursor = Cursor(source, 8)
        n_tensors, n_keys = cursor.count("the number of tensors"), cursor.count("the number of keys")
        metadata = read_metadata(cursor, n_keys)
        if "imatrix.chunk_count" in metadata:
            return IMATRIX
        return kind_name(metadata.get("general.type"), n_tensors > 0)
    except GGUFError:
        return MODEL
    finally:
        source.close()


def gguf_kind(name: str) -> FileKind:
    """Files of this kind; a model may also take the place of a vocabulary."""
    replaced = {name, VOCABULARY} if name == MODEL else {name}
    return FileKind(_NAMES.get(name, f"a GGUF {name}"), lambda path: stored_kind(path) in replaced)
