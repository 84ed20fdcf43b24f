"""A folder of packed weights: a model that was loaded once is mapped the next time, not packed.

For each model file, build, CPU tier and set of tensors there is

    NAME.panels   the panels (panel_file.py), never written again once it has its name
    NAME.stamp    a hash of what the system says about that file (inode, size, times), its sums being right
    NAME.lock     locked by the process that makes the file

All of it is private to its user, and safe to delete at any time. A file is used when its key is the one of
the model that is opened: of the model's inode, size and times, this build, the tier, and the matrices. What
it holds is trusted as far as it lies in the system's cache and its stamp is true, which no change leaves it;
what is read from the disk is compared with its sums as it comes, and all of it when the stamp is not true.
Whatever is wrong is a line in the log, and the file is made anew; where none can be made, the model is loaded
without. The folder keeps within a limit (pack_room.py), and who makes a file removes those that other builds
made of the same model and nobody has used for a week.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pyllamacpu.errors import OptionError, OutputError
from pyllamacpu.files import (
    PartialFile,
    check_space,
    make_private_folder,
    open_regular,
    wait_for_lock,
    write_whole,
)
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.model.pack_room import last_used, locked_folder, make_room, remove_unused
from pyllamacpu.model.panel_file import DamagedError, PanelFile, Panels, PanelWriter, panel_file_bytes
from pyllamacpu.native import extension_content, isa_selected
from pyllamacpu.store.paths import PACK_LIMIT, PackFolder

FORMAT = 1  # of these files; another one when what Python packs changes
FRESH = 2.0  # seconds after a change during which a file could change again without a new time
STALE = 7 * 86400.0  # seconds without use after which another build's file goes
_PATIENCE = 120.0  # seconds to wait for another process that makes the same file
_STAMP_BYTES = 32
_MAX_STEM = 80  # bytes of the model's name
_OURS = re.compile(r"\.?.+\.[0-9a-f]{16}\.(panels|stamp|lock)(\.[0-9a-f]{8}\.part)?", re.DOTALL)
_LOCK = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


class PackCache:
    """The files of one folder, which take `limit_bytes` at most when one more is made. Raises OptionError
    when the folder cannot be made, is another user's, or holds other files and is open to other users.
    """

    def __init__(self, folder: str | os.PathLike[str], limit_bytes: int = PACK_LIMIT) -> None:
        self.limit_bytes = limit_bytes
        try:
            self.folder = Path(os.fsdecode(folder)).expanduser().absolute()
            make_private_folder(self.folder, is_ours)
        except (OSError, ValueError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OptionError(f"folder of packed weights {os.fsdecode(folder)}: {reason}") from error

    def open(
        self, file: GGUFFile, layout: Sequence[Panels], pool: object, write: Callable[[PanelWriter], None]
    ) -> PanelFile | None:
        """The panels of a model's matrices, mapped. `write` adds all of them when they are not there yet.
        None, and a line in the log, when they cannot be kept. Raises what `write` raises.
        """
        path, key = self._path(file, layout), _key(file, layout)
        try:
            if found := self._opened(path, key, pool):
                return found
            with _locked(path.with_suffix(".lock")):
                if found := self._opened(path, key, pool):  # another process has made it
                    return found
                return self._made(path, key, file, layout, pool, write)
        except (OutputError, OSError) as error:
            self.skip(file, _reason(error))
            return None

    def skip(self, file: GGUFFile, reason: str) -> None:
        """Says that a model's panels are not kept."""
        _warn("packed weights of %s are not kept: %s", file.paths[0], reason)

    def _path(self, file: GGUFFile, layout: Sequence[Panels]) -> Path:
        """One for each model file, build, tier, and choice of its tensors."""
        where = os.path.realpath(file.paths[0])
        digest = _hashed([where, FORMAT, build_digest(), isa_selected(), *_shapes(layout)])[:8]
        stem = os.fsdecode(os.fsencode(Path(where).stem)[:_MAX_STEM])
        return self.folder / f"{stem}.{digest.hex()}.panels"

    def _opened(self, path: Path, key: bytes, pool: object) -> PanelFile | None:
        """The file, if it is there and is what was written."""
        try:
            found = PanelFile(path)
        except FileNotFoundError:
            return None
        except (DamagedError, OSError) as error:
            if is_of_this_process(error):
                raise
            _reject(path, _reason(error, path))
            return None
        if found.header.key != key:  # of the model's file as it was
            found.close()
            return None
        try:
            stamp = _stamp(found)
            known = _read(path.with_suffix(".stamp")) == stamp
            found.map()
            found.check(pool, everything=not known)
            _write_stamp(path, None if known else stamp)
        except DamagedError as error:
            found.close()
            _reject(path, f"{error}")
            return None
        except OSError:  # it may be whole all the same
            found.close()
            raise
        return found

    def _made(
        self,
        path: Path,
        key: bytes,
        file: GGUFFile,
        layout: Sequence[Panels],
        pool: object,
        write: Callable[[PanelWriter], None],
    ) -> PanelFile | None:
        if not _settled(file):
            raise OSError(0, "the model's file has changed just now; the next load keeps them")
        with contextlib.suppress(FileNotFoundError):
            path.unlink()  # what it holds is of no use, and its room may be needed
        self._remove_stale(os.path.realpath(file.paths[0]))
        with self._room(path, layout) as part:
            writer = PanelWriter(part, key, layout, pool)
            write(writer)
            writer.finish(_facts(file))
            if not _unchanged(file):
                raise OSError(0, "the model's file was changed while it was read")
            os.fchmod(part.file.fileno(), 0o400)
            part.finish()
            with locked_folder(self.folder):  # who lists the folder finds it under one of its names, not both
                part.publish()
        found = PanelFile(path)
        _write_stamp(path, _stamp(found))
        found.map()
        return found

    def _remove_stale(self, model: str) -> None:
        """Removes what other builds made of a model and nobody has used for long. Raises OSError."""
        with locked_folder(self.folder):
            for path in filter(lambda path: is_ours(path.name), self.folder.glob("*.panels")):
                with contextlib.suppress(FileNotFoundError):  # one that is being deleted by hand
                    if time.time() - last_used(path) > STALE and _of_another_build(path, model):
                        remove_unused(path)

    @contextlib.contextmanager
    def _room(self, path: Path, layout: Sequence[Panels]) -> Iterator[PartialFile]:
        """The new file, of its full size from the first, so that others who make one count it.

        Raises OSError, OutputError.
        """
        n_bytes = panel_file_bytes(layout)
        with contextlib.ExitStack() as stack:
            with locked_folder(self.folder):
                make_room(self.folder, is_ours, n_bytes, self.limit_bytes)
                check_space(path, n_bytes)
                part = stack.enter_context(_partial(path))
                part.resize(n_bytes)
            yield part


