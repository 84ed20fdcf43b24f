"""Images of requests: parts of messages in every dialect, opened when their prompt is made, within limits.

What is sent comes over the network: no path is read, and URLs only as `--allow-image-hosts` has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pyllamacpu.engine.leaving import check_wanted
from pyllamacpu.images.parts import IMAGE_KINDS, has_image, image_source, take_images
from pyllamacpu.images.picture import MAX_PIXELS
from pyllamacpu.images.sources import Fetch, open_picture, open_url
from pyllamacpu.server.errors import HTTPError, too_long
from pyllamacpu.server.fields import wrong
from pyllamacpu.units import decimal_bytes

if TYPE_CHECKING:
    from pyllamacpu.api.vision import Vision
    from pyllamacpu.images.picture import Picture
    from pyllamacpu.images.tiles import Tiles

Cut = TypeVar("Cut")

RESULT_ROLES = ("tool", "function", "ipython")
"""Roles of messages that are results of tools."""

MAX_IMAGES = 64  # of a request
MAX_REQUEST_PIXELS = 4 * MAX_PIXELS  # of its images together
IMAGE_MEMORY = 2 << 30  # bytes that they take, see `Vision.image_bytes`


@dataclass(frozen=True)
class ImageAccess:
    """How a server takes images. fetch: gets those at URLs, where that is allowed. max_bytes: of memory for
    the images of one request, see `Vision.image_bytes`.
    """

    fetch: Fetch | None = None
    max_bytes: int = IMAGE_MEMORY


NO_URLS = ImageAccess()


@dataclass(frozen=True, eq=False)
class SentImage:
    """An image as it stands in a request: the part of a message in any dialect's form, and its place.

    What is at a URL is fetched once: the guard and the model see the same.
    """

    part: Mapping[str, Any]
    where: str
    _fetched: dict[str, bytes] = field(default_factory=dict, init=False, repr=False)

    def open(self, fetch: Fetch | None) -> Picture:
        """Raises ImageError."""
        source = image_source(self.part, self.where)
        if isinstance(source, bytes):
            return open_picture(source, where=self.where)
        if not isinstance(source, str):
            raise wrong(self.where, "must be text: data:image/...;base64,...")
        return open_url(source, where=self.where, fetch=fetch and partial(self._content, fetch))

    def _content(self, fetch: Fetch, url: str) -> bytes:
        if url not in self._fetched:
            self._fetched.setdefault(url, fetch(url))
        return self._fetched[url]


def image_part(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The part of a message that stands for an image."""
    return {"type": "image", "image": SentImage(part, where)}  # as `sent_images` finds it


def content_parts(
    content: Any, where: str, role: object, text_kinds: Sequence[str] = ("text",)
) -> str | list[dict[str, Any]]:
    """A content that is a text, or a list of texts and (of users and tools) images; texts alone are joined to
    one.

    Raises HTTPError for any other.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong(where, "must be a string or a list of parts")
    parts = [_part(part, f"{where}[{i}]", role, text_kinds) for i, part in enumerate(content)]
    if any(map(has_image, parts)):
        return parts
    return "".join(part["text"] for part in parts)


def is_refusal(part: Any) -> bool:
    """Whether a part is what the assistant said instead of an answer, which is a text as others."""
    return isinstance(part, dict) and part.get("type") == "refusal" and isinstance(part.get("refusal"), str)


def _part(part: Any, where: str, role: object, text_kinds: Sequence[str]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in IMAGE_KINDS:
        if role not in ("user", *RESULT_ROLES):
            raise wrong(where, f"images stand in messages of the user and tools, not of {role!r:.40}")
        return image_part(part, where)
    if role == "assistant" and is_refusal(part):
        return {"type": "text", "text": part["refusal"]}
    if kind not in text_kinds:
        raise wrong(where, f"texts and images can be read, not a part of type {kind!r:.40}")
    if not isinstance(part.get("text"), str):
        raise wrong(f"{where}.text", "must be a string")
    return {**part, "type": "text"}


def images_after_results(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with images of tools' results at the beginning of what the user says after them: chat
    templates show none in the results themselves.
    """
    found: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for message in messages:
        content = message.get("content")
        if message.get("role") in RESULT_ROLES:
            if isinstance(content, list):
                images += filter(has_image, content)
                text = "".join(part["text"] for part in content if not has_image(part))
                message = {**message, "content": text}
        elif images:
            said = message if message.get("role") == "user" else None
            found.append(with_images_first(images, said))
            images = []
            if said is not None:
                continue
        found.append(message)
    return [*found, with_images_first(images)] if images else found


