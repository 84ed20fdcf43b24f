"""The expressions of a GBNF grammar as a graph in which equal parts are one node, numbered so that parts
come before what they are part of. Rules that do not lead back to themselves are put in place of their names;
so are those that are repeats written as recursion (`ws ::= ([ \\t\\n] ws)?`). What remains of names is
recursion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pyllamacpu.errors import OptionError
from pyllamacpu.sampling import gbnf
from pyllamacpu.sampling.gbnf import Chars, Choice, Expression, Ranges, Reference, Repeat, Sequence, united

_MAX_LENGTH = 200_000  # characters of the shortest text
_MAX_NODES = 200_000
_HUGE = 1 << 40
EMPTY = 0  # the node of the empty text


@dataclass(frozen=True)
class Node:
    kind: Literal["chars", "sequence", "choice", "repeat", "rule"]
    parts: tuple[int, ...] = ()
    ranges: Ranges = ()
    least: int = 1
    most: int | None = 1
    name: str = ""


class Graph:
    """`rules`: the node of each recursive rule. Of each node: whether it is `regular` (nothing in it is
    recursive), may be empty (`nullable`), how many characters it has with its repeats written out (`weight`),
    and how deep it is.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.regular: list[bool] = []
        self.nullable: list[bool] = []
        self.weight: list[int] = []
        self.depth: list[int] = []
        self.rules: dict[str, int] = {}
        self._ids: dict[Node, int] = {}
        self._nullable_rules: set[str] = set()
        self.add(Node("sequence"))

    def add(self, node: Node) -> int:
        if (found := self._ids.get(node)) is not None:
            return found
        if len(self.nodes) == _MAX_NODES:
            raise OptionError(f"it has more than {_MAX_NODES} parts")
        n = self._ids[node] = len(self.nodes)
        self.nodes.append(node)
        self.regular.append(node.kind != "rule" and all(self.regular[part] for part in node.parts))
        self.nullable.append(self._is_nullable(node))
        inside = sum(self.weight[part] for part in node.parts)
        times = max(node.most or node.least, 1) if node.kind == "repeat" else 1
        self.weight.append(min(inside * times, _HUGE) if node.parts else len(node.ranges) or 1)
        self.depth.append(1 + max((self.depth[part] for part in node.parts), default=0))
        return n

    def _is_nullable(self, node: Node) -> bool:
        if node.kind == "rule":
            return node.name in self._nullable_rules
        if node.kind == "choice":
            return any(self.nullable[part] for part in node.parts)
        return node.kind != "chars" and (node.least == 0 or all(self.nullable[part] for part in node.parts))

    def sequence(self, parts: tuple[int, ...]) -> int:
        parts = tuple(part for part in parts if part != EMPTY)
        return parts[0] if len(parts) == 1 else self.add(Node("sequence", parts))

    def choice(self, parts: tuple[int, ...]) -> int:
        """One of these; characters among them are one class."""
        classes = [self.nodes[part].ranges for part in parts if self.nodes[part].kind == "chars"]
        merged = list(dict.fromkeys(part for part in parts if self.nodes[part].kind != "chars"))
        if classes:
            ranges = united(tuple(pair for ranges in classes for pair in ranges))
            merged.append(self.add(Node("chars", ranges=ranges)))
        return merged[0] if len(merged) == 1 else self.add(Node("choice", tuple(merged)))

    def repeat(self, part: int, least: int, most: int | None) -> int:
        if part == EMPTY or most == 0:
            return EMPTY
        if (least, most) == (1, 1):
            return part
        return self.add(Node("repeat", (part,), least=least, most=most))

    def settle_nullable(self) -> None:
        """Finds which rules may be empty, once they are all there."""
        while True:
            found = {name for name, n in self.rules.items() if self.nullable[n]}
            if found == self._nullable_rules:
                return
            self._nullable_rules = found
            for n, node in enumerate(self.nodes):
                self.nullable[n] = self._is_nullable(node)

    def nonempty(self, n: int) -> int:
        """A node of the same texts but the empty one; EMPTY if that is the only one. For regular nodes."""
        node = self.nodes[n]
        if not self.nullable[n]:
            return n
        if node.kind == "repeat":
            return self.repeat(self.nonempty(node.parts[0]), 1, node.most)
        if node.kind == "choice":
            parts = (self.nonempty(part) for part in node.parts)
            return self._choice_or_empty(tuple(part for part in parts if part != EMPTY))
        starts = []
        for i, part in enumerate(node.parts):
            if (first := self.nonempty(part)) != EMPTY:
                starts.append(self.sequence((first, *node.parts[i + 1 :])))
        return self._choice_or_empty(tuple(starts))

    def _choice_or_empty(self, parts: tuple[int, ...]) -> int:
        return self.choice(parts) if parts else EMPTY


def build_graph(rules: dict[str, Expression]) -> tuple[Graph, int]:
    """The graph and the node of `root`. Raises OptionError for a grammar without a text, or without a short
    one.
    """
    lengths = _shortest(rules)
    if lengths["root"] >= _HUGE:
        raise OptionError("the rule 'root' has no finite text")
    for name, length in lengths.items():
        if _MAX_LENGTH < length < _HUGE:
            raise OptionError(f"no text of the rule {name!r:.80} is shorter than {_MAX_LENGTH} characters")
    return _Builder(rules, {name for name, length in lengths.items() if length < _HUGE}).build()


