"""What requests ask about: conversations, texts and inputs, and their token ids. Whatever is wrong with one
is a 400 that names the field that it stands in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from pyllamacpu.api.prompts import text_prompt
from pyllamacpu.api.tools import NO_TOOLS, ChatTools, shown_tools
from pyllamacpu.engine.images import EmbeddedImage
from pyllamacpu.engine.token_ids import check_length
from pyllamacpu.errors import PyllamacpuError, TokenizerError
from pyllamacpu.safety.shield import Conversation
from pyllamacpu.server.errors import HTTPError, as_http_error, too_long
from pyllamacpu.server.images import (
    NO_URLS,
    ImageAccess,
    SentImage,
    cutter,
    open_images,
    open_sent,
    sent_images,
)
from pyllamacpu.server.models import Model
from pyllamacpu.text import encode_chat
from pyllamacpu.text.infill import infill_prompt

if TYPE_CHECKING:
    from pyllamacpu.images.picture import Picture


@dataclass(frozen=True)
class Chat:
    """A conversation, for the model's chat template. `beginning`: of the answer, to be gone on with. `where`:
    the field that it came in.
    """

    messages: Sequence[Mapping[str, Any]]
    beginning: str = ""
    tools: ChatTools = NO_TOOLS
    extra: Mapping[str, Any] = field(default_factory=dict)  # variables of the template
    opens_answer: bool = True  # the prompt ends with the beginning of the assistant's turn
    where: str = "messages"

    @property
    def images(self) -> list[SentImage]:
        return sent_images(self.messages)


@dataclass(frozen=True)
class Text:
    """A text, or token ids, to be continued; with a suffix, what stands between the two."""

    text: str | Sequence[int]
    suffix: str | None = None
    suffix_first: bool = False
    images: Sequence[SentImage] = ()  # where the text has `MEDIA`, or before it
    where: str = "prompt"


@contextmanager
def about(where: str) -> Iterator[None]:
    """Refusals of what is done here name the field `where`, unless they name one themselves."""
    try:
        yield
    except PyllamacpuError as error:
        refusal = as_http_error(error)
        if refusal.status not in (400, 413) or refusal.param is not None:
            raise
        refusal.param = where
        raise refusal from error


def conversation_of(model: Model, prompt: Chat | Text) -> Conversation:
    """What a prompt says; what is to be continued is the user's."""
    if isinstance(prompt, Chat):
        return Conversation(model.conversation(prompt.messages), prompt.beginning, prompt.tools)
    text = prompt.text if isinstance(prompt.text, str) else model.tokenizer.decode(prompt.text)
    text += prompt.suffix or ""
    images = [{"type": "image", "image": image} for image in prompt.images]
    content = [*images, {"type": "text", "text": text}] if images else text
    return Conversation([{"role": "user", "content": content}])


def prompt_ids(model: Model, prompt: Chat | Text) -> list[int]:
    """Token ids of a prompt without images. Raises HTTPError."""
    return encode_prompt(model, prompt)[0]


def encode_prompt(
    model: Model,
    prompt: Chat | Text,
    access: ImageAccess = NO_URLS,
) -> tuple[list[int], tuple[EmbeddedImage, ...]]:
    """Token ids of a prompt, those of images' rows below 0, and its images. Raises HTTPError."""
    check_fits(model, prompt)
    with about(prompt.where):
        return _encode(model, prompt, access)


def _encode(
    model: Model, prompt: Chat | Text, access: ImageAccess
) -> tuple[list[int], tuple[EmbeddedImage, ...]]:
    if isinstance(prompt, Chat):
        return _encode_conversation(model, prompt, access)
    if prompt.images:
        return _encode_with_media(model, prompt, access)
    if prompt.suffix is None:
        return text_prompt(model.tokenizer, prompt.text, model.engine.check_tokens), ()
    filled = infill_prompt(model.tokenizer, prompt.text, prompt.suffix, prompt.suffix_first)
    if filled is None:
        raise HTTPError(
            f"suffix: the model {model.name!r} was not trained to fill in the middle", param="suffix"
        )
    return filled, ()


