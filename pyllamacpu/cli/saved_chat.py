"""Turns of a conversation, and the files that they are saved in."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyllamacpu.cli.images import ImageFile, image_content, read_content
from pyllamacpu.errors import OptionError
from pyllamacpu.files import FileKind, read_problem, read_regular
from pyllamacpu.text.call_messages import TOOL_ROLES, calls_of

_MAX_SAVED = 1 << 28  # bytes of a saved conversation


@dataclass
class Turn:
    """What the person said, and the answer as far as it came."""

    user: str
    assistant: str = ""
    tokens: list[int] = field(default_factory=list, compare=False)  # of the answer; none for a loaded one
    ended: bool = field(default=True, compare=False)  # by the model itself, not by a limit or a person
    steps: list[dict[str, Any]] = field(default_factory=list)  # calls and results before the answer
    images: tuple[ImageFile, ...] = ()  # that came with what the person said
    in_tool: bool = field(default=False, compare=False)  # it was stopped while a function ran
    n_dropped: int = field(default=0, compare=False)  # of the turns before, when the person said it

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The messages before the answer, as chat templates take them."""
        return [{"role": "user", "content": image_content(self.user, self.images)}, *self.steps]

    @property
    def is_unanswered(self) -> bool:
        """Whether nothing has come of an answer."""
        return not (self.ended or self.assistant or self.steps)


def read_saved(path: Path) -> tuple[str | None, list[Turn]]:
    """System prompt and turns of a saved conversation; a list of messages as the HTTP API takes it is read
    too. Raises OptionError for any other file.
    """
    try:
        content = json.loads(_read(path))
    except OSError as error:
        raise OptionError(f"cannot read {path}: {read_problem(error)}") from error
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path} is not a saved conversation: {error}") from error
    return conversation(content, path)


def is_saved_chat(path: Path) -> bool:
    """Whether a file is a conversation that `load` takes."""
    try:
        conversation(json.loads(_read(path)), path)
    except (OSError, ValueError, RecursionError):
        return False
    return True


def _read(path: Path) -> str:
    """The text of a regular file. Raises OSError, ValueError for more than a conversation has."""
    return read_regular(path, _MAX_SAVED).decode("utf-8")


SAVED_CHAT = FileKind("a saved conversation", is_saved_chat)


def conversation(content: object, path: Path) -> tuple[str | None, list[Turn]]:
    """System prompt and turns from the messages of a saved file. Raises OptionError."""
    messages = content.get("messages") if isinstance(content, dict) else content
    if not isinstance(messages, list):
        raise OptionError(f'{path} is not a saved conversation: it has no list "messages"')
    system: str | None = None
    turns: list[Turn] = []
    expected: tuple[str, ...] = ("system", "user")
    for number, message in enumerate(messages, 1):
        role, text, images = _message(message, number, path)
        if expected == ("assistant",) and (step := _step(message, text, f"{path}: message {number}")):
            turns[-1].steps.append(step)
            continue
        if role not in expected:
            raise OptionError(f"{path}: message {number} is from {role}, expected {' or '.join(expected)}")
        if role == "system":
            system = text
        elif role == "user":
            turns.append(Turn(text, images=tuple(images)))
        else:
            turns[-1].assistant = text
        expected = ("assistant",) if role == "user" else ("user",)
    if turns and (expected == ("assistant",) or (isinstance(content, dict) and content.get("unfinished"))):
        turns[-1].ended = False
    return system, turns


def _step(message: Any, text: str, where: str) -> dict[str, Any] | None:
    """A message that is a call or its result, as chat templates take it; None for any other. Raises
    OptionError for calls that are none.
    """
    calls = calls_of(message) if message["role"] == "assistant" else None
    if not calls:
        return {**message, "content": text} if message["role"] in TOOL_ROLES else None
    for call in calls if isinstance(calls, list) else [None]:
        function = call.get("function") if isinstance(call, dict) else None
        parts = function if isinstance(function, dict) else {}
        if not isinstance(parts.get("name"), str) or not isinstance(parts.get("arguments"), (str, dict)):
            raise OptionError(
                f'{where}: "tool_calls" must be a list of calls, each with a "function" that has a '
                '"name" and "arguments"; correct it, or leave it out'
            )
    return {**message, "content": text}


def _message(message: object, number: int, path: Path) -> tuple[str, str, list[ImageFile]]:
    """Role, text and images of one saved message."""
    role = message.get("role") if isinstance(message, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(message, dict) and content is None and (role in TOOL_ROLES or calls_of(message)):
        content = ""
    if not isinstance(role, str) or not (isinstance(content, str) or content):
        raise OptionError(f"{path}: message {number} needs a role and a content, both text")
    text, images = read_content(content, f"{path}: message {number}")
    if images and role != "user":
        raise OptionError(f"{path}: message {number} is from {role}, and only the user's have images")
    return "system" if role == "developer" else role, text, images
