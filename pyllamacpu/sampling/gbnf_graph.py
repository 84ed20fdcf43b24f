"""The expressions of a GBNF grammar as a graph in which equal parts are one node, numbered so that parts
come before what they are part of. Rules that do not lead back to themselves are put in place of their names;
so are those that are repeats written as recursion (`ws ::= ([ \\t\\n] ws)?`). What remains of names is
recursion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from pyllamacpu.errors import OptionError
from pyllamacpu.sampling import gbnf
from pyllamacpu.sampling.gbnf import Chars, Choice, Expression, Ranges, Reference, Repeat, Sequence, united

_MAX_LENGTH = 200_000  # characters of the shortest text
_MAX_NODES = 200_000
_MAX_WORK = 2_000_000  # parts looked at to settle what depends on itself
_HUGE = 1 << 40
T = TypeVar("T")
EMPTY = 0  # the node of the empty text


@dataclass(frozen=True)
class Node:
    kind: Literal["chars", "sequence", "choice", "repeat", "rule"]
    parts: tuple[int, ...] = ()
    ranges: Ranges = ()
    least: int = 1
    most: int | None = 1
    name: str = ""


class TooLarge(Exception):
    """Something has more parts than are looked at."""


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
        self._nonempty: dict[int, int] = {}
        self.may_be_empty: dict[int, int] = {}  # of what `nonempty` has made: what it was made of
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
            return node.name in self.rules and self.nullable[self.rules[node.name]]
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
        self.settle(self.nullable, lambda n: self._is_nullable(self.nodes[n]))

    def settle(self, values: list[T], value: Callable[[int], T]) -> None:
        """Gives every node its value, which depends on those of its parts, until none changes."""
        users: list[list[int]] = [[] for _ in self.nodes]
        for n, node in enumerate(self.nodes):
            for part in (self.rules[node.name],) if node.kind == "rule" else node.parts:
                users[part].append(n)
        open_, work = dict.fromkeys(range(len(self.nodes))), 0
        while open_:
            n = next(iter(open_))
            del open_[n]
            work = _more(work, 1 + len(self.nodes[n].parts))
            if (found := value(n)) != values[n]:
                values[n] = found
                open_.update(dict.fromkeys(users[n]))

    def nonempty(self, n: int) -> int:
        """A node of the same texts but the empty one; EMPTY if that is the only one. For regular nodes that
        are not deep.
        """
        if (found := self._nonempty.get(n)) is None:
            found = self._nonempty[n] = self._without_empty(n) if self.nullable[n] else n
            if found > n:  # made for it, and no part of it
                self.may_be_empty.setdefault(found, n)
        return found

    def _without_empty(self, n: int) -> int:
        node = self.nodes[n]
        if node.kind == "repeat":
            return self.repeat(self.nonempty(node.parts[0]), 1, node.most)
        if node.kind == "choice":
            parts = (self.nonempty(part) for part in node.parts)
            return self._choice_or_empty(tuple(part for part in parts if part != EMPTY))
        # All parts may be empty. Two by two, `a b` becomes `a' b | b'`, and so on with the pairs: n log n
        # parts, where one alternative for each part that may be the first of the text would take n * n.
        pairs = [(part, self.nonempty(part)) for part in node.parts]
        while len(pairs) > 1:
            halves = list(zip(pairs[::2], [*pairs[1::2], (EMPTY, EMPTY)], strict=False))
            pairs = [self._joined(first, second) for first, second in halves]
        return pairs[0][1] if pairs else EMPTY

    def _joined(self, first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
        """Two nodes as one, each with what it is without the empty text."""
        whole = self.sequence((first[0], second[0]))
        starts = () if first[1] == EMPTY else (self.sequence((first[1], second[0])),)
        return whole, self._choice_or_empty(starts + (() if second[1] == EMPTY else (second[1],)))

    def _choice_or_empty(self, parts: tuple[int, ...]) -> int:
        return self.choice(parts) if parts else EMPTY


def build_graph(rules: dict[str, Expression]) -> tuple[Graph, int]:
    """The graph and the node of `root`. Raises OptionError for a grammar without a text, or without a short
    one.
    """
    reached = _reached(rules)
    lengths = _shortest(rules, reached)
    if lengths["root"] >= _HUGE:
        raise OptionError("the rule 'root' has no finite text")
    for name, length in lengths.items():
        if _MAX_LENGTH < length < _HUGE:
            raise OptionError(f"no text of the rule {name!r:.80} is shorter than {_MAX_LENGTH} characters")
    finite = {name for name, length in lengths.items() if length < _HUGE}
    used = {name: set(names) & finite for name, names in reached.items() if name in finite}
    return _Builder(rules, used).build()


def _references(expression: Expression) -> set[str]:
    if isinstance(expression, Reference):
        return {expression.name}
    if isinstance(expression, Repeat):
        return _references(expression.part)
    if isinstance(expression, Chars):
        return set()
    return set().union(*(_references(part) for part in expression.parts))


def _reached(rules: dict[str, Expression]) -> dict[str, list[str]]:
    """The rules that root leads to, and what they name; what is named comes first, but for recursion."""
    found = {"root": sorted(_references(rules["root"]))}
    done: dict[str, list[str]] = {}
    path = [("root", iter(found["root"]))]
    while path:
        name, names = path[-1]
        if (other := next((other for other in names if other not in found), None)) is None:
            done[name] = found[name]
            path.pop()
        else:
            found[other] = sorted(_references(rules[other]))
            path.append((other, iter(found[other])))
    return done


def _shortest(rules: dict[str, Expression], reached: dict[str, list[str]]) -> dict[str, int]:
    """The number of characters of the shortest text of each rule; _HUGE for none."""
    lengths = dict.fromkeys(reached, _HUGE)
    users: dict[str, list[str]] = {name: [] for name in reached}
    for name, names in reached.items():
        for used in names:
            users[used].append(name)
    waiting, work = dict.fromkeys(reached), 0
    while waiting:
        name = next(iter(waiting))
        del waiting[name]
        work = _more(work, 1 + len(reached[name]))
        if (length := _length(rules[name], lengths)) < lengths[name]:
            lengths[name] = length
            waiting.update(dict.fromkeys(users[name]))
    return lengths


def _more(work: int, parts: int) -> int:
    if work + parts > _MAX_WORK:
        raise OptionError("its rules depend on each other in too many ways")
    return work + parts


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
    """`used`: the rules that have a text, and which of those each names."""

    def __init__(self, rules: dict[str, Expression], used: dict[str, set[str]]) -> None:
        self._rules, self._used = rules, used
        self._graph = Graph()
        self._done: dict[str, int] = {}  # rules without recursion

    def build(self) -> tuple[Graph, int]:
        users: dict[str, list[str]] = {name: [] for name in self._used}
        for name, used in self._used.items():
            for other in sorted(used - {name}):
                users[other].append(name)
        missing = {name: len(used - {name}) for name, used in self._used.items()}
        ready = [name for name, n in missing.items() if n == 0]
        while ready:
            name = ready.pop()
            if self._put_in_place(name, name in self._used[name]):
                for user in users[name]:
                    missing[user] -= 1
                    if missing[user] == 0:
                        ready.append(user)
        graph = self._graph
        for name in (name for name in self._used if name not in self._done):
            node = self._node(self._rules[name])
            assert node is not None
            graph.rules[name] = node
        graph.settle_nullable()
        if "root" in self._done:
            return graph, self._done["root"]
        return graph, graph.add(Node("rule", name="root"))

    def _put_in_place(self, name: str, names_itself: bool) -> bool:
        """Whether a rule that names others in place, or itself, can do without its name."""
        expression = self._rules[name]
        if names_itself:
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
            if expression.name not in self._used:
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
