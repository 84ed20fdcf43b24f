"""Tool calls that are read when the whole of them is there: Python calls in a list, `<function=name>{…}
</function>` and `name.call(query="…")`.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyllamacpu.text.json_scanner import is_json_object

_FUNCTION = re.compile(r"<function=([^>{}]+)>(.*?)</function>[;,\s]*", re.DOTALL)
_BUILT_IN = re.compile(r'([\w.]+)\.call\(query="([^"]*)"\)[;,\s]*')
_MAX_PYTHON = 1 << 16  # characters that are read as Python


@dataclass(frozen=True)
class ToolCall:
    """`arguments` is the JSON text of an object; of a call that is not `whole`, its beginning."""

    name: str
    arguments: str
    whole: bool = True


class NoCall(Exception):
    """The text is something else."""


def calls_of(text: str) -> list[ToolCall]:
    """The calls that `text` consists of, in one of these forms. Raises NoCall for any other text."""
    for read in (_read_tagged, _read_python, _read_built_in):
        try:
            if calls := read(text):
                return calls
        except (NoCall, ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise NoCall


def _json_text(value: dict[str, Any]) -> str:
    """JSON that any reader takes. Raises ValueError for infinities, NaN and halves of surrogate pairs."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    text.encode("utf-8")
    return text


def _matches(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    """One behind the other, of all of `text`. Raises NoCall."""
    at = 0
    while at < len(text):
        found = pattern.match(text, at)
        if found is None:
            raise NoCall
        yield found
        at = found.end()


def _read_tagged(text: str) -> list[ToolCall]:
    found = _matches(_FUNCTION, text)
    calls = [ToolCall(match[1].strip(), match[2].strip() or "{}") for match in found]
    if not all(is_json_object(call.arguments) for call in calls):
        raise NoCall
    return calls


def _read_built_in(text: str) -> list[ToolCall]:
    return [ToolCall(match[1], _json_text({"query": match[2]})) for match in _matches(_BUILT_IN, text)]


def _read_python(text: str) -> list[ToolCall]:
    """[name(key=value, …), …] with literals; positional arguments have no name, so they are refused."""
    if len(text) > _MAX_PYTHON or not text.startswith("["):
        raise NoCall
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a backslash that Python would not write is no matter here
        tree = ast.parse(text, mode="eval").body
    if not isinstance(tree, ast.List):
        raise NoCall
    return [_from_call(node) for node in tree.elts]


def _from_call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args:
        raise NoCall
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise NoCall
        arguments[keyword.arg] = _literal(keyword.value)
    return ToolCall(ast.unparse(node.func), _json_text(arguments))


_CONSTANTS = {"true": True, "false": False, "null": None}


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, bool, type(None))):
        return node.value
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _literal(node.operand)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return -value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict) and all(key is not None for key in node.keys):
        keys = [_literal(key) for key in node.keys if key is not None]
        if all(isinstance(key, str) for key in keys):
            return dict(zip(keys, map(_literal, node.values), strict=True))
    raise NoCall
