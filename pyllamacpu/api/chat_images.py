"""Conversations with images as token ids: a token (`<|image|>`) stands where an image does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyllamacpu.errors import TemplateError

Messages = Sequence[Mapping[str, Any]]
Encode = Callable[[Messages, Mapping[str, int]], list[int]]
"""Messages to ids; the second are texts in them that stand for a token each."""

_FREE = range(0xE000, 0xF8FF)  # characters without meaning


def encode_with_images(encode: Encode, messages: Messages, mark: int, n_images: int) -> list[int]:
    """The ids of `messages`, whose parts {"type": "image"} have become the token `mark`.

    A chat template that reads such parts writes its own token. For others the token stands in the text of the
    message, where the image does. Raises TemplateError.
    """
    try:
        ids = encode(messages, {})
    except TemplateError:
        ids = []  # it reads text only
    if ids.count(mark) == n_images:
        return ids
    letter = _free_letter(messages)
    return encode([_as_text(message, letter) for message in messages], {letter: mark})


def _as_text(message: Mapping[str, Any], letter: str) -> Mapping[str, Any]:
    content = message.get("content")
    if not isinstance(content, list) or not any(_is_image(part) for part in content):
        return message
    texts = [
        letter if _is_image(part) else part if isinstance(part, str) else part["text"] for part in content
    ]
    return {**message, "content": "".join(texts)}


def _is_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "image"


def _free_letter(messages: Messages) -> str:
    taken = set(repr(messages))
    return next(letter for letter in map(chr, _FREE) if letter not in taken)