def open_pack_cache(folder: str | os.PathLike[str] | None) -> PackCache | None:
    """The folder, if one is named, with its limit, if that is. Raises OptionError."""
    if isinstance(folder, PackFolder):
        return PackCache(folder, folder.limit_bytes)
    return None if folder is None else PackCache(folder)


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[PartialFile]:
    """Like a PartialFile itself, but it is published by the block."""
    part = PartialFile(path, 0o600)
    try:
        yield part
    finally:
        part.discard()


def is_of_this_process(error: Exception) -> bool:
    """Whether an error of opening or mapping a file says nothing about the file."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def is_ours(name: str) -> bool:
    """Whether a file of this name belongs to such a folder."""
    return bool(_OURS.fullmatch(name))


def _of_another_build(path: Path, model: str) -> bool:
    """Whether a file has panels of this model that another build made."""
    with contextlib.suppress(DamagedError, OSError):
        panels = PanelFile(path)
        facts = panels.header.facts
        panels.close()
        return facts.get("model") == model and facts.get("build") != build_digest().hex()
    return False


def _reject(path: Path, reason: str) -> None:
    _warn("%s: %s; it is made anew", path, reason)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _reason(error: Exception, known: Path | None = None) -> str:
    """What went wrong, and with which file, unless that is `known`."""
    if not isinstance(error, OSError) or not error.strerror:
        return f"{error}"
    where = f"{error.filename}: " if error.filename and error.filename != str(known) else ""
    return f"{where}{error.strerror}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for other processes, but not for ever. Raises OSError."""
    with os.fdopen(os.open(path, _LOCK, 0o600), "r+b") as file:
        wait_for_lock(file, _PATIENCE, "another process has been making them for too long")
        yield


def _hashed(parts: Iterable[object]) -> bytes:
    from hashlib import sha256  # which takes a while to come, and loads without a cache do not need it

    found = sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode(errors="surrogateescape")
        found.update(len(data).to_bytes(8, "little") + data)
    return found.digest()


@cache
def build_digest() -> bytes:
    """Another one for other kernels."""
    from hashlib import sha256

    return sha256(extension_content()).digest()


def _facts(file: GGUFFile) -> dict[str, Any]:
    """What `kept_panels.py` tells of a file."""
    return {
        "model": os.path.realpath(file.paths[0]),
        "files": [os.path.abspath(path) for path in file.paths],
        "identities": identities(file.statuses),
        "build": build_digest().hex(),
        "tier": isa_selected(),
    }


def _shapes(layout: Sequence[Panels]) -> Iterator[tuple[str, int, int, int]]:
    return ((panels.name, panels.kind, panels.rows, panels.cols) for panels in layout)


def _key(file: GGUFFile, layout: Sequence[Panels]) -> bytes:
    """Of all that decides the panels."""
    return _hashed([FORMAT, *identities(file.statuses), build_digest(), isa_selected(), *_shapes(layout)])


def identities(statuses: Iterable[os.stat_result]) -> list[tuple[int, ...]]:
    """A file whose bytes were changed has another one: its inode's time goes with every write."""
    return [(s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in statuses]


def _stamp(found: PanelFile) -> bytes:
    return _hashed([found.header.key, *identities([os.fstat(found.descriptor)])])


def _write_stamp(path: Path, stamp: bytes | None) -> None:
    """Notes that the sums are right, or, with None, when that was used last. It may fail."""
    with contextlib.suppress(OSError, OutputError):
        if stamp is None:
            os.utime(path.with_suffix(".stamp"))
        else:
            write_whole(path.with_suffix(".stamp"), stamp, 0o600)


def _read(path: Path) -> bytes | None:
    """As much of a file as a stamp has, and a byte; None when it cannot be read."""
    with contextlib.suppress(OSError), open(open_regular(path), "rb") as file:
        return file.read(_STAMP_BYTES + 1)
    return None


def _settled(file: GGUFFile) -> bool:
    """Waits until a change of the model's file from now on would be seen by its times."""
    newest = max(max(status.st_mtime, status.st_ctime) for status in file.statuses)
    time.sleep(min(FRESH, max(0.0, newest + FRESH - time.time())))
    return time.time() >= newest + FRESH and _unchanged(file)


def _unchanged(file: GGUFFile) -> bool:
    """Whether the paths still lead to the files that were opened."""
    with contextlib.suppress(OSError):
        return identities(map(os.stat, file.paths)) == identities(file.statuses)
    return False


def _warn(message: str, *values: object) -> None:
    """A line in the log; the library is imported by whoever has one to write."""
    import logging

    logging.getLogger("pyllamacpu.engine").warning(message, *values)
