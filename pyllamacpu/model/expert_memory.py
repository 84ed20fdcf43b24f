"""Experts that stay in their model's file: memory for some of them, and what it read and found there.

The matrices of experts are added while weights are loaded; then `start` divides the memory into slots, and
steps of the model fill them (csrc/exec/expert_*.c). Reads go past the system's page cache where the file
system lets them, many at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pyllamacpu.errors import GGUFError, ModelError, NativeError, OptionError
from pyllamacpu.files import read_problem
from pyllamacpu.gguf.reader import GGUFFile, TensorInfo
from pyllamacpu.native import ffi, lib, pointer
from pyllamacpu.units import decimal_bytes

READERS = 16  # parts of files that are read at a time


@dataclass(frozen=True)
class ExpertCounts:
    """Of all steps so far. needed: matrices that products needed, one for each step, layer, expert and
    product; found: those in memory from earlier uses. waited: seconds that threads waited for reads, in all.
    right: share of the guesses at the next layer's experts that came true lately.
    """

    needed: int
    found: int
    bytes_read: int
    waited: float
    right: float


class ExpertMemory:
    """`limit_bytes` for the experts of `file`, read by `n_readers` threads.

    Raises GGUFError when a part of the model is not what was opened any more, ModelError for a big-endian
    file.
    """

    def __init__(self, file: GGUFFile, limit_bytes: int, n_readers: int = READERS) -> None:
        if file.byteorder != "little":
            raise ModelError(
                f"{file.paths[0]}: experts of big-endian files cannot stay there (--expert-memory); run it "
                "without, or quantize it again, which writes little-endian files"
            )
        self._paths = file.paths
        self.limit_bytes = limit_bytes
        self.n_bytes = 0  # of slots and of readers' buffers
        self.n_matrices = 0
        files = _opened(file)
        plain, direct = zip(*files, strict=True)
        handle = lib.pl_expert_memory_new(list(plain), list(direct), len(files), n_readers)
        if handle == ffi.NULL:
            _close(files)
        self.handle = ffi.gc(pointer(handle, "memory for experts"), lib.pl_expert_memory_free)

    def add(self, info: TensorInfo, i: int, n: int, rows: int, cols: int) -> Any:
        """The handle of the matrix of expert i of the n in a tensor. The memory lives as long as it does."""
        offset = info.offset + i * (info.n_bytes // n)
        handle = lib.pl_expert_memory_add(self.handle, info.part, offset, int(info.type), rows, cols)
        self.n_matrices += 1
        memory = self.handle

        def free(matrix: Any) -> None:
            lib.pl_matrix_free(matrix)
            _ = memory

        return ffi.gc(pointer(handle, f"expert {i} of {info.name}"), free)

    def start(self) -> None:
        """Takes the memory; no more matrices can be added. Raises OptionError when it is too little."""
        if not self.n_matrices:
            raise OptionError(f"{self._paths[0]}: has no experts that could stay in the file (expert_memory)")
        least = int(lib.pl_expert_memory_least(self.handle))
        if self.limit_bytes < least:
            raise OptionError(
                f"expert_memory is {decimal_bytes(self.limit_bytes)}: {self._paths[0].name} needs at least "
                f"{decimal_bytes(least)} ({least} bytes), for a matrix of each size and for reading"
            )
        taken = int(lib.pl_expert_memory_start(self.handle, self.limit_bytes))
        if taken < 0:
            raise OptionError(
                f"expert_memory is {decimal_bytes(self.limit_bytes)}: out of memory, or of threads; give less"
            )
        self.n_bytes = taken

    def counts(self) -> ExpertCounts:
        found = ffi.new("pl_expert_counts *")
        lib.pl_expert_memory_counts(self.handle, found)
        return ExpertCounts(found.needed, found.found, found.bytes_read, found.waited, found.right)

    def check_reads(self) -> None:
        """Raises GGUFError when a read has failed since the last call."""
        part = ffi.new("int32_t *")
        code = int(lib.pl_expert_memory_failure(self.handle, part))
        if code == 0:
            raise GGUFError(
                self._paths[part[0]],
                "the file was cut short while it was in use; open it again when it is whole",
            )
        if code > 0:
            raise GGUFError(self._paths[part[0]], f"an expert cannot be read: {os.strerror(code)}")


@contextmanager
def reads_checked(memory: ExpertMemory | None) -> Iterator[None]:
    """Where steps run: one that ends because a read failed raises GGUFError, which names the file."""
    try:
        yield
    except NativeError:
        if memory is not None:
            memory.check_reads()
        raise


def _opened(file: GGUFFile) -> list[tuple[int, int]]:
    """Of each part two descriptors: as usual, and past the system's cache, -1 where that cannot be."""
    found: list[tuple[int, int]] = []
    try:
        for path, status in zip(file.paths, file.statuses, strict=True):
            plain = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            found.append((plain, -1))
            now = os.fstat(plain)
            if (now.st_dev, now.st_ino, now.st_size) != (status.st_dev, status.st_ino, status.st_size):
                raise GGUFError(path, "another file has taken its place while it was opened; open it again")
            found[-1] = (plain, _direct(plain))
    except OSError as error:
        _close(found)
        raise GGUFError(path, read_problem(error, "cannot be opened: ")) from error
    except GGUFError:
        _close(found)
        raise
    return found


def _direct(plain: int) -> int:
    """The same file past the system's cache; -1 where that cannot be, as in file systems in memory."""
    with suppress(OSError, AttributeError):
        return os.open(f"/proc/self/fd/{plain}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    return -1


def _close(files: list[tuple[int, int]]) -> None:
    for pair in files:
        for descriptor in pair:
            if descriptor >= 0:
                os.close(descriptor)
