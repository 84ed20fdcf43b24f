"""Chats as a program brings them itself: functions that make the prompt, and functions that answer.

A formatter makes the prompt's text from messages; a handler answers `create_chat_completion`. Both can be
registered under a name for `Llama(chat_format=name)`. llama-cpp-python's names are there from the start
(see `pyllamacpu.text.named_formats`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, ClassVar, Protocol

from pyllamacpu.api.compat import StoppingCriteriaList
from pyllamacpu.api.grammar import chosen_grammar
from pyllamacpu.api.responses import chat_of_chunks, chat_of_completion
from pyllamacpu.api.tool_answers import with_calls
from pyllamacpu.api.tools import checked_offer
from pyllamacpu.errors import OptionError
from pyllamacpu.text import ChatTemplate
from pyllamacpu.text.formats import Format
from pyllamacpu.text.named_formats import NAMED_FORMATS

Messages = Sequence[Mapping[str, Any]]


@dataclass
class ChatFormatterResponse:
    """A prompt. `stop` ends the answer; `added_special` says that BOS is spelled in it where it belongs."""

    prompt: str
    stop: str | list[str] | None = None
    stopping_criteria: StoppingCriteriaList | None = None
    added_special: bool = False


class ChatFormatter(Protocol):
    """Makes a prompt from messages."""

    def __call__(self, *, messages: Messages, **kwargs: Any) -> ChatFormatterResponse: ...


class LlamaChatCompletionHandler(Protocol):
    """Answers `create_chat_completion`, with its arguments by name."""

    def __call__(self, *, llama: Any, messages: Messages, **kwargs: Any) -> Any: ...


class LlamaChatCompletionHandlerNotFoundException(OptionError):
    """No handler has this name."""


class LlamaChatCompletionHandlerRegistry:
    """Handlers by name. All instances are one table."""

    _chat_handlers: ClassVar[dict[str, LlamaChatCompletionHandler]] = {}

    def register_chat_completion_handler(
        self, name: str, chat_handler: LlamaChatCompletionHandler, overwrite: bool = False
    ) -> None:
        """Raises OptionError for a name that is taken, unless `overwrite`."""
        if name in self._chat_handlers and not overwrite:
            raise OptionError(f"a chat handler {name!r} is registered already; give overwrite=True")
        self._chat_handlers[name] = chat_handler

    def unregister_chat_handler(self, name: str) -> None:
        if name not in self._chat_handlers:
            raise OptionError(f"no chat handler {name!r} is registered")
        del self._chat_handlers[name]

    def get_chat_completion_handler_by_name(self, name: str) -> LlamaChatCompletionHandler:
        """Raises LlamaChatCompletionHandlerNotFoundException."""
        if name not in self._chat_handlers:
            known = ", ".join(sorted(self._chat_handlers))
            raise LlamaChatCompletionHandlerNotFoundException(
                f"there is no chat handler {name!r}; registered are {known}"
            )
        return self._chat_handlers[name]


def get_chat_completion_handler(name: str) -> LlamaChatCompletionHandler:
    """The handler of this name. Raises LlamaChatCompletionHandlerNotFoundException."""
    return LlamaChatCompletionHandlerRegistry().get_chat_completion_handler_by_name(name)


def register_chat_completion_handler(name: str) -> Callable[[Any], Any]:
    """Registers the decorated handler."""

    def decorate(handler: LlamaChatCompletionHandler) -> LlamaChatCompletionHandler:
        LlamaChatCompletionHandlerRegistry().register_chat_completion_handler(name, handler)
        return handler

    return decorate


def register_chat_format(name: str) -> Callable[[Any], Any]:
    """Registers the decorated formatter, as a handler."""

    def decorate(formatter: ChatFormatter) -> ChatFormatter:
        handler = chat_formatter_to_chat_completion_handler(formatter)
        LlamaChatCompletionHandlerRegistry().register_chat_completion_handler(name, handler)
        return formatter

    return decorate


def registered_handler(name: str | None) -> LlamaChatCompletionHandler | None:
    """The handler that the program registered under this name; None for ours, which are templates."""
    handler = LlamaChatCompletionHandlerRegistry._chat_handlers.get(name or "")
    return None if isinstance(handler, NamedHandler) else handler


def chat_formatter_to_chat_completion_handler(chat_formatter: ChatFormatter) -> LlamaChatCompletionHandler:
    """A handler that lets `llama.create_completion` answer the formatter's prompt."""

    def handler(*, llama: Any, messages: Messages, **options: Any) -> Any:
        names = ("functions", "function_call", "tools", "tool_choice")
        about_tools = {name: options.pop(name, None) for name in names}
        made = chat_formatter(messages=messages, **about_tools)
        grammar = chosen_grammar(options.pop("grammar", None), options.pop("response_format", None))
        several = options.pop("parallel_tool_calls", None)
        offer = checked_offer(grammar, {**about_tools, "parallel_tool_calls": several})
        if not all(name in made.prompt for name in offer.names):
            raise OptionError("this chat format does not show the model any tools; leave them out")
        n_top = options.pop("top_logprobs", None) or 0
        answer = llama.create_completion(
            prompt=llama.tokenize(made.prompt.encode(), add_bos=not made.added_special, special=True),
            stop=[*_listed(options.pop("stop", None)), *_listed(made.stop)],
            stopping_criteria=made.stopping_criteria,
            logprobs=n_top if options.pop("logprobs", None) else None,
            grammar=offer.form or grammar,
            temperature=options.pop("temperature", 0.2),
            max_tokens=options.pop("max_tokens", None),
            **options,
        )
        chat = chat_of_chunks(answer) if options.get("stream") else chat_of_completion(answer)
        return with_calls(chat, offer)

    return handler


