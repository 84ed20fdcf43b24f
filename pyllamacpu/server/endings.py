"""Why an answer ended, as the dialects tell it.

An answer that has run into a loop (`sampling/loops.py`) is ended. Where a dialect's reasons are a closed set,
that is its word for an answer that was cut, with `"stopped_by": "loop"` beside; where they are any text
(Ollama's `done_reason`, llama.cpp's `stop_type`), it is "loop".

What the guard model or the shield blocks ends with "content_filter", Anthropic's word for which
is "refusal"; what was found stands beside it as "shield", a list of findings.
"""

from __future__ import annotations

from typing import Any

from pyllamacpu.engine.generate import TextEvent
from pyllamacpu.safety.shield import BlockedEvent


def is_cut(last: TextEvent) -> bool:
    """Whether the answer might have gone on."""
    return last.finish_reason in ("length", "loop", "content_filter")


def stopped_by(last: TextEvent) -> dict[str, str]:
    """What tells a loop from a limit; nothing for other ends."""
    return {"stopped_by": "loop"} if last.finish_reason == "loop" else {}


def openai_reason(last: TextEvent, has_called: bool = False) -> dict[str, Any]:
    """OpenAI's `finish_reason` of an answer; calls that were cut short are told by what cut them."""
    if has_called and last.finish_reason == "stop":
        return {"finish_reason": "tool_calls"}
    return {
        "finish_reason": "length" if last.finish_reason == "loop" else last.finish_reason,
        **stopped_by(last),
        **shown_findings(last),
    }


def shown_findings(last: TextEvent) -> dict[str, Any]:
    """`shield` of a response that was blocked; nothing for others."""
    if not isinstance(last, BlockedEvent):
        return {}
    return {"shield": [finding._asdict() for finding in last.findings]}
