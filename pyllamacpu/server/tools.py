"""Tools in a request's body: which are offered, whether one must be called, and the form of that call."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyllamacpu.api.tools import form_of_call
from pyllamacpu.sampling.grammar import Grammar
from pyllamacpu.server.fields import Fields, wrong
from pyllamacpu.text.tool_calls import Answer, ToolCallReader, join_parts

_MAX_TOOLS = 128


@dataclass(frozen=True)
class Tools:
    """`offered` in OpenAI's shape; `forced`: the form of the answer when one of them must be called."""

    offered: tuple[Mapping[str, Any], ...] = ()
    forced: Grammar | None = None

    @property
    def names(self) -> list[str]:
        return [tool["function"]["name"] for tool in self.offered]

    def reader(self) -> ToolCallReader:
        """For the text of an answer, piece by piece."""
        return ToolCallReader(self.names)

    def read(self, text: str) -> Answer:
        """The whole text of an answer."""
        reader = self.reader()
        return join_parts([*reader.push(text), *reader.finish()])


NO_TOOLS = Tools()


def read_tools(fields: Fields) -> Tools:
    """OpenAI's `tools` and `tool_choice`. Raises HTTPError."""
    fields.refuse("functions", "is the old name: give tools", [])
    fields.refuse("function_call", "is the old name: give tool_choice", "auto", "none")
    several = fields.flag("parallel_tool_calls", True)
    return make_tools(fields, fields.items("tools"), fields.raw("tool_choice"), several)


def make_tools(fields: Fields, values: Sequence[Any], choice: Any, several: bool) -> Tools:
    """Of tools and a choice in OpenAI's shape; `several`: whether more than one call may come at once."""
    if len(values) > _MAX_TOOLS:
        raise fields.wrong("tools", f"{len(values)} tools; allowed: at most {_MAX_TOOLS}")
    offered = tuple(_tool(value, f"tools[{i}]") for i, value in enumerate(values))
    forced = isinstance(choice, dict) or choice == "required"
    if not forced and choice not in (None, "auto", "none"):
        raise fields.wrong("tool_choice", f"{choice!r:.80} is not auto, none, required or a function")
    if forced and not offered:
        raise fields.wrong("tool_choice", "there are no tools to choose from")
    if choice == "none" or not offered:
        return NO_TOOLS
    if not forced:
        if not several:
            raise fields.wrong("parallel_tool_calls", "false can only be kept when a call is required")
        if any(tool["function"].get("strict") for tool in offered):
            raise wrong("tools", "strict can only be kept when a call is required (tool_choice)")
        return Tools(offered)
    return Tools(offered, form_of_call(_chosen(fields, offered, choice)))


def _tool(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or value.get("type", "function") != "function":
        raise wrong(where, 'must be an object of type "function"')
    function = value.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise wrong(f"{where}.function.name", "must be a string")
    if not isinstance(function.get("parameters") or {}, dict):
        raise wrong(f"{where}.function.parameters", "must be a JSON schema: an object")
    return {"type": "function", "function": function}


def _chosen(fields: Fields, offered: Sequence[Mapping[str, Any]], choice: Any) -> list[Mapping[str, Any]]:
    """The tools of which one must be called."""
    if choice == "required":
        return list(offered)
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else choice.get("name")
    found = [tool for tool in offered if tool["function"]["name"] == name]
    if not found:
        raise fields.wrong("tool_choice", f"{name!r:.80} is not among the tools")
    return found


def call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
