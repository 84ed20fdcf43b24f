"""The calls of the `Llama` class that are about images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyllamacpu.api.prompts import check_messages
from pyllamacpu.engine.images import EmbeddedImage
from pyllamacpu.engine.session import Logits
from pyllamacpu.engine.token_ids import check_tokens
from pyllamacpu.errors import OptionError

if TYPE_CHECKING:
    from pyllamacpu.api.loading import LoadedModel
    from pyllamacpu.api.tools import ChatTools
    from pyllamacpu.api.vision import Vision
    from pyllamacpu.engine.engine import Engine
    from pyllamacpu.text.template import ChatTemplate
    from pyllamacpu.text.tokenizer import Tokenizer


class ImageCalls(ABC):
    """Images of a model that is opened."""

    _parts: LoadedModel

    @property
    @abstractmethod
    def engine(self) -> Engine: ...

    @property
    def vision(self) -> Vision:
        """The model's images. Raises OptionError when it has no vision tower."""
        if self._parts.vision is None:
            from pyllamacpu.engine.tower_files import missing_tower

            raise missing_tower(self.engine.file.paths[0], self.engine.config.arch, self.engine.file)
        return self._parts.vision

    @property
    def reads_images(self) -> bool:
        """Whether the model has a vision tower."""
        return self._parts.vision is not None

    def _checked_ids(self, tokens: Iterable[int]) -> list[int]:
        """Ids of the vocabulary, as ints. Raises TokenizerError for any other."""
        return self.engine.check_tokens(tokens)

    def chat_prompt(
        self, tokenizer: Tokenizer, template: ChatTemplate, messages: Any, offer: ChatTools
    ) -> tuple[list[int], tuple[EmbeddedImage, ...]]:
        """A conversation as token ids, and the images that are in it: parts of the types image and image_url,
        whose images are in any form that `logits` takes. Raises TemplateError, ImageError, OptionError.
        """
        from pyllamacpu.api.tools import chat_ids

        if not any(map(has_images, messages if isinstance(messages, (list, tuple)) else ())):
            return chat_ids(tokenizer, template, check_messages(messages), offer), ()
        from pyllamacpu.images.parts import take_images

        vision = self.vision
        texts, images = take_images(messages, vision.tiles_of)
        checked = check_messages(texts, with_images=True)
        return vision.chat_prompt(
            lambda shown, markers: chat_ids(tokenizer, template, shown, offer, markers), checked, images
        )

    def _placed(
        self, tokens: Sequence[int], images: Sequence[Any]
    ) -> tuple[list[int], tuple[EmbeddedImage, ...]]:
        """Checked ids, the images among them in their places: given as such, or placed already. Raises
        TokenizerError, ImageError, OptionError.
        """
        images = image_list(images)
        if any(not isinstance(image, EmbeddedImage) for image in images):
            return self.vision.prompt(check_tokens(tokens, self.vision.n_ids), images)
        known = self.engine.images
        if any(known.get(image.digest) is not image for image in images):
            raise OptionError("an image was embedded by another model: give the picture itself")
        return known.check_ids(tokens, self.engine.n_vocab), tuple(images)

    def image_features(self, image: Any) -> Logits:
        """What the vision tower makes of an image (in any form that `logits` takes): (n_rows, n_embd) float32
        that take the places of its tokens, or that the model's layers attend to (Llama 3.2 Vision).
        Raises ImageError, OptionError.
        """
        embedded = self.vision.embed(image)
        rows: Logits = (embedded.rows if embedded.states is None else embedded.states).copy()
        return rows


def image_list(images: Any) -> Sequence[Any]:
    """The argument `images`: a list, one image alone, or None for none."""
    if images is None:
        return ()
    return images if isinstance(images, (list, tuple)) else [images]


def has_images(message: Any) -> bool:
    """Whether a message has parts that are images."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, (list, tuple)):
        return False
    from pyllamacpu.images.parts import has_image

    return any(map(has_image, content))
