"""GBNF in llguidance's dialect of Lark
(https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).
"""

from __future__ import annotations

from collections import Counter

from pyllamacpu.sampling.gbnf import Ranges, parse_gbnf
from pyllamacpu.sampling.gbnf_graph import EMPTY, Graph, build_graph
from pyllamacpu.sampling.gbnf_lexemes import Lexemes

_MAX_DEPTH = 20  # of groups in a rule


def gbnf_to_lark(source: str, in_characters: bool = False) -> str:
    """A grammar of the same texts. `in_characters`: without larger lexemes, which is slower, but the lexer
    has little to do. Raises OptionError with the line of what is wrong.
    """
    graph, root = build_graph(parse_gbnf(source))
    return _Writer(graph, root, Lexemes(graph, root, in_characters)).text()


class _Writer:
    """Lexemes are terminals `T3`; nodes that are used more than once, and deep ones, are rules `n7`."""

    def __init__(self, graph: Graph, root: int, lexemes: Lexemes) -> None:
        self._graph, self._root, self._lexemes = graph, root, lexemes
        uses = Counter(part for n in self._lexemes.live for part in self._inside(n))
        self._shared = {n for n, times in uses.items() if times > 1} | set(graph.rules.values())
        self._open: list[int] = []
        self._named: set[int] = set()

    def text(self) -> str:
        lines = [f"start: {self._part(self._root, 0)}"]
        while self._open:
            n = self._open.pop()
            lexeme = self._lexemes.is_lexeme(n)
            lines.append(f"T{n}: /{self._regex(n)}/" if lexeme else f"n{n}: {self._expression(n, 0)}")
        return "\n".join(lines) + "\n"

    def _inside(self, n: int) -> tuple[int, ...]:
        return () if self._lexemes.is_lexeme(n) else self._lexemes.parts(n)

    def _name(self, n: int) -> str:
        if n not in self._named:
            self._named.add(n)
            self._open.append(n)
        return f"{'T' if self._lexemes.is_lexeme(n) else 'n'}{n}"

    def _part(self, n: int, depth: int) -> str:
        node = self._graph.nodes[n]
        if node.kind == "rule":
            return self._name(self._graph.rules[node.name])
        if n == EMPTY:
            return '""'
        if self._lexemes.is_lexeme(n) or n in self._shared or depth == _MAX_DEPTH:
            return self._name(n)
        return self._expression(n, depth)

    def _expression(self, n: int, depth: int) -> str:
        """Fit to stand in a sequence."""
        node, parts = self._graph.nodes[n], self._lexemes.parts(n)
        if self._lexemes.is_lexeme(n) or node.kind == "rule" or n == EMPTY:
            return self._part(n, depth)
        written = [self._part(part, depth + 1) for part in parts]
        if len(parts) == 1 and parts != node.parts:  # one that may be empty, told otherwise
            return written[0]
        if node.kind == "repeat":
            return f"({written[0]}){_count(node.least, node.most)}"
        if node.kind == "sequence":
            return " ".join(written)
        return f"({' | '.join(written)})"

    def _regex(self, n: int) -> str:
        node = self._graph.nodes[n]
        if node.kind == "chars":
            return _class(node.ranges)
        parts = [self._regex(part) for part in node.parts]
        if node.kind == "repeat":
            return f"(?:{parts[0]}){_count(node.least, node.most)}"
        return "".join(parts) if node.kind == "sequence" else f"(?:{'|'.join(parts)})"


def _count(least: int, most: int | None) -> str:
    found = {(0, 1): "?", (0, None): "*", (1, None): "+"}.get((least, most))
    return found or f"{{{least},{'' if most is None else most}}}"


def _class(ranges: Ranges) -> str:
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _escaped(ranges[0][0])
    texts = (_escaped(low) + (f"-{_escaped(high)}" if high > low else "") for low, high in ranges)
    return f"[{''.join(texts)}]"


def _escaped(code: int) -> str:
    return chr(code) if code < 128 and chr(code).isalnum() else f"\\x{{{code:X}}}"
