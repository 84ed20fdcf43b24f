"""What lies in a folder of packed weights (pack_cache.py): to be listed, checked and removed."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from pyllamacpu.limits import cpus_usable
from pyllamacpu.model.pack_cache import build_digest, identities, is_of_this_process
from pyllamacpu.model.pack_room import last_used, remove_panels
from pyllamacpu.model.panel_file import DamagedError, PanelFile
from pyllamacpu.native import thread_pool


@dataclass(frozen=True)
class KeptFile:
    """A file of panels. model: the path of its model's file, "" when its header cannot be read. used: seconds
    since 1970.
    """

    path: Path
    model: str
    tier: str
    n_bytes: int
    used: float

    def state(self) -> str:
        """ "ready"; "unused": its model is gone or has changed, or another build has packed it; "damaged".

        Raises OSError for what this process lacks, as addresses.
        """
        try:
            panels = PanelFile(self.path)
        except (DamagedError, OSError) as error:
            return _damaged(error)
        facts = panels.header.facts
        panels.close()
        with contextlib.suppress(OSError):
            found = [list(one) for one in identities(map(os.stat, facts.get("files", ())))]
            if found == facts.get("identities") and facts.get("build") == build_digest().hex():
                return "ready"
        return "unused"

    def check(self) -> str:
        """Likewise, after all of it was read and compared with its sums."""
        pool = thread_pool(cpus_usable())
        try:
            panels = PanelFile(self.path)
            panels.map()
            panels.check(pool, everything=True)
            panels.close()
        except (DamagedError, OSError) as error:
            return _damaged(error)
        return self.state()

    def remove(self) -> None:
        """Whoever uses it keeps it. Raises OSError."""
        remove_panels(self.path)


def _damaged(error: Exception) -> str:
    """ "damaged", if the error of reading a file is the file's; else it is raised."""
    if is_of_this_process(error):
        raise error
    return "damaged"


def kept_files(folder: Path) -> list[KeptFile]:
    """Those of a folder by their names; none when there is no such folder. Raises OSError."""
    return [_described(path) for path in sorted(folder.glob("*.panels"))]


def kept_of(folder: Path, model: Path) -> list[KeptFile]:
    """Those of one model's file. Raises OSError."""
    return [file for file in kept_files(folder) if file.model == os.path.realpath(model)]


def _described(path: Path) -> KeptFile:
    facts: dict[str, str] = {}
    with contextlib.suppress(DamagedError, OSError):
        panels = PanelFile(path)
        facts = {name: str(panels.header.facts.get(name, "")) for name in ("model", "tier")}
        panels.close()
    return KeptFile(
        path, facts.get("model", ""), facts.get("tier", ""), path.lstat().st_size, last_used(path)
    )
