"""llama_cpp.llama_chat_format: prompt formats and chat handlers, by name and of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyllamacpu.api.chat_handlers import (
    ChatFormatter,
    ChatFormatterResponse,
    Jinja2ChatFormatter,
    LlamaChatCompletionHandler,
    LlamaChatCompletionHandlerNotFoundException,
    LlamaChatCompletionHandlerRegistry,
    chat_formatter_to_chat_completion_handler,
    get_chat_completion_handler,
    hf_tokenizer_config_to_chat_completion_handler,
    hf_tokenizer_config_to_chat_formatter,
    named_formatter,
    register_chat_completion_handler,
    register_chat_format,
)
from pyllamacpu.errors import OptionError
from pyllamacpu.text.chat import TEMPLATE_KEY
from pyllamacpu.text.formats import FORMATS
from pyllamacpu.text.named_formats import NAMED_FORMATS

__all__ = [
    "CHATML_BOS_TOKEN",
    "CHATML_CHAT_TEMPLATE",
    "CHATML_EOS_TOKEN",
    "LLAMA3_INSTRUCT_CHAT_TEMPLATE",
    "MISTRAL_INSTRUCT_BOS_TOKEN",
    "MISTRAL_INSTRUCT_CHAT_TEMPLATE",
    "MISTRAL_INSTRUCT_EOS_TOKEN",
    "MIXTRAL_INSTRUCT_CHAT_TEMPLATE",
    "ChatFormatter",
    "ChatFormatterResponse",
    "Jinja2ChatFormatter",
    "LlamaChatCompletionHandler",
    "LlamaChatCompletionHandlerNotFoundException",
    "LlamaChatCompletionHandlerRegistry",
    "chat_formatter_to_chat_completion_handler",
    "get_chat_completion_handler",
    "guess_chat_format_from_gguf_metadata",
    "hf_autotokenizer_to_chat_completion_handler",
    "hf_autotokenizer_to_chat_formatter",
    "hf_tokenizer_config_to_chat_completion_handler",
    "hf_tokenizer_config_to_chat_formatter",
    "register_chat_completion_handler",
    "register_chat_format",
]

# Ours: they make the prompts that models of these kinds were trained with.
CHATML_CHAT_TEMPLATE = FORMATS["chatml"].source
CHATML_BOS_TOKEN, CHATML_EOS_TOKEN = "<s>", "<|im_end|>"
MISTRAL_INSTRUCT_CHAT_TEMPLATE = MIXTRAL_INSTRUCT_CHAT_TEMPLATE = FORMATS["mistral"].source
MISTRAL_INSTRUCT_BOS_TOKEN, MISTRAL_INSTRUCT_EOS_TOKEN = "<s>", "</s>"
LLAMA3_INSTRUCT_CHAT_TEMPLATE = FORMATS["llama3"].source

# Tokens that a template spells → the format that it is.
_MARKS = (
    ("<|start_header_id|>", "llama-3"),
    ("<|im_start|>", "chatml"),
    ("[INST]", "mistral-instruct"),
)


def guess_chat_format_from_gguf_metadata(metadata: Mapping[str, str]) -> str | None:
    """The name of the format that a file's template writes, None for one without a template or of another
    kind. llama-cpp-python compares whole templates, and knows fewer.
    """
    source = metadata.get(TEMPLATE_KEY, "")
    if "<<SYS>>" in source:
        return "llama-2"
    return next((name for mark, name in _MARKS if mark in source), None)


def hf_autotokenizer_to_chat_formatter(pretrained_model_name_or_path: str) -> ChatFormatter:
    """The template of a tokenizer of transformers, which must be installed."""
    from transformers import AutoTokenizer  # type: ignore[import-not-found]

    tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path)

    def formatter(*, messages: Any, **kwargs: Any) -> ChatFormatterResponse:
        prompt = str(tokenizer.apply_chat_template(list(messages), tokenize=False))
        return ChatFormatterResponse(prompt, tokenizer.eos_token, added_special=True)

    return formatter


def hf_autotokenizer_to_chat_completion_handler(
    pretrained_model_name_or_path: str,
) -> LlamaChatCompletionHandler:
    """The same, as a handler."""
    return chat_formatter_to_chat_completion_handler(
        hf_autotokenizer_to_chat_formatter(pretrained_model_name_or_path)
    )


class _ImageHandler:
    """Stands for a handler that reads images. Making one raises OptionError: no handler is needed, and models
    of other families are not run.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise OptionError(
            f"{type(self).__name__}: models that read images here (Llama 3.2 Vision, Llama 4) need no "
            "handler: Llama(path), or Llama(path, mmproj=FILE) where the vision tower is elsewhere"
        )

    @classmethod
    def from_pretrained(cls, *args: object, **kwargs: object) -> _ImageHandler:
        return cls()


_IMAGE_HANDLERS = (
    "Gemma4ChatHandler",
    "Llama3VisionAlphaChatHandler",
    "Llava15ChatHandler",
    "Llava16ChatHandler",
    "MTMDChatHandler",
    "MiniCPMv26ChatHandler",
    "MoondreamChatHandler",
    "NanoLlavaChatHandler",
    "ObsidianChatHandler",
    "Qwen25VLChatHandler",
)
_FORMATTERS = {
    **{f"format_{name.replace('-', '_')}": name for name in NAMED_FORMATS},
    "format_llama2": "llama-2",
    "format_llama3": "llama-3",
    "format_baichuan2": "baichuan-2",
    "format": "vicuna",
}


def __getattr__(name: str) -> Any:
    """Formatters such as `format_llama2`, and the classes of handlers that read images."""
    if name in _FORMATTERS:
        made: Any = named_formatter(_FORMATTERS[name])
    elif name in _IMAGE_HANDLERS:
        made = type(name, (_ImageHandler,), {"__doc__": _ImageHandler.__doc__})
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = made
    return made
