"""Conversations of the OpenAI shape, checked, for the chat template."""

from __future__ import annotations

from typing import Any

from pyllamacpu.server.fields import Fields, wrong

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")


def read_messages(fields: Fields, name: str = "messages") -> list[dict[str, Any]]:
    """A list of {"role", "content"}; contents are text or lists of text parts. Raises HTTPError."""
    values = fields.items(name)
    if not values:
        raise fields.wrong(name, "give at least one message")
    return [_message(value, f"{name}[{i}]") for i, value in enumerate(values)]


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(where, "must be an object with a role and a content")
    role, content = value.get("role"), value.get("content")
    if role not in ROLES:
        raise wrong(f"{where}.role", f"{role!r:.80} is not known; allowed: {', '.join(ROLES)}")
    if content is None and not value.get("tool_calls") and not value.get("function_call"):
        raise wrong(f"{where}.content", "is missing")
    _check_content(content, f"{where}.content")
    calls = value.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise wrong(f"{where}.tool_calls", "must be a list of objects")
    return dict(value)


def _check_content(content: Any, where: str) -> None:
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list):
        raise wrong(where, "must be a string or a list of parts")
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise wrong(f"{where}[{i}]", f"only text can be read, not a part of type {kind!r:.40}")
        if not isinstance(part.get("text"), str):
            raise wrong(f"{where}[{i}].text", "must be a string")
