"""Templates that were read and found harmless: they render in this process, without a child to watch them."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from pyllamacpu.text.formats import FORMATS
from pyllamacpu.text.named_formats import NAMED_FORMATS

LIST = Path(__file__).with_name("known_templates.txt")


def is_known(source: str) -> bool:
    """Whether `source` is one of our own formats, or one whose SHA-256 stands in known_templates.txt."""
    digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
    return source in _own() or digest in _listed()


@cache
def _own() -> frozenset[str]:
    return frozenset(chosen.source for chosen in (*FORMATS.values(), *NAMED_FORMATS.values()))


@cache
def _listed() -> frozenset[str]:
    """The first word of each line; what follows is the name of a model that has the template."""
    lines = LIST.read_text(encoding="ascii").splitlines()
    return frozenset(line.split()[0] for line in lines if line and not line.startswith("#"))
