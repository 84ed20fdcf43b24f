"""Conversations as guards read them: user and agent in turn, the user first; images among their words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pyllamacpu.errors import OptionError
from pyllamacpu.images.parts import has_image
from pyllamacpu.text.call_messages import calls_of

Role = Literal["user", "agent"]

_SPEAKERS = {"user": "user", "assistant": "assistant", "agent": "assistant"}


def judged_part(
    conversation: str | Sequence[Mapping[str, Any]], role: Role | None = None
) -> list[dict[str, Any]]:
    """The messages up to the one under judgement: the last, or the last of `role`.

    Messages of one speaker that follow each other become one; calls of tools are judged as JSON. A user's
    message is judged without the reply to it. Contents are texts, or with images lists of those and of one
    text part. Raises OptionError for roles that a guard's prompt has no place for, contents that are
    something else, an empty text (also beside images: guards judge these with words), and a conversation that
    an agent begins.
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
    turns: list[_Turn] = []
    for i, message in enumerate(conversation):
        speaker, text, images = _read(i, message)
        if turns and turns[-1].speaker == speaker:
            turns[-1].text += f"\n\n{text}"
            turns[-1].images += images
        else:
            turns.append(_Turn(speaker, text, images))
    if turns[0].speaker != "user":
        raise OptionError("messages[0]: a guard reads conversations that a user begins")
    if role is not None:
        wanted = _SPEAKERS[role]
        if role == "agent" and turns[-1].speaker != wanted:
            raise OptionError("role agent: the last message must be the agent's (role assistant)")
        turns = turns if turns[-1].speaker == wanted else turns[:-1]
    if any(turn.images and not turn.text.strip() for turn in turns):
        raise OptionError("an image is judged with words beside it: give the message a text too")
    if not turns[-1].text.strip():
        raise OptionError("the message to be judged is empty")
    return [{"role": turn.speaker, "content": turn.content} for turn in turns]


@dataclass
class _Turn:
    speaker: str
    text: str
    images: list[Any]

    @property
    def content(self) -> str | list[Any]:
        return [*self.images, {"type": "text", "text": self.text}] if self.images else self.text


def words_of(message: Mapping[str, Any]) -> str:
    """The text of a message of `judged_part`."""
    content = message["content"]
    return content if isinstance(content, str) else str(content[-1]["text"])


def _read(i: int, message: Any) -> tuple[str, str, list[Any]]:
    """(speaker, text, images) of a message."""
    if not isinstance(message, Mapping):
        raise OptionError(f"messages[{i}] must be a dict with a role and a content, not {message!r:.60}")
    speaker = _SPEAKERS.get(str(message.get("role")))
    if speaker is None:
        raise OptionError(
            f"messages[{i}]: a guard's prompt has no place for the role {message.get('role')!r:.40}; it "
            "reads user and assistant"
        )
    content, calls = message.get("content"), calls_of(message) or ()
    parts: Sequence[Any] = content if isinstance(content, (list, tuple)) else [{"text": content}]
    if content is None and calls:
        parts = ()
    images = [part for part in parts if has_image(part)]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts if not has_image(part)]
    if not (texts or calls or images) or not all(isinstance(text, str) for text in texts):
        raise OptionError(f"messages[{i}]: a guard reads texts and images; this content is something else")
    try:
        said = [json.dumps(call, ensure_ascii=False) for call in calls]
    except (TypeError, ValueError) as error:
        raise OptionError(f"messages[{i}].tool_calls: {error}") from None
    return speaker, "\n".join(filter(None, [*texts, *said])), images
