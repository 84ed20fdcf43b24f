"""Images among the parts of messages: OpenAI's, Anthropic's and Hugging Face's forms to pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pyllamacpu.errors import ImageError
from pyllamacpu.images.sources import check_media_type, decode_base64

Opened = TypeVar("Opened")
Open = Callable[[Any, str], Opened]  # what a part holds, and its place in the messages; raises ImageError

IMAGE_KINDS = ("image", "image_url", "input_image")
"""Types of parts that are images."""

_DETAILS = ("auto", "low", "high", "original")
_FIELDS = ("image", "image_url", "url", "path")  # of an image's part, in Hugging Face's and others' forms


def has_image(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in IMAGE_KINDS


def take_images(messages: Iterable[Any], open: Open[Opened]) -> tuple[list[Any], list[Opened]]:
    """The messages with {"type": "image"} for each image, as chat templates read it, and what they hold, in
    order. Messages without images stay as they are. Raises ImageError.
    """
    pictures: list[Opened] = []

    def taken(part: Any, where: str) -> Any:
        if not has_image(part):
            return part
        pictures.append(open(image_source(part, where), where))
        return {"type": "image"}

    found = []
    for i, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, (list, tuple)) and any(map(has_image, content)):
            parts = [taken(part, f"messages[{i}].content[{j}]") for j, part in enumerate(content)]
            message = {**message, "content": parts}
        found.append(message)
    return found, pictures


def image_source(part: Mapping[str, Any], where: str) -> Any:
    """What the part of an image holds: a URL or path as it stands there, bytes, or an object. How finely the
    image is to be read (`detail`) decides nothing, as models have one way, but must be a word that is known.
    """
    _check_detail(part, where)
    if (source := part.get("source")) is not None:  # Anthropic's
        return _anthropic_source(source, f"{where}.source")
    if (text := part.get("base64")) is not None:
        if not isinstance(text, str):
            raise ImageError(where, "must be text: an image in base64")
        return decode_base64(text, where)
    for name in _FIELDS:
        value = part.get(name)
        if isinstance(value, Mapping) and "pixel_values" not in value:  # which processors give
            _check_detail(value, f"{where}.{name}")
            value = value.get("url")
        if value is not None and not (isinstance(value, str) and not value):
            return value
    if part.get("file_id") is not None:
        raise ImageError(where, "files are not kept here; send the image as data:image/...;base64,...")
    raise ImageError(where, "holds no image: give image_url with data:image/...;base64,...")


def _check_detail(given: Mapping[str, Any], where: str) -> None:
    detail = given.get("detail")
    if detail is not None and detail not in _DETAILS:
        raise ImageError(f"{where}.detail", f"is {detail!r:.40}; allowed: {', '.join(_DETAILS)}")


def _anthropic_source(given: Any, where: str) -> Any:
    source: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    kind = source.get("type")
    if kind == "base64" and isinstance(text := source.get("data"), str):
        check_media_type(source.get("media_type") or "", f"{where}.media_type")
        return decode_base64(text, f"{where}.data")
    if kind == "url" and isinstance(url := source.get("url"), str):
        return url
    raise ImageError(where, "must be {type: base64, media_type, data} or {type: url, url}")
