"""Room in a folder of packed weights (pack_cache.py): what was not used for longest goes first.

Who uses a file of panels holds a shared lock on it (panel_file.py), so that no process removes what another
has mapped; where a disk has no locks that cannot be known, and removing is harmless all the same. Who makes a
file holds the folder's lock while it removes others and takes the room of its own, which then has its full
size: processes that make files at the same time cannot exceed the limit together.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pyllamacpu.files import lock_file, wait_for_lock
from pyllamacpu.units import decimal_bytes

_PATIENCE = 60.0  # seconds to wait for another process that removes files
_FOLDER = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
_UNFOLLOWED = _FOLDER | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@dataclass(frozen=True)
class _Held:
    """A file that takes room. used: seconds since 1970."""

    path: Path
    n_bytes: int
    used: float


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """No other process makes or takes room meanwhile, where folders can be locked. Raises OSError."""
    descriptor = os.open(folder, _FOLDER)
    try:
        wait_for_lock(descriptor, _PATIENCE, "another process has been making room for too long")
        yield
    finally:
        os.close(descriptor)


def make_room(folder: Path, is_ours: Callable[[str], bool], n_bytes: int, limit_bytes: int) -> None:
    """Removes files until `n_bytes` more are within the limit. Raises OSError, and then has removed nothing,
    when they cannot be, because of their size or that of files in use.
    """
    if n_bytes > limit_bytes:
        raise OSError(0, f"they take {decimal_bytes(n_bytes)}, {_more_than(limit_bytes)}")
    found = sorted(_files(folder, is_ours), key=lambda file: file.used)
    excess = sum(file.n_bytes for file in found) + n_bytes - limit_bytes
    removed: list[_Held] = []
    with contextlib.ExitStack() as stack:
        for file in found:
            if excess > 0 and file.path.suffix == ".panels" and stack.enter_context(_unused(file.path)):
                removed.append(file)
                excess -= file.n_bytes
        if excess > 0:
            most = decimal_bytes(limit_bytes + excess)
            raise OSError(0, f"with those in use they take {most}, {_more_than(limit_bytes)}")
        for file in removed:
            remove_panels(file.path)


def _more_than(limit_bytes: int) -> str:
    return f"more than the limit of {decimal_bytes(limit_bytes)} (--pack-cache-limit)"


def _files(folder: Path, is_ours: Callable[[str], bool]) -> Iterator[_Held]:
    """Panels that are there, and those that are being made; what belongs to them takes next to no room."""
    with os.scandir(folder) as entries:
        for entry in entries:
            is_panels = ".panels" in entry.name[-len(".panels.xxxxxxxx.part") :] and is_ours(entry.name)
            if is_panels and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    path = Path(entry.path)
                    yield _Held(path, entry.stat(follow_symlinks=False).st_size, last_used(path))


def last_used(path: Path) -> float:
    """When a file of panels was loaded last, in seconds since 1970. Raises OSError when it is not there."""
    with contextlib.suppress(FileNotFoundError):
        return path.with_suffix(".stamp").stat().st_mtime
    return path.lstat().st_mtime


@contextlib.contextmanager
def _unused(path: Path) -> Iterator[bool]:
    """Whether no process has a file of panels open; none starts to in the block, where that can be known."""
    try:
        descriptor = os.open(path, _UNFOLLOWED)
    except OSError:
        yield False
        return
    try:
        yield lock_file(descriptor) is not False
    finally:
        os.close(descriptor)


def remove_unused(path: Path) -> None:
    """A file of panels, if no process has it open. Raises OSError."""
    with _unused(path) as unused:
        if unused:
            remove_panels(path)


def remove_panels(path: Path) -> None:
    """A file and what belongs to it; whoever uses it keeps it. Raises OSError."""
    for suffix in (".stamp", ".lock", ".panels"):
        path.with_suffix(suffix).unlink(missing_ok=True)
