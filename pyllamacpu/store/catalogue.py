"""Names that people know, such as `llama3.2:1b`: `catalogue.tsv` says which model on the hub each one is.

A name is NAME, NAME:TAG, NAME:TAG-QUANT or NAME:QUANT, in any case; the words "instruct", "chat" and
"latest" in a tag say what is so anyway.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pyllamacpu.errors import StoreError

_FILE = Path(__file__).with_name("catalogue.tsv")
_CUTOFF = 0.6  # likeness from which a name is worth suggesting
_QUANT = re.compile(
    r"(?:^|-)((?:iq|q)\d(?:_(?:\d|k|nl|xxs|xs|xl|s|m|l))+|tq[12]_0|mxfp4|bf16|f(?:p)?16|f(?:p)?32)\Z"
)
_UNDERSTOOD = {"instruct", "chat", "latest", "it", "text", ""}


@dataclass(frozen=True)
class CatalogueEntry:
    """A known name and tag, the repository on the hub, and the quantization to take."""

    name: str
    tag: str
    repo: str
    quant: str

    @property
    def full_name(self) -> str:
        return f"{self.name}:{self.tag}"


@cache
def catalogue() -> tuple[CatalogueEntry, ...]:
    """All known names, in the order of the file."""
    rows = (line.split("\t") for line in _FILE.read_text(encoding="utf-8").splitlines() if line[:1] != "#")
    return tuple(CatalogueEntry(name, tag, *where.rsplit(":", 1)) for name, tag, where in filter(None, rows))


def find(name: str) -> CatalogueEntry | None:
    """The entry that `name` means, with the quantization that it asks for; None for a name that is not known.

    Raises StoreError for a known name with a tag that there is not.
    """
    base, _, tag = name.lower().partition(":")
    entries = _of_name(base)
    if not entries:
        return None
    match = _QUANT.search(tag)
    size = tag[: match.start()] if match else tag
    words = [word for word in size.split("-") if word not in _UNDERSTOOD]
    fitting = [entry for entry in entries if words == [entry.tag]] if words else entries
    if not fitting:
        there = ", ".join(entry.full_name for entry in entries)
        raise StoreError(f"{name}: {entries[0].name} has no tag {'-'.join(words)}; there is {there}")
    chosen = fitting[0]
    quant = _hub_quant(match[1]) if match else chosen.quant
    return CatalogueEntry(chosen.name, chosen.tag, chosen.repo, quant)


def _of_name(base: str) -> Sequence[CatalogueEntry]:
    """The entries of a name; `llama-3.2` is `llama3.2`."""
    wanted = _plain(base)
    return [entry for entry in catalogue() if _plain(entry.name) == wanted]


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name)


def _hub_quant(quant: str) -> str:
    return quant.upper().replace("FP", "F") if quant.startswith("fp") else quant.upper()


def is_known(name: str) -> bool:
    """Whether the part of `name` before the colon is in the catalogue."""
    return bool(_of_name(name.lower().partition(":")[0]))


def near_names(name: str, limit: int = 4) -> list[str]:
    """Known names that are like `name`, the likest first, with their tags: "llama3 (8b, 70b)"."""
    known = list(dict.fromkeys(entry.name for entry in catalogue()))
    base = _plain(name.lower().partition(":")[0])
    near = difflib.get_close_matches(base, [_plain(other) for other in known], limit, _CUTOFF)
    return [
        f"{other} ({', '.join(entry.tag for entry in catalogue() if entry.name == other)})"
        for plain in near
        for other in known
        if _plain(other) == plain
    ]
