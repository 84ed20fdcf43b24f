"""Tools of a chat: which are offered, the form of a call that must come, and how the prompt shows them.

Source of the shapes: https://platform.openai.com/docs/api-reference/chat (tools, and the older functions).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyllamacpu.api.grammar import chosen_grammar
from pyllamacpu.api.prompts import check_list
from pyllamacpu.errors import OptionError
from pyllamacpu.sampling.grammar import Grammar
from pyllamacpu.text import ChatTemplate, Tokenizer, encode_chat
from pyllamacpu.text.tool_calls import ToolCall, ToolCallReader, parse_calls

Message = Mapping[str, Any]
Tool = Mapping[str, Any]
Response = dict[str, Any]

_ADVICE = (
    "You can call functions. To call one, answer with nothing but a JSON object "
    '{"name": function name, "parameters": object of its arguments}. These are the functions:\n\n'
)


@dataclass(frozen=True)
class ChatTools:
    """`offered` in OpenAI's shape; `forced`: the form of the answer when one of them must be called;
    `as_function`: calls are told in the older shape, `function_call`; `may_call`: whether the answer may be
    calls, which one with a `response_format` never is.
    """

    offered: tuple[Tool, ...] = ()
    forced: Grammar | None = None
    as_function: bool = False
    may_call: bool = True

    @property
    def names(self) -> list[str]:
        return [tool["function"]["name"] for tool in self.offered]


def chosen_tools(
    tools: Sequence[Any] | None, tool_choice: Any, functions: Sequence[Any] | None, function_call: Any
) -> ChatTools:
    """Of the arguments of a chat. Raises OptionError."""
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
    return _choose(offered, choice, functions is not None)


def checked_offer(form: Grammar | None, response_format: Any, *arguments: Any) -> ChatTools:
    """`chosen_tools`, beside the form that was asked of the answer. Raises OptionError."""
    offer = chosen_tools(*arguments)
    if offer.forced is None and chosen_grammar(None, response_format) is not None:
        return replace(offer, may_call=False)
    if offer.forced is None and any(tool["function"].get("strict") for tool in offer.offered):
        raise OptionError("tools: strict can only be kept when a call is required (tool_choice)")
    if form is not None and offer.forced is not None:
        raise OptionError("a call that must come does not go with a grammar or response_format")
    return offer


def _choose(offered: tuple[Tool, ...], choice: Any, as_function: bool) -> ChatTools:
    """Of checked tools and a choice: a word, or an object that names one of them."""
    label = "function_call" if as_function else "tool_choice"
    if choice in (None, "auto", "none"):
        if choice == "none" or not offered:
            return ChatTools()
        return ChatTools(offered, as_function=as_function)
    if choice != "required" and not isinstance(choice, Mapping):
        raise OptionError(f"{label}: {choice!r:.80} is not auto, none, required or a function")
    if not offered:
        raise OptionError(f"{label}: there are no tools to choose from")
    chosen = [tool for tool in offered if choice == "required" or tool["function"]["name"] == _name(choice)]
    if not chosen:
        raise OptionError(f"{label}: {_name(choice)!r:.80} is not among the tools")
    return ChatTools(offered, form_of_call(chosen), as_function)


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
    if not isinstance(function.get("parameters") or {}, Mapping):
        raise OptionError(f"{where}: parameters must be a JSON schema: a mapping")
    try:
        json.dumps(function)
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"{where}: the function must be JSON: {error}") from None
    return {"type": "function", "function": dict(function)}


def form_of_call(tools: Sequence[Tool]) -> Grammar:
    """One call of one of these, with arguments of its schema."""
    forms = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "parameters": tool["function"].get("parameters") or {"type": "object"},
            },
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return Grammar.json_schema(forms[0] if len(forms) == 1 else {"anyOf": forms})


def chat_ids(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message], offer: ChatTools
) -> list[int]:
    """A conversation as token ids, the offered tools in it. Raises TemplateError."""
    return encode_chat(tokenizer, template, *shown_tools(template, messages, offer.offered))


def shown_tools(
    template: ChatTemplate, messages: Sequence[Message], offered: Sequence[Tool], /, **extra: Any
) -> tuple[Sequence[Message], list[Tool] | None]:
    """(messages, tools) for the template: one that does not show tools gets them in the system's words.

    `extra`: the template's own variables. Raises TemplateError.
    """
    if not offered:
        return messages, None
    shown = template.render(messages, list(offered), **extra)
    if shown == template.render(messages, **extra):
        return _described(messages, offered), None
    return messages, list(offered)


def _described(messages: Sequence[Message], offered: Sequence[Tool]) -> list[Message]:
    listed = "\n\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in offered)
    first = messages[0] if messages else {}
    if first.get("role") == "system" and isinstance(first.get("content"), str):
        return [{**first, "content": f"{first['content']}\n\n{_ADVICE}{listed}"}, *messages[1:]]
    return [{"role": "system", "content": _ADVICE + listed}, *messages]


# Answers


def with_calls(answer: Any, offer: ChatTools) -> Any:
    """A chat's answer, or the iterator of its chunks, with the calls that its text consists of as calls."""
    if not offer.offered or not offer.may_call:
        return answer
    return _whole(answer, offer) if isinstance(answer, dict) else _chunks(answer, offer)


def _whole(answer: Response, offer: ChatTools) -> Response:
    choice = answer["choices"][0]
    calls = parse_calls(choice["message"]["content"] or "", offer.names, several=not offer.as_function)
    if not calls:
        return answer
    rows, reason = _parts(calls, offer)
    merged = rows[0] if offer.as_function else {"tool_calls": [_unnumbered(row) for row in rows]}
    message = {**choice["message"], "content": None, **merged}
    return {**answer, "choices": [{**choice, "message": message, "finish_reason": reason}]}


def _unnumbered(row: Response) -> Response:
    return {name: value for name, value in row["tool_calls"][0].items() if name != "index"}


def _chunks(chunks: Iterator[Response], offer: ChatTools) -> Iterator[Response]:
    """Text that may be calls is held back until that is decided."""
    reader = ToolCallReader(offer.names, several=not offer.as_function)
    for chunk in chunks:
        choice = chunk["choices"][0]
        if choice["finish_reason"] is not None:
            deltas, reason = _last_deltas(reader, offer, choice["finish_reason"])
            for delta in deltas:
                yield _with_choice(chunk, delta=delta, logprobs=None, finish_reason=None)
            yield _with_choice(chunk, finish_reason=reason)
        elif "content" not in choice["delta"]:
            yield chunk
        elif (text := reader.push(choice["delta"]["content"])) or choice["logprobs"] is not None:
            yield _with_choice(chunk, delta={**choice["delta"], "content": text})


def _with_choice(chunk: Response, **changes: Any) -> Response:
    return {**chunk, "choices": [{**chunk["choices"][0], **changes}]}


def _last_deltas(reader: ToolCallReader, offer: ChatTools, reason: str) -> tuple[list[Response], str]:
    """What was held back of an answer that has ended, and why it ended."""
    text, calls = reader.finish()
    if calls:
        return _parts(calls, offer)
    return [{"content": text}] if text else [], reason


def _parts(calls: Sequence[ToolCall], offer: ChatTools) -> tuple[list[Response], str]:
    """(each call as a part of a message, the finish reason)."""
    functions = [{"name": call.name, "arguments": call.arguments} for call in calls]
    if offer.as_function:
        return [{"function_call": function} for function in functions], "function_call"
    rows = [{"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": each} for each in functions]
    return [{"tool_calls": [{"index": i, **row}]} for i, row in enumerate(rows)], "tool_calls"