def count_tokens(model: Model, chat: Chat, access: ImageAccess) -> int:
    """Of its prompt, for which no image is embedded; also of one that is too long for the context."""
    if not (sent := chat.images):
        with about(chat.where):
            return len(_encode(model, chat, access)[0])
    vision = model.vision(sent[0].where)

    def count(picture: Picture) -> int:
        return vision.count(vision.tiles(picture))

    texts, counts = open_images(model.conversation(chat.messages), access.fetch, count)
    return vision.count_prompt(partial(_encode_messages, model, chat), texts, counts)


def _encode_messages(
    model: Model, chat: Chat, messages: Sequence[Mapping[str, Any]], markers: Mapping[str, int]
) -> list[int]:
    shown, tools = shown_tools(model.template, messages, chat.tools.offered, **chat.extra)
    return encode_chat(
        model.tokenizer,
        model.template,
        shown,
        tools,
        add_generation_prompt=chat.opens_answer,
        markers=markers or None,
        **chat.extra,
    )


def _encode_conversation(
    model: Model, chat: Chat, access: ImageAccess
) -> tuple[list[int], tuple[EmbeddedImage, ...]]:
    whole, encode = model.conversation(chat.messages), partial(_encode_messages, model, chat)
    images: tuple[EmbeddedImage, ...] = ()
    if sent := chat.images:
        vision = model.vision(sent[0].where)
        texts, tiles = open_images(whole, access.fetch, cutter(vision, model.engine.n_ctx, access.max_bytes))
        ids, images = vision.chat_prompt(encode, texts, tiles)
    else:
        ids = encode(whole, {})
    if chat.beginning:
        ids = [*ids, *model.tokenizer.encode_fragment(chat.beginning, model.engine.images.visible(ids))]
    return ids, images


def _encode_with_media(
    model: Model, prompt: Text, access: ImageAccess
) -> tuple[list[int], tuple[EmbeddedImage, ...]]:
    vision = model.vision(prompt.images[0].where)
    tiles = open_sent(prompt.images, access.fetch, cutter(vision, model.engine.n_ctx, access.max_bytes))
    return vision.text_prompt(model.tokenizer, prompt.text, tiles)


def check_fits(model: Model, prompt: Chat | Text) -> None:
    """Refuses texts that cannot fit, before time and memory go into their tokens. (Templates may strip.)"""
    if isinstance(prompt, Chat):
        contents = [message.get("content") for message in prompt.messages]
    else:
        contents = [prompt.text, prompt.suffix]
    texts = [text for content in contents for text in _texts(content)]
    fewest = sum(model.tokenizer.fewest_tokens(text.strip()) for text in texts)
    if fewest >= model.engine.n_ctx:
        with about(prompt.where):
            raise too_long(f"at least {fewest}", model.engine.n_ctx)


def _texts(content: Any) -> list[str]:
    """The texts of a message's content, which may have parts."""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return [text for text in texts if isinstance(text, str)]


def check_room(n_tokens: int, n_ctx: int, where: str) -> None:
    """Raises HTTPError for a prompt that leaves no room for an answer."""
    if n_tokens >= n_ctx:
        with about(where):
            raise too_long(str(n_tokens), n_ctx)


def embedding_prompts(
    model: Model, inputs: Sequence[str | Sequence[int]], truncate: bool, where: str
) -> list[list[int]]:
    """Token ids of inputs, which stand in the field `where`. Raises HTTPError."""
    with about(where):
        return _embedding_prompts(model, inputs, truncate, where)


def _embedding_prompts(
    model: Model, inputs: Sequence[str | Sequence[int]], truncate: bool, where: str
) -> list[list[int]]:
    prompts = []
    texts = [text for text in inputs if isinstance(text, str)]
    for i, given in enumerate(() if truncate else inputs):
        if isinstance(given, str):
            check_length(model.tokenizer.fewest_tokens(given), model.engine.n_ctx, f"input {i}")
    encoded = iter(model.tokenizer.encode_all(texts))
    for i, given in enumerate(inputs):
        ids = next(encoded) if isinstance(given, str) else list(given)
        if not ids:
            raise HTTPError(f"input {i} is empty: there is nothing to embed", param=where)
        try:
            model.engine.check_tokens(ids)
        except TokenizerError as error:
            raise HTTPError(f"input {i}: {error}", param=where) from None
        ids = ids[: model.engine.n_ctx] if truncate else ids
        check_length(len(ids), model.engine.n_ctx, f"input {i}")
        prompts.append(ids)
    return prompts
