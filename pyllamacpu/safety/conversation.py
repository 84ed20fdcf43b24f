"""Conversations as guards read them: a user and an agent in turn, the user first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pyllamacpu.errors import OptionError

Role = Literal["user", "agent"]

_SPEAKERS = {"user": "user", "assistant": "assistant", "agent": "assistant"}


def judged_part(
    conversation: str | Sequence[Mapping[str, Any]], role: Role | None = None
) -> list[dict[str, str]]:
    """The messages up to the one under judgement: the last, or the last of `role`.

    Messages of one speaker that follow each other become one; calls of tools are judged as JSON. A user's
    message is judged without the reply to it. Raises OptionError for roles that a guard's prompt has no place
    for, contents that are not text, an empty text, and a conversation that an agent begins.
    """
    if role not in (None, "user", "agent"):
        raise OptionError(f"role={role!r:.40}: give user or agent")
    if isinstance(conversation, str):
        conversation = [{"role": "user", "content": conversation}]
    if (
        isinstance(conversation, (bytes, Mapping))
        or not isinstance(conversation, Sequence)
        or not conversation
    ):
        raise OptionError("the conversation: give a text, or a list of {'role': ..., 'content': ...}")
    turns: list[dict[str, str]] = []
    for i, message in enumerate(conversation):
        speaker, text = _read(i, message)
        if turns and turns[-1]["role"] == speaker:
            turns[-1]["content"] += f"\n\n{text}"
        else:
            turns.append({"role": speaker, "content": text})
    if turns[0]["role"] != "user":
        raise OptionError("messages[0]: a guard reads conversations that a user begins")
    if role is not None:
        wanted = _SPEAKERS[role]
        if role == "agent" and turns[-1]["role"] != wanted:
            raise OptionError("role agent: the last message must be the agent's (role assistant)")
        turns = turns if turns[-1]["role"] == wanted else turns[:-1]
    if not turns[-1]["content"].strip():
        raise OptionError("the message to be judged is empty")
    return turns


def _read(i: int, message: Any) -> tuple[str, str]:
    """(speaker, text) of a message."""
    if not isinstance(message, Mapping):
        raise OptionError(f"messages[{i}] must be a dict with a role and a content, not {message!r:.60}")
    speaker = _SPEAKERS.get(str(message.get("role")))
    if speaker is None:
        raise OptionError(
            f"messages[{i}]: a guard's prompt has no place for the role {message.get('role')!r:.40}; it "
            "reads user and assistant"
        )
    content, calls = message.get("content"), message.get("tool_calls") or ()
    parts: Sequence[Any] = content if isinstance(content, (list, tuple)) else [{"text": content}]
    if content is None and calls:
        parts = ()
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if not (texts or calls) or not all(isinstance(text, str) for text in texts):
        raise OptionError(f"messages[{i}]: a guard reads texts; this content is something else")
    try:
        said = [json.dumps(call, ensure_ascii=False) for call in calls]
    except (TypeError, ValueError) as error:
        raise OptionError(f"messages[{i}].tool_calls: {error}") from None
    return speaker, "\n".join(filter(None, [*texts, *said]))
