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
import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

_TAGS = ("<|python_tag|>", "<|python_start|>", "<|python_end|>")
_FENCE = re.compile(r"```[\w-]*[ \t]*\n(.*?)\n?[ \t]*```\s*\Z", re.DOTALL)
_FUNCTION = re.compile(r"<function=([^>{}]+)>(.*?)</function>[;,\s]*", re.DOTALL)
_BUILT_IN = re.compile(r'([\w.]+)\.call\(query="([^"]*)"\)[;,\s]*')
_TAG = "|".join(map(re.escape, _TAGS))
_BEFORE = re.compile(rf"\A(?:\s|{_TAG})+")
_AFTER = re.compile(rf"(?:\s|{_TAG})+\Z")
_FENCE_BEGINNING = re.compile(r"\A```[\w-]*[ \t]*\n")
_FENCE_LINE = re.compile(r"```[\w-]*[ \t]*")
_MAX_BEGINNING = 1 << 12  # characters that are looked at until the first key or name
_BETWEEN = re.compile(r"[;,\s]*")
_MAX_PYTHON = 1 << 16  # characters that are read as Python
_CALL_KEYS = {"name", "parameters", "arguments", "function", "type", "id", "index"}


@dataclass(frozen=True)
class ToolCall:
    """`arguments` is the JSON text of an object."""

    name: str
    arguments: str


class _NoCall(Exception):
    """The text is something else."""


def parse_calls(text: str, names: Collection[str], several: bool = True) -> list[ToolCall]:
    """The calls that `text` consists of, of the tools that were offered; none for any other text, and with
    `several` false none for more than one.
    """
    if not names or not _may_be_calls(text, names):
        return []
    text = _without_tags(text)
    if fenced := _FENCE.match(text):
        text = _without_tags(fenced[1])
    for read in (_read_json, _read_tagged, _read_python, _read_built_in):
        try:
            calls = read(text)
        except (_NoCall, ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if calls and all(call.name in names for call in calls):
            return calls if several or len(calls) == 1 else []
    return []


def _without_tags(text: str) -> str:
    """`text` without white space and tags around it; within it they may be part of an argument."""
    return _AFTER.sub("", _BEFORE.sub("", text))


class ToolCallReader:
    """Reads an answer piece by piece: text passes through, what may be calls is held back until the end. The
    outcome is the same however the text is cut.
    """

    def __init__(self, names: Collection[str], several: bool = True) -> None:
        self._names = frozenset(names)
        self._several = several
        self._held = ""
        self._is_text = not names

    def push(self, text: str) -> str:
        """The text that is certain to be none of a call."""
        if self._is_text:
            return text
        self._held += text
        if _may_be_calls(self._held, self._names):
            return ""
        self._is_text = True
        return self._take()

    def finish(self) -> tuple[str, list[ToolCall]]:
        """The rest of the text, or the calls."""
        calls = [] if self._is_text else parse_calls(self._held, self._names, self._several)
        return ("", calls) if calls else (self._take(), [])

    def _take(self) -> str:
        held, self._held = self._held, ""
        return held


def _may_be_calls(text: str, names: Collection[str]) -> bool:
    """Whether a text that begins like this may be calls. Once false, it stays false for more text."""
    begun = text[:_MAX_BEGINNING]
    for around in (_BEFORE, _FENCE_BEGINNING, _BEFORE):
        begun = around.sub("", begun)
    if not begun or _FENCE_LINE.fullmatch(begun):
        return True
    if begun[0] == "{":
        return _may_be_object(begun)
    if begun[0] == "[":
        item = begun[1:].lstrip()
        return _may_be_object(item) or _agree(item, names)
    marks = (*_TAGS, "```", "<function=", *(f"{name}.call(" for name in names))
    return _agree(begun, marks)


def _may_be_object(begun: str) -> bool:
    """Whether this may be an object whose first key is one of a call."""
    return _agree(begun[:1], "{") and _agree(begun[1:].lstrip(), [f'"{key}"' for key in _CALL_KEYS])


def _agree(begun: str, marks: Iterable[str]) -> bool:
    """Whether one of `marks` begins what is there, as far as it goes."""
    return any(mark.startswith(begun) or begun.startswith(mark) for mark in marks)


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
        if not value.keys() <= {"function", "type", "id", "index"}:
            raise _NoCall
        value = value["function"]
    if not isinstance(value, dict) or not value.keys() <= _CALL_KEYS:
        raise _NoCall
    name = value.get("name", value.get("function"))
    given = [value[key] for key in ("parameters", "arguments") if key in value]
    if not isinstance(name, str) or len(given) > 1:
        raise _NoCall
    return ToolCall(name, _arguments(given[0] if given and given[0] is not None else {}))


def _arguments(value: Any) -> str:
    """An object, or the text of one, as JSON text."""
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, dict):
        raise _NoCall
    return _json_text(value)


def _json_text(value: dict[str, Any]) -> str:
    """JSON that any reader takes. Raises ValueError for infinities, NaN and halves of surrogate pairs."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    text.encode("utf-8")
    return text


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a backslash that Python would not write is no matter here
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
    raise _NoCall