def _listed(stop: str | Sequence[str] | None) -> list[str]:
    return [stop] if isinstance(stop, str) else list(stop or ())


# Formatters


class Jinja2ChatFormatter:
    """A formatter from a template in Jinja, rendered under the limits of all templates."""

    def __init__(
        self,
        template: str,
        eos_token: str,
        bos_token: str,
        add_generation_prompt: bool = True,
        stop_token_ids: Sequence[int] | None = None,
    ) -> None:
        self.template, self.eos_token, self.bos_token = template, eos_token, bos_token
        self.add_generation_prompt = add_generation_prompt
        self.stop_token_ids = None if stop_token_ids is None else set(stop_token_ids)
        self._template = ChatTemplate(template, bos_token, eos_token, name="the given chat template")

    @staticmethod
    def strftime_now(f: str) -> str:
        return datetime.now().strftime(f)

    def __call__(self, *, messages: Messages, **kwargs: Any) -> ChatFormatterResponse:
        tools, shown = kwargs.pop("tools", None), [dict(message) for message in messages]
        prompt = self._template.render(shown, tools, self.add_generation_prompt, **kwargs)
        criteria = None if self.stop_token_ids is None else StoppingCriteriaList([self._stops])
        return ChatFormatterResponse(prompt, [self.eos_token], criteria, added_special=True)

    def _stops(self, tokens: Any, logits: Any) -> bool:
        return int(tokens[-1]) in (self.stop_token_ids or ())

    def to_chat_handler(self) -> LlamaChatCompletionHandler:
        return chat_formatter_to_chat_completion_handler(self)


def hf_tokenizer_config_to_chat_formatter(
    tokenizer_config: Mapping[str, Any], add_generation_prompt: bool = True
) -> ChatFormatter:
    """A formatter from a tokenizer_config.json. The answer to come is an empty message of the assistant's,
    unless `add_generation_prompt` is off. Raises OptionError when the template or BOS or EOS are not there.
    """
    names = ("chat_template", "bos_token", "eos_token")
    given = tokenizer_config if isinstance(tokenizer_config, Mapping) else {}
    if not all(isinstance(given.get(name), str) for name in names):
        raise OptionError(f"the tokenizer's configuration must have {', '.join(names)} as text")
    source, bos, eos = (str(tokenizer_config[name]) for name in names)
    template = ChatTemplate(source, bos, eos, name="the tokenizer's chat template")

    def formatter(*, messages: Messages, **kwargs: Any) -> ChatFormatterResponse:
        blank = [{"role": "assistant", "content": ""}] if add_generation_prompt else []
        prompt = template.render_forms([*map(dict, messages), *blank])
        return ChatFormatterResponse(prompt, [eos, bos], added_special=True)

    return formatter


def hf_tokenizer_config_to_chat_completion_handler(
    tokenizer_config: Mapping[str, Any], add_generation_prompt: bool = True
) -> LlamaChatCompletionHandler:
    """The same, as a handler."""
    return chat_formatter_to_chat_completion_handler(
        hf_tokenizer_config_to_chat_formatter(tokenizer_config, add_generation_prompt)
    )


def named_formatter(name: str) -> ChatFormatter:
    """The formatter of one of NAMED_FORMATS."""
    chosen: Format = NAMED_FORMATS[name]
    template = ChatTemplate(chosen.source, name=f"the {name} chat format")

    def formatter(messages: Messages, **kwargs: Any) -> ChatFormatterResponse:
        prompt = template.render([dict(message) for message in messages])
        stop = chosen.stop_strings[0] if chosen.stop_strings else None
        return ChatFormatterResponse(prompt, stop)

    return formatter


class NamedHandler:
    """The handler of one of NAMED_FORMATS. `Llama` itself does not call it, but renders the template."""

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def _answer(self) -> LlamaChatCompletionHandler:
        """Made when it is first used: templates are not compiled for nothing."""
        return chat_formatter_to_chat_completion_handler(named_formatter(self.name))

    def __call__(self, *, llama: Any, messages: Messages, **options: Any) -> Any:
        return self._answer(llama=llama, messages=messages, **options)


for _name in NAMED_FORMATS:
    LlamaChatCompletionHandlerRegistry().register_chat_completion_handler(_name, NamedHandler(_name))
