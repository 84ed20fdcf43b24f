"""Which parts of a grammar llguidance's lexer may read as one lexeme without a change of the language.

That lexer reads the longest lexeme of those allowed at a place, and does not go back: where one of them could
end, but some can go on with the next byte, they go on. Lexemes that end at the same byte are all considered.
A lexeme per character is therefore exact, and slow: the parser has work for every character of every token.
Larger lexemes are exact where this holds of each set of lexemes that begin with a common character:

    wherever one of them, x, has ended, none of the set goes on with a byte that begins what may follow x.

For then the lexer, which reads a text of the grammar along one of its derivations, ends x where that does: it
has not ended before (it goes on while x does), and the next byte is nobody's. (Lexemes that begin with other
characters are out after the first one.) So no text is lost; and none is gained, as what the parser accepts is
a derivation. "Byte that begins" makes a difference: the lexer goes on with the first byte of a character, and
cannot take that back if the second is another.

Each part without recursion is tried whole, then cut where it could go on too far, until all of them fit.
"""

from __future__ import annotations

from itertools import pairwise

from pyllamacpu.sampling.gbnf_automaton import Automaton
from pyllamacpu.sampling.gbnf_graph import EMPTY, Graph, TooLarge

_MAX_WEIGHT = 10_000  # characters of a lexeme
_MAX_DEPTH = 150
_MAX_ROUNDS = 60
_MAX_WORK = 1_000_000  # parts looked at for what may follow them
_MAX_TOO_LARGE = 10  # sets of lexemes whose automaton is
# Where the first byte of UTF-8 changes, beyond ASCII.
_FIRST_BYTES = [*range(0x80, 0x800, 0x40), *range(0x800, 0x10000, 0x1000), 0x1000]
_FIRST_BYTES += [*range(0x10000, 0x110000, 0x40000), 0x110000]


