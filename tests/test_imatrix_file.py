"""Importance matrix files, against those that llama-imatrix wrote (tools/make_imatrix_fixtures.py)."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES

from pyllamacpu.errors import GGUFError, OutputError
from pyllamacpu.gguf import GGUFWriter, ValueType
from pyllamacpu.quantize.imatrix import Imatrix, ImatrixEntry, read_imatrix, write_imatrix

TINY = FIXTURES / "imatrix" / "tiny.gguf"
TINY_DAT = FIXTURES / "imatrix" / "tiny.dat"
UP = "blk.0.ffn_up_exps.weight"


def an_imatrix() -> Imatrix:
    sums = np.arange(12, dtype=np.float64).reshape(2, 6) * 1.25
    experts = ImatrixEntry(sums, np.array([4, 0], np.int64))
    plain = ImatrixEntry(np.full((1, 3), 7.0), np.array([700], np.int64))
    return Imatrix({"b": experts, "a": plain}, ("text.txt", "other.txt"), 7, 100)


def test_reads_what_llama_imatrix_wrote() -> None:
    found = read_imatrix(TINY)
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("text.txt",), 2, 16)
    assert not found.legacy and len(found.entries) == 2 * 8
    entry = found.entries[UP]
    assert entry.sums.shape == (4, 64) and entry.counts.sum() == 2 * 32
    assert entry.counts[3] == 0
    importance = found.importance(UP)
    assert importance is not None and importance.shape == (4, 64) and importance.dtype == np.float32
    assert (importance[3] == 1).all()
    assert np.allclose(importance[0], entry.sums[0] / entry.counts[0])
    assert found.importance("token_embd.weight") is None


def test_the_older_format_says_the_same() -> None:
    new, old = read_imatrix(TINY), read_imatrix(TINY_DAT)
    assert old.legacy and (old.datasets, old.chunk_count) == (new.datasets, new.chunk_count)
    assert old.entries.keys() == new.entries.keys()
    for name in new.entries:
        expected, found = new.importance(name), old.importance(name)
        assert expected is not None and found is not None and found.shape == (1, expected.size)
        np.testing.assert_array_equal(found.ravel(), expected.ravel())


def test_writes_the_older_format_byte_for_byte(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "i.dat", read_imatrix(TINY), legacy=True)
    assert (tmp_path / "i.dat").read_bytes() == TINY_DAT.read_bytes()
    write_imatrix(tmp_path / "again.dat", read_imatrix(TINY_DAT), legacy=True)
    assert (tmp_path / "again.dat").read_bytes() == TINY_DAT.read_bytes()


@pytest.mark.parametrize("source", ["fixture", "made"])
def test_what_is_written_reads_the_same(tmp_path: Path, source: str) -> None:
    imatrix = read_imatrix(TINY) if source == "fixture" else an_imatrix()
    write_imatrix(tmp_path / "i.gguf", imatrix)
    again = read_imatrix(tmp_path / "i.gguf")
    assert replace(again, entries={}) == replace(imatrix, entries={})
    assert list(again.entries) == sorted(imatrix.entries)
    for name, entry in imatrix.entries.items():
        np.testing.assert_array_equal(again.entries[name].sums, entry.sums)
        np.testing.assert_array_equal(again.entries[name].counts, entry.counts)
    assert [path.name for path in tmp_path.iterdir()] == ["i.gguf"]


def test_entries_that_saw_nothing_are_left_out_of_the_older_format(tmp_path: Path) -> None:
    empty = ImatrixEntry(np.zeros((1, 3)), np.array([0], np.int64))
    imatrix = replace(an_imatrix(), entries={**an_imatrix().entries, "c": empty})
    write_imatrix(tmp_path / "i.dat", imatrix, legacy=True)
    found = read_imatrix(tmp_path / "i.dat")
    assert list(found.entries) == ["a", "b"]
    expected = [*(np.arange(6) * 1.25 / 4), *[1] * 6]
    np.testing.assert_allclose(found.importance("b"), [expected])
    with pytest.raises(GGUFError, match="size of a chunk"):
        write_imatrix(tmp_path / "j.dat", replace(imatrix, chunk_size=0), legacy=True)


def test_select_keeps_the_entries_asked_for() -> None:
    assert list(an_imatrix().select(lambda name: name == "b").entries) == ["b"]


def pairs(path: Path, sums: np.ndarray, counts: np.ndarray, keys: bool = True, name: str = ".counts") -> Path:
    with GGUFWriter(path) as writer:
        if keys:
            writer.add("imatrix.datasets", ["t"], ValueType.STRING)
            writer.add("imatrix.chunk_count", 1, ValueType.UINT32)
            writer.add("imatrix.chunk_size", 8, ValueType.UINT32)
        writer.add_array("w.in_sum2", sums)
        writer.add_array("w" + name, counts)
    return path


ONES = np.ones((1, 4), np.float32)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"keys": False}, "imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size missing"),
        ({"name": ".other"}, "only one of its two tensors"),
        ({"sums": ONES.astype(np.float16)}, "must be F32"),
        ({"counts": np.ones((3, 1), np.float32)}, "4 sums for 3 counts"),
        ({"sums": ONES * np.float32("nan")}, "finite"),
        ({"sums": ONES * np.float32("inf")}, "finite"),
        ({"sums": -ONES}, "finite"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, change: dict, says: str) -> None:
    values = {"sums": ONES, "counts": np.ones((1, 1), np.float32), **change}
    with pytest.raises(GGUFError, match=says):
        read_imatrix(pairs(tmp_path / "i.gguf", **values))


def test_damaged_older_files_are_refused(tmp_path: Path) -> None:
    whole, path = TINY_DAT.read_bytes(), tmp_path / "cut.dat"
    assert struct.unpack("<i", whole[:4]) == (16,)
    for n in (*range(0, 400, 7), len(whole) - 5):
        path.write_bytes(whole[:n])
        with pytest.raises(GGUFError, match=r"damaged|without any entry"):
            read_imatrix(path)
    path.write_bytes(b"\xff" * 200)
    with pytest.raises(GGUFError):
        read_imatrix(path)
    with pytest.raises(GGUFError, match="no such file"):
        read_imatrix(tmp_path / "none.dat")


def test_older_files_may_end_after_their_entries(tmp_path: Path) -> None:
    record = struct.pack("<ii1sii2f", 1, 1, b"w", 0, 2, 0.5, 1.5)
    (tmp_path / "i.dat").write_bytes(record)
    found = read_imatrix(tmp_path / "i.dat")
    assert (found.chunk_count, found.datasets) == (0, ())
    np.testing.assert_array_equal(found.importance("w"), [[0.5, 1.5]])


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    for legacy in (False, True):
        with pytest.raises(OutputError, match="cannot be written"):
            write_imatrix(tmp_path / "no" / "i", an_imatrix(), legacy=legacy)


@pytest.mark.parametrize("count", [-1.0, float("nan"), float("inf"), 1e30])
def test_counts_that_are_none(tmp_path: Path, count: float) -> None:
    with GGUFWriter(tmp_path / "i.gguf") as writer:
        writer.add("imatrix.datasets", ["text"], ValueType.STRING)
        writer.add("imatrix.chunk_count", 1, ValueType.UINT32)
        writer.add("imatrix.chunk_size", 64, ValueType.UINT32)
        writer.add_array("a.weight.in_sum2", np.ones((1, 4), np.float32))
        writer.add_array("a.weight.counts", np.full((1, 1), count, np.float32))
    with pytest.raises(GGUFError, match="count"):
        read_imatrix(tmp_path / "i.gguf")
