"""A download by somebody else's code, watched from outside: the bytes of its unfinished file on the disk."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path

_POLL = 0.1  # seconds
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")

OnDownload = Callable[[str, int, int], None]
"""Called with a file's digest (`sha256:` and 64 digits; empty where the hub has none), and its bytes here and
in all.
"""


def sha256_of(etag: str) -> str:
    """The hub calls large files by their SHA-256; empty for others."""
    return etag if _SHA256.match(etag) else ""


def digest_of(etag: str) -> str:
    return f"sha256:{etag}" if sha256_of(etag) else ""


def watched(download: Callable[[], str], folder: Path, etag: str, total: int, tell: OnDownload) -> str:
    """The result of `download`, which writes `ETAG….incomplete` in `folder`. The bytes that `tell` is given
    never get less: a finished file has its last name a moment before `download` returns. An error of `tell`
    ends the wait; the download goes on for the next who asks.
    """
    found: list[str] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(download())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="download", daemon=True)
    thread.start()
    here = 0
    while thread.is_alive():
        here = max(here, min(_bytes(folder, etag), total))
        tell(digest_of(etag), here, total)
        thread.join(_POLL)
    if failed:
        raise failed[0]
    tell(digest_of(etag), total, total)
    return found[0]


def _bytes(folder: Path, etag: str) -> int:
    """Of the unfinished file; files may vanish at any time."""
    sizes = [0]
    try:
        for path in folder.glob(f"{etag}*.incomplete"):
            sizes.append(path.stat().st_size)
    except OSError:
        pass
    return max(sizes)
