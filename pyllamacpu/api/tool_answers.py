"""Answers of a chat that call tools, in OpenAI's shapes: whole, and as chunks.

Source of the shapes: https://platform.openai.com/docs/api-reference/chat (tools, and the older functions);
for a tool that was named, both shapes at once, as llama-cpp-python's callers expect.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from pyllamacpu.api.responses import Response
from pyllamacpu.api.tools import ChatTools
from pyllamacpu.text.call_forms import ToolCall
from pyllamacpu.text.call_parts import Part, ToolCallDelta


def with_calls(answer: Any, offer: ChatTools) -> Any:
    """A chat's answer, or the iterator of its chunks, with the calls that its text consists of as calls."""
    if not offer.offered or not offer.may_call:
        return answer
    return _whole(answer, offer) if isinstance(answer, dict) else _chunks(answer, offer)


def _whole(answer: Response, offer: ChatTools) -> Response:
    choice = answer["choices"][0]
    found = offer.read(choice["message"]["content"] or "")
    if not found.calls:
        return answer
    message = {**choice["message"], "content": found.text or None, **_calls(found.calls, offer)}
    reason = _reason(choice["finish_reason"], found.has_called, offer)
    return {**answer, "choices": [{**choice, "message": message, "finish_reason": reason}]}


def _calls(calls: list[ToolCall], offer: ChatTools) -> Response:
    functions = [{"name": call.name, "arguments": call.arguments} for call in calls]
    shown: Response = {}
    if offer.as_function or offer.named:
        shown["function_call"] = functions[0]
    if not offer.as_function or offer.named:
        shown["tool_calls"] = [{"id": _id(), "type": "function", "function": each} for each in functions]
    return shown


def _id() -> str:
    return f"call_{uuid.uuid4().hex}"


def _reason(reason: str, has_called: bool, offer: ChatTools) -> str:
    """Calls that were cut short are told by the reason that cut them."""
    if not has_called or reason != "stop":
        return reason
    return "function_call" if offer.as_function and not offer.named else "tool_calls"


def _chunks(chunks: Iterator[Response], offer: ChatTools) -> Iterator[Response]:
    """Text that may be a call is held back until that is decided."""
    reader = offer.reader()
    for chunk in chunks:
        choice = chunk["choices"][0]
        if choice["finish_reason"] is not None:
            for part in reader.finish():
                yield _with_choice(chunk, delta=_delta(part, offer), logprobs=None, finish_reason=None)
            reason = _reason(choice["finish_reason"], reader.has_called, offer)
            yield _with_choice(chunk, finish_reason=reason)
        elif "content" not in choice["delta"]:
            yield chunk
        else:
            parts = reader.push(choice["delta"]["content"])
            if not parts and choice["logprobs"] is not None:
                parts = [""]  # what is held back has its logprobs all the same
            for i, part in enumerate(parts):
                changes = {"logprobs": None} if i else {}
                yield _with_choice(chunk, delta=_delta(part, offer), **changes)


def _with_choice(chunk: Response, **changes: Any) -> Response:
    return {**chunk, "choices": [{**chunk["choices"][0], **changes}]}


def _delta(part: Part, offer: ChatTools) -> Response:
    if isinstance(part, str):
        return {"content": part}
    function = {"arguments": part.arguments}
    if part.name is not None:
        function = {"name": part.name, **function}
    shown: Response = {}
    if offer.as_function or offer.named:
        shown["function_call"] = function
    if not offer.as_function or offer.named:
        shown["tool_calls"] = [_call_delta(part, function)]
    return shown


def _call_delta(part: ToolCallDelta, function: Response) -> Response:
    """Id and name stand in the first piece only."""
    head = {} if part.name is None else {"id": _id(), "type": "function"}
    return {"index": part.index, **head, "function": function}
