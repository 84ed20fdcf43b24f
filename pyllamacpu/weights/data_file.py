"""Reading pieces of checkpoint files: few open handles, nothing mapped, nothing kept.

Pieces are read with `pread` into the caller's own buffer, so resident memory is exactly the buffers, and a
file that is cut short while it is read is an error and not a bus error.
"""

from __future__ import annotations

import atexit
import os
import stat
from collections import OrderedDict
from collections.abc import Iterable
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import CheckpointError
from pyllamacpu.files import read_problem
from pyllamacpu.forks import fork_safe_lock
from pyllamacpu.weights.lazy_tensor import STORED, Array, LazyTensor, view_of

MAX_OPEN = 32  # handles, over all checkpoints of the process
_MAX_READ = 1 << 30  # bytes per system call; Linux stops at 2 GiB - 4 KiB
_Identity = tuple[int, int, int, int]


class _Handle:
    """An open file and the number of threads that are reading it."""

    def __init__(self, path: str) -> None:
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by the pool
        self.users = 0
        self.seek = fork_safe_lock()


class _Pool:
    """Open files, least recently used first; one in use is never closed."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.handles: OrderedDict[str, _Handle] = OrderedDict()
        self.lock = fork_safe_lock()

    def acquire(self, path: str, identity: _Identity) -> _Handle:
        with self.lock:
            handle = self.handles.get(path)
            if handle is None or _identity(os.fstat(handle.file.fileno())) != identity:
                handle = self._open(path, identity)
            self.handles.move_to_end(path)
            handle.users += 1
            return handle

    def _open(self, path: str, identity: _Identity) -> _Handle:
        handle = _Handle(path)
        if _identity(os.fstat(handle.file.fileno())) != identity:
            handle.file.close()
            raise CheckpointError(path, "has changed since it was opened; start again")
        old = self.handles.pop(path, None)
        if old is not None and not old.users:
            old.file.close()
        self.handles[path] = handle
        self._trim()
        return handle

    def release(self, path: str, handle: _Handle) -> None:
        with self.lock:
            handle.users -= 1
            if not handle.users and self.handles.get(path) is not handle:
                handle.file.close()
            self._trim()

    def _trim(self) -> None:
        excess = len(self.handles) - self.limit
        idle = [path for path, handle in self.handles.items() if not handle.users]
        for path in idle[: max(0, excess)]:
            self.handles.pop(path).file.close()

    def forget(self, path: str) -> None:
        with self.lock:
            handle = self.handles.pop(path, None)
            if handle is not None and not handle.users:
                handle.file.close()


_POOL = _Pool(MAX_OPEN)


def close_files(paths: Iterable[Path] | None = None) -> None:
    """Closes the handles of these files, or of all; later reads open them again."""
    for path in list(_POOL.handles) if paths is None else [os.fspath(path) for path in paths]:
        _POOL.forget(path)


atexit.register(close_files)


class DataFile:
    """A file whose pieces are read by offset, from any thread.

    `size` is in bytes. Raises CheckpointError when it cannot be opened, and from `read` when the range is
    not in the file or the file has changed since.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._key = os.fspath(self.path)
        try:
            status = os.stat(self._key)
        except (OSError, ValueError) as error:
            raise CheckpointError(path, read_problem(error, "cannot be opened: ")) from error
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(path, "not a regular file")
        self.size = status.st_size
        self._identity = _identity(status)

    def read(self, offset: int, n_bytes: int) -> npt.NDArray[np.uint8]:
        """Bytes [offset, offset + n_bytes) as a new array."""
        if offset < 0 or n_bytes < 0 or offset + n_bytes > self.size:
            raise CheckpointError(
                self.path,
                f"truncated or damaged: bytes {offset} to {offset + n_bytes} are asked for, "
                f"the file has {self.size}",
            )
        buffer = np.empty(n_bytes, np.uint8)
        self._fill(offset, buffer.data)
        return buffer

    def _fill(self, offset: int, view: memoryview) -> None:
        try:
            handle = _POOL.acquire(self._key, self._identity)
        except OSError as error:
            raise CheckpointError(self.path, read_problem(error, "cannot be opened: ")) from error
        try:
            done = 0
            while done < len(view):
                n_read = _pread(handle, view[done : done + _MAX_READ], offset + done)
                if not n_read:
                    raise CheckpointError(self.path, f"ends at byte {offset + done} while it is being read")
                done += n_read
        except OSError as error:
            raise CheckpointError(self.path, f"cannot be read: {error.strerror or error}") from error
        finally:
            _POOL.release(self._key, handle)


def from_file(file: DataFile, name: str, dtype: str, shape: tuple[int, ...], offset: int) -> LazyTensor:
    """The tensor whose elements lie together, row after row, from byte `offset` of `file`.

    `dtype` is a key of STORED. The caller has checked that all elements are in the file.
    """
    kind = STORED[dtype]
    n_elements = prod(shape)

    def elements(start: int, stop: int) -> Array:
        return file.read(offset + start * kind.itemsize, (stop - start) * kind.itemsize).view(kind)

    source = f"{file.path}: {name}"
    return view_of(LazyTensor((n_elements,), dtype, source, elements), shape)


def pointer_hint(file: DataFile) -> str:
    """What to add to a complaint about a file that is only a pointer to the real one."""
    if file.read(0, min(file.size, 40)).tobytes().startswith(b"version https://git-lfs"):
        return " (it is a Git LFS pointer; fetch the file itself)"
    return ""


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _pread(handle: _Handle, view: memoryview, offset: int) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(handle.file.fileno(), [view], offset)
    with handle.seek:  # a system without positioned reads
        handle.file.seek(offset)
        return handle.file.readinto(view) or 0
