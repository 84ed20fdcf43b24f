"""A file of packed weights: the panels that the kernels read, mapped read-only, and checked.

    header    magic, key, sizes, facts (JSON), sums of the blocks of the panels, SHA-256 of all of that
    panels    from a multiple of 2 MB on, matrix after matrix in the order of loading, each from a multiple of
              64 bytes on

The key is a hash of all that decides the panels, so that where each matrix lies follows from the model and
is not read from the file. Blocks of 2 MB, written whole, lie on huge pages in the system's cache where it has
such.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import ModelError
from pyllamacpu.files import PartialFile, lock_file, open_regular
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.native import ffi, lib

MAGIC = b"PLPANEL1"
BLOCK: int = lib.PL_SUM_BLOCK
_START = struct.Struct("<8s32sQQI")  # magic, key, bytes of panels, where they begin, bytes of facts
_MAX_FACTS = 1 << 16  # bytes
_MAX_HEADER = 1 << 28  # bytes
_BUFFER = 16 * BLOCK  # bytes that are written at once
_CHECKED_AT_ONCE = 64  # blocks, between which Ctrl-C has its turn
_UNFOLLOWED = getattr(os, "O_NOFOLLOW", 0)


class DamagedError(Exception):
    """A file that is not what was written."""


@dataclass(frozen=True)
class Panels:
    """Of a matrix: `n` panels of 16 rows. name: of its tensor. int16: whatever its type, it multiplies
    float32 in 16 bits.
    """

    name: str
    type: TensorType
    rows: int
    cols: int
    int16: bool = False

    @property
    def kind(self) -> int:
        """As the extension numbers types."""
        return int(self.type) + (lib.PL_INT16_WEIGHTS if self.int16 else 0)

    @property
    def panel_bytes(self) -> int:
        return int(lib.pl_panel_bytes(self.kind, self.cols))

    @property
    def n(self) -> int:
        return -(-self.rows // 16)

    @property
    def n_bytes(self) -> int:
        """In the file, up to the next matrix."""
        return -(-self.n * self.panel_bytes // 64) * 64


@dataclass(frozen=True)
class Header:
    key: bytes
    n_bytes: int  # of panels
    start: int  # of panels
    facts: dict[str, Any]  # for people: of which model, and so on
    sums: npt.NDArray[np.uint64]

    def packed(self) -> bytes:
        facts = json.dumps(self.facts).encode()
        facts = facts if len(facts) <= _MAX_FACTS else b"{}"
        head = (
            _START.pack(MAGIC, self.key, self.n_bytes, self.start, len(facts)) + facts + self.sums.tobytes()
        )
        return head + _sha256(head)


def _sha256(data: bytes) -> bytes:
    import hashlib  # OpenSSL comes along, which takes a while, and loads without a cache need no sums

    return hashlib.sha256(data).digest()


def header_room(n_bytes: int) -> int:
    """Where panels of so many bytes begin."""
    longest = _START.size + _MAX_FACTS + 8 * _n_blocks(n_bytes) + 32
    return -(-longest // BLOCK) * BLOCK


def panel_file_bytes(layout: Sequence[Panels]) -> int:
    """Of a file of these matrices."""
    n_bytes = sum(panels.n_bytes for panels in layout)
    return header_room(n_bytes) + n_bytes


def _n_blocks(n_bytes: int) -> int:
    return -(-n_bytes // BLOCK)


def read_header(file: int) -> Header:
    """Of an open file. Raises DamagedError, OSError."""
    head = os.pread(file, _START.size, 0)
    if len(head) < _START.size:
        raise DamagedError("it is cut short")
    magic, key, n_bytes, start, n_facts = _START.unpack(head)
    if magic != MAGIC or n_facts > _MAX_FACTS or 8 * _n_blocks(n_bytes) > _MAX_HEADER:
        raise DamagedError("its header is damaged")
    rest = os.pread(file, n_facts + 8 * _n_blocks(n_bytes) + 32, _START.size)
    body, digest = head + rest[:-32], rest[-32:]
    if _sha256(body) != digest or start != header_room(n_bytes):
        raise DamagedError("its header is damaged")
    if os.fstat(file).st_size != start + n_bytes:
        raise DamagedError("it has another size than its header says")
    sums = np.frombuffer(rest[n_facts:-32], np.uint64).copy()  # where C may read it
    return Header(key, n_bytes, start, json.loads(rest[:n_facts]), sums)


class PanelFile:
    """An open file of panels, whose matrices are taken in the order in which they were written.

    While it is open it is locked with all who use it, so that nobody removes it to make room (pack_room.py).
    Raises DamagedError when it is not whole, OSError when it cannot be read.
    """

    _file = -1

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_regular(path, _UNFOLLOWED)
        lock_file(self._file, shared=True)  # False: it is being removed just now, which does no harm
        try:
            self.status = os.fstat(self._file)
            self._check_owner()
            self.header = read_header(self._file)
            self._arena: Any = None
            self._at = 0
        except BaseException:
            self.close()
            raise

    def _check_owner(self) -> None:
        mine = self.status.st_uid == os.geteuid() and not self.status.st_mode & 0o022
        if not mine:
            raise DamagedError("others may write to it")

    @property
    def descriptor(self) -> int:
        return self._file

    def map(self) -> None:
        """From now on matrices can be taken. Raises OSError, as where addresses are limited (ulimit -v)."""
        arena = lib.pl_weight_arena_map(self._file, self.header.start, self.header.n_bytes)
        if arena == ffi.NULL:
            raise OSError(errno.ENOMEM, "it cannot be mapped: no memory for so much", str(self.path))
        self._arena = ffi.gc(arena, lib.pl_weight_arena_free)

    def check(self, pool: Any, everything: bool) -> None:
        """Compares the sums of all blocks, or of those that are not in the system's cache and are read from
        the disk by this. Raises DamagedError.
        """
        sums = ffi.from_buffer("uint64_t *", self.header.sums)
        n = _n_blocks(self.header.n_bytes)
        for first in range(0, n, _CHECKED_AT_ONCE):
            end = min(n, first + _CHECKED_AT_ONCE)
            if lib.pl_weight_arena_check(pool, self._arena, first, end, sums, everything):
                raise DamagedError("its panels are damaged")

    def take(self, panels: Panels) -> Any:
        """The handle of the next matrix; NULL when it is not in the file."""
        handle = lib.pl_matrix_view(self._arena, self._at, panels.kind, panels.rows, panels.cols)
        self._at += panels.n_bytes
        return handle

    def check_intact(self) -> None:
        """Raises ModelError when the file was changed or cut short since it was opened: what was computed may
        be wrong. It is removed then.
        """
        now = os.fstat(self._file)
        same = (now.st_size, now.st_mtime_ns) == (self.status.st_size, self.status.st_mtime_ns)
        if same and not lib.pl_weight_arena_lost(self._arena):
            return
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        raise ModelError(
            f"{self.path}: this file of packed weights was changed while it was in use; load again"
        )

    def close(self) -> None:
        """Closes the file; matrices that were taken stay."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def __del__(self) -> None:
        self.close()


