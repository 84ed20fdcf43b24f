"""Whether all that a conversation says is in the prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyllamacpu.text.call_messages import calls_of, parsed

Message = Mapping[str, Any]


def unescaped(text: str) -> str:
    """With HTML's character references resolved."""
    if "&" not in text:
        return text
    from html import unescape

    return unescape(text)


def strings_in(value: Any) -> Iterable[str]:
    """All strings in a nested value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings_in(key)
            yield from strings_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_in(item)


def missing_messages(prompt: str, messages: Sequence[Message], special: Iterable[str] = ()) -> list[int]:
    """Which of `messages` have words that are not in `prompt`. `special`: what a template may consume."""
    squeezed = _squeezed(prompt) + "\n" + _squeezed(unescaped(prompt))
    cut = "|".join(map(re.escape, sorted(filter(None, special), key=len, reverse=True)))
    pattern = re.compile(cut) if cut else None
    return [
        i
        for i, message in enumerate(messages)
        if not all(_arrived(text, squeezed, pattern) for text in _texts(message))
    ]


def _texts(message: Message) -> list[str]:
    """What a message says: its text, and the functions that it calls, with the words of their arguments: a
    name alone may stand in the list of tools.
    """
    content = message.get("content")
    texts = [content] if isinstance(content, str) else []
    if isinstance(content, list):
        texts = [part if isinstance(part, str) else part.get("text", "") for part in content if part]
    for call in calls_of(message) or ():
        function = call.get("function", call) if isinstance(call, Mapping) else {}
        if isinstance(function, Mapping):
            arguments = function.get("arguments")
            arguments = parsed(arguments) if isinstance(arguments, str) else arguments
            texts += [str(function.get("name", "")), *strings_in(arguments)]
    return [text for text in texts if isinstance(text, str) and text.strip()]


def _arrived(text: str, squeezed: str, special: re.Pattern[str] | None) -> bool:
    forms = [text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]]
    if "</think>" in text:
        forms.append(text.rpartition("</think>")[2])
    if any(_squeezed(form) in squeezed for form in forms):
        return True
    pieces = special.split(text) if special is not None else [text]
    return len(pieces) > 1 and all(_squeezed(piece) in squeezed for piece in pieces)


def _squeezed(text: str) -> str:
    """Without regard to white space and case."""
    return re.sub(r"\s+", "", text).lower()


def missing_tools(prompt: str, tools: Sequence[Any]) -> list[str]:
    """Names of tools that the prompt does not mention."""
    names = []
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        name = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(name, str) and name and name not in prompt:
            names.append(name)
    return names
