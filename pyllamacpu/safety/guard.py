"""Llama Guard 1 to 4: whether what was said last in a conversation is safe, and what it violates.

The score is what the model cards name: softmax over {safe, unsafe} at the first token of the answer that is
not blank. The answer is constrained: nothing but a verdict comes out, of categories that were asked for.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence, Set
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from pyllamacpu.api.llama import Llama
from pyllamacpu.api.prompts import as_texts
from pyllamacpu.errors import ContextError, ModelError, OptionError, TemplateError
from pyllamacpu.images.parts import take_images
from pyllamacpu.safety.conversation import Role, judged_part, words_of
from pyllamacpu.safety.guard_prompts import (
    PROBE_WITH_IMAGE,
    chosen_categories,
    guard_template,
    listed_categories,
    with_categories,
)
from pyllamacpu.sampling.grammar import Grammar
from pyllamacpu.sampling.options import SamplingOptions
from pyllamacpu.text.chat import encode_chat
from pyllamacpu.text.missing import missing_messages

if TYPE_CHECKING:
    from pyllamacpu.engine.images import EmbeddedImage
    from pyllamacpu.text import Tokenizer

_MAX_BLANKS = 4  # tokens of white space before a verdict
_GREEDY = SamplingOptions(temperature=0.0)


class Verdict(NamedTuple):
    """`verdict` is "safe" or "unsafe"; `categories` are the keys that are violated, as the model names them
    (none when safe); `probability` is that of "unsafe", 0 to 1.
    """

    verdict: Literal["safe", "unsafe"]
    categories: tuple[str, ...]
    probability: float


class Guard:
    """A guard model.

        guard = Guard("Llama-Guard-3-1B.Q8_0.gguf")
        verdict, categories, probability = guard.check("How do I tie a bowline?")

    Args:
        model: an opened `Llama`, or a GGUF file or name of a model as `Llama` takes it.
        categories: the keys to judge by, or key → "Name. What it means" for a policy of one's own; None is
            the model's own list.
        exclude: keys to leave out of it.
        threshold: the probability of "unsafe" from which that is the verdict.
        options: more arguments of `Llama`, when it is opened here; `n_ctx` is what the model was trained for.
    """

    def __init__(
        self,
        model: Llama | str | os.PathLike[str],
        *,
        categories: Mapping[str, str] | Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        threshold: float = 0.5,
        **options: Any,
    ) -> None:
        if not isinstance(threshold, (int, float, np.integer, np.floating)) or not 0 < threshold < 1:
            raise OptionError(f"threshold={threshold!r}: give a number between 0 and 1")
        if options and isinstance(model, Llama):
            raise OptionError(f"{', '.join(options)}: the model is open already; give its path to open it so")
        self.threshold = float(threshold)
        self._opened_here = not isinstance(model, Llama)
        self.llm = (
            model if isinstance(model, Llama) else Llama(model, **{"n_ctx": 0, "verbose": False, **options})
        )
        try:
            self._prepare(categories, exclude)
        except BaseException:
            self.close()
            raise

    def _prepare(self, wanted: Mapping[str, str] | Sequence[str] | None, exclude: Sequence[str]) -> None:
        path = self.llm.model_path
        tokenizer = self.llm.text_tokenizer
        if tokenizer is None:
            raise ModelError(f"{path} has no tokenizer, so it cannot judge texts")
        self._tokenizer = tokenizer
        self.template = guard_template(self.llm.template, self.llm.metadata, path)
        listed = listed_categories(self.template)
        if wanted is not None and not isinstance(wanted, Mapping):
            wanted = as_texts("categories", wanted)
        self.categories = chosen_categories(listed, wanted, as_texts("exclude", exclude))
        if self.categories != listed:
            for words in self.categories.values():
                if spelled := next(
                    (name for name in tokenizer.special_tokens if name and name in words), None
                ):
                    raise OptionError(f"a category's text must not hold the control token {spelled}")
            self.template = with_categories(self.template, self.categories)
        self._of_images = self._listed_with_images()
        safe, self._unsafe_word = (_answer_tokens(tokenizer, word) for word in ("safe", "unsafe"))
        self._safe, self._unsafe = safe[0], self._unsafe_word[0]
        if self._safe == self._unsafe:
            raise ModelError(f"{path}: its vocabulary does not tell safe from unsafe by their first tokens")
        self._blanks = _blank_tokens(tokenizer, self.llm.n_vocab())
        longest = max(map(len, self.categories))
        self._max_answer = 8 + (longest + 1) * len(self.categories)  # tokens of "unsafe" and all categories

    def _listed_with_images(self) -> Set[str]:
        """The categories that the template asks about where an image is: Llama Guard 4 leaves one out."""
        try:
            found = listed_categories(self.template, PROBE_WITH_IMAGE)
        except TemplateError:  # it takes texts only
            found = {}
        return found.keys() or self.categories.keys()

    def check(self, conversation: str | Sequence[Mapping[str, Any]], role: Role | None = None) -> Verdict:
        """Judges the last message of a conversation, or the last one of `role` ("user", "agent").

        A text is a user's message; else messages as {"role": "user" or "assistant", "content": text or
        parts}, beginning with a user's. Parts are texts and, for guards that read them (3 11B Vision, 4),
        images as chats have them. Raises OptionError for what cannot be judged, TemplateError when a message
        would not reach the prompt, ContextError for a conversation that is too long, ImageError.
        """
        messages = judged_part(conversation, role)
        fewest = sum(self._tokenizer.fewest_tokens(words_of(message).strip()) for message in messages)
        self._check_room(fewest, "at least ")  # before time goes into the tokens of what is far too long
        ids, images = self.question(messages)
        self._check_room(len(ids))
        blanks, safe, unsafe = self._first_verdict(ids, images)
        probability = 1 / (1 + math.exp(min(safe - unsafe, 700.0)))
        if probability < self.threshold:
            return Verdict("safe", (), probability)
        answer = [*ids, *blanks, *self._unsafe_word]
        return Verdict("unsafe", self._violated(answer, images), probability)

    @property
    def reads_images(self) -> bool:
        """Whether the model has a vision tower at hand."""
        return self.llm.reads_images

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The token ids of the guard's question about the messages. Raises TemplateError."""
        return self.question(messages)[0]

    def question(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[int], tuple[EmbeddedImage, ...]]:
        """Likewise, with the images that stand in it. Raises ImageError, OptionError too."""
        _check_messages(messages)
        if not any(isinstance(message["content"], list) for message in messages):
            return self._encoded(messages), ()
        vision = self.llm.vision
        shown, images = take_images(messages, vision.tiles_of)
        if len(images) > 1 and self.llm.engine.config.arch == "mllama":
            raise OptionError(f"this guard judges one image at a time, and there are {len(images)}")
        return vision.chat_prompt(self._encoded, shown, images)

    def _encoded(
        self, messages: Sequence[Mapping[str, Any]], markers: Mapping[str, int] | None = None
    ) -> list[int]:
        text = self.template.render(messages)
        if missing := missing_messages(text, messages):
            raise TemplateError(f"{self.template.name} leaves out all or some of message {missing[0]}")
        return encode_chat(self._tokenizer, self.template, messages, markers=markers)

    def _check_room(self, n_prompt: int, about: str = "") -> None:
        n_ctx = self.llm.n_ctx()
        if n_prompt + _MAX_BLANKS + self._max_answer > n_ctx:
            raise ContextError(
                f"the guard's question about this conversation has {about}{n_prompt} tokens, which leaves no "
                f"room for a verdict in the guard's context of {n_ctx}: shorten the conversation, or "
                "give the guard a larger context"
            )

    def _first_verdict(
        self, ids: Sequence[int], images: tuple[EmbeddedImage, ...] = ()
    ) -> tuple[list[int], float, float]:
        """(blank tokens before the verdict, logit of safe, logit of unsafe)."""
        verdicts = np.array([self._safe, self._unsafe])
        with_blanks = np.concatenate([verdicts, self._blanks])
        logits: list[tuple[float, float]] = []

        def only_verdicts(_: np.ndarray, scores: np.ndarray) -> np.ndarray:
            logits.append((float(scores[self._safe]), float(scores[self._unsafe])))
            allowed = with_blanks if len(logits) <= _MAX_BLANKS else verdicts
            constrained = np.full_like(scores, -np.inf)
            constrained[allowed] = scores[allowed]
            return constrained

        tokens: list[int] = []
        events = self.llm.stream(
            ids,
            _GREEDY,
            _MAX_BLANKS + 1,
            logits_processors=[only_verdicts],
            penalize_prompt=False,
            ahead=0,
            images=images,
        )
        for event in events:
            tokens += event.tokens
            if not set(tokens).isdisjoint((self._safe, self._unsafe)):
                break
        n_blanks = next(i for i, token in enumerate(tokens) if token in (self._safe, self._unsafe))
        return tokens[:n_blanks], *logits[n_blanks]

    def _violated(self, ids: Sequence[int], images: tuple[EmbeddedImage, ...] = ()) -> tuple[str, ...]:
        """The categories that the model names behind "unsafe", with which `ids` end, each once."""
        asked = self._of_images & self.categories.keys() if images else self.categories.keys()
        keys = "|".join(re.escape(key) for key in self.categories if key in asked)
        form = Grammar.regex(rf"\n({keys})(,({keys})){{0,{len(asked) - 1}}}")
        events = self.llm.stream(
            ids, _GREEDY, self._max_answer, grammar=form, penalize_prompt=False, images=images
        )
        text = "".join(event.text for event in events)
        named = text.strip().split(",")
        return tuple(dict.fromkeys(key for key in named if key in asked))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the model's weights."""
        return self.llm.engine.weight_bytes

    def close(self) -> None:
        """Closes the model, if it was opened here."""
        if self._opened_here:
            self.llm.close()

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_messages(messages: Any) -> None:
    wrong_kind = isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence)
    if wrong_kind or not all(isinstance(one, Mapping) and "content" in one for one in messages):
        raise OptionError("messages: give a list of {'role': ..., 'content': ...}")


def _answer_tokens(tokenizer: Tokenizer, word: str) -> list[int]:
    """The tokens of `word` at the beginning of an answer, from the first that is not blank."""
    ids = tokenizer.encode(word, add_special=False)
    first = next(i for i, token in enumerate(ids) if tokenizer.token_bytes(token).strip())
    return ids[first:]


def _blank_tokens(tokenizer: Tokenizer, n_vocab: int) -> np.ndarray:
    special = set(tokenizer.special_tokens.values())
    ids = (token for token in range(min(n_vocab, tokenizer.n_vocab)) if token not in special)
    return np.array([i for i in ids if (piece := tokenizer.token_bytes(i)) and not piece.strip()], np.int64)
