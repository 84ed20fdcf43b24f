"""Files that are checked on their way into the store, by one process at a time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from pyllamacpu.errors import StoreError
from pyllamacpu.files import PartialFile

_CHUNK = 1 << 20  # bytes per read; large enough that hashing and copying dominate
_POLL = 0.1  # seconds between two attempts at a lock that another process holds

OnBytes = Callable[[int], None]
"""Called with the number of bytes done so far."""


def install_stream(
    source: IO[bytes], target: Path, size: int, sha256: str, on_bytes: OnBytes = lambda _: None
) -> None:
    """Copy `source` to `target` atomically; it must be `size` bytes with the hex digest `sha256`.

    Raises StoreError when the content is not the one expected, OutputError when it cannot be written;
    `target` is untouched then.
    """
    digest, done = hashlib.sha256(), 0
    with PartialFile(target) as out:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            out.write(chunk)
            done += len(chunk)
            if done > size:
                break
            on_bytes(done)
        if done != size:
            raise StoreError(
                f"{target.name}: expected {size} bytes, the download has {_at_least(done, size)}"
            )
        if digest.hexdigest() != sha256:
            raise StoreError(f"{target.name}: SHA-256 is {digest.hexdigest()}, expected {sha256}")


def check_content(path: Path, sha256: str) -> None:
    """Removes a file that came with another content than that of the hex digest `sha256`. Raises StoreError
    then.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != sha256:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise StoreError(
            f"{path.name}: SHA-256 is {digest.hexdigest()}, expected {sha256}: damaged, and removed; "
            "fetch it again"
        )


def _at_least(done: int, size: int) -> str:
    return f"more than {size}" if done > size else str(done)


@contextlib.contextmanager
def exclusive(lock_file: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold `lock_file` locked against other processes; `on_wait` is called once if another one holds it.

    On a file system without locks files are still replaced atomically, only done twice.
    """
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with open(lock_file, "ab") as handle:
        waited = False
        while not _try_lock(handle):
            if not waited:
                on_wait()
                waited = True
            time.sleep(_POLL)
        yield  # closing the file releases the lock, also when the process dies


def _try_lock(handle: IO[bytes]) -> bool:
    """True when `handle` is locked now, or when this file system cannot lock at all."""
    if os.name == "nt":
        import msvcrt

        try:
            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
