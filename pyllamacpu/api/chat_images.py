"""Conversations and texts with images as token ids: a token (`<|image|>`) stands where an image does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from pyllamacpu.errors import TemplateError
from pyllamacpu.text.missing import strings_in
from pyllamacpu.text.tokenizer import Tokenizer

MEDIA = "<__media__>"
"""Where an image stands in a text, as llama.cpp's programs have it. The model's own token does it too."""

Messages = Sequence[Mapping[str, Any]]
Encode = Callable[[Messages, Mapping[str, int]], list[int]]
"""Messages to ids; the second are texts in them that stand for a token each."""

_FREE = range(0xE000, 0xF8FF)  # characters without meaning
_TRIES = 3


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
    for letter in islice(_free_letters(messages), _TRIES):
        ids = encode([_as_text(message, letter) for message in messages], {letter: mark})
        if ids.count(mark) == n_images:  # else the letter stands in tools or in the template too
            break
    return ids


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


def _free_letters(messages: Messages) -> Iterator[str]:
    taken = set().union(*strings_in(messages))
    return (letter for letter in map(chr, _FREE) if letter not in taken)


def text_with_images(
    tokenizer: Tokenizer, text: str | bytes | Sequence[int], mark: int, n_images: int
) -> list[int]:
    """The ids of a text that is continued, the token `mark` where it has `MEDIA`; where nothing in it stands
    for an image, as many marks as there are images come before it.
    """
    if not isinstance(text, (str, bytes)):
        ids = list(text)
    else:
        pieces = text.split(MEDIA) if isinstance(text, str) else text.split(MEDIA.encode())
        encoded = [tokenizer.encode(piece, add_special=False, parse_special=True) for piece in pieces]
        ids = tokenizer.with_special(encoded[0] + [token for ids in encoded[1:] for token in [mark, *ids]])
    if mark in ids:
        return ids
    n_before = int(bool(ids) and ids[0] == tokenizer.bos)
    return [*ids[:n_before], *([mark] * n_images), *ids[n_before:]]
