"""Files that this package writes: whole or not at all, and never over something that must stay.

A file grows beside its target as `.NAME.xxxxxxxx.part` and replaces it in one step when it is on the disk.
While its writer lives the file is locked, so that what killed runs left behind can be told from what is being
written. `check_output` is the one place that says what an output may replace.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO

from pyllamacpu.errors import CheckpointError, OutputError
from pyllamacpu.units import decimal_bytes

_LOCK_POLL = 0.02  # seconds
EXCLUSIVE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
"""To open a file that is not there yet."""
_UNFOLLOWED = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
_ATTEMPTS = 16  # at a name of its own for a new file
_MAX_NAME = 255 - len("..xxxxxxxx.part")  # bytes of a target's name that its temporary file has too
_MAX_PICTURE = 16 << 20  # bytes that are searched for the signature of the library
_PIECE = 1 << 20  # bytes that are read at once
_NOT_ALLOWED = "{} permissions, or those of the disk, do not allow it"
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.part", re.DOTALL)


@dataclass(frozen=True)
class FileKind:
    """What an output is, and how such a file is recognised: only the like of it may be replaced."""

    name: str  # with its article
    recognise: Callable[[Path], bool]


def begins_with(*magics: bytes) -> Callable[[Path], bool]:
    """Recognises files by their first bytes."""
    longest = max(map(len, magics))
    return lambda path: read_start(path, longest).startswith(magics)


def read_start(path: Path, n_bytes: int) -> bytes:
    """The first bytes of a regular file; none of one that cannot be read."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            return file.read(n_bytes)
    except OSError:
        return b""


