"""Messages, scanners and results of the firewall, in the shape of PyPI's `llamafirewall`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from pyllamacpu.errors import OptionError
from pyllamacpu.safety.code_shield.code_text import quoted_texts


class ScannerType(Enum):
    CODE_SHIELD = "code_shield"
    PROMPT_GUARD = "prompt_guard"
    AGENT_ALIGNMENT = "agent_alignment"
    HIDDEN_ASCII = "hidden_ascii"
    PII_DETECTION = "pii_detection"
    REGEX = "regex"


class ScanDecision(Enum):
    ALLOW = "allow"
    HUMAN_IN_THE_LOOP_REQUIRED = "human_in_the_loop_required"
    BLOCK = "block"


class ScanStatus(Enum):
    SUCCESS = "success"
    ERROR = "error"
    SKIPPED = "skipped"


class Role(Enum):
    """Who says something. TOOL: the results of tools."""

    TOOL = "tool"
    USER = "user"
    ASSISTANT = "assistant"
    MEMORY = "memory"
    SYSTEM = "system"


class UseCase(Enum):
    CHAT_BOT = "chatbot"
    CODING_ASSISTANT = "coding_assistant"


@dataclass
class ScanResult:
    """`score` is 0 to 1. With the status ERROR the decision is BLOCK, always."""

    decision: ScanDecision
    reason: str
    score: float
    status: ScanStatus = ScanStatus.SUCCESS


@dataclass
class Message:
    role: Role
    content: str
    tool_calls: list[dict[str, Any]] | None = None

    def __str__(self) -> str:
        return f"{self.role}: {self.content}"


class SystemMessage(Message):
    def __init__(self, content: str) -> None:
        super().__init__(Role.SYSTEM, content)


class UserMessage(Message):
    def __init__(self, content: str) -> None:
        super().__init__(Role.USER, content)


class AssistantMessage(Message):
    def __init__(self, content: str, tool_calls: list[dict[str, Any]] | None = None) -> None:
        super().__init__(Role.ASSISTANT, content, tool_calls)


class ToolMessage(Message):
    def __init__(self, content: str) -> None:
        super().__init__(Role.TOOL, content)


class MemoryMessage(Message):
    def __init__(self, content: str) -> None:
        super().__init__(Role.MEMORY, content)


_OPENING = ("{", "[")  # of JSON with texts in it

Trace: TypeAlias = list[Message]
Configuration: TypeAlias = Mapping[Role, Sequence["ScannerType | str"]]


def text_of(message: Message) -> str:
    """All that a message says: its content, and the texts in its calls of tools.

    Raises OptionError for calls whose texts cannot be read.
    """
    return "\n".join(filter(None, [message.content, text_of_calls(message)]))


def text_of_calls(message: Message) -> str:
    """The texts in a message's calls of tools, also in their JSON, which may be cut. Raises OptionError."""
    return "\n".join(_texts(message.tool_calls or ()))


def _texts(value: Any) -> Iterator[str]:
    """Each container once, though it may stand in several places, or in itself."""
    stack, seen = [value], dict[int, Any]()  # what is seen is kept: another would get its number
    while stack:
        value = stack.pop()
        if isinstance(value, (Mapping, list, tuple)):
            if id(value) in seen:
                continue
            seen[id(value)] = value
        if isinstance(value, Mapping):
            stack += reversed([text for pair in value.items() for text in pair])
        elif isinstance(value, (list, tuple)):
            stack += reversed(value)
        elif isinstance(value, str):
            inner = _json(value)
            if inner is None:
                yield value
                if value.lstrip().startswith(_OPENING):
                    yield from (said for _, _, said in quoted_texts(value))
            else:
                stack.append(inner)
        elif value is not None and not isinstance(value, (bool, int, float)):
            kind = type(value).__name__
            raise OptionError(f"tool_calls: give objects as in JSON; a {kind} cannot be judged")


def _json(text: str) -> Any:
    """The object or list that a text is as JSON, or None."""
    if not text.lstrip().startswith(_OPENING):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, (dict, list)) else None
