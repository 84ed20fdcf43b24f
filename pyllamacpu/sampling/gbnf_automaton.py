"""The automaton of some lexemes that a lexer reads at once: what may go on where one of them could end.

Positions are those of Glushkov's construction: the characters of the lexemes with all repeats written out.
Sets of positions, of lexemes and of characters are ints, one bit for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pyllamacpu.sampling.gbnf_graph import Graph, TooLarge

_MAX_POSITIONS = 4000
_MAX_STATES = 1000
_MAX_WORK = 500_000  # positions and sets of characters looked at


def bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class Automaton:
    """Of the nodes `lexemes`; `chars` has the characters of a node of one character."""

    def __init__(self, graph: Graph, lexemes: list[int], chars: Mapping[int, int]) -> None:
        self._graph, self._chars = graph, chars
        self._char: list[int] = []  # of a position: its characters
        self._next: list[int] = []  # the positions after it
        self._owner: list[tuple[int, int]] = []  # the lexeme, and the part of it
        self._first, self._last = 0, 0
        self._work = 0
        for lexeme in lexemes:
            self._add_lexeme(lexeme)

    def cuts(self, follow: Mapping[int, int], blurred: Callable[[int], int]) -> dict[int, int]:
        """The lexemes that could take a character that belongs to what follows, where they or others may end
        (`follow`, of each lexeme; `blurred`: all characters whose first byte is that of one of these); for
        each, in which part. Raises TooLarge.
        """
        found: dict[int, int] = {}
        seen: set[int] = set()
        open_ = list(self._steps(self._first))
        while open_:
            state = open_.pop()
            if state in seen:
                continue
            seen.add(state)
            if len(seen) > _MAX_STATES:
                raise TooLarge
            after = self._after(state)
            ending = 0
            for p in bits(state & self._last):
                ending |= follow[self._owner[p][0]]
            ending = blurred(ending)
            self._spend(after.bit_count())
            for p in bits(after) if ending else ():
                if self._char[p] & ending:
                    found.setdefault(*self._owner[p])
            open_.extend(self._steps(after))
        return found

    def _spend(self, work: int) -> None:
        self._work += work
        if self._work > _MAX_WORK:
            raise TooLarge

    def _after(self, state: int) -> int:
        after = 0
        for p in bits(state):
            after |= self._next[p]
        return after

    def _steps(self, positions: int) -> set[int]:
        """The states after one character of these positions."""
        alike: dict[int, int] = {}  # positions of the same characters
        for p in bits(positions):
            alike[self._char[p]] = alike.get(self._char[p], 0) | 1 << p
        blocks: list[tuple[int, int]] = []  # characters without overlap, and the positions they lead to
        for rest, bit in alike.items():
            self._spend(len(blocks))
            split: list[tuple[int, int]] = []
            for chars, state in blocks:
                if both := chars & rest:
                    split.append((both, state | bit))
                    rest &= ~both
                if alone := chars & ~both:
                    split.append((alone, state))
            blocks = [*split, (rest, bit)] if rest else split
        return {state for _, state in blocks}

    def _add_lexeme(self, lexeme: int) -> None:
        node = self._graph.nodes[lexeme]
        parts = node.parts if node.kind == "sequence" else (lexeme,)
        nullable, first, last = True, 0, 0
        for i, part in enumerate(parts):
            start = len(self._char)
            part_nullable, part_first, part_last = self._build(part)
            self._owner += [(lexeme, i)] * (len(self._char) - start)
            self._link(last, part_first)
            first |= part_first if nullable else 0
            last = part_last | (last if part_nullable else 0)
            nullable = nullable and part_nullable
        self._first |= first
        self._last |= last

    def _link(self, before: int, after: int) -> None:
        for p in bits(before):
            self._next[p] |= after

    def _build(self, n: int) -> tuple[bool, int, int]:
        """Whether it may be empty, its first positions and its last."""
        if (original := self._graph.may_be_empty.get(n)) is not None:  # which has fewer positions
            return False, *self._build(original)[1:]
        node = self._graph.nodes[n]
        if node.kind == "chars":
            if len(self._char) == _MAX_POSITIONS:
                raise TooLarge
            self._char.append(self._chars[n])
            self._next.append(0)
            position = 1 << len(self._char) - 1
            return False, position, position
        if node.kind == "choice":
            nullable, first, last = False, 0, 0
            for part in node.parts:
                built = self._build(part)
                nullable, first, last = nullable or built[0], first | built[1], last | built[2]
            return nullable, first, last
        if node.kind == "repeat":
            return self._repeat(node.parts[0], node.least, node.most)
        nullable, first, last = True, 0, 0
        for part in node.parts:
            built = self._build(part)
            self._link(last, built[1])
            first |= built[1] if nullable else 0
            last = built[2] | (last if built[0] else 0)
            nullable = nullable and built[0]
        return nullable, first, last

    def _repeat(self, part: int, least: int, most: int | None) -> tuple[bool, int, int]:
        nullable = least == 0
        first, before, last = 0, 0, 0
        for i in range(most or max(least, 1)):
            built = self._build(part)
            self._link(before, built[1])
            first |= built[1] if i == 0 or self._graph.nullable[part] else 0
            before = built[2] | (before if built[0] else 0)
            last = last | built[2] if i + 1 >= least or built[0] else built[2]
        if most is None:
            self._link(built[2], built[1])
        return nullable or self._graph.nullable[part], first, last
