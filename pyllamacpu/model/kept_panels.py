"""What lies in a folder of packed weights (pack_cache.py): to be listed, checked and removed."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from pyllamacpu.limits import cpus_usable
from pyllamacpu.model.pack_cache import build_digest, identities
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
        """ "ready"; "unused": its model is gone or has changed, or another build has packed it; "damaged"."""
        try:
            panels = PanelFile(self.path)
        except (DamagedError, OSError):
            return "damaged"
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
        except (DamagedError, OSError):
            return "damaged"
        return self.state()

    def remove(self) -> None:
        """Whoever uses it keeps it. Raises OSError."""
        for suffix in (".stamp", ".lock", ".panels"):
            self.path.with_suffix(suffix).unlink(missing_ok=True)


def kept_files(folder: Path) -> list[KeptFile]:
    """Those of a folder by their names; none when there is no such folder. Raises OSError."""
    return [_described(path) for path in sorted(folder.glob("*.panels"))]


def _described(path: Path) -> KeptFile:
    facts: dict[str, str] = {}
    with contextlib.suppress(DamagedError, OSError):
        panels = PanelFile(path)
        facts = {name: str(panels.header.facts.get(name, "")) for name in ("model", "tier")}
        panels.close()
    status, stamp = path.lstat(), path.with_suffix(".stamp")
    used = stamp.stat().st_mtime if stamp.exists() else status.st_mtime
    return KeptFile(path, facts.get("model", ""), facts.get("tier", ""), status.st_size, used)
