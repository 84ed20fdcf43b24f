"""Chat templates: from a list of messages to the prompt that a model was trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from datetime import datetime
from functools import cached_property, partial
from typing import Any, Protocol

from pyllamacpu.errors import TemplateError
from pyllamacpu.text.marked_calls import MarkedForm
from pyllamacpu.text.messages import PROBE_TOOL, Abilities, Message, MessageForms, check_size
from pyllamacpu.text.render_error import RenderError

ADVICE = "choose another format with --chat-template NAME (Python: chat_format=NAME)"


class Renderer(Protocol):
    """A compiled template: in this process, or in a child process."""

    def render(self, values: Mapping[str, Any]) -> str: ...


class ChatTemplate:
    """A Jinja chat template and what belongs to it.

    `name` says where it comes from, `stop_tokens` and `stop_strings` what ends a turn beyond the vocabulary's
    own end tokens, `warning` is a sentence to show when the template was guessed. `tool_source` is used
    instead of `source` when tools are given. A template that is not a known one runs in a child process with
    limits. Raises TemplateError, with the line, when the template does not compile.
    """

    def __init__(
        self,
        source: str,
        bos_token: str = "",
        eos_token: str = "",
        *,
        name: str = "chat template",
        tool_source: str | None = None,
        stop_tokens: Sequence[str] = (),
        stop_strings: Sequence[str] = (),
        warning: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.source, self.tool_source, self.name = source, tool_source, name
        self.bos_token, self.eos_token = bos_token, eos_token
        self.stop_tokens, self.stop_strings = tuple(stop_tokens), tuple(stop_strings)
        self.warning = warning
        self._variables = {**(variables or {}), "bos_token": bos_token, "eos_token": eos_token}
        self._edit: Callable[[str], str] | None = None  # of the finished prompt
        self._template = self._compile(source)
        self._tool_template = self._compile(tool_source) if tool_source else None

    def render(
        self,
        /,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        """The prompt as text, special tokens spelled out. `extra` are further variables for the template.

        Each message is given in the form that the template reads (see `messages.MessageForms`). Raises
        TemplateError when the template refuses the messages (with its own words), fails or runs too long.
        """
        forms = MessageForms(messages, self.abilities_with(tools))
        return self.render_forms(forms.chosen, tools, add_generation_prompt, **extra)

    def render_forms(
        self,
        /,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        """As `render`, with messages that have their form already."""
        check_size(messages, tools)
        try:
            return self._render(messages, tools, add_generation_prompt, **extra)
        except RenderError as error:
            raise self._error(error) from error

    def _render(
        self,
        /,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        template = self._tool_template if tools and self._tool_template else self._template
        values = {
            **self._variables,
            "documents": None,
            **extra,
            "messages": deepcopy([dict(message) for message in messages]),
            "tools": deepcopy(list(tools)) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            text = template.render(values)
        except RenderError as error:
            if error.kind != "failed" or "'functions'" not in error.words or "functions" in extra:
                raise
            text = template.render({**_firefunction(tools), **values})
        return self._edit(text) if self._edit else text

    def edited(self, edit: Callable[[str], str]) -> ChatTemplate:
        """The same template, whose finished prompts go through `edit`."""
        other = copy(self)
        other._edit = edit
        return other

    @cached_property
    def abilities(self) -> Abilities:
        """What this template can read, found out by rendering probes."""
        return Abilities(self._render)

    @cached_property
    def _abilities_with_tools(self) -> Abilities:
        return Abilities(partial(self._render, tools=[PROBE_TOOL]))

    @cached_property
    def call_form(self) -> MarkedForm | None:
        """How calls are written in this template, where they stand behind a mark."""
        return self._abilities_with_tools.call_form()

    def abilities_with(self, tools: Sequence[Any] | None) -> Abilities:
        """What it can read beside these tools: with tools, some templates are others."""
        return self._abilities_with_tools if tools else self.abilities

    def _compile(self, source: str) -> Renderer:
        try:
            # Jinja, and a process for strangers, only where there is a template to compile.
            from pyllamacpu.text.known_templates import is_known

            if is_known(source):
                from pyllamacpu.text.render import CompiledTemplate

                return CompiledTemplate(source)
            from pyllamacpu.text.render_process import RemoteTemplate

            return RemoteTemplate(source)
        except RenderError as error:
            raise self._error(error) from error

    def _error(self, error: RenderError) -> TemplateError:
        where = f" in line {error.line}" if error.line else ""
        if error.kind == "refused":
            return TemplateError(f"{self.name} refuses these messages: {error.words}")
        said = {
            "syntax": f"is broken{where}",
            "compile": "does not compile",
            "stopped": "was stopped",
            "failed": f"fails{where}",
        }[error.kind]
        return TemplateError(f"{self.name} {said}: {error.words}; {ADVICE}")


def _firefunction(tools: Sequence[Any] | None) -> dict[str, Any]:
    """What Firefunction 2's template cannot do without: functions as JSON, and the time."""
    functions = [tool.get("function", tool) if isinstance(tool, Mapping) else tool for tool in tools or ()]
    now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
    return {"functions": json.dumps(functions, ensure_ascii=False, indent=4), "datetime": now}
