"""Tool calls in what a model wrote.

An answer is either text or calls: calls begin it, and nothing but calls is in it. JSON in the middle of prose
stays prose, and a name that was not offered is no call. The forms are those of Llama 3.1 to 4, as their
prompt formats and their models' habits have them: JSON objects one after the other or in a list, Python calls
in a list, `<function=name>{…}</function>`, `name.call(query="…")`; in a code fence or between python tags.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

_TAGS = ("<|python_tag|>", "<|python_start|>", "<|python_end|>")
_FENCE = re.compile(r"```[\w-]*[ \t]*\n(.*?)\n?[ \t]*```\s*\Z", re.DOTALL)
_FUNCTION = re.compile(r"<function=([^>{}]+)>(.*?)</function>[;,\s]*", re.DOTALL)
_BUILT_IN = re.compile(r'([\w.]+)\.call\(query="([^"]*)"\)[;,\s]*')
_BETWEEN = re.compile(r"[;,\s]*")
_BEGINNINGS = ("{", "[", "```", "<function=", *_TAGS)
_MAX_PYTHON = 1 << 16  # characters that are read as Python


@dataclass(frozen=True)
class ToolCall:
    """`arguments` is the JSON text of an object."""

    name: str
    arguments: str


class _NoCall(Exception):
    """The text is something else."""


def parse_calls(text: str, names: Collection[str]) -> list[ToolCall]:
    """The calls that `text` consists of, of the tools that were offered; none for any other text."""
    if not names:
        return []
    for tag in _TAGS:
        text = text.replace(tag, "")
    text = text.strip()
    if fenced := _FENCE.match(text):
        text = fenced[1].strip()
    for read in (_read_json, _read_tagged, _read_python, _read_built_in):
        try:
            calls = read(text)
        except (_NoCall, ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if calls and all(call.name in names for call in calls):
            return calls
    return []


class ToolCallReader:
    """Reads an answer piece by piece: text passes through, what may be calls is held back until the end. The
    outcome is the same however the text is cut.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self._beginnings = (*_BEGINNINGS, *(f"{name}.call(" for name in sorted(self._names)))
        self._held = ""
        self._is_text = False

    def push(self, text: str) -> str:
        """The text that is certain to be none of a call."""
        if self._is_text:
            return text
        self._held += text
        begun = self._held.lstrip()
        if not begun or any(begun.startswith(b) or b.startswith(begun) for b in self._beginnings):
            return ""
        self._is_text = True
        return self._take()

    def finish(self) -> tuple[str, list[ToolCall]]:
        """The rest of the text, or the calls."""
        calls = [] if self._is_text else parse_calls(self._held, self._names)
        return ("", calls) if calls else (self._take(), [])

    def _take(self) -> str:
        held, self._held = self._held, ""
        return held


def _read_json(text: str) -> list[ToolCall]:
    decoder, at, calls = json.JSONDecoder(), 0, []
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        calls += [_from_object(item) for item in (value if isinstance(value, list) else [value])]
        separator = _BETWEEN.match(text, at)
        at = at if separator is None else separator.end()
    return calls


def _from_object(value: Any) -> ToolCall:
    """{"name", "parameters" or "arguments"}, also within "function"."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict):
        raise _NoCall
    name = value.get("name", value.get("function"))
    given = [value[key] for key in ("parameters", "arguments") if key in value]
    if not isinstance(name, str) or len(given) > 1:
        raise _NoCall
    return ToolCall(name, _arguments(given[0] if given else {}))


def _arguments(value: Any) -> str:
    """An object, or the text of one, as JSON text."""
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, dict):
        raise _NoCall
    return json.dumps(value, ensure_ascii=False)


def _read_tagged(text: str) -> list[ToolCall]:
    found = list(_FUNCTION.finditer(text))
    if "".join(match.group() for match in found) != text:
        raise _NoCall
    return [ToolCall(match[1].strip(), _arguments(match[2].strip() or "{}")) for match in found]


def _read_built_in(text: str) -> list[ToolCall]:
    found = list(_BUILT_IN.finditer(text))
    if "".join(match.group() for match in found) != text:
        raise _NoCall
    return [ToolCall(match[1], _arguments({"query": match[2]})) for match in found]


def _read_python(text: str) -> list[ToolCall]:
    """[name(key=value, …), …] with literals; positional arguments have no name, so they are refused."""
    if len(text) > _MAX_PYTHON or not text.startswith("["):
        raise _NoCall
    tree = ast.parse(text, mode="eval").body
    if not isinstance(tree, ast.List):
        raise _NoCall
    return [_from_call(node) for node in tree.elts]


def _from_call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args:
        raise _NoCall
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise _NoCall
        arguments[keyword.arg] = _literal(keyword.value)
    return ToolCall(ast.unparse(node.func), json.dumps(arguments, ensure_ascii=False))


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
    raise _NoCall
