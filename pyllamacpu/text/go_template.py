"""Prompt templates of Ollama (Go's text/template) as Jinja, which is what this package renders.

Source: https://pkg.go.dev/text/template and https://github.com/ollama/ollama/blob/main/docs/template.md. A
template that names `.Messages` sees the whole conversation; any other is rendered once for each turn of
`.System`, `.Prompt` and `.Response`, the last time up to where the answer stands. What cannot be translated
is an error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from pyllamacpu.errors import TemplateError

_ACTION = re.compile(
    r"\{\{(-\s)?\s*(/\*.*?\*/|(?:\"(?:\\.|[^\"\\])*\"|`[^`]*`|[^\"`])*?)\s*(\s-)?\}\}", re.DOTALL
)
_GO = re.compile(
    r"\{\{-?\s*(?:(?:if|else|end|range|with|define|template|block)\b|/\*|\$|\.[A-Z]|\.\s*-?\}\})"
)
_TOKEN = re.compile(
    r"\s*(?:(?P<text>\"(?:\\.|[^\"\\])*\"|`[^`]*`)|(?P<number>-?\d+)|(?P<path>\$?\w*(?:\.\w+)+|\$\w*|\.)"
    r"|(?P<word>[A-Za-z_]\w*)|(?P<mark>[()|]))"
)
_ASSIGNMENT = re.compile(r"\$(\w+)\s*:?=\s*(.+)\Z", re.DOTALL)
_RANGE = re.compile(r"(?:\$(\w+)\s*(?:,\s*\$(\w+)\s*)?:=\s*)?(.+)\Z", re.DOTALL)
_ROOT = {"System": "v.system", "Prompt": "v.prompt", "Response": "v.response", "Messages": "v.messages",
         "Tools": "(tools or [])"}  # fmt: skip
_FIELDS = {"Role": "role", "Content": "content", "ToolCalls": "tool_calls", "ToolName": "name",
           "Type": "type", "Function": "function", "Name": "name", "Description": "description",
           "Arguments": "arguments", "Parameters": "parameters"}  # fmt: skip
_JSON = "tojson(separators=(',', ':'))"  # as Go writes it
_COMPARED = {"ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}

# What both kinds of template need: tools and arguments are printed as JSON without spaces, neighbours of one
# role are one message.
_COLLATE = """\
{%- macro printed(value) -%}
  {{- value | @JSON@ if value is defined and value is not string and value is iterable else value -}}
{%- endmacro -%}
{%- set v = namespace(messages=[], system='', prompt='', response='') -%}
{%- for m in messages -%}
  {%- set last = v.messages[-1] if v.messages else none -%}
  {%- if m['role'] == 'system' -%}
    {%- set v.system = v.system + ('\\n\\n' if v.system else '') + m['content'] -%}
  {%- endif -%}
  {%- if last and last['role'] == m['role'] and m['role'] in ('system', 'user', 'assistant')
      and not m['tool_calls'] and not last['tool_calls'] -%}
    {%- set both = dict(last, content=last['content'] + '\\n\\n' + m['content']) -%}
    {%- set v.messages = v.messages[:-1] + [both] -%}
  {%- else -%}
    {%- set v.messages = v.messages + [m] -%}
  {%- endif -%}
{%- endfor -%}
""".replace("@JSON@", _JSON)
_TURNS = """\
{%- macro turn() -%}
  @WHOLE@
  {%- set v.system = '' -%}{%- set v.prompt = '' -%}{%- set v.response = '' -%}
{%- endmacro -%}
{%- set v.system = '' -%}
{%- for m in v.messages -%}
  {%- if m['role'] == 'system' -%}
    {%- if v.prompt or v.response -%}{{- turn() -}}{%- endif -%}
    {%- set v.system = m['content'] -%}
  {%- elif m['role'] == 'user' -%}
    {%- if v.response -%}{{- turn() -}}{%- endif -%}
    {%- set v.prompt = m['content'] -%}
  {%- elif m['role'] == 'assistant' -%}
    {%- set v.response = m['content'] -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  @LAST@
{%- elif v.prompt or v.response -%}
  {{- turn() -}}
{%- endif -%}"""


def is_go_template(source: str) -> bool:
    """Whether a template is one of Go's and not one of Jinja."""
    return _GO.search(source) is not None


def to_jinja(source: str) -> str:
    """A Jinja template that renders what Ollama renders of `source`. Raises TemplateError."""
    try:
        return _translated(source)
    except RecursionError:
        raise TemplateError("the Go template is nested too deeply") from None


def _translated(source: str) -> str:
    nodes = _Parser(source).parse()
    if _mentions(nodes, "Messages"):
        return _COLLATE + _Writer().write(nodes)
    if not _mentions(nodes, "Response"):
        nodes.append(_Node("print", ".Response"))
    whole, last = _Writer().write(nodes), _Writer().write(_until_response(nodes)[0])
    return _COLLATE + _TURNS.replace("@WHOLE@", whole).replace("@LAST@", last)


@dataclass
class _Node:
    """A piece of text, or an action: print, assign, if (with branches), range (one branch, and another for
    nothing).
    """

    kind: str
    text: str = ""
    branches: list[tuple[str, list[_Node]]] = field(default_factory=list)


class _Parser:
    """From source to nodes."""

    def __init__(self, source: str) -> None:
        self._pieces = list(_pieces(source))
        self._at = 0

    def parse(self) -> list[_Node]:
        nodes, end = self._until(("",))
        assert end == ""
        return nodes

    def _until(self, ends: Sequence[str]) -> tuple[list[_Node], str]:
        """Nodes up to an action that begins with one of `ends`, and that action."""
        nodes: list[_Node] = []
        while self._at < len(self._pieces):
            kind, text = self._pieces[self._at]
            self._at += 1
            word = text.split(None, 1)[0] if text.split() else ""
            if kind == "text":
                nodes.append(_Node("text", text))
            elif word in ("end", "else"):
                if word not in ends:
                    raise TemplateError(f"the Go template has {{{{ {text} }}}} without its beginning")
                return nodes, text
            elif word in ("if", "range"):
                nodes.append(self._block(word, text[len(word) :].strip()))
            elif word in ("with", "define", "template", "block", "break", "continue"):
                raise _unknown(text)
            elif text and not text.startswith("/*"):
                nodes.append(_simple(text))
        if "" not in ends:
            raise TemplateError("the Go template ends within an if or a range: an {{ end }} is missing")
        return nodes, ""

    def _block(self, kind: str, condition: str) -> _Node:
        node = _Node(kind)
        if not condition:
            raise _unknown(kind)
        while True:
            body, end = self._until(("else", "end"))
            node.branches.append((condition, body))
            if end.split()[0] == "end":
                return node
            more = end[len("else") :].strip()
            if more and (kind == "range" or not more.startswith("if ")):
                raise _unknown(end)
            condition = more[len("if") :].strip() if more else ""


def _simple(text: str) -> _Node:
    return _Node("assign" if _ASSIGNMENT.match(text) else "print", text)


def _pieces(source: str) -> Iterator[tuple[str, str]]:
    """("text", …) and ("action", …), with the white space trimmed that actions ask to be."""
    end, trim = 0, False
    for match in _ACTION.finditer(source):
        text = source[end : match.start()]
        text = text.lstrip() if trim else text
        if text := text.rstrip() if match[1] else text:
            yield "text", text
        yield "action", match[2].strip()
        end, trim = match.end(), bool(match[3])
    text = source[end:].lstrip() if trim else source[end:]
    if "{{" in text:
        raise TemplateError("the Go template ends within an action: a }} is missing")
    if text:
        yield "text", text


def _mentions(nodes: Sequence[_Node], name: str) -> bool:
    def inside(node: _Node) -> bool:
        texts = [node.text] if node.kind != "text" else []
        texts += [condition for condition, _ in node.branches]
        found = any(re.search(rf"\.{name}\b", text) for text in texts)
        return found or any(_mentions(body, name) for _, body in node.branches)

    return any(map(inside, nodes))


def _until_response(nodes: Sequence[_Node]) -> tuple[list[_Node], bool]:
    """The nodes up to the first that prints the answer, and whether there is one."""
    kept: list[_Node] = []
    for node in nodes:
        if node.kind in ("if", "range"):
            cut, branches = False, []
            for condition, body in node.branches:
                body, here = ([], False) if cut else _until_response(body)
                branches.append((condition, body))
                cut = cut or here
            kept.append(_Node(node.kind, "", branches))
        else:
            kept.append(node)
            cut = node.kind == "print" and _mentions([node], "Response")
        if cut:
            return kept, True
    return kept, False


class _Writer:
    """From nodes to Jinja. Go's variables are in one namespace: an inner scope may set an outer's."""

    def __init__(self) -> None:
        self._dots: list[str] = []  # what `.` is in each range around
        self._n_ranges = 0

    def write(self, nodes: Sequence[_Node]) -> str:
        return "".join(map(self._node, nodes))

    def _node(self, node: _Node) -> str:
        if node.kind == "text":
            return "{{- " + _literal(node.text) + " -}}"
        if node.kind == "print":
            return "{{- printed(" + self._value(node.text) + ") -}}"
        if node.kind == "assign":
            match = _ASSIGNMENT.match(node.text)
            assert match is not None
            return f"{{%- set v.go_{match[1]} = {self._value(match[2])} -%}}"
        return self._if(node) if node.kind == "if" else self._range(node)

    def _if(self, node: _Node) -> str:
        parts, word = [], "if"
        for condition, body in node.branches:
            head = f"{word} {self._value(condition)}" if condition else "else"
            parts.append(f"{{%- {head} -%}}{self.write(body)}")
            word = "elif"
        return "".join(parts) + "{%- endif -%}"

    def _range(self, node: _Node) -> str:
        match = _RANGE.match(node.branches[0][0])
        if match is None:
            raise _unknown(f"range {node.branches[0][0]}")
        index, value, over = match.groups()
        if index and not value:  # a single variable is the item
            index, value = None, index
        self._n_ranges += 1
        dot, items = f"item{self._n_ranges}", self._value(over)
        sets = f"{{%- set v.go_{index} = loop.index0 -%}}" if index else ""
        sets += f"{{%- set v.go_{value} = {dot} -%}}" if value else ""
        self._dots.append(dot)
        body = self.write(node.branches[0][1])
        self._dots.pop()
        other = "".join("{%- else -%}" + self.write(body) for _, body in node.branches[1:])
        return f"{{%- for {dot} in {items} -%}}{sets}{body}{other}{{%- endfor -%}}"

    def _value(self, text: str) -> str:
        tokens, end = [], 0
        while text[end:].strip():
            match = _TOKEN.match(text, end)
            if match is None:
                raise _unknown(text)
            tokens.append((match.lastgroup or "", match[match.lastgroup or 0]))
            end = match.end()
        value, rest = self._pipeline(tokens, text)
        if rest or not tokens:
            raise _unknown(text)
        return value

    def _pipeline(self, tokens: list[tuple[str, str]], text: str) -> tuple[str, list[tuple[str, str]]]:
        """A command, its result piped into others, and the tokens that follow."""
        value: str | None = None
        while True:
            word, arguments = "", []
            if tokens and tokens[0][0] == "word" and tokens[0][1] not in ("true", "false", "nil"):
                word, tokens = tokens[0][1], tokens[1:]
            while tokens and tokens[0] not in (("mark", ")"), ("mark", "|")):
                argument, tokens = self._operand(tokens, text)
                arguments.append(argument)
            arguments += [] if value is None else [value]
            value = _call(word, arguments, text)
            if not tokens or tokens[0] != ("mark", "|"):
                return value, tokens
            tokens = tokens[1:]

    def _operand(self, tokens: list[tuple[str, str]], text: str) -> tuple[str, list[tuple[str, str]]]:
        (kind, word), tokens = tokens[0], tokens[1:]
        if (kind, word) == ("mark", "("):
            value, tokens = self._pipeline(tokens, text)
            if not tokens or tokens[0] != ("mark", ")"):
                raise _unknown(text)
            return f"({value})", tokens[1:]
        if kind == "text":
            return _literal(_unquoted(word, text)), tokens
        if kind == "number" or word in ("true", "false"):
            return word, tokens
        if kind == "path":
            return self._path(word, text), tokens
        raise _unknown(text)

    def _path(self, word: str, text: str) -> str:
        begin, *names = word.split(".")
        names = list(filter(None, names))
        if begin and begin != "$":
            value = f"v.go_{begin[1:]}"
        elif begin or not self._dots:  # the root
            if not names or names[0] not in _ROOT:
                raise _unknown(text)
            value, names = _ROOT[names[0]], names[1:]
        else:
            value = self._dots[-1]
        for name in names:
            if name not in _FIELDS:
                raise _unknown(text)
            value += f"['{_FIELDS[name]}']"
        return value


def _call(word: str, arguments: Sequence[str], text: str) -> str:
    """A function of Go's or Ollama's templates applied to arguments."""
    n = len(arguments)
    if word == "" and n == 1:
        return arguments[0]
    if word == "eq" and n >= 2:
        return "(" + " or ".join(f"{arguments[0]} == {other}" for other in arguments[1:]) + ")"
    if word in _COMPARED and n == 2:
        return f"({arguments[0]} {_COMPARED[word]} {arguments[1]})"
    if word in ("and", "or") and n:
        return "(" + f" {word} ".join(arguments) + ")"
    one: dict[str, Callable[[str], str]] = {
        "not": lambda x: f"(not {x})",
        "len": lambda x: f"({x} | length)",
        "json": lambda x: f"({x} | {_JSON})",
        "trim": lambda x: f"({x} | trim)",
    }
    if word in one and n == 1:
        return one[word](arguments[0])
    if word == "slice" and n in (2, 3):
        return f"{arguments[0]}[{arguments[1]}:{arguments[2] if n == 3 else ''}]"
    if word == "index" and n == 2:
        return f"{arguments[0]}[{arguments[1]}]"
    raise _unknown(text)


def _unquoted(word: str, text: str) -> str:
    if word[0] == "`":
        return word[1:-1]
    plain = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}
    if any(letter not in plain for letter in re.findall(r"\\(.)", word, re.DOTALL)):
        raise _unknown(text)
    return re.sub(r"\\(.)", lambda match: plain[match[1]], word[1:-1], flags=re.DOTALL)


def _literal(text: str) -> str:
    """A string of Jinja, in which no action can begin or end."""
    escapes = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "{": "\\x7b", "}": "\\x7d", "%": "\\x25"}
    return "'" + "".join(escapes.get(letter, letter) for letter in text) + "'"


def _unknown(text: str) -> TemplateError:
    shown = " ".join(text.split())[:80]
    return TemplateError(
        f"the Go template's {{{{ {shown} }}}} cannot be translated: give a Jinja template or the name of a "
        "chat format, or leave it out for the model's own"
    )
