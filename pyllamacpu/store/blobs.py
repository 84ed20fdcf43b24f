"""Files that clients sent to make models of, by the SHA-256 of their content."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Iterable
from pathlib import Path

from pyllamacpu.errors import OptionError
from pyllamacpu.files import PartialFile, check_space
from pyllamacpu.store.paths import store_home

_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})\Z")
_UNUSED = 24 * 3600.0  # seconds that a file waits for a model to be made of it


def blobs_dir() -> Path:
    """The folder of these files; it need not exist."""
    return store_home() / "blobs"


def blob_path(digest: str) -> Path:
    """Where the content with this digest (`sha256:` and 64 hexadecimal digits) is or will be. Raises
    OptionError.
    """
    match = _DIGEST.match(digest)
    if match is None:
        raise OptionError(f"digest: {digest!r:.90} is not sha256: and 64 hexadecimal digits")
    return blobs_dir() / f"sha256-{match[1]}"


class BlobWriter:
    """Takes the content of `digest` in pieces: `write`, then `publish`, or `discard` at any time. Raises
    OptionError for a digest that is none, OutputError for a disk without room (`n_bytes`, if known).
    """

    def __init__(self, digest: str, n_bytes: int = 0) -> None:
        self.path = blob_path(digest)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        check_space(self.path, n_bytes)
        self._part = PartialFile(self.path)
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self._part.write(data)

    def publish(self) -> None:
        """Raises OptionError when the content is not the one of the digest."""
        found = self._hash.hexdigest()
        if self.path.name != f"sha256-{found}":
            raise OptionError(f"digest: the content's is sha256:{found}, not the one it was sent under")
        self._part.publish()

    def discard(self) -> None:
        self._part.discard()


def remove_unused(of_model: Iterable[Path] = ()) -> None:
    """Removes files that no model was made of for a day, and those of a model that is removed now."""
    removed = {(status.st_dev, status.st_ino) for status in map(Path.stat, of_model)}
    with contextlib.suppress(OSError):
        for path in blobs_dir().iterdir():
            status = path.stat()
            alone, old = status.st_nlink == 1, time.time() - status.st_mtime > _UNUSED
            if _DIGEST.match(path.name) and ((alone and old) or (status.st_dev, status.st_ino) in removed):
                path.unlink(missing_ok=True)