def with_images_first(
    images: Sequence[dict[str, Any]], message: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A message, or else one of the user, whose images stand before its text."""
    content = (message or {}).get("content") or []
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {**(message or {"role": "user"}), "content": [*images, *parts]}


def sent_images(messages: Sequence[Mapping[str, Any]]) -> list[SentImage]:
    """The images in a conversation, in order."""
    contents = (message.get("content") for message in messages)
    parts = (part for content in contents if isinstance(content, list) for part in content)
    return [part["image"] for part in parts if has_image(part)]


class _Opener(Generic[Cut]):
    """Opens the images of a request, within limits."""

    def __init__(self, n_images: int, fetch: Fetch | None, cut: Callable[[Picture], Cut]) -> None:
        """Raises HTTPError for too many."""
        if n_images > MAX_IMAGES:
            raise HTTPError(f"a request may have {MAX_IMAGES} images at the most", code="too_many_images")
        self._fetch, self._cut = fetch, cut
        self._n_pixels = 0

    def __call__(self, image: SentImage, where: str = "") -> Cut:
        check_wanted()
        picture = image.open(self._fetch)
        self._n_pixels += picture.width * picture.height
        if self._n_pixels > MAX_REQUEST_PIXELS:
            most = f"{MAX_REQUEST_PIXELS / 1e6:.0f} million pixels"
            raise HTTPError(f"the images have more than {most} together: send smaller ones", code="too_large")
        return self._cut(picture)


def open_images(
    messages: Sequence[Mapping[str, Any]], fetch: Fetch | None, cut: Callable[[Picture], Cut]
) -> tuple[list[Any], list[Cut]]:
    """The messages with {"type": "image"} for each image, and what `cut` makes of the pictures, in order.

    Raises ImageError, HTTPError.
    """
    return take_images(messages, _Opener(len(sent_images(messages)), fetch, cut))


def with_pictures(messages: Sequence[Mapping[str, Any]], fetch: Fetch | None) -> list[Mapping[str, Any]]:
    """The messages with pictures in place of images as they were sent. Raises ImageError, HTTPError."""
    opened, pictures = open_images(messages, fetch, lambda picture: picture)
    left = iter(pictures)
    return [_with_pictures(message, left) for message in opened]


def _with_pictures(message: Mapping[str, Any], pictures: Iterator[Picture]) -> Mapping[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [{**part, "image": next(pictures)} if has_image(part) else part for part in content]
    return {**message, "content": parts}


def open_sent(images: Sequence[SentImage], fetch: Fetch | None, cut: Callable[[Picture], Cut]) -> list[Cut]:
    """What `cut` makes of the pictures. Raises ImageError, HTTPError."""
    return list(map(_Opener(len(images), fetch, cut), images))


def shown_messages(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The messages with {"type": "image"} for each image, of which none is opened."""
    return take_images(messages, lambda image, where: None)[0]


def cutter(vision: Vision, n_ctx: int, max_bytes: int) -> Callable[[Picture], Tiles]:
    """Cuts pictures into tiles until they are too many for the context or take more than `max_bytes`, before
    the tower works for them: a small file can hold many. The model's caches of images keep no more than that
    either. Raises HTTPError.
    """
    vision.keep_at_most(max_bytes)
    n_tokens = n_bytes = 0

    def cut(picture: Picture) -> Tiles:
        nonlocal n_tokens, n_bytes
        tiles = vision.tiles(picture)
        n_tokens += vision.count(tiles)
        n_bytes += vision.image_bytes(tiles)
        if n_tokens >= n_ctx:
            raise too_long(f"at least {n_tokens}", n_ctx)
        if n_bytes > max_bytes:
            raise HTTPError(
                f"the images take {decimal_bytes(n_bytes)} of memory or more together, where this server "
                f"gives those of a request {decimal_bytes(max_bytes)} (--image-memory): send fewer, or "
                "smaller ones",
                code="too_large",
            )
        return tiles

    return cut
