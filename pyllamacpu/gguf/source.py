"""One mapped file and a cursor over it that never reads outside."""

from __future__ import annotations

import mmap
import os
import stat
import struct
import weakref
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import GGUFError
from pyllamacpu.files import read_problem
from pyllamacpu.gguf.values import MAGIC, MAX_NAME
from pyllamacpu.native import ffi, lib, pointer

ByteOrder = Literal["little", "big"]
VERSIONS = (1, 2, 3)


class Source:
    """A GGUF file mapped read-only, with its byte order and version.

    `width` is the size in bytes of its counts and lengths: 4 in version 1, 8 later. Bytes that the file
    loses while it is mapped read as zeros: whoever has read asks `check_intact` before using the result.
    Raises GGUFError when the path cannot be opened or does not begin as a GGUF file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._map, self.status = _map_file(self.path)
        self._bytes: npt.NDArray[np.uint8] | None = np.frombuffer(self._map, np.uint8)
        self.size = len(self._map)
        self._guard, self._end_guard = _guarded(self._map, self._bytes)
        self.byteorder, self.version = self._read_start()
        self.order = "<" if self.byteorder == "little" else ">"  # as struct and numpy spell it
        self.width = 4 if self.version == 1 else 8

    def _read_start(self) -> tuple[ByteOrder, int]:
        magic, raw = self._map[:4], self._map[4:8]
        if magic != MAGIC:
            raise GGUFError(self.path, f"not a GGUF file: it begins with {magic!r}, not {MAGIC!r}")
        little, big = (int.from_bytes(raw, order) for order in ("little", "big"))
        if little in VERSIONS:
            return "little", little
        if big in VERSIONS:
            return "big", big
        version = little if little < 1 << 16 else big
        raise GGUFError(self.path, f"GGUF version {version} is unknown; versions 1 to 3 can be read")

    @property
    def bytes(self) -> npt.NDArray[np.uint8]:
        """The whole file, (size,) read-only. Raises GGUFError once it is closed."""
        if self._bytes is None:
            raise GGUFError(self.path, "the file has been closed")
        return self._bytes

    def check_intact(self) -> None:
        """Raises GGUFError when the file has lost bytes since it was opened: what was read may be zeros."""
        if self._bytes is None:
            return
        if lib.pl_mapping_lost(self._guard) or self._map.size() < self.size:
            raise GGUFError(
                self.path, "the file was cut short while it was in use; open it again when it is whole"
            )

    def release(self, start: int, length: int) -> None:
        """Drops the pages of these bytes from this process's memory; does nothing where the system cannot."""
        if not hasattr(mmap, "MADV_DONTNEED") or length <= 0:
            return
        first = start - start % mmap.PAGESIZE
        with suppress(OSError):  # they stay in memory then
            self._map.madvise(mmap.MADV_DONTNEED, first, min(start + length, self.size) - first)

    def close(self) -> None:
        """Unmaps the file, or leaves that to the last array that still looks at it."""
        self._bytes = None
        with suppress(BufferError):
            self._map.close()
            self._end_guard()  # other things may be mapped there next


def _guarded(mapped: mmap.mmap, data: npt.NDArray[np.uint8]) -> tuple[Any, Any]:
    """The guard of a mapping (platform/mapping.c), and what ends it: at the latest the end of the mapping."""
    guard = pointer(lib.pl_mapping_guard(ffi.from_buffer(data), data.size), "guarding a mapped file")
    end = weakref.finalize(mapped, lib.pl_mapping_free, guard)
    end.atexit = False
    return guard, end


def _map_file(path: str) -> tuple[mmap.mmap, os.stat_result]:
    """The mapping, and what the system said about the file when it was opened."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise GGUFError(path, "is a directory" if stat.S_ISDIR(mode) else "not a regular file")
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size < 8:
                raise GGUFError(path, f"not a GGUF file: only {status.st_size} bytes")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), status
    except OSError as error:
        raise GGUFError(path, read_problem(error, "cannot be opened: ")) from error
    except ValueError as error:  # a null byte in the path, a file that shrank to nothing
        raise GGUFError(path, f"cannot be opened: {error}") from error


class Cursor:
    """A position in a source.

    Each read moves it, and raises GGUFError instead of passing the end of the file.
    """

    def __init__(self, source: Source, pos: int) -> None:
        self.source = source
        self.pos = pos
        order = source.order
        self._u32 = struct.Struct(order + "I")
        self._u64 = struct.Struct(order + "Q")
        self._size = self._u32 if source.width == 4 else self._u64
        self._map = source._map

    def fail(self, reason: str) -> GGUFError:
        return GGUFError(self.source.path, reason)

    @property
    def left(self) -> int:
        return self.source.size - self.pos

    def skip(self, length: int, what: str) -> int:
        """Moves past `length` bytes; returns where they begin."""
        start = self.pos
        if length > self.source.size - start:
            raise self.fail(
                f"truncated or damaged: {what} needs {length} bytes at byte {start}, {self.left} are left"
            )
        self.pos = start + length
        return start

    def u32(self, what: str) -> int:
        return int(self._u32.unpack_from(self._map, self.skip(4, what))[0])

    def u64(self, what: str) -> int:
        return int(self._u64.unpack_from(self._map, self.skip(8, what))[0])

    def count(self, what: str) -> int:
        """A count or length: 32 bits in version 1, 64 bits later."""
        return int(self._size.unpack_from(self._map, self.skip(self._size.size, what))[0])

    def name(self, what: str) -> str:
        """A key or tensor name: 1 to 65535 bytes of UTF-8."""
        length = self.count(what)
        if not 0 < length <= MAX_NAME:
            raise self.fail(f"{what} has an impossible length: {length} bytes")
        start = self.skip(length, what)
        try:
            return self._map[start : self.pos].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(
                f"{what} is not UTF-8: {self._map[start : min(self.pos, start + 40)]!r}"
            ) from error
