"""Random damage: to bytes, to JSON, to single values. Everything comes from the generator that is given."""

from __future__ import annotations

import copy
import random
from typing import Any

EXTREMES = (0, 1, 2, 4, 8, 9, 31, 255, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)
ODD_NUMBERS = (0, -1, 1, 2, 3, 7, 255, 10**6, 10**9, 2**31, 2**32, 2**63, 10**30, 0.5, -2.5, 1e-300, 1e308)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
ODD_TEXTS = ("", " ", "\x00", "\x1b[31m", "x" * 70000, "\ud800", "日本", "-1", "nan", "[]", "../..", "a\nb")
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, *ODD_NUMBERS, *NOT_FINITE, *ODD_TEXTS,
    [], {}, [[]], [None], [1, "a", None], {"a": 1}, {"": {}}, [[[[]]]], {"type": "x"}, [0] * 300, ["a"] * 3,
)  # fmt: skip


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """A copy with one to eight changes: bits, bytes, extreme numbers, pieces cut or doubled."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(max(1, len(data)))
        match rng.randrange(7):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                width, order = rng.choice((4, 8)), rng.choice(("little", "big"))
                value = rng.choice(EXTREMES) & ((1 << 8 * width) - 1)
                data[at : at + width] = value.to_bytes(width, "little" if order == "little" else "big")
            case 3:
                del data[at : at + rng.randint(1, 16)]
            case 4:
                data[at:at] = data[at : at + rng.randint(1, 64)]
            case 5 if rng.random() < 0.2:
                del data[at:]
    return bytes(data)


def mutate_json(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one to three changes, anywhere in it."""
    changed = {"": copy.deepcopy(value)}
    for _ in range(rng.randint(1, 3)):
        _change(changed, rng)
    return changed[""]


def _change(root: dict[str, Any], rng: random.Random) -> None:
    """Walks down to a random place and changes that."""
    holder: Any = root
    while True:
        if not holder:
            return
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        inner = holder[key]
        if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.15:
            break
        holder = inner
    match rng.randrange(6):
        case 0 if holder is not root:
            del holder[key]
        case 1 if isinstance(holder, dict) and holder is not root:
            holder[str(rng.choice(ODD_TEXTS))] = holder.pop(key)
        case 2 if isinstance(holder, list):
            holder[key:key] = [rng.choice(ODD_VALUES), inner]
        case _:
            holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