def _references(expression: Expression) -> set[str]:
    if isinstance(expression, Reference):
        return {expression.name}
    if isinstance(expression, Repeat):
        return _references(expression.part)
    if isinstance(expression, Chars):
        return set()
    return set().union(*(_references(part) for part in expression.parts))


def _shortest(rules: dict[str, Expression]) -> dict[str, int]:
    """The number of characters of the shortest text of each rule; _HUGE for none."""
    lengths = dict.fromkeys(rules, _HUGE)
    users: dict[str, set[str]] = {name: set() for name in rules}
    for name, expression in rules.items():
        for used in _references(expression):
            users[used].add(name)
    waiting = dict.fromkeys(rules)
    while waiting:
        name = next(iter(waiting))
        del waiting[name]
        if (length := _length(rules[name], lengths)) < lengths[name]:
            lengths[name] = length
            waiting.update(dict.fromkeys(users[name]))
    return lengths


def _length(expression: Expression, lengths: dict[str, int]) -> int:
    if isinstance(expression, Reference):
        return lengths[expression.name]
    if isinstance(expression, Chars):
        return 1 if expression.ranges else _HUGE
    if isinstance(expression, Repeat):
        return min(_length(expression.part, lengths) * expression.least, _HUGE) if expression.least else 0
    found = [_length(part, lengths) for part in expression.parts]
    return min(min(found) if isinstance(expression, Choice) else sum(found), _HUGE)


class _Builder:
    """`finite`: the names of the rules that have a text."""

    def __init__(self, rules: dict[str, Expression], finite: set[str]) -> None:
        self._rules, self._finite = rules, finite
        self._graph = Graph()
        self._done: dict[str, int] = {}  # rules without recursion

    def build(self) -> tuple[Graph, int]:
        waiting = self._reached()
        while waiting:
            again = [name for name in waiting if not self._put_in_place(name, waiting[name])]
            if len(again) == len(waiting):
                break
            waiting = {name: waiting[name] for name in again}
        graph = self._graph
        for name in waiting:
            node = self._node(self._rules[name])
            assert node is not None
            graph.rules[name] = node
        graph.settle_nullable()
        if "root" in self._done:
            return graph, self._done["root"]
        return graph, graph.add(Node("rule", name="root"))

    def _reached(self) -> dict[str, set[str]]:
        """The rules that root leads to, and what they name; the last found first."""
        found: dict[str, set[str]] = {}
        open_ = ["root"]
        while open_:
            if (name := open_.pop()) not in found and name in self._finite:
                found[name] = _references(self._rules[name]) & self._finite
                open_.extend(sorted(found[name]))
        return dict(reversed(found.items()))

    def _put_in_place(self, name: str, used: set[str]) -> bool:
        if not used - {name} <= self._done.keys():
            return False
        expression = self._rules[name]
        if name in used:
            solved = _without_recursion(expression, name)
            if solved is None:
                return False
            expression = solved
        node = self._node(expression)
        assert node is not None
        self._done[name] = node
        return True

    def _node(self, expression: Expression) -> int | None:
        """None for what has no text."""
        if isinstance(expression, Chars):
            return self._graph.add(Node("chars", ranges=expression.ranges)) if expression.ranges else None
        if isinstance(expression, Reference):
            if expression.name not in self._finite:
                return None
            found = self._done.get(expression.name)
            return self._graph.add(Node("rule", name=expression.name)) if found is None else found
        if isinstance(expression, Repeat):
            part = self._node(expression.part)
            if part is None:
                return None if expression.least else EMPTY
            return self._graph.repeat(part, expression.least, expression.most)
        parts = [self._node(part) for part in expression.parts]
        there = tuple(part for part in parts if part is not None)
        if isinstance(expression, Choice):
            return self._graph.choice(there) if there else None
        return self._graph.sequence(there) if len(there) == len(parts) else None


def _without_recursion(expression: Expression, name: str) -> Expression | None:
    """The same texts with a repeat in place of the rule's own name, where that comes last in each alternative
    (or first in each); None where it does not.
    """
    for is_last in (True, False):
        if (found := _split(expression, name, is_last)) is not None:
            around, ends = found
            repeats = Repeat(Choice(tuple(around)), 0, None)
            parts = (repeats, Choice(tuple(ends)))
            return Sequence(parts if is_last else parts[::-1])
    return None


def _split(
    expression: Expression, name: str, is_last: bool
) -> tuple[list[Expression], list[Expression]] | None:
    """What is beside the rule's own name, and the alternatives without it."""
    if name not in _references(expression):
        return [], [expression]
    if isinstance(expression, Reference):
        return [Sequence(())], []
    if isinstance(expression, Choice):
        found = [_split(part, name, is_last) for part in expression.parts]
        if any(one is None for one in found):
            return None
        there = [one for one in found if one is not None]
        return [a for one in there for a in one[0]], [e for one in there for e in one[1]]
    if isinstance(expression, Repeat):
        if (expression.least, expression.most) != (0, 1):
            return None
        one = _split(expression.part, name, is_last)
        return one and (one[0], [*one[1], Sequence(())])
    assert isinstance(expression, gbnf.Sequence)
    *others, own = expression.parts if is_last else expression.parts[::-1]
    if any(name in _references(part) for part in others):
        return None
    join: Callable[[Expression], Expression] = (
        (lambda part: Sequence((*others, part)))
        if is_last
        else (lambda part: Sequence((part, *others[::-1])))
    )
    one = _split(own, name, is_last)
    return one and ([join(part) for part in one[0]], [join(part) for part in one[1]])