class Lexemes:
    """`live`: the nodes that stay in the grammar. A node in them `is_lexeme`, or is made of `parts`.
    `in_characters`: no lexeme is larger than one.
    """

    def __init__(self, graph: Graph, root: int, in_characters: bool = False) -> None:
        self._graph, self._root = graph, root
        self._cut: dict[int, tuple[int, ...]] = {}
        self._n_too_large = self._work = 0
        self._in_characters = in_characters
        self._bounds = sorted(
            {0, *_FIRST_BYTES, *(e for n in graph.nodes for low, high in n.ranges for e in (low, high + 1))}
        )
        self._index = {bound: i for i, bound in enumerate(self._bounds)}
        self._groups = self._characters_by_first_byte()
        self._chars: dict[int, int] = {}
        for n, node in enumerate(graph.nodes):
            if node.kind == "chars":
                self._add_chars(n)
        self._first = [0] * len(graph.nodes)
        graph.settle(self._first, self._find_first)
        self.live: dict[int, int] = {}  # and the characters that may follow each
        self._fit()

    def is_lexeme(self, n: int) -> bool:
        graph = self._graph
        if graph.nodes[n].kind == "chars":
            return True
        return graph.regular[n] and not graph.nullable[n] and n not in self._cut and not self._is_large(n)

    def parts(self, n: int) -> tuple[int, ...]:
        return self._cut.get(n, self._graph.nodes[n].parts)

    def _is_large(self, n: int) -> bool:
        graph = self._graph
        return self._in_characters or graph.weight[n] > _MAX_WEIGHT or graph.depth[n] > _MAX_DEPTH

    # Characters as ints: one bit for each range that all classes of the grammar treat alike

    def _mask(self, low: int, high: int) -> int:
        return (1 << self._index[high + 1]) - (1 << self._index[low])

    def _characters_by_first_byte(self) -> list[int]:
        return [self._mask(low, high - 1) for low, high in pairwise(sorted(set(_FIRST_BYTES)))]

    def _blurred(self, mask: int) -> int:
        """All characters that begin with the first byte of one of these."""
        for group in self._groups:
            if mask & group:
                mask |= group
        return mask

    def _add_chars(self, n: int) -> None:
        self._chars[n] = 0
        for low, high in self._graph.nodes[n].ranges:
            self._chars[n] |= self._mask(low, high)

    def _find_first(self, n: int) -> int:
        """The first characters of a node, by those of its parts."""
        node = self._graph.nodes[n]
        if node.kind == "rule":
            return self._first[self._graph.rules[node.name]]
        mask = self._chars.get(n, 0)
        for part in node.parts:
            mask |= self._first[part]
            if node.kind == "sequence" and not self._graph.nullable[part]:
                break
        return mask

    def _first_of(self, n: int) -> int:
        for made in range(len(self._first), n + 1):  # since
            if self._graph.nodes[made].kind == "chars":
                self._add_chars(made)
            self._first.append(self._find_first(made))
        return self._first[n]

    # Cutting

    def _fit(self) -> None:
        try:
            if not self._in_characters and self._all_fit():
                return
        except TooLarge:
            pass
        self._in_characters = True
        self._cut = {}
        self._find_live()

    def _all_fit(self) -> bool:
        """Whether cutting has come to an end."""
        for _ in range(_MAX_ROUNDS):
            self._find_live()
            cuts: dict[int, int] = {}
            for group in self._sharing_a_first_character():
                cuts.update(self._cuts(group))
            if not cuts:
                return True
            if self._n_too_large > _MAX_TOO_LARGE:
                break
            for n, part in cuts.items():
                self._cut[n] = self._pieces(n, part)
        return False

    def _pieces(self, n: int, part: int) -> tuple[int, ...]:
        node = self._graph.nodes[n]
        if node.kind != "sequence" or part < 0:
            return node.parts
        at = max(part, 1)
        return self._graph.sequence(node.parts[:at]), self._graph.sequence(node.parts[at:])

    def _cuts(self, group: list[int]) -> dict[int, int]:
        large = [n for n in group if self._graph.nodes[n].kind != "chars"]
        if not large or not any(self.live[n] for n in group):
            return {}
        try:
            return Automaton(self._graph, group, self._chars).cuts(self.live, self._blurred)
        except TooLarge:
            self._n_too_large += 1
            return dict.fromkeys(large, -1)

    def _sharing_a_first_character(self) -> list[list[int]]:
        found: list[tuple[int, list[int]]] = []
        for n in self.live:
            if not self.is_lexeme(n):
                continue
            mask, group = self._first_of(n), [n]
            apart = []
            for other_mask, other in found:
                if other_mask & mask:
                    mask, group = mask | other_mask, group + other
                else:
                    apart.append((other_mask, other))
            found = [*apart, (mask, group)]
        return [group for _, group in found]

    def _find_live(self) -> None:
        """Raises TooLarge, but not for characters alone, for which it does not matter what follows."""
        self.live = {}
        open_ = [(self._root, 0)]
        while open_:
            n, follow = open_.pop()
            before = self.live.get(n)
            if before is not None and (self._in_characters or before | follow == before):
                continue
            self.live[n] = follow = (before or 0) | follow
            if not self.is_lexeme(n):
                open_ += self._inside(n, follow)
                self._work += len(self.parts(n))
            if self._work > _MAX_WORK and not self._in_characters:
                raise TooLarge

    def _inside(self, n: int, follow: int) -> list[tuple[int, int]]:
        """The parts of a node and the characters that may follow them."""
        node = self._graph.nodes[n]
        if node.kind == "rule":
            return [(self._graph.rules[node.name], follow)]
        if self._graph.nullable[n] and self._graph.regular[n] and n not in self._cut:
            self._cut[n] = self._without_empty(n)
        parts = self.parts(n)
        if node.kind == "repeat" and node.most != 1 and parts == node.parts:
            follow |= self._first_of(parts[0])
        if node.kind != "sequence" or len(parts) == 1:
            return [(part, follow) for part in parts]
        found = []
        for part in reversed(parts):
            found.append((part, follow))
            follow = self._first_of(part) | (follow if self._graph.nullable[part] else 0)
        return found

    def _without_empty(self, n: int) -> tuple[int, ...]:
        """A lexeme is not empty: in place of one that may be, another that is there or not."""
        node = self._graph.nodes[n]
        if not node.parts or self._is_large(n) or (node.least, node.most, node.kind) == (0, 1, "repeat"):
            return node.parts
        try:
            optional = self._graph.repeat(self._graph.nonempty(n), 0, 1)
        except TooLarge:
            return node.parts
        if optional in (n, EMPTY) or self._graph.weight[optional] > _MAX_WEIGHT:
            return node.parts
        return (optional,)
