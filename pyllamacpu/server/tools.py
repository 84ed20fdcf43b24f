"""Tools in a request's body: which are offered, whether one must be called, and the form of that call."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic_core import from_json

from pyllamacpu.api.tools import ChatTools, calls_or_json, check_parameters, choose
from pyllamacpu.errors import OptionError
from pyllamacpu.sampling.grammar import Grammar, ToolSchemaError
from pyllamacpu.server.errors import HTTPError
from pyllamacpu.server.fields import Fields, wrong
from pyllamacpu.server.models import Model
from pyllamacpu.text.call_forms import ToolCall
from pyllamacpu.text.call_parts import Answer, Part, join_parts

_MAX_TOOLS = 128


def read_tools(fields: Fields) -> ChatTools:
    """OpenAI's `tools` and `tool_choice`. Raises HTTPError."""
    fields.refuse("functions", "is the old name: give tools", [])
    fields.refuse("function_call", "is the old name: give tool_choice", "auto", "none")
    several = fields.optional_flag("parallel_tool_calls")
    return make_tools(fields, fields.items("tools"), fields.raw("tool_choice"), several)


def make_tools(
    fields: Fields, values: Sequence[Any], choice: Any, several: bool | None, schema_field: str = ""
) -> ChatTools:
    """Of tools and a choice in OpenAI's shape; `several`: see `choose`; `schema_field`: the one of a
    dialect's tools for schemas, if it is another. Raises HTTPError.
    """
    if len(values) > _MAX_TOOLS:
        raise fields.wrong("tools", f"{len(values)} tools; allowed: at most {_MAX_TOOLS}")
    offered = tuple(_tool(value, f"tools[{i}]") for i, value in enumerate(values))
    known = choice in (None, "auto", "none", "required") or isinstance(choice, dict)
    if not known:
        raise fields.wrong("tool_choice", f"{choice!r:.80} is not auto, none, required or a function")
    try:
        chosen = choose(offered, choice, False, several)
        return replace(chosen, schema_field=schema_field) if schema_field else chosen
    except OptionError as error:
        name, _, message = str(error).partition(": ")
        raise fields.wrong(name if name == "tools" else "tool_choice", message) from None


def tools_of_answer(fields: Fields, tools: ChatTools, form: Grammar | None, model: Model) -> ChatTools:
    """The tools of an answer of `model` that may have a form. Raises HTTPError."""
    chosen = _beside_form(fields, tools, form)
    return chosen if model.parts.template is None else chosen.written_in(model.template)


def _beside_form(fields: Fields, tools: ChatTools, form: Grammar | None) -> ChatTools:
    """Beside JSON of a schema the answer is that, or calls.
    Other forms it always has: tools are shown then, and it is never a call. Raises HTTPError where a call
    must come.
    """
    if form is None or not tools.offered:
        return tools
    if form.kind == "json_schema":
        return calls_or_json(tools, form)
    if tools.forced:
        raise fields.wrong("tool_choice", f"a call that must come does not go with {form.name}")
    return replace(tools, may_call=False, form=None)


def _tool(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict) or value.get("type", "function") != "function":
        raise wrong(where, 'must be an object of type "function"')
    function = value.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise wrong(f"{where}.function.name", "must be a string")
    if fault := check_parameters(function):
        raise wrong(f"{where}.function.parameters", fault)
    return {"type": "function", "function": function}


def schema_refused(tools: ChatTools, error: ToolSchemaError) -> HTTPError:
    """The 400 that names the schema in the request."""
    place = tools.names.index(error.tool) if error.tool in tools.names else 0
    return wrong(f"tools[{place}].{tools.schema_field}", error.reason)


def partial_arguments(call: ToolCall) -> dict[str, Any]:
    """Of a call that was cut short, as much as is whole, as clients read what was streamed of it."""
    try:
        value = from_json(call.arguments, allow_partial=not call.whole, allow_inf_nan=False)
    except ValueError:
        value = {}
    return value if isinstance(value, dict) else {}


def split_whole(parts: Sequence[Part], is_last: bool) -> tuple[Answer, list[Part]]:
    """(the text and the whole calls of some parts, the parts of a call that goes on): for a dialect without
    pieces of calls. At the end of an answer nothing goes on.
    """
    begun = max((i for i, part in enumerate(parts) if not isinstance(part, str) and part.name), default=0)
    goes_on = bool(parts) and not is_last and not isinstance(parts[-1], str) and not parts[-1].done
    at = begun if goes_on else len(parts)
    return with_cut_as_text(join_parts(parts[:at])), list(parts[at:])


def with_cut_as_text(answer: Answer) -> Answer:
    """A call that was cut short as text."""
    cut = [call for call in answer.calls if not call.whole]
    texts = [f'{{"name": {json.dumps(c.name)}, "parameters": {c.arguments}' for c in cut]
    return Answer("".join(texts) + answer.text, [call for call in answer.calls if call.whole])


def call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
