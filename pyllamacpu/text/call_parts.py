"""Parts of an answer, which is text and calls: as they come, and joined."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pyllamacpu.text.call_forms import ToolCall


@dataclass(frozen=True)
class ToolCallDelta:
    """A piece of call number `index`: the first has its `name` and no arguments yet; after the last, `done`,
    the arguments are the JSON text of an object. A call without a last piece was cut short.
    """

    index: int
    name: str | None = None
    arguments: str = ""
    done: bool = False


Part = str | ToolCallDelta
"""Text of the answer, or a piece of a call."""


class Answer(NamedTuple):
    """A whole answer: the text that is not part of a call, and the calls."""

    text: str
    calls: list[ToolCall]

    @property
    def has_called(self) -> bool:
        """Whether there are calls, and all of them are whole."""
        return bool(self.calls) and all(call.whole for call in self.calls)


def join_parts(parts: Iterable[Part]) -> Answer:
    """The answer that a stream of parts makes."""
    text: list[str] = []
    names: list[str] = []
    arguments: list[list[str]] = []
    whole: list[bool] = []
    for part in parts:
        if isinstance(part, str):
            text.append(part)
            continue
        if part.name is not None:
            names.append(part.name)
            arguments.append([])
            whole.append(False)
        arguments[-1].append(part.arguments)
        whole[-1] = part.done
    return Answer("".join(text), list(map(ToolCall, names, map("".join, arguments), whole)))
