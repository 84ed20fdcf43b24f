"""Chat templates: from a list of messages to the prompt that a model was trained on."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import jinja2

from pyllamacpu.errors import TemplateError
from pyllamacpu.text.sandbox import LimitError, TemplateEnvironment, limited

Message = Mapping[str, Any]
ADVICE = "choose another format with --chat-template NAME (Python: chat_format=NAME)"


class ChatTemplate:
    """A Jinja chat template and what belongs to it.

    `name` says where it comes from, `stop_tokens` and `stop_strings` what ends a turn beyond the vocabulary's
    own end tokens, `warning` is a sentence to show when the template was guessed. `tool_source` is used
    instead of `source` when tools are given. Raises TemplateError, with the line, when the template does not
    compile.
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
        self._template = self._compile(source)
        self._tool_template = self._compile(tool_source) if tool_source else None

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        """The prompt as text, special tokens spelled out. `extra` are further variables for the template.

        Raises TemplateError when the template refuses the messages (with its own words), fails or runs too
        long.
        """
        template = self._tool_template if tools and self._tool_template else self._template
        values = {
            **self._variables,
            "documents": None,
            **extra,
            "messages": prepare_messages(messages, self.takes_parts),
            "tools": deepcopy(list(tools)) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            with limited():
                return template.render(values)
        except TemplateError:
            raise
        except LimitError as error:
            raise TemplateError(f"{self.name} was stopped: {error}; {ADVICE}") from error
        except RecursionError as error:
            raise TemplateError(f"{self.name} was stopped: it calls itself without end; {ADVICE}") from error
        except Exception as error:  # a template is foreign code: it can raise anything
            where = _line_of(error)
            raise TemplateError(f"{self.name} fails{where}: {_words(error)}; {ADVICE}") from error

    @cached_property
    def takes_parts(self) -> bool:
        """Whether the template reads contents that are lists of parts (`{"type": "text", "text": …}`)."""
        source = self.source + (self.tool_source or "")
        return any(f in source for f in ("'type'", '"type"', ".type", "['text']", '["text"]', ".text"))

    def _compile(self, source: str) -> jinja2.Template:
        environment = TemplateEnvironment()
        environment.globals["raise_exception"] = self._refuse
        environment.globals["strftime_now"] = _strftime_now
        try:
            return environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(
                f"{self.name} is broken in line {error.lineno}: {error.message}; {ADVICE}"
            ) from error
        except Exception as error:
            raise TemplateError(f"{self.name} does not compile: {_words(error)}; {ADVICE}") from error

    def _refuse(self, message: object) -> NoReturn:
        raise TemplateError(f"{self.name} refuses these messages: {message}")


def prepare_messages(messages: Iterable[Message], takes_parts: bool = True) -> list[dict[str, Any]]:
    """Copies of the messages in the shape that templates expect.

    Arguments of tool calls that came as JSON text (OpenAI's way) become objects, and contents given as a list
    of text parts become one text unless the template reads parts itself. Raises TemplateError for messages
    that are not mappings.
    """
    prepared = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise TemplateError(f"message {i} is not a mapping with a role and a content: {message!r}")
        copy = deepcopy(dict(message))
        content = copy.get("content")
        if isinstance(content, list) and not takes_parts:
            copy["content"] = "".join(_part_text(part, i) for part in content)
        for call in copy.get("tool_calls") or ():
            function = call.get("function", call) if isinstance(call, dict) else None
            if isinstance(function, dict) and isinstance(function.get("arguments"), str):
                function["arguments"] = _parsed(function["arguments"])
        prepared.append(copy)
    return prepared


def _part_text(part: Any, index: int) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    raise TemplateError(
        f"message {index} holds a part that is no text, and this chat template takes text only"
    )


def _parsed(arguments: str) -> Any:
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _line_of(error: Exception) -> str:
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"
    ]
    return f" in line {lines[-1]}" if lines else ""


def _words(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__
