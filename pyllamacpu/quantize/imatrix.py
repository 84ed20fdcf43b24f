"""Importance matrices: the mean square of each column of a weight's input, measured on a text.

Two formats, both of llama.cpp's llama-imatrix (tools/imatrix, common/imatrix-loader.cpp): GGUF with a pair of
float32 tensors `NAME.in_sum2` and `NAME.counts` per weight, and the older `.dat`, a plain sequence of
little-endian records that holds means.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import GGUFError
from pyllamacpu.files import FileKind, check_output, open_regular, read_problem, read_start, write_whole
from pyllamacpu.gguf.file_kinds import IMATRIX, stored_kind
from pyllamacpu.gguf.metadata import MAX_ENTRIES
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.gguf.values import MAGIC, MAX_NAME, ValueType
from pyllamacpu.gguf.writer import GGUFWriter

_SUMS, _COUNTS = ".in_sum2", ".counts"
_KEYS = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class ImatrixEntry:
    """What one weight's input was like.

    sums: squares added up over tokens, (n_mat, cols) floating; n_mat is the number of experts, else 1.
    counts: the tokens that each matrix saw, (n_mat,) int64.
    """

    sums: Floats
    counts: npt.NDArray[np.int64]

    def importance(self) -> npt.NDArray[np.float32]:
        """Mean squares (n_mat, cols) float32; 1 everywhere for an expert that no token came to."""
        counts = self.counts[:, None]
        means = self.sums / np.maximum(counts, 1)
        return np.where(counts > 0, means, 1.0).astype(np.float32)


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix: entries by the weights' names (`blk.0.ffn_up.weight`).

    chunk_size is in tokens. Of a `.dat` file, which holds means, `legacy` is true: its counts are chunks
    (so that sums / counts is the mean all the same) and its chunk_size is 0, for it does not say.
    """

    entries: Mapping[str, ImatrixEntry]
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
    chunk_size: int = 0
    legacy: bool = False

    def importance(self, name: str) -> npt.NDArray[np.float32] | None:
        """Mean squares (n_mat, cols) float32 of the weight `name`'s input; None when it was not measured.

        A `.dat` file does not tell experts apart: all their columns come in one row, (1, n_mat x cols).
        """
        entry = self.entries.get(name)
        return None if entry is None else entry.importance()

    def select(self, wanted: Callable[[str], bool]) -> Imatrix:
        """The same without the entries whose name is not `wanted`."""
        kept = {name: entry for name, entry in self.entries.items() if wanted(name)}
        return Imatrix(kept, self.datasets, self.chunk_count, self.chunk_size, self.legacy)


def read_imatrix(path: str | os.PathLike[str]) -> Imatrix:
    """Reads either format. Raises GGUFError for a file that is damaged, empty or something else."""
    try:
        with os.fdopen(open_regular(Path(path)), "rb") as file:
            begins = file.read(4)
    except OSError as error:
        raise GGUFError(path, read_problem(error, "cannot be opened: ")) from error
    imatrix = _read_gguf(path) if begins == MAGIC else _read_legacy(path)
    if not imatrix.entries:
        raise GGUFError(path, "is an importance matrix without any entry; collect it again")
    for name, entry in imatrix.entries.items():
        if not np.isfinite(entry.sums).all() or entry.sums.min() < 0:
            raise GGUFError(path, f"importance of {name!r} is not a finite number from 0 on")
    return imatrix


def is_imatrix(path: Path) -> bool:
    """Whether a file looks like an importance matrix, of either format; it is not read whole for that."""
    if stored_kind(path) is not None:
        return stored_kind(path) == IMATRIX
    start = read_start(path, 8 + MAX_NAME)
    if len(start) < 8:
        return False
    n_entries, length = struct.unpack_from("<ii", start)
    name = start[8 : 8 + max(length, 0)]
    return 0 < n_entries < MAX_ENTRIES and 0 < length == len(name) and name.isascii() and b"." in name


IMATRIX_FILE = FileKind("an importance matrix", is_imatrix)


def write_imatrix(
    path: str | os.PathLike[str], imatrix: Imatrix, *, legacy: bool = False, force: bool = False
) -> None:
    """Writes the file whole or not at all; as GGUF, or with `legacy` as `.dat`. Only an importance matrix is
    replaced, unless `force`.

    `.dat` wants a chunk_size. Raises OutputError when it cannot be written.
    """
    check_output(Path(path), kind=IMATRIX_FILE, force=force)
    if legacy:
        write_whole(Path(path), _pack_legacy(path, imatrix))
        return
    with GGUFWriter(path) as writer:
        writer.add("general.type", "imatrix")
        writer.add(_KEYS[0], list(imatrix.datasets), ValueType.STRING)
        writer.add(_KEYS[1], imatrix.chunk_count, ValueType.UINT32)
        writer.add(_KEYS[2], imatrix.chunk_size, ValueType.UINT32)
        for name in sorted(imatrix.entries):
            entry = imatrix.entries[name]
            writer.add_array(name + _SUMS, np.ascontiguousarray(entry.sums, np.float32))
            writer.add_array(name + _COUNTS, entry.counts.astype(np.float32)[:, None])


