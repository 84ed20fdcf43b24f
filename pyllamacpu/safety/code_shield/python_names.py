"""What the names in Python code stand for: imported things, and variables that are set once to a literal."""

from __future__ import annotations

import ast
from collections.abc import Iterator

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


class Names:
    """The names of one module."""

    def __init__(self, tree: ast.Module) -> None:
        self._imported = dict(_imports(tree))
        self._literals = _literals(tree)
        self._dotted: dict[ast.expr, tuple[str, str] | None] = {}

    def dotted(self, node: ast.expr) -> tuple[str, str] | None:
        """(as it is written, as it is imported), for `a.b.c`."""
        if node not in self._dotted:
            self._dotted[node] = self._read_dotted(node)
        return self._dotted[node]

    def _read_dotted(self, node: ast.expr) -> tuple[str, str] | None:
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return None
        rest = [*reversed(parts)]
        return ".".join([node.id, *rest]), ".".join([self._imported.get(node.id, node.id), *rest])

    def literal(self, node: ast.expr) -> ast.expr:
        """What a variable was set to, if that is known; else the node itself."""
        return self._literals.get(id(node), node)


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _literals(tree: ast.Module) -> dict[int, ast.expr]:
    """By the id of the node that reads a variable."""
    bound: dict[int, dict[str, list[ast.expr | None]]] = {}  # by the id of the scope: what names are set to
    reads: list[tuple[ast.Name, tuple[int, ...]]] = []  # with the scopes around, the inner one last
    counted: set[int] = set()
    stack: list[tuple[ast.AST, tuple[int, ...]]] = [(tree, (id(tree),))]
    while stack:
        node, scopes = stack.pop()
        own = bound.setdefault(scopes[-1], {})
        for name, value in _bindings(node, counted):
            own.setdefault(name, []).append(value)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            reads.append((node, scopes))
        inner = (*scopes, id(node)) if isinstance(node, _SCOPES) else scopes
        stack += [(child, inner) for child in ast.iter_child_nodes(node)]
    found = {}
    for node, scopes in reads:
        values = next((bound[s][node.id] for s in reversed(scopes) if node.id in bound.get(s, ())), [])
        if len(values) == 1 and values[0] is not None:
            found[id(node)] = values[0]
    return found


def _bindings(node: ast.AST, counted: set[int]) -> Iterator[tuple[str, ast.expr | None]]:
    """(name, literal or None) that a node sets. An assignment is met before its target, which is `counted`
    then.
    """
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            if isinstance(target, ast.Name):
                yield target.id, node.value if is_literal(node.value) and len(targets) == 1 else None
                counted.add(id(target))
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in counted:
        yield node.id, None
    elif isinstance(node, ast.arg):
        yield node.arg, None
    elif isinstance(node, (ast.Global, ast.Nonlocal)):
        yield from ((name, None) for name in node.names)


def is_literal(node: ast.AST | None) -> bool:
    """A constant, or constants added up."""
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        if not is_literal(node.right):
            return False
        node = node.left
    if isinstance(node, ast.JoinedStr):
        return not any(isinstance(value, ast.FormattedValue) for value in node.values)
    return isinstance(node, ast.Constant) and node.value is not Ellipsis
