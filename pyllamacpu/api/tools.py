"""Tools of a chat: which are offered, the form of a call that must come, and how the prompt shows them.

Source of the shapes: https://platform.openai.com/docs/api-reference/chat (tools, and the older functions).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyllamacpu.api.prompts import check_list
from pyllamacpu.errors import OptionError, TemplateError
from pyllamacpu.sampling.grammar import Grammar
from pyllamacpu.sampling.schemas import moved
from pyllamacpu.text import ChatTemplate, Tokenizer, encode_chat
from pyllamacpu.text.call_parts import Answer, join_parts
from pyllamacpu.text.marked_calls import MarkedForm
from pyllamacpu.text.tool_calls import ToolCallReader

Message = Mapping[str, Any]
Tool = Mapping[str, Any]

_ADVICE = (
    "You can call functions. To call one, answer with nothing but a JSON object "
    '{"name": function name, "parameters": object of its arguments}. These are the functions:\n\n'
)


@dataclass(frozen=True)
class ChatTools:
    """`offered` in OpenAI's shape. `form`: of the answer, where calls must have one (`form_of_answer`).
    `forced`: one of them must be called. `most`: calls that may come at once. `as_function`: calls are told
    in the older shape, `function_call`, and when one is `named` in both. `may_call`: whether the answer may
    be calls. `schema_field`: where the schema of a tool's
    arguments stands in it. `call_form`: in which the template writes calls, if it has marks.
    """

    offered: tuple[Tool, ...] = ()
    form: Grammar | None = None
    forced: bool = False
    most: int | None = None
    as_function: bool = False
    named: bool = False
    may_call: bool = True
    schema_field: str = "function.parameters"
    call_form: MarkedForm | None = None

    @property
    def names(self) -> list[str]:
        return [tool["function"]["name"] for tool in self.offered]

    def reader(self) -> ToolCallReader:
        """For the text of an answer, piece by piece."""
        names, plain = self.names if self.may_call else (), self.form is not None
        return ToolCallReader(names, self.most, plain, self.call_form)

    def written_in(self, template: ChatTemplate) -> ChatTools:
        """For answers to prompts of this template: calls are read, and forced, as it writes them."""
        if (marked := template.call_form) is None:
            return self
        form = None if self.form is None else self.form.in_marks(marked)
        return replace(self, call_form=marked, form=form)

    def read(self, text: str) -> Answer:
        """The whole text of an answer."""
        reader = self.reader()
        return join_parts([*reader.push(text), *reader.finish()])


NO_TOOLS = ChatTools()


def chosen_tools(
    tools: Sequence[Any] | None,
    tool_choice: Any,
    functions: Sequence[Any] | None,
    function_call: Any,
    parallel_tool_calls: bool | None = None,
) -> ChatTools:
    """Of the arguments of a chat. Raises OptionError."""
    if not isinstance(parallel_tool_calls, (bool, type(None))):
        raise OptionError(f"parallel_tool_calls={parallel_tool_calls!r:.80}: give True or False")
    if functions is not None and tools is not None:
        raise OptionError("give tools or functions, not both")
    check_list("tools", tools)
    check_list("functions", functions)
    label, choice, values = "tools", tool_choice, tools
    if functions is None and function_call not in (None, "auto", "none"):
        raise OptionError("function_call: there are no functions to choose from")
    if functions is not None:
        label, choice = "functions", function_call
        values = [{"type": "function", "function": function} for function in functions]
    offered = tuple(_tool(value, f"{label}[{i}]") for i, value in enumerate(values or ()))
    return choose(offered, choice, functions is not None, parallel_tool_calls)


def checked_offer(form: Grammar | None, asked: Mapping[str, Any]) -> ChatTools:
    """`chosen_tools` of a chat's arguments, beside the form of its answer. Raises OptionError."""
    names = ("tools", "tool_choice", "functions", "function_call", "parallel_tool_calls")
    offer = chosen_tools(*map(asked.get, names))
    if form is None or not offer.offered:
        return offer
    if form.kind == "json_schema":
        return calls_or_json(offer, form)
    if offer.forced:
        raise OptionError("a call that must come does not go with a grammar")
    if offer.form is not None:
        raise OptionError("strict tools and parallel_tool_calls=False do not go with a grammar")
    return offer


def calls_or_json(offer: ChatTools, form: Grammar) -> ChatTools:
    """Of an answer that is calls or JSON of a schema. A call that must come is all of the answer."""
    if offer.forced:
        return offer
    return replace(offer, form=form_of_answer(offer.offered, False, offer.most is None, form))


def choose(offered: tuple[Tool, ...], choice: Any, as_function: bool, parallel: bool | None) -> ChatTools:
    """Of checked tools and a choice: a word, or an object that names one or some of them. `parallel`: whether
    several calls may come at once; None: if the model wants to, but a call that must come is one.
    """
    label = "function_call" if as_function else "tool_choice"
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        return choose(*_allowed(offered, choice), as_function, parallel)
    if choice == "none" or (choice in (None, "auto") and not offered):
        return NO_TOOLS
    most = 1 if as_function or parallel is False else None
    if choice in (None, "auto"):
        strict = any(tool["function"].get("strict") for tool in offered)
        form = form_of_answer(offered, False, most is None) if strict or parallel is False else None
        return ChatTools(offered, form, most=most, as_function=as_function)
    if choice != "required" and not isinstance(choice, Mapping):
        raise OptionError(f"{label}: {choice!r:.80} is not auto, none, required or a function")
    if not offered and choice == "required":
        raise OptionError(f"{label}: there are no tools to choose from")
    chosen = [tool for tool in offered if choice == "required" or tool["function"]["name"] == _name(choice)]
    if not chosen:
        raise OptionError(f"{label}: {_name(choice)!r:.80} is not among the tools")
    several = most is None and parallel is True
    form = form_of_answer(chosen, True, several)
    named = isinstance(choice, Mapping)
    return ChatTools(offered, form, True, None if several else 1, as_function, named)


