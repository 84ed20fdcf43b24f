"""A folder of KV pages as files: checked when read, private to their user, within a size, safe to delete.

Several processes may share a folder. A file is written beside its name and renamed when whole, so a kill at
any moment leaves nothing but a temporary file that the next scan sweeps; whatever a failing disk, a crash of
the machine or a stranger makes of a file is found out by its checksum. Nothing here raises because of a disk
once the folder is open: a page that cannot be read is not there, one that cannot be written is left out, and
the log has a line about it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyllamacpu.errors import OptionError
from pyllamacpu.files import (
    EXCLUSIVE,
    lock_file,
    make_private_folder,
    open_regular,
    part_path,
    remove_leftovers,
)
from pyllamacpu.forks import fork_safe_lock

log = logging.getLogger("pyllamacpu.engine")

LIMIT = 8 << 30  # bytes of a folder, unless another limit is given
MAGIC = b"PLPAGE1\0"
_HEAD = struct.Struct("<8s32sII32s")  # magic, key, spaces that have a page (bits), 0, sha256 of all else
_NAME = re.compile(r"[0-9a-f]{64}\.(kv|model)")
_LEFTOVER = re.compile(r"\.[0-9a-f]{64}\.(kv|model)\.[0-9a-f]{8}\.part")
_BLOCK = 4096  # bytes that a file takes at least
_KEPT = 15 / 16  # of the limit, after making room
_SCANS = 64  # to a limit: bytes of others are noticed after so large a part of it was written here
_REST = 30.0  # seconds without writing after it failed
_QUIET = 600.0  # seconds without a second line in the log about the same trouble


@dataclass
class PageCounts:
    """What happened to a folder's pages in this process."""

    n_read: int = 0
    bytes_read: int = 0
    n_written: int = 0
    bytes_written: int = 0
    n_evicted: int = 0
    n_rejected: int = 0  # damaged: removed, and computed again
    n_dropped: int = 0  # not written, because the disk was too slow or failed
    n_failures: int = 0  # of the disk