def _read_gguf(path: str | os.PathLike[str]) -> Imatrix:
    with GGUFFile.open(path) as file:
        missing = [key for key in _KEYS if key not in file.metadata]
        if missing:
            raise GGUFError(path, f"is not an importance matrix: {', '.join(missing)} missing")
        names = [name.removesuffix(_SUMS) for name in file.tensors if name.endswith(_SUMS)]
        lonely = {name.removesuffix(_COUNTS) for name in file.tensors if name.endswith(_COUNTS)} ^ {*names}
        if lonely:
            raise GGUFError(path, f"{min(lonely)!r} has only one of its two tensors {_SUMS} and {_COUNTS}")
        entries = {name: _read_entry(file, name) for name in names}
        datasets, count, size = (file.metadata[key] for key in _KEYS)
        if not (isinstance(count, int) and isinstance(size, int)) or isinstance(datasets, (str, int, float)):
            raise GGUFError(path, f"{', '.join(_KEYS)} are not a list of texts and two whole numbers")
        return Imatrix(entries, tuple(str(name) for name in datasets), count, size)


def _read_entry(file: GGUFFile, name: str) -> ImatrixEntry:
    for part in (_SUMS, _COUNTS):
        if file.tensors[name + part].type != TensorType.F32:
            raise GGUFError(file.paths[0], f"tensor {name + part!r} must be F32")
    sums = file.data(name + _SUMS).view("<f4").astype(np.float32)
    counts = file.data(name + _COUNTS).view("<f4").astype(np.float64)
    if not np.isfinite(counts).all() or counts.min(initial=0) < 0 or counts.max(initial=0) >= 1 << 62:
        raise GGUFError(file.paths[0], f"{name!r} has a count that is not a whole number from 0 on")
    if not counts.size or sums.size % counts.size:
        raise GGUFError(file.paths[0], f"{name!r} has {sums.size} sums for {counts.size} counts")
    return ImatrixEntry(sums.reshape(counts.size, -1), np.rint(counts).astype(np.int64))


class _Records:
    """A `.dat` file read piece by piece; whatever would pass its end raises GGUFError."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        self.bytes = Path(path).read_bytes()
        self.pos = 0

    @property
    def left(self) -> int:
        return len(self.bytes) - self.pos

    def take(self, n: int, what: str) -> bytes:
        if not 0 <= n <= self.left:
            raise GGUFError(
                self.path,
                f"is not an importance matrix, or damaged: {what} needs {n} bytes at byte {self.pos}, "
                f"{self.left} are left",
            )
        self.pos += n
        return self.bytes[self.pos - n : self.pos]

    def number(self, what: str) -> int:
        return int(struct.unpack("<i", self.take(4, what))[0])


def _read_legacy(path: str | os.PathLike[str]) -> Imatrix:
    records = _Records(path)
    entries: dict[str, ImatrixEntry] = {}
    for i in range(records.number("the number of entries")):
        name = records.take(records.number(f"name {i}"), f"name {i}").decode("utf-8", "replace")
        n_chunks = records.number(f"the chunks of {name!r}")
        n_values = records.number(f"the size of {name!r}")
        values = np.frombuffer(records.take(4 * n_values, f"the values of {name!r}"), "<f4")
        if not values.size or name in entries:
            raise GGUFError(path, f"entry {name!r} is empty or there twice")
        counts = np.array([max(n_chunks, 1)], np.int64)  # 0 is written where the values are means already
        entries[name] = ImatrixEntry(values.astype(np.float32)[None, :], counts)
    n_chunks = records.number("the number of chunks") if records.left else 0
    dataset = records.take(records.number("the dataset"), "the dataset") if records.left else b""
    datasets = (dataset.decode("utf-8", "replace"),) if dataset else ()
    return Imatrix(entries, datasets, max(n_chunks, 0), 0, legacy=True)


def _pack_legacy(path: str | os.PathLike[str], imatrix: Imatrix) -> bytes:
    """The bytes of a `.dat`: means times the chunks that an entry saw, rounded up."""
    if imatrix.chunk_size < 1 and not imatrix.legacy:
        raise GGUFError(path, "cannot be written as .dat: the size of a chunk is not known")
    seen = {name: entry for name, entry in sorted(imatrix.entries.items()) if entry.counts.max() > 0}
    parts = [struct.pack("<i", len(seen))]
    for name, entry in seen.items():
        chunk = 1 if imatrix.legacy else imatrix.chunk_size
        n_chunks = -(-int(entry.counts.max()) // chunk)
        raw = name.encode()
        parts += [struct.pack("<i", len(raw)), raw, struct.pack("<ii", n_chunks, entry.sums.size)]
        parts.append((entry.importance() * np.float32(n_chunks)).astype("<f4").tobytes())
    dataset = imatrix.datasets[-1].encode() if imatrix.datasets else b""
    parts += [struct.pack("<ii", imatrix.chunk_count, len(dataset)), dataset]
    return b"".join(parts)
