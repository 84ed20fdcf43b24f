"""Calls that begin with a mark and the bare name of the function, and the arguments behind it.

Mistral's models since Small 3.2 write `[TOOL_CALLS]name[ARGS]{…}`, some with `[CALL_ID]` and an id behind
the name; templates that leave marks out write `[TOOL_CALLS]name{…}`. Source: mistral-common's tokenizers of
version 11 and 13 (https://github.com/mistralai/mistral-common).
functionary's models of version 3.2 write `>>>name` and the arguments in a new line; what they say stands
behind `>>>all`. The prompt ends with the first `>>>`. Source: https://github.com/MeetKai/functionary.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class MarkedForm:
    """`mark` stands before a call, `between` name and arguments, `id_mark` before an id behind the name.
    `speech`: the name under which the model says something. `prompted`: the prompt ends with the first mark.
    """

    mark: str
    between: str
    id_mark: str = ""
    speech: str = ""
    prompted: bool = False


MISTRAL = MarkedForm("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
FUNCTIONARY = MarkedForm(">>>", "\n", speech="all", prompted=True)

SHOWN_MARKS = (MISTRAL.mark, MISTRAL.between, MISTRAL.id_mark)
"""Control tokens that answers show all the same: without them the calls cannot be read."""


def form_of_calls(prompt: str, name: str, opening: str) -> MarkedForm | None:
    """How a template writes calls of `name`, which stand in `prompt`; `opening`: one that ends with the
    beginning of an answer. None: in another form.
    """
    before, behind = re.escape(f"{MISTRAL.mark}{name}"), re.escape(MISTRAL.between)
    found = re.search(rf"{before}({re.escape(MISTRAL.id_mark)}\w+)?({behind})?\s*\{{", prompt)
    if found is not None:
        return MarkedForm(MISTRAL.mark, found[2] or "", MISTRAL.id_mark if found[1] else "")
    if f"{FUNCTIONARY.mark}{name}{FUNCTIONARY.between}{{" in prompt and opening.endswith(FUNCTIONARY.mark):
        return FUNCTIONARY
    return None
