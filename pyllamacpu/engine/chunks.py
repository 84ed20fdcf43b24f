"""How the prompt tokens of a step are shared out between the prompts that are being read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyllamacpu.engine.pages import PAGE


@dataclass(frozen=True)
class Unread:
    """What is left of a prompt: its next position, the tokens from there on, and how many steps went by since
    it last got any.
    """

    start: int
    remaining: int
    passed_over: int = 0


def share_budget(prompts: Sequence[Unread], budget: int) -> list[int]:
    """Tokens of a step for each prompt, at most `budget` together. A chunk ends at the end of a page or of
    its prompt.

    The prompt with fewest tokens left comes first; each step that passed one over makes it shorter by the
    budget. While others want to be read, none gets more than half of the budget, but for what they leave.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i].remaining - prompts[i].passed_over * budget)
    shares = [0] * len(prompts)
    cap = budget if len(prompts) < 2 else max(budget // 2, min(PAGE, budget))
    for most in (cap, budget):
        for i in order:
            at, left = prompts[i], budget - sum(shares)
            room = min(left, most - shares[i])
            shares[i] += _chunk(at.start + shares[i], at.remaining - shares[i], room, budget)
    return shares


def _chunk(start: int, remaining: int, room: int, budget: int) -> int:
    """Tokens from `start` on that fill `room` up to the end of a page; any number of them where a step holds
    less than a page.
    """
    if remaining <= room:
        return remaining
    if room <= 0 or budget < PAGE:
        return max(room, 0)
    return max((start + room) // PAGE * PAGE - start, 0)