def open_regular(path: Path, flags: int = 0) -> int:
    """The descriptor of a file, opened for reading without waiting for anybody, as a named pipe would. Raises
    OSError, also for what is not a regular file.
    """
    file = os.open(path, _READ | flags)
    mode = os.fstat(file).st_mode
    if stat.S_ISREG(mode):
        return file
    os.close(file)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_regular(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file. Raises OSError, also for a named pipe or a device, which could have no
    end; ValueError for more than `max_bytes`.
    """
    pieces, n_bytes = [], 0
    with os.fdopen(open_regular(path), "rb") as file:
        while piece := file.read(_PIECE):  # a larger read takes that much memory before it begins
            pieces.append(piece)
            n_bytes += len(piece)
            if n_bytes > max_bytes:
                raise ValueError(f"it is larger than {decimal_bytes(max_bytes)}")
    return b"".join(pieces)


GGUF_FILE = FileKind("a GGUF file", begins_with(b"GGUF"))


def picture_kind(suffix: str) -> FileKind:
    """Pictures as matplotlib draws them, which signs its own: `suffix` is .png, .svg or .pdf."""
    magic = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix.lower()]

    def recognise(path: Path) -> bool:
        content = read_start(path, _MAX_PICTURE)
        return content.startswith(magic) and b"atplotlib" in content

    return FileKind(f"a {suffix} file drawn here", recognise)


def check_output(
    path: Path,
    inputs: Iterable[Path] = (),
    kind: FileKind | None = None,
    force: bool = False,
    in_place: bool = False,
) -> None:
    """Raises OutputError for a path that cannot or must not be written to.

    Never written over: an input of the same run (also under another name), a folder, a device. With `kind`,
    only with `force`: a file of another kind, which is hardly meant. `in_place`: a file that is there is
    written to, where others are replaced, which only the folder must allow.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        if not path.absolute().parent.is_dir():
            raise OutputError(path, "cannot be written: there is no such folder") from None
        status = None
    except (OSError, ValueError) as error:
        raise OutputError(path, f"cannot be written: {_reason(error)}") from error
    if any(_same_file(path, source) for source in inputs):
        raise OutputError(path, "is an input too, which is never written to; give the output another name")
    if status is None:
        _check_folder(path)
        return
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise OutputError(path, f"is {what}; give the output another name")
    if kind is not None and not force and status.st_size and not kind.recognise(path):
        raise OutputError(
            path,
            f"is there already and is not {kind.name}; give the output another name, or replace that file "
            "with --force",
        )
    if not in_place:
        _check_folder(path)
    elif not os.access(path, os.W_OK):
        raise OutputError(path, f"cannot be written: {_NOT_ALLOWED.format('its')}")


def _check_folder(path: Path) -> None:
    """Raises OutputError when the system says that no file can be made beside `path`."""
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        said = _NOT_ALLOWED.format("its folder's")
        raise OutputError(path, f"cannot be written: {said}; choose another folder")


def read_problem(error: Exception, doing: str = "") -> str:
    """Why a file cannot be read; one wording everywhere for a file that is not there."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return doing + _reason(error)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _same_file(path: Path, source: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.samefile(source)
    return path.resolve() == source.resolve()


class InputFiles:
    """Files that a run reads, as they are when it is planned."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = tuple(paths)
        self._identities = [_identity(path) for path in self.paths]

    def check(self) -> None:
        """Raises CheckpointError when one is gone, or another than it was: before a result is published."""
        for path, identity in zip(self.paths, self._identities, strict=True):
            if _identity(path) != identity:
                raise CheckpointError(path, "has changed while it was read; start again when it is whole")


def _identity(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_space(path: Path, n_bytes: int) -> None:
    """Raises OutputError when the disk has no room for `n_bytes` more beside `path`."""
    try:
        import shutil

        free = shutil.disk_usage(path.absolute().parent).free
    except OSError as error:
        raise OutputError(path, f"cannot be written: {error.strerror or error}") from error
    if n_bytes > free:
        raise OutputError(
            path,
            f"needs {decimal_bytes(n_bytes)}, the disk has {decimal_bytes(free)} left; make room, or choose "
            "another folder or a smaller type",
        )


class PartialFile:
    """A file that grows beside its target: `write`, `finish`, `publish`; `discard` at any time before.

    A context manager that publishes when its block ends without an error. Raises OutputError when the file
    cannot be written. `mode`: who may read and write it, less the umask. What other killed runs left in the
    folder is swept.
    """

    def __init__(self, target: Path, mode: int = 0o666) -> None:
        self.target = target
        check_output(target)
        remove_leftovers(target.parent)
        self._path, self._file = self._create(mode)
        self._finished = False

    def _create(self, mode: int) -> tuple[Path, BinaryIO]:
        for _ in range(_ATTEMPTS):
            path = part_path(self.target)
            with self._reported(), contextlib.suppress(FileExistsError):
                file: BinaryIO = os.fdopen(os.open(path, EXCLUSIVE, mode), "wb")
                if lock_file(file) is not False and path.exists():
                    return path, file
                file.close()  # another process took it for a leftover just now
        raise OutputError(self.target, "cannot be written: other processes remove its file again and again")

    @property
    def file(self) -> BinaryIO:
        """Open for writing, at any place."""
        return self._file

    def write(self, data: bytes | memoryview, offset: int | None = None) -> None:
        """Writes at `offset`, or after what was written last."""
        self._finished = False
        with self._reported():
            if offset is not None:
                self._file.seek(offset)
            self._file.write(data)

    def resize(self, n_bytes: int) -> None:
        self._finished = False
        with self._reported():
            self._file.truncate(n_bytes)

    def finish(self) -> None:
        """Everything is on the disk after this; only the name is missing."""
        if self._finished:
            return
        with self._reported():
            self._file.flush()
            os.fsync(self._file.fileno())
        self._finished = True

    def publish(self) -> None:
        """Replaces the target by this file."""
        self.finish()
        with self._reported():
            if os.name == "nt":  # open files cannot be renamed there
                self._file.close()
            os.replace(self._path, self.target)  # still locked: nobody takes it for a leftover
            self._file.close()
        sync_directory(self.target.parent)

    def discard(self) -> None:
        """Removes the file; without effect once it is published."""
        if not self._file.closed:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)  # while it is locked: it can be nobody else's
        with contextlib.suppress(OSError):
            self._file.close()
            self._path.unlink(missing_ok=True)

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.publish()
        finally:
            self.discard()

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(self.target, f"cannot be written: {error.strerror or error}") from error


def write_whole(target: Path, data: bytes | str, mode: int = 0o666) -> None:
    """A file of these bytes, or of a text in UTF-8, with a ? for what is none (in names of files). Raises
    OutputError when it cannot be written.
    """
    with PartialFile(target, mode) as part:
        part.write(data.encode("utf-8", "replace") if isinstance(data, str) else data)


def publish_all(parts: Sequence[PartialFile]) -> None:
    """Publishes files that belong together: every one is on the disk before the first gets its name, and when
    one cannot get its name, those before it give theirs back to what was there.

    Files that were there can be given back where the file system has hard links; elsewhere they are replaced.
    """
    for part in parts:
        part.finish()
    with ExitStack() as stack:
        earlier = [stack.enter_context(_kept_earlier(part.target)) for part in parts[:-1]]
        published: list[tuple[Path, Path | None]] = []
        try:
            for part, link in zip(parts, [*earlier, None], strict=True):
                part.publish()
                published.append((part.target, link))
        except BaseException:
            for target, link in published:
                with contextlib.suppress(OSError):
                    _give_back(target, link)
            raise


@contextlib.contextmanager
def _kept_earlier(target: Path) -> Iterator[Path | None]:
    """A second name for the file that is there, until the block ends; None: there is none, or `target` itself
    where the file system has no second names.
    """
    if not os.path.lexists(target):
        yield None
        return
    link = part_path(target)
    try:
        os.link(target, link, follow_symlinks=False)
    except (OSError, NotImplementedError):
        yield target
    else:
        with ExitStack() as stack:
            stack.callback(link.unlink, missing_ok=True)
            with contextlib.suppress(OSError):  # one that may not be read can be taken for a leftover
                lock_file(stack.enter_context(open(link, "rb")))
            yield link


def _give_back(target: Path, link: Path | None) -> None:
    """The name of a published file is what it was before it: `link` is the file that had it, None none."""
    if link is None:
        target.unlink()
    elif link != target:
        os.replace(link, target)
    sync_directory(target.parent)


def make_private_folder(folder: Path, is_ours: Callable[[str], bool]) -> None:
    """Makes a folder, or sees to it that only its user can look into it. Raises OSError, also for another
    user's folder, and for one that is open to others and holds files that are not ours by their names.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not hasattr(os, "geteuid"):  # Windows has other means, which a home folder inherits
        return
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise OSError(0, "it is another user's folder; name one of your own")
    if stat.S_IMODE(status.st_mode) & 0o077:
        if any(not is_ours(name) for name in os.listdir(folder)):
            raise OSError(
                0, "it holds other files and is open to other users; name a folder for the cache alone"
            )
        _close_to_others(folder)


def _close_to_others(folder: Path) -> None:
    try:
        folder.chmod(0o700)
    except OSError as error:
        if error.errno != errno.EROFS:  # where nothing can be written nothing of ours will be seen
            raise


def part_path(target: Path) -> Path:
    """A name beside `target` that nobody can foresee, and that is not too long where the target's is not."""
    name = os.fsdecode(os.fsencode(target.name)[:_MAX_NAME])
    return target.with_name(f".{name}.{_random_hex()}.part")


def _random_hex() -> str:
    return os.urandom(4).hex()


def remove_leftovers(folder: Path, named: re.Pattern[str] = _LEFTOVER) -> None:
    """Removes what killed runs left in `folder`: our temporary files that no process has locked."""
    with contextlib.suppress(OSError):
        with os.scandir(folder) as entries:
            found = [folder / entry.name for entry in entries if named.fullmatch(entry.name)]
        for path in found:
            _remove_leftover(path)


def _remove_leftover(path: Path) -> None:
    with contextlib.suppress(OSError), os.fdopen(os.open(path, _UNFOLLOWED), "r+b") as file:
        if lock_file(file) or os.name == "nt":  # which keeps open files from being removed
            path.unlink()


@contextlib.contextmanager
def kept(path: Path) -> Iterator[Path]:
    """Locks a temporary file while the block uses it, and removes it at the end."""
    try:
        with open(path, "rb") as file:
            lock_file(file)
            yield path
    finally:
        path.unlink(missing_ok=True)


def sync_directory(folder: Path) -> None:
    """Makes a rename in `folder` durable, where the system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def lock_file(file: IO[bytes] | int, shared: bool = False) -> bool | None:
    """Locks an open file (or its descriptor) until it is closed, for one, or with the others who share it;
    False when somebody else has it, None when this system or disk has no locks.
    """
    try:
        import fcntl

        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def wait_for_lock(file: IO[bytes] | int, seconds: float, reason: str) -> None:
    """Locks an open file for one as soon as nobody else has it, where files can be locked. Raises OSError
    with `reason` when that takes longer.
    """
    end = time.monotonic() + seconds
    while lock_file(file) is False:
        if time.monotonic() > end:
            raise OSError(0, reason)
        time.sleep(_LOCK_POLL)