def _allowed(offered: tuple[Tool, ...], choice: Mapping[str, Any]) -> tuple[tuple[Tool, ...], str]:
    """The tools that OpenAI's choice of several leaves, and whether one must be called: {"type":
    "allowed_tools", "allowed_tools": {"mode": …, "tools": […]}}, or these fields beside the type.
    """
    own = choice.get("allowed_tools", choice)
    mode, tools = (own.get("mode", "auto"), own.get("tools")) if isinstance(own, Mapping) else ("", None)
    if mode not in ("auto", "required") or not isinstance(tools, list) or not tools:
        raise OptionError("tool_choice: allowed_tools have a mode, auto or required, and a list of tools")
    names = [_name(tool) if isinstance(tool, Mapping) else None for tool in tools]
    known = {tool["function"]["name"] for tool in offered}
    if strange := [name for name in names if not isinstance(name, str) or name not in known]:
        raise OptionError(f"tool_choice: {strange[0]!r:.80} is not among the tools")
    return tuple(tool for tool in offered if tool["function"]["name"] in names), mode


def _name(choice: Mapping[str, Any]) -> Any:
    """{"type": "function", "function": {"name": …}}, or {"name": …}."""
    function = choice.get("function")
    return function.get("name") if isinstance(function, Mapping) else choice.get("name")


def _tool(value: Any, where: str) -> Tool:
    if not isinstance(value, Mapping) or value.get("type", "function") != "function":
        raise OptionError(f'{where}: must be a mapping of type "function"')
    function = value.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise OptionError(f"{where}: the function has no name")
    if fault := check_parameters(function):
        raise OptionError(f"{where}: parameters: {fault}")
    try:
        json.dumps(function)
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"{where}: the function must be JSON: {error}") from None
    return {"type": "function", "function": dict(function)}


def form_of_answer(
    tools: Sequence[Tool], forced: bool, several: bool, or_json: Grammar | None = None
) -> Grammar:
    """Calls of these, with arguments of their schemas; unless `forced`, or a text, or if there is `or_json`,
    JSON of that schema. The JSON of a call is at the beginning of the answer then, and a text does not begin
    with a brace.
    """
    alone = len(tools) == 1
    try:
        forms = [_form(tool["function"], "#" if alone else f"#/anyOf/{i}") for i, tool in enumerate(tools)]
    except RecursionError:
        raise OptionError("tools: a schema is nested too deep") from None
    form = forms[0] if alone else {"anyOf": forms}
    return Grammar.tool_calls(form, several, not forced and or_json is None, or_json)


def _form(function: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The schema of a call, which stands at `where`. Arguments are an object whatever their schema says."""
    arguments = moved(function.get("parameters") or {}, f"{where}/properties/parameters")
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "parameters": {"type": "object", **arguments}},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def check_parameters(function: Mapping[str, Any]) -> str | None:
    """What is wrong with the schema of a function's arguments, if anything."""
    parameters = function.get("parameters") or {}
    if not isinstance(parameters, Mapping):
        return "must be a JSON schema: an object"
    kind = parameters.get("type", "object")
    return None if kind == "object" else f"arguments are an object, not of type {kind!r:.40}"


def chat_ids(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    offer: ChatTools,
    markers: Mapping[str, int] | None = None,
) -> list[int]:
    """A conversation as token ids, the offered tools in it; `markers` as `encode_chat` has them. Raises
    TemplateError.
    """
    shown = shown_tools(template, messages, offer.offered)
    return encode_chat(tokenizer, template, *shown, markers=markers)


def shown_tools(
    template: ChatTemplate, messages: Sequence[Message], offered: Sequence[Tool], /, **extra: Any
) -> tuple[Sequence[Message], list[Tool] | None]:
    """(messages, tools) for the template: one that does not show tools gets them in the system's words.

    `extra`: the template's own variables. Raises TemplateError.
    """
    if not offered:
        return messages, None
    shown = template.render(messages, list(offered), **extra)
    try:
        is_lost = shown == template.render(messages, **extra)
    except TemplateError:  # it cannot do without tools
        is_lost = False
    return (_described(messages, offered), None) if is_lost else (messages, list(offered))


def _described(messages: Sequence[Message], offered: Sequence[Tool]) -> list[Message]:
    listed = "\n\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in offered)
    first = messages[0] if messages else {}
    if first.get("role") not in ("system", "developer"):
        return [{"role": "system", "content": _ADVICE + listed}, *messages]
    content = first.get("content")
    if isinstance(content, list):
        return [
            {**first, "content": [*content, {"type": "text", "text": f"\n\n{_ADVICE}{listed}"}]},
            *messages[1:],
        ]
    text = f"{content}\n\n{_ADVICE}{listed}" if content else _ADVICE + listed
    return [{**first, "content": text}, *messages[1:]]
