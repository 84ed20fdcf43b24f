"""What a GGUF file is, and what may therefore be replaced by what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_model import write_model

from pyllamacpu.errors import OutputError
from pyllamacpu.files import check_output
from pyllamacpu.gguf.file_kinds import IMATRIX, MODEL, VOCABULARY, gguf_kind, stored_kind
from pyllamacpu.gguf.writer import GGUFWriter
from pyllamacpu.quantize.imatrix import IMATRIX_FILE, Imatrix, ImatrixEntry, write_imatrix

KINDS = ("model", "vocabulary", "adapter", "imatrix")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file of each kind, and others."""
    write_model(tmp_path / "model")
    for name, values in (("vocabulary", {"general.name": "v"}), ("adapter", {"general.type": "adapter"})):
        with GGUFWriter(tmp_path / name, "llama") as writer:
            for key, value in values.items():
                writer.add(key, value)
    entries = {"blk.0.ffn_up.weight": ImatrixEntry(np.ones((1, 4), np.float32), np.array([1]))}
    write_imatrix(tmp_path / "imatrix", Imatrix(entries, ("text",), 1, 64))
    write_imatrix(tmp_path / "imatrix.dat", Imatrix(entries, ("text",), 1, 64), legacy=True)
    (tmp_path / "damaged").write_bytes((tmp_path / "model").read_bytes()[:100])
    (tmp_path / "text").write_text("The quick brown fox. " * 50)
    (tmp_path / "empty").write_bytes(b"")
    return tmp_path


def test_kinds_are_told_by_the_header(folder: Path) -> None:
    for kind in KINDS:
        assert stored_kind(folder / kind) == kind
    assert stored_kind(folder / "damaged") == MODEL
    for name in ("text", "empty", "imatrix.dat", "nothing"):
        assert stored_kind(folder / name) is None


def replaceable(folder: Path, kind: object) -> set[str]:
    found = set()
    for path in folder.iterdir():
        try:
            check_output(path, kind=kind)  # type: ignore[arg-type]
            found.add(path.name)
        except OutputError:
            check_output(path, kind=kind, force=True)  # type: ignore[arg-type]
    return found


def test_only_the_like_is_replaced(folder: Path) -> None:
    assert replaceable(folder, gguf_kind(MODEL)) == {"model", "vocabulary", "damaged", "empty"}
    assert replaceable(folder, gguf_kind(VOCABULARY)) == {"vocabulary", "empty"}
    assert replaceable(folder, gguf_kind("adapter")) == {"adapter", "empty"}
    assert replaceable(folder, gguf_kind(IMATRIX)) == {"imatrix", "empty"}
    assert replaceable(folder, IMATRIX_FILE) == {"imatrix", "imatrix.dat", "empty"}


def test_writers_keep_the_rule_in_python_too(folder: Path) -> None:
    before = (folder / "text").read_bytes()
    imatrix = Imatrix({"a.weight": ImatrixEntry(np.ones((1, 4), np.float32), np.array([1]))}, (), 1, 64)
    for legacy in (False, True):
        with pytest.raises(OutputError, match="is not an importance matrix"):
            write_imatrix(folder / "model", imatrix, legacy=legacy)
    assert (folder / "text").read_bytes() == before and stored_kind(folder / "model") == MODEL
    write_imatrix(folder / "text", imatrix, force=True)
    assert stored_kind(folder / "text") == IMATRIX