class PageFiles:
    """The files of one folder; any thread may use them.

    Raises OptionError when the folder cannot be made, is another user's, or holds other files and is open to
    other users.
    """

    def __init__(self, folder: str | os.PathLike[str], limit_bytes: int = LIMIT) -> None:
        if limit_bytes < 1:
            raise OptionError(f"a disk cache of {limit_bytes} bytes: give a positive number")
        try:
            self.folder = Path(os.fsdecode(folder)).expanduser().absolute()
        except RuntimeError as error:  # of a user that there is not
            raise OptionError(f"disk cache {os.fsdecode(folder)}: {error}") from None
        self.limit_bytes = limit_bytes
        self.counts = PageCounts()
        self.n_bytes = 0  # of the folder, as far as this process knows
        self._written_since_scan = 0
        self._lock = fork_safe_lock()  # of writing
        self._logged: dict[str, float] = {}
        self._rest_until = 0.0
        try:
            make_private_folder(self.folder, _is_ours)
            self._scan()
        except (OSError, ValueError) as error:
            raise OptionError(
                f"disk cache {self.folder}: {getattr(error, 'strerror', None) or error}"
            ) from error

    def _path(self, key: bytes, suffix: str = "kv") -> Path:
        return self.folder / f"{key.hex()}.{suffix}"

    # Reading

    def has(self, key: bytes) -> bool:
        """Whether there seems to be a page of this key (32 bytes)."""
        return os.path.exists(self._path(key))

    def spaces(self, key: bytes) -> int:
        """The spaces that a page of this key has (bits), if it is whole; 0: there is none."""
        with contextlib.suppress(OSError), open(open_regular(self._path(key)), "rb", buffering=0) as file:
            return _read_head(file.read(_HEAD.size), key)[0]
        return 0

    def touch(self, key: bytes, used_ns: int) -> bool:
        """Notes that a page was used at this time (ns since 1970); False when it is not there."""
        try:
            os.utime(self._path(key), ns=(used_ns, used_ns))
        except OSError:
            return False
        return True

    def read(self, key: bytes, room: Callable[[int], Sequence[Any] | None]) -> bool:
        """Fills the buffers of `room(spaces)` with a page; `spaces` has a bit for each space that has one.
        False when there is no such page, or none that is whole, or no room.
        """
        path = self._path(key)
        try:
            with open(open_regular(path), "rb", buffering=0) as file:
                head = file.read(_HEAD.size)
                spaces, digest = _read_head(head, key)
                if digest is None:
                    return self._reject(path)
                if (buffers := room(spaces)) is None:
                    return False
                if not _fill(file, buffers) or _digest(key, spaces, buffers) != digest:
                    return self._reject(path)
        except FileNotFoundError:
            return False
        except OSError as error:
            self._failed("read", error)
            return False
        self.counts.n_read += 1
        self.counts.bytes_read += sum(len(buffer) for buffer in buffers)
        return True

    def _reject(self, path: Path) -> bool:
        self.counts.n_rejected += 1
        self._log("damaged", f"disk cache {self.folder}: a damaged page was removed; it is computed again")
        with contextlib.suppress(OSError):
            path.unlink()
        return False

    # Writing

    @property
    def is_resting(self) -> bool:
        """Whether nothing is written for now, because the disk failed."""
        return time.monotonic() < self._rest_until

    def write(self, key: bytes, spaces: int, buffers: Sequence[Any], used_ns: int) -> bool:
        """Keeps a page; whether that was possible."""
        head = _HEAD.pack(MAGIC, key, spaces, 0, _digest(key, spaces, buffers))
        if not self._write(self._path(key), [head, *buffers], used_ns):
            self.counts.n_dropped += 1
            return False
        self.counts.n_written += 1
        self.counts.bytes_written += sum(len(buffer) for buffer in buffers)
        return True

    def _write(self, path: Path, buffers: Sequence[Any], used_ns: int) -> bool:
        with self._lock:
            if self.is_resting:
                return False
            try:
                n_bytes = _on_disk(sum(len(buffer) for buffer in buffers))
                if not self._make_room(n_bytes):
                    return False
                try:
                    _write_whole(path, buffers, used_ns)
                except FileNotFoundError:  # somebody has deleted the folder
                    make_private_folder(self.folder, _is_ours)
                    self._scan()
                    _write_whole(path, buffers, used_ns)
            except OSError as error:
                self._failed("written", error)
                self._rest_until = time.monotonic() + _REST
                return False
            self.n_bytes += n_bytes
            self._written_since_scan += n_bytes
        return True

    def _make_room(self, n_bytes: int) -> bool:
        """Removes what was not used for longest, if `n_bytes` more would be too many."""
        if n_bytes > self.limit_bytes:
            self._log("small", f"disk cache {self.folder}: a page takes {n_bytes} bytes, more than the limit")
            return False
        if self._written_since_scan * _SCANS > self.limit_bytes or self.n_bytes + n_bytes > self.limit_bytes:
            found = self._scan()
            if self.n_bytes + n_bytes > self.limit_bytes:
                self._evict(found, int(self.limit_bytes * _KEPT) - n_bytes)
        return True

    def _scan(self) -> list[tuple[int, int, Path]]:
        """(time of last use, bytes, path) of our files; others of the folder are nobody's business here."""
        found = []
        remove_leftovers(self.folder, _LEFTOVER)
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                if _is_ours(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        found.append((status.st_mtime_ns, _on_disk(status.st_size), Path(entry.path)))
        self.n_bytes, self._written_since_scan = sum(n for _, n, _ in found), 0
        return found

    def _evict(self, found: list[tuple[int, int, Path]], most: int) -> None:
        for _, n_bytes, path in sorted(found, key=lambda item: (item[2].suffix == ".model", *item)):
            if self.n_bytes <= max(most, 0):
                return
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                self.n_bytes -= n_bytes
                self.counts.n_evicted += 1

    # Facts about models

    def read_fact(self, key: bytes) -> bytes | None:
        """The 32 bytes that were noted under a key of 32 bytes."""
        path = self._path(key, "model")
        with contextlib.suppress(OSError), open(open_regular(path), "rb") as file:
            content = file.read(65)
            if len(content) == 64 and hashlib.sha256(key + content[:32]).digest() == content[32:]:
                os.utime(path)
                return content[:32]
        return None

    def write_fact(self, key: bytes, fact: bytes) -> None:
        """Notes 32 bytes."""
        self._write(self._path(key, "model"), [fact, hashlib.sha256(key + fact).digest()], time.time_ns())

    # Trouble

    def _failed(self, doing: str, error: OSError) -> None:
        self.counts.n_failures += 1
        reason = error.strerror or error
        self._log(doing, f"disk cache {self.folder}: cannot be {doing}: {reason}; answers go on without it")

    def _log(self, what: str, line: str) -> None:
        now = time.monotonic()
        if now - self._logged.get(what, -_QUIET) >= _QUIET:
            self._logged[what] = now
            log.warning("%s", line)


def open_page_files(
    folder: str | os.PathLike[str] | None, limit_bytes: int | None = None
) -> PageFiles | None:
    """The folder, if one is named; limit_bytes None: the usual one. Raises OptionError."""
    if folder is None:
        return None
    return PageFiles(folder, LIMIT if limit_bytes is None else limit_bytes)


def _is_ours(name: str) -> bool:
    return bool(_NAME.fullmatch(name) or _LEFTOVER.fullmatch(name))


def _on_disk(n_bytes: int) -> int:
    return -(-n_bytes // _BLOCK) * _BLOCK


def _digest(key: bytes, spaces: int, buffers: Sequence[Any]) -> bytes:
    found = hashlib.sha256(key + spaces.to_bytes(4, "little"))
    for buffer in buffers:
        found.update(buffer)
    return found.digest()


def _read_head(head: bytes | None, key: bytes) -> tuple[int, bytes | None]:
    """The spaces and the checksum of a page of this key; no checksum if it is none."""
    if head is None or len(head) != _HEAD.size:
        return 0, None
    magic, own_key, spaces, zero, digest = _HEAD.unpack(head)
    return (spaces, digest) if (magic, own_key, zero) == (MAGIC, key, 0) else (0, None)


def _fill(file: Any, buffers: Sequence[Any]) -> bool:
    """Whether the rest of the file is just as long as the buffers, which it fills."""
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        while len(view):
            n = file.readinto(view)
            if not n:
                return False
            view = view[n:]
    return not file.read(1)


def _write_whole(path: Path, buffers: Sequence[Any], used_ns: int) -> None:
    """A file that is there whole or not at all. It is not forced to the disk: after a crash of the machine
    its checksum tells.
    """
    part = part_path(path)
    with open(os.open(part, EXCLUSIVE, 0o600), "wb", buffering=0) as file:
        try:
            lock_file(file)  # until it has its name: it is no killed run's
            for buffer in buffers:
                view = memoryview(buffer).cast("B")
                while len(view):
                    view = view[file.write(view) :]
            os.utime(part, ns=(used_ns, used_ns))
            os.replace(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
