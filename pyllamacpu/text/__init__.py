"""Text in and out of the model: tokenizers, the streaming detokenizer and chat templates.

The names below are imported when they are first used: the child process that renders templates needs none.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

_HOMES = {
    "ChatTemplate": "template",
    "StreamDecoder": "stream",
    "Tokenizer": "tokenizer",
    "choose_template": "chat",
    "encode_chat": "chat",
    "load_tokenizer": "load",
}

__all__ = ["ChatTemplate", "StreamDecoder", "Tokenizer", "choose_template", "encode_chat", "load_tokenizer"]

if TYPE_CHECKING:
    from pyllamacpu.text.chat import choose_template, encode_chat
    from pyllamacpu.text.load import load_tokenizer
    from pyllamacpu.text.stream import StreamDecoder
    from pyllamacpu.text.template import ChatTemplate
    from pyllamacpu.text.tokenizer import Tokenizer


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
