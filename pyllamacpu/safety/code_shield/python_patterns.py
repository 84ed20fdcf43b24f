"""Semgrep's patterns for Python, matched against syntax trees.

What the rules use: `...` for any arguments, statements or one expression, `$NAME` for anything that is the
same wherever it stands, "..." for any string, f"...{...}..." for one with parts in it. Names match what they
are imported as. Source: https://semgrep.dev/docs/writing-rules/pattern-syntax
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from pyllamacpu.safety.code_shield.python_names import Names, is_literal

_VARIABLE, _DOTS = "__variable_", "__dots"
_ARGUMENT_DOTS = re.compile(r"(?<=[(,])(\s*)\.\.\.(?=\s*[,)])")

Bindings = Mapping[str, str]  # what a pattern's variables stand for, as text
Place = tuple[int, int]  # (line, column)


class Match(NamedTuple):
    start: Place
    end: Place
    bindings: Bindings

    def is_inside(self, other: Match) -> bool:
        return other.start <= self.start and self.end <= other.end


@cache
def _pattern(text: str) -> list[ast.stmt]:
    text = re.sub(r"\$([A-Z_]+)", _VARIABLE + r"\1", text)
    return ast.parse(_ARGUMENT_DOTS.sub(rf"\1*{_DOTS}", text)).body


class Code:
    """A syntax tree with what patterns look for in it."""

    def __init__(self, tree: ast.Module) -> None:
        self.names = Names(tree)
        self.blocks = [*_blocks(tree)]
        self.calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def find(text: str, code: Code) -> list[Match]:
    """Where a pattern matches: a call, or a statement with or without all behind it in its block."""
    first, *behind = _pattern(text)
    matcher = _Matcher(code.names)
    found: Iterator[tuple[ast.expr | ast.stmt, ast.expr | ast.stmt, Bindings | None]]
    if isinstance(first, ast.Expr):
        found = ((node, node, matcher.expression(first.value, node, {})) for node in code.calls)
    else:
        found = (
            (block[i], block[-1] if behind else block[i], bindings)
            for block in code.blocks
            for i in range(len(block))
            for bindings in matcher.statement(first, block[i])
        )
    return [
        Match((begin.lineno, begin.col_offset), (end.end_lineno or 0, end.end_col_offset or 0), bindings)
        for begin, end, bindings in found
        if bindings is not None
    ]


def unify(a: Bindings, b: Bindings) -> Bindings | None:
    """Both, unless a variable stands for two things."""
    if any(b.get(name, value) != value for name, value in a.items()):
        return None
    return {**a, **b}


def _blocks(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list) and block and isinstance(block[0], ast.stmt):
                yield block


def _assigned(node: ast.stmt) -> Iterator[tuple[ast.expr, ast.expr]]:
    """(target, value) of an assignment, taken apart where both are."""
    if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
        return
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=False)
        else:
            yield target, node.value


class _Matcher:
    def __init__(self, names: Names) -> None:
        self._names = names

    def statement(self, pattern: ast.stmt, node: ast.stmt) -> Iterator[Bindings]:
        """All ways to match: an assignment may have several targets."""
        if isinstance(pattern, ast.FunctionDef) and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if pattern.name == node.name:
                yield {}
        elif isinstance(pattern, ast.Assign):
            for target, value in _assigned(node):
                found = self.expression(pattern.targets[0], target, {})
                if found is not None and (both := self.expression(pattern.value, value, found)) is not None:
                    yield both

    def expression(self, pattern: ast.expr, node: ast.expr, bound: Bindings) -> Bindings | None:
        if isinstance(pattern, ast.Name) and pattern.id.startswith(_VARIABLE):
            return unify(bound, {pattern.id.removeprefix(_VARIABLE): ast.unparse(node)})
        if isinstance(pattern, ast.Constant):
            return bound if self._constant(pattern.value, node) else None
        if isinstance(pattern, ast.JoinedStr):
            filled = isinstance(node, ast.JoinedStr) and not is_literal(node)
            return bound if filled else None
        if isinstance(pattern, ast.Call) and isinstance(node, ast.Call):
            found = self.expression(pattern.func, node.func, bound)
            return None if found is None else self._arguments(pattern, node, found)
        if isinstance(pattern, ast.BinOp) and isinstance(node, ast.BinOp):
            if type(pattern.op) is not type(node.op):
                return None
            found = self.expression(pattern.left, node.left, bound)
            return None if found is None else self.expression(pattern.right, node.right, found)
        return self._named(pattern, node, bound)

    def _named(self, pattern: ast.expr, node: ast.expr, bound: Bindings) -> Bindings | None:
        """Names and attributes."""
        wanted = self._names.dotted(pattern)
        if wanted is not None and _VARIABLE not in wanted[0]:
            return bound if wanted[0] in (self._names.dotted(node) or ()) else None
        if isinstance(pattern, ast.Attribute):
            if not isinstance(node, ast.Attribute):
                return self._imported(pattern, node, bound)
            found = self.expression(pattern.value, node.value, bound)
            return None if found is None else _attribute(pattern.attr, node.attr, found)
        return None

    def _imported(self, pattern: ast.Attribute, node: ast.expr, bound: Bindings) -> Bindings | None:
        """`run`, which was imported from subprocess, for subprocess.$METHOD."""
        names = self._names.dotted(node)
        if names is None or "." not in names[1] or not isinstance(pattern.value, ast.Name):
            return None
        module, _, name = names[1].rpartition(".")
        return _attribute(pattern.attr, name, bound) if module == pattern.value.id else None

    def _constant(self, value: object, node: ast.expr) -> bool:
        if value is Ellipsis:
            return True
        node = self._names.literal(node)
        if value == "...":
            parts = [part for part in ast.walk(node) if isinstance(part, ast.Constant)]
            return is_literal(node) and all(isinstance(part.value, (str, bytes)) for part in parts)
        return isinstance(node, ast.Constant) and node.value is value

    def _arguments(self, pattern: ast.Call, node: ast.Call, bound: Bindings) -> Bindings | None:
        open_ended = any(map(_is_dots, pattern.args))
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        for keyword in pattern.keywords:
            if keyword.arg not in given:
                return None
            found = self.expression(keyword.value, given.pop(keyword.arg), bound)
            if found is None:
                return None
            bound = found
        if given and not open_ended:
            return None
        # dots behind a keyword stand for more keywords and arguments
        return self._sequence(pattern.args, node.args, bound)

    def _sequence(
        self, patterns: Sequence[ast.expr], nodes: Sequence[ast.expr], bound: Bindings
    ) -> Bindings | None:
        if not patterns:
            return None if nodes else bound
        if _is_dots(patterns[0]):
            rests = (self._sequence(patterns[1:], nodes[i:], bound) for i in range(len(nodes) + 1))
            return next((found for found in rests if found is not None), None)
        if not nodes:
            return None
        found = self.expression(patterns[0], nodes[0], bound)
        return None if found is None else self._sequence(patterns[1:], nodes[1:], found)


def _attribute(pattern: str, name: str, bound: Bindings) -> Bindings | None:
    if pattern.startswith(_VARIABLE):
        return unify(bound, {pattern.removeprefix(_VARIABLE): name})
    return bound if pattern == name else None


def _is_dots(node: ast.expr) -> bool:
    return isinstance(node, ast.Starred) and isinstance(node.value, ast.Name) and node.value.id == _DOTS
