"""Lists of numbers as llama-bench's options take them: `16,32`, `1-8`, `128-512+128`, `1-32*2`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pyllamacpu.errors import OptionError

_RANGE = re.compile(r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?", re.ASCII)
_MOST = 10_000  # numbers that one option may stand for
_LARGEST = (1 << 31) - 1


def numbers(texts: Iterable[str], option: str, minimum: int = 0, maximum: int = _LARGEST) -> tuple[int, ...]:
    """All numbers of an option that was given once or several times. Raises OptionError."""
    found: list[int] = []
    for text in texts:
        for part in text.split(","):
            found += _range(part.strip(), option)
            if len(found) > _MOST:
                raise OptionError(f"{option} {text}: that is more than {_MOST} tests; write a larger step")
    for value in found:
        if not minimum <= value <= maximum:
            raise OptionError(f"{option}: {value} is out of range; from {minimum} to {maximum} is allowed")
    return tuple(found)


def _range(text: str, option: str) -> Sequence[int]:
    match = _RANGE.fullmatch(text)
    if not match or any(len(number) > 10 for number in match.group(1, 2, 4) if number):
        raise OptionError(
            f"{option} {text}: write a number, a list such as 16,32, or a range such as 1-8, 128-512+128 "
            "or 1-32*2"
        )
    first, last = int(match[1]), int(match[2] or match[1])
    step = int(match[4] or 1)
    if match[3] == "*":
        return _powers(first, last, step, f"{option} {text}")
    if step == 0 or last < first:
        raise OptionError(f"{option} {text}: this range has no end, or nothing in it")
    return range(first, min(last, first + step * _MOST) + 1, step)


def _powers(first: int, last: int, factor: int, what: str) -> list[int]:
    if factor < 2 or first < 1 or last < first:
        raise OptionError(f"{what}: this range has no end, or nothing in it")
    found = []
    while first <= last:
        found.append(first)
        first *= factor
    return found


def pairs(texts: Iterable[str], option: str) -> tuple[tuple[int, int], ...]:
    """`512,128` given once or several times: (prompt, generated) tokens. Raises OptionError."""
    found = []
    for text in texts:
        parts = text.split(",")
        if len(parts) != 2:
            raise OptionError(f"{option} {text}: write two numbers, as in 512,128")
        first, second = numbers(parts, option, 1)
        found.append((first, second))
    return tuple(found)


def words(texts: Iterable[str], option: str, known: Sequence[str]) -> tuple[str, ...]:
    """Names, separated by commas or given several times, each of them one of `known`. Raises OptionError."""
    found = tuple(part.strip().lower() for text in texts for part in text.split(","))
    for name in found:
        if name not in known:
            raise OptionError(f"{option} {name!r}: unknown; it can be {', '.join(known)}")
    return found
