"""The tools of a chat in the terminal: a call is run after the person agrees, and its result goes back."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence

from pyllamacpu.api.tools import ChatTools, calls_or_json, choose
from pyllamacpu.cli.session import Event, Notice, Question
from pyllamacpu.cli.tool_files import PythonTool
from pyllamacpu.errors import OptionError
from pyllamacpu.sampling.grammar import Grammar
from pyllamacpu.text import ChatTemplate
from pyllamacpu.text.call_forms import ToolCall

_MAX_RESULT = 1 << 14  # characters of a result that go to the model
_MAX_SHOWN = 300  # characters of a call or a result that the person sees
_CHOICES = "y(es), n(o), a(lways this function): "
REFUSED = "error: the person did not agree to this call"


class Toolbox:
    """Runs what the model calls. `unasked`: without asking. `choice` of the first answer to a message: auto,
    required or a tool's name; what follows results is always the model's own wish.
    """

    def __init__(self, tools: Sequence[PythonTool], choice: str = "auto", unasked: bool = False) -> None:
        """Raises OptionError for a choice that there is not, or a schema that cannot be enforced."""
        self._tools = {tool.name: tool for tool in tools}
        self._agreed = set(self._tools) if unasked else set[str]()
        offered = tuple(tool.definition for tool in tools)
        named = choice not in ("auto", "required")
        if named and choice not in self._tools:
            raise OptionError(f"--tool-choice {choice}: allowed: auto, required, {', '.join(self._tools)}")
        self.first = choose(offered, {"name": choice} if named else choice, False, None)
        self.later: ChatTools = choose(offered, "auto", False, None)

    def answers_in(self, form: Grammar) -> None:
        """Answers that call nothing are JSON of this schema."""
        self.first, self.later = calls_or_json(self.first, form), calls_or_json(self.later, form)

    def written_in(self, template: ChatTemplate) -> None:
        """Calls are written as in this template."""
        self.first, self.later = self.first.written_in(template), self.later.written_in(template)

    def run(self, call: ToolCall) -> Generator[Event, None, str]:
        """What the model gets for a call. The person is asked by a `Question`."""
        shown = _shown(call)
        tool = self._tools[call.name]
        if call.name not in self._agreed:
            question = Question(f"run {shown}?", _CHOICES)
            yield question
            reply = question.reply.strip().lower()
            if reply in ("a", "always"):
                self._agreed.add(call.name)
            elif reply not in ("y", "yes"):
                yield Notice(f"{call.name} was not run")
                return REFUSED
        else:
            yield Notice(f"runs {shown}")
        result = tool.run(call.arguments)
        yield Notice(f"{call.name}: {_short(result)}")
        if len(result) > _MAX_RESULT:
            yield Notice(f"only {_MAX_RESULT} of the result's {len(result)} characters go to the model")
            result = f"{result[:_MAX_RESULT]}\n[cut: {len(result)} characters in all]"
        return result


def _shown(call: ToolCall) -> str:
    """The call as Python writes it, with nothing left out: the person decides by it."""
    given = json.loads(call.arguments)
    return f"{call.name}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_SHOWN else f"{line[:_MAX_SHOWN]} …"
