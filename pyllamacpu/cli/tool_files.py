"""Python functions of a file as tools: the schema of each from its type hints and its docstring.

A tool is a public function of the file itself that has a docstring. The docstring's first paragraph describes
it; a section "Args:" (`name: text`) or lines `:param name: text` describe its parameters.
"""

from __future__ import annotations

import contextlib
import enum
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyllamacpu.errors import OptionError
from pyllamacpu.files import read_problem

_MODULE = "pyllamacpu_chat_tools"
_SIMPLE: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    list: {"type": "array"},
    dict: {"type": "object"},
    Any: {},
    inspect.Parameter.empty: {},
}
_ARGUMENT = re.compile(r"\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.+)")
_PARAM = re.compile(r"\s*:param\s+(?:[\w\[\], |]+\s+)?(\w+)\s*:\s*(.+)")
_SECTION = re.compile(r"(Args|Arguments|Parameters):\s*$")
_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class PythonTool:
    """A function that a model may call; `definition` in OpenAI's shape."""

    name: str
    function: Callable[..., Any]
    definition: Mapping[str, Any]

    def run(self, arguments: str) -> str:
        """What the function gives for JSON arguments, as text; an error of it is text too. What it prints
        goes to stderr.
        """
        try:
            given = json.loads(arguments)
            inspect.signature(self.function).bind(**given)
            with contextlib.redirect_stdout(sys.stderr):
                result = self.function(**given)
            return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
        except (Exception, SystemExit) as error:
            return f"error: {type(error).__name__}: {error}"


def load_tools(path: Path) -> list[PythonTool]:
    """The tools of a file, in its order; the file is run. Raises OptionError, in one line, for a file that
    cannot be read or run, has no tools, or a function that JSON arguments do not fit.
    """
    module = types.ModuleType(_MODULE)
    module.__file__ = str(path)
    sys.modules[_MODULE] = module  # where dataclasses look for the names of annotations
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)  # for what the file imports
    try:
        code = compile(path.read_bytes(), str(path), "exec")
        with contextlib.redirect_stdout(sys.stderr):
            exec(code, module.__dict__)
    except OSError as error:
        raise OptionError(f"cannot read {path}: {read_problem(error)}") from error
    except SyntaxError as error:
        raise OptionError(f"{path}, line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise OptionError(f"{path}: {type(error).__name__}: {_one_line(error)}") from error
    functions = [f for name, f in vars(module).items() if _is_tool(name, f, module.__name__)]
    if not functions:
        raise OptionError(f"{path}: there is no public function with a docstring in it")
    return [_tool(function, path) for function in functions]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _is_tool(name: str, value: Any, module: str) -> bool:
    own = inspect.isfunction(value) and value.__module__ == module and value.__name__ == name
    return own and not name.startswith("_") and bool(inspect.getdoc(value))


def _tool(function: Callable[..., Any], path: Path) -> PythonTool:
    where = f"{path}: {function.__name__}"
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        raise OptionError(f"{where}: a tool must be a plain function, neither async nor a generator")
    description, about = _described(inspect.getdoc(function) or "")
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        raise OptionError(f"{where}: type hints: {_one_line(error)}") from error
    properties, required = {}, []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in _KINDS:
            raise OptionError(f"{where}: {parameter} cannot be given by name, as tools' arguments are")
        schema = _schema(hints.get(name, inspect.Parameter.empty), f"{where}: {name}")
        properties[name] = {**schema, **({"description": about[name]} if name in about else {})}
        if parameter.default is parameter.empty:
            required.append(name)
    parameters = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    inner = {"name": function.__name__, "description": description, "parameters": parameters}
    return PythonTool(function.__name__, function, {"type": "function", "function": inner})


def _described(doc: str) -> tuple[str, dict[str, str]]:
    """(the first paragraph, the descriptions of parameters) of a docstring."""
    first = doc.split("\n\n")[0]
    about: dict[str, str] = {}
    in_section, last = False, ""
    for line in doc.splitlines():
        if _SECTION.match(line):
            in_section, last = True, ""
        elif found := _PARAM.match(line) or (in_section and line.startswith(" ") and _ARGUMENT.match(line)):
            last = found[1]
            about[last] = found[2].strip()
        elif in_section and line.startswith("  ") and last:  # the description goes on
            about[last] += f" {line.strip()}"
        elif line.strip():
            in_section = False
    lines = [line for line in first.splitlines() if not _PARAM.match(line)]
    return " ".join(" ".join(lines).split()), about


def _schema(hint: Any, where: str) -> dict[str, Any]:
    """The JSON schema of a type hint. Raises OptionError."""
    try:
        if hint in _SIMPLE:
            return dict(_SIMPLE[hint])
    except TypeError:  # a hint that cannot be looked up
        pass
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        texts = [extra for extra in inner[1:] if isinstance(extra, str)]
        return {**_schema(inner[0], where), **({"description": texts[0]} if texts else {})}
    if origin is typing.Literal and all(isinstance(value, (str, int, type(None))) for value in inner):
        return {"enum": list(inner)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(part, where) for part in inner]}
    if origin in (list, Sequence) and len(inner) == 1:
        return {"type": "array", "items": _schema(inner[0], where)}
    if origin in (dict, Mapping) and inner[:1] == (str,):
        return {"type": "object", "additionalProperties": _schema(inner[1], where)}
    name = getattr(hint, "__name__", str(hint))
    hint_is_enum = isinstance(hint, type) and issubclass(hint, enum.Enum)
    advice = "use Literal[…] instead" if hint_is_enum else "JSON has no such type"
    raise OptionError(f"{where}: {name}: {advice}")
