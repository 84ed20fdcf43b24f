"""Bytes, durations and switches in words: what there is, and what was asked for."""

from __future__ import annotations

import os
import re

from pyllamacpu.errors import OptionError

SWITCH_WORDS = dict.fromkeys(("", "0", "no", "off", "false"), False) | dict.fromkeys(
    ("1", "yes", "on", "true"), True
)
"""What variables of the environment may say, in any case, to be off or on."""
_PREFIXES = "KMGT"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?))?B?", re.IGNORECASE)
_MOST = 1 << 63  # bytes, which no machine has


def parse_bytes(text: str) -> int:
    """A size of at least one byte: `500M`, `4.5GB` (powers of ten), `4300MiB` (powers of two), or bytes.

    Raises OptionError.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise OptionError(f"{text!r} is not a size, such as 500M, 4.5GB or 4300MiB")
    power = _PREFIXES.index(found[2].upper()) + 1 if found[2] else 0
    n_bytes = float(found[1]) * (1024 if found[3] else 1000) ** power
    if n_bytes < 1:
        raise OptionError(f"{text!r} is not a size: it is less than a byte")
    if n_bytes >= _MOST:
        raise OptionError(f"{text[:40]!r} is not a size: no machine has so many bytes")
    return int(n_bytes)


def decimal_bytes(n_bytes: float) -> str:
    """`1.23 GB`, in powers of ten: what files and disks are measured in."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.2f} {unit}"
    return f"{n_bytes:.0f} B"


def binary_bytes(n_bytes: float) -> str:
    """`1.25 MiB`, in powers of two: what memory and caches are measured in."""
    for factor, unit in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.4g} {unit}"
    return f"{n_bytes:.0f} B"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03 or 2:03."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def environment_switch(name: str) -> bool:
    """Whether a variable of the environment is on; off where it is not set. Raises OptionError for a word
    that says neither.
    """
    found = os.environ.get(name, "")
    try:
        return SWITCH_WORDS[found.lower()]
    except KeyError:
        raise OptionError(f"{name}={found:.80}: give 1 (on) or 0 (off)") from None


def exact(number: float) -> str:
    """A short text of this very number: bounds in messages are never rounded."""
    short = f"{number:g}"
    if float(short) == number:
        return short
    return str(int(number)) if isinstance(number, int) or float(number).is_integer() else repr(float(number))
