"""Tool calls and their results among the messages of a conversation, in the forms that templates take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]

TOOL_ROLES = ("tool", "ipython", "function")  # of results


def calls_of(message: Message) -> Any:
    """A message's tool calls, OpenAI's older `function_call` among them."""
    calls, call = message.get("tool_calls"), message.get("function_call")
    if not isinstance(call, Mapping) or not call or not isinstance(calls or [], list):
        return calls
    functions = [each.get("function") for each in calls or () if isinstance(each, Mapping)]
    more = [] if call in functions else [{"type": "function", "function": dict(call)}]
    return [*(calls or ()), *more]


def give_ids(messages: Sequence[dict[str, Any]]) -> None:
    """Calls without an id, as OpenAI's older form and Ollama have them, get one of nine characters, for which
    some templates ask; the results behind them name it, in their order.
    """
    given = 0
    waiting: list[str] = []
    for message in messages:
        if message["role"] in TOOL_ROLES:
            if waiting and not message.get("tool_call_id"):
                message["tool_call_id"] = waiting.pop(0)
            continue
        waiting = []
        for call in message.get("tool_calls") or ():
            if isinstance(call, dict) and isinstance(call.get("function"), dict) and not call.get("id"):
                call["id"] = f"call{given:05d}"
                waiting.append(call["id"])
                given += 1


def one_call_each(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages of several calls as one message for each call, with its result behind it. Results are found by
    the id of their call; those that name none of them come in their order.
    """
    found: list[dict[str, Any]] = []
    at = 0
    while at < len(messages):
        message, at = messages[at], at + 1
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            found.append(message)
            continue
        end = next((i for i in range(at, len(messages)) if messages[i]["role"] not in TOOL_ROLES), None)
        results = list(messages[at:end])
        at += len(results)
        ids = [call.get("id") if isinstance(call, Mapping) else None for call in calls]
        is_text = not isinstance(message.get("content"), list)
        empty: Any = "" if is_text else [{"type": "text", "text": ""}]
        for i, call in enumerate(calls):
            content = message if i == 0 else {**message, "content": empty}
            found.append({**content, "tool_calls": [call]})
            if (result := _result_of(ids[i], ids, results)) is not None:
                results.remove(result)
                found.append(result)
        found += results
    return found


def _result_of(call_id: Any, ids: Sequence[Any], results: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The result that names this call, or the first that names none of them."""
    named = [result for result in results if call_id is not None and result.get("tool_call_id") == call_id]
    nameless = [result for result in results if result.get("tool_call_id") not in ids]
    return next(iter([*named, *nameless]), None)


def with_written_calls(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its calls in its content, as JSON in a line each: the form in which a model that is
    told of its tools in words is asked to call them. They stand first, where calls are looked for in answers.
    """
    content, written = message.get("content"), "\n".join(map(_written_call, message["tool_calls"]))
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    if isinstance(content, list):
        return {**kept, "content": [{"type": "text", "text": written}, *content]}
    return {**kept, "content": f"{written}\n{content}" if content else written}


def _written_call(call: Any) -> str:
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    function = function if isinstance(function, Mapping) else {}
    arguments = function.get("arguments") or {}
    arguments = parsed(arguments) if isinstance(arguments, str) else arguments
    value = {"name": function.get("name"), "parameters": arguments}
    return json.dumps(value, ensure_ascii=False, default=str)


def written_result(name: Any, content: Any) -> Any:
    """A result as the user tells it to a template that takes no results: JSON, as llama.cpp writes it. Parts
    stand behind it.
    """
    told = {"tool": name} if isinstance(name, str) else {}
    is_text = isinstance(content, str)
    value = {"tool_response": {**told, "content": content} if is_text else told}
    text = json.dumps(value, ensure_ascii=False)
    return text if is_text else [{"type": "text", "text": text}, *content]


def names_of_results(messages: Sequence[Any]) -> list[Any]:
    """For each message that is a result the function that was called, as far as the messages tell; None for
    the others. Results are found by the id of their call, else in their order.
    """
    names: list[Any] = []
    waiting: list[tuple[Any, Any]] = []  # ids and names of calls
    for message in messages:
        name = None
        if isinstance(message, Mapping) and message.get("role") in TOOL_ROLES:
            wanted = message.get("tool_call_id")
            fitting = [call for call in waiting if wanted and call[0] == wanted]
            call = next(iter(fitting or [call for call in waiting if not (wanted and call[0])]), None)
            if call is not None:
                waiting.remove(call)
            name = message.get("name") or (call and call[1])
        elif isinstance(message, Mapping) and (calls := calls_of(message)):
            waiting = [_id_and_name(call) for call in calls] if isinstance(calls, list) else []
        names.append(name)
    return names


def _id_and_name(call: Any) -> tuple[Any, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    return (call.get("id"), function.get("name")) if isinstance(function, Mapping) else (None, None)


def parsed(arguments: str) -> Any:
    """The object that the JSON text of a call's arguments is; any other text as it stands."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments
