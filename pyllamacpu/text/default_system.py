"""The system prompt that a chat template has of its own, found by rendering."""

from __future__ import annotations

from pyllamacpu.errors import TemplateError
from pyllamacpu.text.template import ChatTemplate

_PROBE = "zq0system0qz"
_USER = {"role": "user", "content": "zq0user0qz"}


def default_system(template: ChatTemplate) -> str | None:
    """The text that stands where a system prompt would, in a chat without one; None when there is none.

    A prompt is rendered with and without: what surrounds the probe in the first is looked for in the second.
    """
    try:
        given = template.render([{"role": "system", "content": _PROBE}, _USER])
        without = template.render([_USER])
    except TemplateError:
        return None
    before, found, after = given.partition(_PROBE)
    end = without.find(after) if after else -1
    if not found or not without.startswith(before) or end < len(before):
        return None
    return without[len(before) : end].strip() or None