class PanelWriter:
    """Packs matrices one after the other into a file that grows beside its target. Raises OutputError.

    `layout`: of all matrices, in their order.
    """

    def __init__(self, part: PartialFile, key: bytes, layout: Sequence[Panels], pool: Any) -> None:
        self._part, self._key, self._pool = part, key, pool
        self._n_bytes = sum(panels.n_bytes for panels in layout)
        self._start = self._offset = header_room(self._n_bytes)
        largest = max((panels.panel_bytes for panels in layout), default=0)
        self._buffer = np.empty(_BUFFER + largest + 64, np.uint8)
        self._filled = 0  # bytes of the buffer, the first of which goes to `_offset`
        self._sums = np.zeros(_n_blocks(self._n_bytes), np.uint64)

    def add(self, panels: Panels, data: npt.NDArray[np.uint8], mapped: bool) -> None:
        """The next matrix, packed from a tensor's bytes. mapped: they are a file's, and may leave memory."""
        first = 0
        while first < panels.n:
            n = min(panels.n - first, max(1, (len(self._buffer) - self._filled) // panels.panel_bytes))
            lib.pl_pack_panels(
                self._pool,
                panels.kind,
                ffi.from_buffer(data),
                mapped,
                panels.rows,
                panels.cols,
                first,
                first + n,
                ffi.from_buffer(self._buffer) + self._filled,
            )
            first += n
            self._filled += n * panels.panel_bytes
            self._write(self._filled // BLOCK * BLOCK if self._filled >= _BUFFER else 0)
        padding = -self._filled % 64
        self._buffer[self._filled : self._filled + padding] = 0
        self._filled += padding

    def _write(self, n_bytes: int) -> None:
        """The buffer's first bytes: whole blocks, or the last ones of all."""
        if n_bytes == 0:
            return
        block = (self._offset - self._start) // BLOCK
        sums = ffi.cast("uint64_t *", self._sums.ctypes.data) + block
        lib.pl_block_sums(self._pool, ffi.from_buffer(self._buffer), n_bytes, sums)
        self._part.write(self._buffer[:n_bytes].data, self._offset)
        self._offset += n_bytes
        self._filled -= n_bytes
        self._buffer[: self._filled] = self._buffer[n_bytes : n_bytes + self._filled]

    def finish(self, facts: dict[str, Any]) -> None:
        """Writes what is left, and the header."""
        self._write(self._filled)
        assert self._offset == self._start + self._n_bytes
        header = Header(self._key, self._n_bytes, self._start, facts, self._sums)
        self._part.write(header.packed(), 0)
