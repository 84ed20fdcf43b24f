"""The sandbox in which chat templates run: a template comes with a model file, so it is a program of a
stranger.

It is jinja2's ImmutableSandboxedEnvironment, set up as Hugging Face does (trimmed blocks, break and continue,
`tojson` without HTML escapes, the `generation` block), with what jinja2 leaves unlimited limited: the number
of steps and the time of one rendering, the length of any string, the size of numbers. A template that asks
for more ends in LimitError.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 2_000_000  # loop iterations, filters, operators; a call counts as four
MAX_SECONDS = 30.0
STEPS_PER_CALL = 4
MAX_TEXT = 1 << 24  # characters in one string
MAX_TOTAL_TEXT = 1 << 31  # characters in all strings that are put together
MAX_BITS = 1 << 12  # of an integer
MAX_COUNT = 100_000  # an integer argument that says how often or how wide
STEPS_PER_CLOCK = 4096

GROWING = frozenset(["ljust", "rjust", "center", "zfill", "format", "format_map", "replace", "join"])
FORBIDDEN = frozenset(["translate", "maketrans", "expandtabs"])
DROPPED_FILTERS = ("urlize", "xmlattr", "wordwrap", "pprint")


class LimitError(SecurityError):
    """A template that runs too long or makes too much text."""


class Budget:
    """What one rendering may still use."""

    def __init__(self) -> None:
        self.steps, self.text = MAX_STEPS, MAX_TOTAL_TEXT
        self.clock = self.steps - STEPS_PER_CLOCK
        self.deadline = time.monotonic() + MAX_SECONDS

    def take_steps(self, n: int = 1) -> None:
        self.steps -= n
        if self.steps < 0:
            raise LimitError(f"it takes more than {MAX_STEPS} steps")
        if self.steps < self.clock:
            self.clock = self.steps - STEPS_PER_CLOCK
            if time.monotonic() > self.deadline:
                raise LimitError(f"it runs longer than {MAX_SECONDS:.0f} seconds")

    def take_text(self, n: int) -> None:
        self.text -= n
        if n > MAX_TEXT or self.text < 0:
            raise LimitError(f"it makes a text of more than {MAX_TEXT} characters")


_budget: ContextVar[Budget | None] = ContextVar("template_budget", default=None)


@contextmanager
def limited() -> Iterator[None]:
    """Inside, templates draw on one fresh Budget."""
    token = _budget.set(Budget())
    try:
        yield
    finally:
        _budget.reset(token)


def take_steps(n: int = 1) -> None:
    budget = _budget.get()
    if budget is not None:
        budget.take_steps(n)


def take_text(n: int) -> None:
    budget = _budget.get()
    if budget is not None:
        budget.take_text(n)
    elif n > MAX_TEXT:  # constants are folded when the template is compiled
        raise LimitError(f"it makes a text of more than {MAX_TEXT} characters")


def counted_loop(iterable: Any) -> Any:
    """`iterable`, its length charged to the budget: at once where it is known, else as it is used."""
    if hasattr(iterable, "__len__"):
        take_steps(1 + len(iterable))
        return iterable
    return _counted(iterable) if isinstance(iterable, Iterable) else iterable


def _counted(iterable: Iterable[Any]) -> Iterator[Any]:
    for item in iterable:
        take_steps()
        yield item


def joined(parts: Iterable[Any]) -> str:
    """What the `~` operator makes of its operands."""
    texts = [str(part) for part in parts]
    take_text(sum(map(len, texts)))
    return "".join(texts)


def charge_output(value: Any) -> Any:
    """jinja2's `finalize`: called for everything that a template prints."""
    if isinstance(value, str):
        take_text(len(value))
    return value


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Hugging Face gives it to templates: no HTML escapes, keys in their order. What `map` and
    `select` give is a list.
    """
    if isinstance(value, Iterator):
        value = list(counted_loop(value))
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


class GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks the model's own words for training; here it is just its
    content.
    """

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The environment of chat templates. Compile with `from_string`; render inside `limited()`."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols, GenerationBlock],
            finalize=charge_output,
        )
        self.filters["tojson"] = tojson
        for name in DROPPED_FILTERS:
            self.filters.pop(name, None)
        self.globals.pop("lipsum", None)
        for name, function in self.filters.items():
            self.filters[name] = _guarded_filter(name, function)
        self.filters["_counted_loop"] = counted_loop
        self.filters["_joined"] = joined

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "_counted_loop", [], [], None, None, lineno=loop.lineno)
        return _replace_concat(tree)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in FORBIDDEN and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        take_steps()
        _check_operands(operator, left, right)
        return super().call_binop(context, operator, left, right)

    # The odd names keep the template's own keyword arguments free, as in jinja2.
    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        take_steps(STEPS_PER_CALL)
        if isinstance(__obj, LoopContext) and args:
            counted_loop(args[0] if hasattr(args[0], "__len__") else ())
        method = getattr(__obj, "__wrapped__", __obj)  # jinja2 wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str) and name in GROWING:
            _check_growth(name, owner, args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        return charge_output(result)


def _replace_concat(tree: nodes.Template) -> nodes.Template:
    """`a ~ b` as a filter, so that it is counted."""

    def visit(node: nodes.Node) -> nodes.Node:
        for name, value in node.iter_fields():
            if isinstance(value, nodes.Node):
                setattr(node, name, visit(value))
            elif isinstance(value, list):
                value[:] = [visit(item) if isinstance(item, nodes.Node) else item for item in value]
        if isinstance(node, nodes.Concat):
            parts = nodes.List(node.nodes, lineno=node.lineno)
            return nodes.Filter(
                parts, "_joined", [], [], None, None, lineno=node.lineno, environment=node.environment
            )
        return node

    changed = visit(tree)
    assert isinstance(changed, nodes.Template) and tree.environment is not None
    changed.set_environment(tree.environment)
    return changed


def _guarded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pays for the items it reads and the text it makes. Keeps the marks by which jinja2 passes
    a context.
    """

    at = (
        1 if hasattr(function, "jinja_pass_arg") else 0
    )  # where the value stands: after the context, if it is passed

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        value, rest = args[at], args[at + 1 :]
        if name == "join":
            value = list(value)
            separator = str(rest[0] if rest else kwargs.get("d", ""))
            _check_growth("join", separator, (value,), {})
        elif name in ("replace", "center", "indent", "format"):
            _check_growth(name, str(value), rest, kwargs)
        take_steps(1 + (len(value) if isinstance(value, list | tuple | dict | range) else 0))
        return charge_output(function(*args[:at], value, *rest, **kwargs))

    return guarded


def _check_operands(operator: str, left: Any, right: Any) -> None:
    if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        take_text(len(left) + len(right))
    elif operator == "%" and isinstance(left, str):
        _check_widths(left)
    elif operator in ("*", "**"):
        for one, other in ((left, right), (right, left)):
            if isinstance(one, str | list | tuple | bytes) and isinstance(other, int):
                take_text(len(one) * max(0, other))
        if isinstance(left, int) and isinstance(right, int):
            bits = (
                left.bit_length() * max(0, right)
                if operator == "**"
                else left.bit_length() + right.bit_length()
            )
            if bits > MAX_BITS:
                raise LimitError(f"it computes a number of more than {MAX_BITS} bits")


def _check_growth(name: str, text: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuses a method or filter of `text` whose result would be too long, before it is made."""
    values = (*args, *kwargs.values())
    if any(isinstance(value, int) and abs(value) > MAX_COUNT for value in values):
        raise LimitError(f"it gives {name} a number above {MAX_COUNT}")
    if name == "replace" and len(values) >= 2:
        old, new = str(values[0]), str(values[1])
        take_text(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
    elif name == "join" and args and isinstance(args[0], list | tuple):
        take_text(sum(len(str(item)) for item in args[0]) + len(text) * len(args[0]))
    elif name in ("format", "format_map"):
        _check_widths(text)
    elif name == "indent":
        take_text(
            sum(len(value) for value in values if isinstance(value, str)) * (text.count("\n") + 1) + len(text)
        )


def _check_widths(pattern: str) -> None:
    """A format string may not ask for a width of five digits, nor take one from its arguments."""
    digits = 0
    for character in pattern:
        digits = digits + 1 if character.isdigit() else 0
        if digits > 4:
            raise LimitError("it formats with a width of more than four digits")
    if "%*" in pattern or ".*" in pattern or ":{" in pattern:
        raise LimitError("it formats with a width taken from an argument")
