"""The engine as the commands see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllamacpu.cli.images import ImageFile, described
from pyllamacpu.errors import ModelError

if TYPE_CHECKING:
    from pyllamacpu import Llama
    from pyllamacpu.cli.adapter_options import AdapterFiles
    from pyllamacpu.cli.session import OnPrompt
    from pyllamacpu.images.tiles import Tiles
    from pyllamacpu.model.lora import Adapter
    from pyllamacpu.sampling.grammar import Grammar
    from pyllamacpu.sampling.options import SamplingOptions
    from pyllamacpu.text import Tokenizer


def tokenizer_of(llm: Llama) -> Tokenizer:
    """The model's tokenizer. Raises ModelError for a file that has none."""
    tokenizer = llm.text_tokenizer
    if tokenizer is None:
        raise ModelError(
            f"{llm.model_path}: this file has no tokenizer, so it can only be used with token ids in Python"
        )
    return tokenizer


def without_end(options: SamplingOptions, tokenizer: Tokenizer) -> SamplingOptions:
    """`options` that never choose a token which ends the text, as llama-cli's --ignore-eos does it."""
    never = [(token, -math.inf) for token in sorted(tokenizer.eog)]
    return replace(options, logit_bias=[*options.logit_bias, *never])


class ChatEngine:
    """A loaded model as a conversation needs it: see `session.Engine`."""

    def __init__(self, llm: Llama) -> None:
        self.llm = llm
        self.tokenizer = tokenizer_of(llm)
        assert llm.template is not None  # there is one wherever there is a tokenizer
        self.template = llm.template
        self.stop_loops = True
        self.form: Grammar | None = None  # that answers must have
        self.offered: Sequence[Mapping[str, Any]] = ()  # tools that the prompt shows
        self._tiles: dict[ImageFile, Tiles] = {}
        self._looked_at: set[ImageFile] = set()
        self._held: Sequence[Any] = ()  # images of the prompt that was made last
        self.on_image: Callable[[], None] = lambda: None  # before an image is looked at, which may take long

    @property
    def warning(self) -> str | None:
        """What a person should know about the chat format or the tokenizer, if anything."""
        notes = [*self.tokenizer.warnings, *([self.template.warning] if self.template.warning else [])]
        return "; ".join(notes) or None

    @property
    def adapters(self) -> list[tuple[Adapter, float]]:
        """The LoRA adapters that are loaded, and the scales at which they are applied."""
        return self.llm.adapters

    def set_adapters(self, scales: dict[int, float]) -> None:
        """From now on adapters are applied at these scales, by their numbers."""
        self.llm.set_adapters(scales)

    def load_adapters(self, files: AdapterFiles) -> None:
        self.llm.load_adapters(files)

    def title(self) -> str:
        """The model's name as its file says it, else the file's name."""
        name = self.llm.metadata.get("general.name")
        file_name = Path(self.llm.model_path).name
        return f"{name} ({file_name})" if name else file_name

    def n_ctx(self) -> int:
        """The size of the context in tokens."""
        return self.llm.n_ctx()

    def encode(self, text: str) -> list[int]:
        """Tokens of a text that stands inside a conversation."""
        return self.tokenizer.encode(text, add_special=False)

    def default_system(self) -> str | None:
        """The system prompt that the template puts where there is none, if any."""
        from pyllamacpu.text.default_system import default_system

        return default_system(self.template)

    def render(self, messages: list[dict[str, Any]]) -> list[int]:
        """Tokens of the conversation, ending where the answer begins."""
        from pyllamacpu.text import encode_chat

        if any(isinstance(message.get("content"), list) for message in messages):
            from pyllamacpu.api.tools import ChatTools

            self._look(messages)
            shown = [self._with_tiles(message) for message in messages]
            offer = ChatTools(tuple(self.offered))
            ids, self._held = self.llm.chat_prompt(self.tokenizer, self.template, shown, offer)
            return ids
        self._held = ()
        if not self.offered:
            return encode_chat(self.tokenizer, self.template, messages)
        from pyllamacpu.api.tools import shown_tools

        return encode_chat(self.tokenizer, self.template, *shown_tools(self.template, messages, self.offered))

    def describe(self, image: ImageFile) -> str:
        """What an image is to the model. Raises ImageError, OptionError for a model that reads none."""
        vision = self.llm.vision
        return described(image, self._tiles_of(image), vision)

    @property
    def reads_images(self) -> bool:
        return self.llm.reads_images

    def _tiles_of(self, image: ImageFile) -> Tiles:
        if image not in self._tiles:
            self._tiles[image] = image.tiles(self.llm.vision)
        return self._tiles[image]

    def _look(self, messages: Sequence[Mapping[str, Any]]) -> None:
        """Tells of images that are looked at for the first time, when no answer has begun yet."""
        contents = [message["content"] for message in messages if isinstance(message.get("content"), list)]
        images = {part["image"] for content in contents for part in content if part["type"] == "image"}
        if images - self._looked_at:
            self._looked_at |= images
            self.on_image()

    def _with_tiles(self, message: dict[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        if not isinstance(content, list):
            return message
        parts = [
            part | {"image": self._tiles_of(part["image"])} if part["type"] == "image" else part
            for part in content
        ]
        return message | {"content": parts}

    def stream(
        self,
        prompt_tokens: list[int],
        options: Any,
        max_tokens: int | None,
        stop: Sequence[str],
        on_prompt: OnPrompt | None,
        n_said: int = 0,
    ) -> Iterator[Any]:
        """The answer as the engine's text events; the chat format's own ends stop it too."""
        from pyllamacpu.api.prompts import stop_token_ids

        more: dict[str, Any] = {"images": self._held} if self._held else {}
        ends = stop_token_ids(self.tokenizer, self.template)
        stops = (*stop, *self.template.stop_strings)
        return self.llm.stream(
            prompt_tokens,
            options,
            max_tokens,
            stops,
            on_prompt,
            end_tokens=ends,
            stop_loops=self.stop_loops,
            grammar=self.form,
            n_said=n_said,
            **more,
        )
