"""Conversations of the OpenAI shape, checked, for the chat template."""

from __future__ import annotations

from typing import Any

from pyllamacpu.server.fields import NO_IMAGES_HERE, Fields, wrong
from pyllamacpu.server.images import RESULT_ROLES, content_parts, images_after_results, is_refusal
from pyllamacpu.text.chat import RESERVED

ROLES = ("system", "developer", "user", "assistant", *RESULT_ROLES)


def read_messages(fields: Fields, name: str = "messages", own_images: bool = False) -> list[dict[str, Any]]:
    """A list of {"role", "content"}; contents are text or lists of parts: texts, images of users and tools.
    own_images: messages have a field for images too, as Ollama's, which the caller reads.

    Raises HTTPError.
    """
    values = fields.items(name)
    if not values:
        raise fields.wrong(name, "give at least one message")
    messages = [_message(value, f"{name}[{i}]", own_images) for i, value in enumerate(values)]
    for i, message in enumerate(messages):
        if message.get("images") and not own_images:
            raise wrong(f"{name}[{i}].images", NO_IMAGES_HERE)
    return messages if own_images else images_after_results(messages)


def opens_answer(fields: Fields) -> bool:
    """Whether the prompt ends with the beginning of the assistant's turn, as llama.cpp and vLLM name it."""
    return fields.flag("add_generation_prompt", True)


def template_extra(fields: Fields) -> dict[str, Any]:
    """Variables for the chat template, as llama.cpp and vLLM name them. Raises HTTPError."""
    value = fields.raw("chat_template_kwargs")
    if value is None:
        return {}
    if not isinstance(value, dict) or RESERVED & value.keys():
        raise fields.wrong("chat_template_kwargs", "must be an object of the template's own variables")
    return value


def _message(value: Any, where: str, own_images: bool) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong(where, "must be an object with a role and a content")
    role, content = value.get("role"), value.get("content")
    if content is None and role == "assistant" and isinstance(value.get("refusal"), str):
        value = {**value, "content": (content := value["refusal"]), "refusal": None}
    if role not in ROLES:
        raise wrong(f"{where}.role", f"{role!r:.80} is not known; allowed: {', '.join(ROLES)}")
    others = ("tool_calls", "function_call", *(("images",) if own_images else ()))
    if content is None and not any(map(value.get, others)):
        raise wrong(f"{where}.content", "is missing")
    parts = _checked(content, f"{where}.content", role)
    calls = value.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(isinstance(call, dict) for call in calls)):
        raise wrong(f"{where}.tool_calls", "must be a list of objects")
    if isinstance(parts, list) or (isinstance(content, list) and any(map(is_refusal, content))):
        return {**value, "content": parts}
    return dict(value)


def _checked(content: Any, where: str, role: str) -> Any:
    return None if content is None else content_parts(content, where, role)
