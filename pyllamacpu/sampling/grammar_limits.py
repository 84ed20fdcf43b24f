"""Grammars that would take minutes to build, or end the process, found before they are built: repeats of
repeats in regular expressions, rules whose shortest text is enormous, and long chains of rules.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping

from pyllamacpu.errors import OptionError

MAX_REPEATS = 10_000  # of one character, by all repeats around it; the automaton has as many states
_MAX_LENGTH = 200_000  # parts of the shortest text
_MAX_CHAIN = 1500  # rules, one in another; llguidance's stack (8 MB) ends between 2000 and 4000
_COUNT = re.compile(r"\{(\d+)(?:,(\d*))?\}")
_RULE = re.compile(r"^[ \t]*[?!]?([A-Za-z_][\w-]*)(?:\.\d+)?[ \t]*(?:::=|:(?!:))", re.MULTILINE)
_QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*"|\[(?:\\.|[^\]\\\n])*\]|/(?:\\.|[^/\\\n])+/')
_NAME = re.compile(r"[A-Za-z_][\w-]*")


def check_repeats(pattern: str, name: str) -> None:
    """Raises OptionError for a regular expression whose counted repeats multiply to too many."""
    stack, last, i, most = [1], 1, 0, 1  # the repeats within each open group, of the last part, where, in all
    while i < len(pattern):
        c = pattern[i]
        if c == "\\":
            last, i = 1, i + 2
            continue
        if c == "[":
            i = _end_of_class(pattern, i)
            last = 1
            continue
        if c == "(":
            stack.append(1)
        elif c == ")" and len(stack) > 1:
            last = stack.pop()
            stack[-1] = max(stack[-1], last)
        elif found := _COUNT.match(pattern, i):
            last = min(last * max(int((found[2] or found[1])[:9]), 1), MAX_REPEATS + 1)
            stack[-1] = max(stack[-1], last)
            i = found.end() - 1
        else:
            last = 1
        most = max(most, last)
        i += 1
    if most > MAX_REPEATS:
        raise OptionError(f"{name}: it repeats a part more than {MAX_REPEATS} times, which is too large")


def _end_of_class(pattern: str, i: int) -> int:
    """Behind the character class that begins at `i`."""
    i += 2 if pattern[i + 1 : i + 2] == "^" else 1
    i += pattern[i : i + 1] == "]"  # which stands for itself there
    while i < len(pattern) and pattern[i] != "]":
        i += 2 if pattern[i] == "\\" else 1
    return i + 1


def check_length(source: str, name: str) -> None:
    """Raises OptionError for a grammar (GBNF or Lark) whose every text is too long. What alternatives and
    groups leave open counts as their shortest part.
    """
    found = list(_RULE.finditer(source))
    ends = [*(match.start() for match in found), len(source)][1:]
    bodies: dict[str, list[str]] = {}
    for match, end in zip(found, ends, strict=True):
        bodies[match[1]] = _QUOTED.sub(" . ", source[match.end() : end]).split("|")
    lengths: dict[str, int] = {}
    for rule in bodies:
        if _shortest(rule, bodies, lengths, 0) > _MAX_LENGTH:
            raise OptionError(f"{name}: no text of the rule {rule!r:.80} is shorter than {_MAX_LENGTH} parts")


def _shortest(rule: str, bodies: Mapping[str, list[str]], lengths: dict[str, int], depth: int) -> int:
    if rule not in lengths:
        lengths[rule] = 1  # of a rule within itself
        if depth < 100:
            lengths[rule] = min(_part(part, bodies, lengths, depth) for part in bodies[rule])
    return lengths[rule]


def _part(part: str, bodies: Mapping[str, list[str]], lengths: dict[str, int], depth: int) -> int:
    if any(mark in part for mark in "?*"):
        return 1
    n = sum(_shortest(name, bodies, lengths, depth + 1) for name in _NAME.findall(part) if name in bodies)
    repeats = max((int(match[1][:9]) for match in _COUNT.finditer(part)), default=1)
    return min(max(n, 1) * max(repeats, 1), _MAX_LENGTH + 1)


def check_chains(lark: str, name: str) -> None:
    """Raises OptionError for a grammar in Lark that has too many rules one in another: llguidance follows
    them by recursion, which would overflow its stack. Of rules that name each other, all count.
    """
    found = list(_RULE.finditer(lark))
    ends = [*(match.start() for match in found), len(lark)][1:]
    uses: dict[str, set[str]] = {match[1]: set() for match in found}
    for match, end in zip(found, ends, strict=True):
        uses[match[1]] |= set(_NAME.findall(_QUOTED.sub(" . ", lark[match.end() : end]))) & uses.keys()
    users: dict[str, set[str]] = {rule: set() for rule in uses}
    for rule, used in uses.items():
        for other in used:
            users[other].add(rule)
    cycle: dict[str, int] = {}  # which rules name each other (Kosaraju's algorithm)
    chains: list[int] = []
    for rule in reversed(_after_their_parts(uses, uses)):
        if rule not in cycle:
            members = _after_their_parts(users, [rule], cycle)
            cycle.update(dict.fromkeys(members, len(chains)))
            before = (chains[cycle[u]] for m in members for u in users[m] if cycle[u] != len(chains))
            chains.append(len(members) + max(before, default=0))
    if max(chains, default=0) > _MAX_CHAIN:
        raise OptionError(f"{name}: more than {_MAX_CHAIN} rules are one in another")


def _after_their_parts(
    uses: Mapping[str, set[str]], starts: Iterable[str], without: Container[str] = ()
) -> list[str]:
    """Whatever is reached, each after what it uses."""
    order: list[str] = []
    seen: set[str] = set()
    for start in starts:
        if start in seen:
            continue
        seen.add(start)
        path = [(start, iter(uses[start]))]
        while path:
            rule, others = path[-1]
            other = next((other for other in others if other not in seen and other not in without), None)
            if other is None:
                order.append(rule)
                path.pop()
            else:
                seen.add(other)
                path.append((other, iter(uses[other])))
    return order
