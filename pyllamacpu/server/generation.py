"""The one request type of all dialects, and its way to the engine.

A dialect makes `Generate`s (or asks for embeddings); `Service` turns their prompts into token ids off the
event loop, submits them, and gives back their events.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pyllamacpu.api.prompts import stop_token_ids, text_prompt
from pyllamacpu.api.tools import NO_TOOLS, ChatTools, shown_tools
from pyllamacpu.engine.generate import GenerationStats, HiddenRequest, Request, TextEvent
from pyllamacpu.engine.images import EmbeddedImage
from pyllamacpu.engine.leaving import Leaving
from pyllamacpu.engine.pooling import NONE, pool
from pyllamacpu.engine.token_ids import check_length
from pyllamacpu.errors import TokenizerError
from pyllamacpu.model.lora import AdapterScales
from pyllamacpu.safety.shield import Conversation, Piece, Shield, blocked
from pyllamacpu.safety.shield_scanners import Finding
from pyllamacpu.sampling.grammar import Grammar
from pyllamacpu.sampling.options import MAX_SEED, RANDOM_SEED, SamplingOptions
from pyllamacpu.server.engine_thread import EngineThread, EventStream
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
from pyllamacpu.server.line_limits import LineLimits
from pyllamacpu.server.metrics import Metrics
from pyllamacpu.server.models import Model, ModelPool
from pyllamacpu.store.created import ModelCard
from pyllamacpu.text import encode_chat
from pyllamacpu.text.infill import infill_prompt

if TYPE_CHECKING:
    from pyllamacpu.images.picture import Picture

Result = TypeVar("Result")

_THREADS = 4  # that render templates, tokenize and build grammars
_IMAGE_THREADS = 2  # that fetch and decode images, and run towers: texts do not wait for them


@dataclass(frozen=True)
class Chat:
    """A conversation, for the model's chat template. `beginning`: of the answer, to be gone on with."""

    messages: Sequence[Mapping[str, Any]]
    beginning: str = ""
    tools: ChatTools = NO_TOOLS
    extra: Mapping[str, Any] = field(default_factory=dict)  # variables of the template

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


@dataclass(frozen=True)
class Generate:
    """What to generate, whatever dialect asked for it."""

    prompt: Chat | Text
    sampling: SamplingOptions
    max_tokens: int | None = None  # None: as many as the context holds
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # alternatives beside each token, or None
    n: int = 1  # answers to one prompt; each has the seed behind the one before it
    ignore_eos: bool = False
    grammar: Grammar | None = None
    adapters: AdapterScales | None = None  # that are applied; None: the model's own
    limits: LineLimits | None = None
    stop_loops: bool | None = None  # end an answer that repeats itself; None: as the server does it
    draft: bool = True  # tokens may be guessed ahead, where the model is served so


class Answers:
    """The answers to the requests of one HTTP request, as they come. Answers are numbered through."""

    def __init__(self, service: Service, model: Model, requests: Sequence[Generate]) -> None:
        self.model = model
        self.prompts: list[list[int]] = []
        self.stats: dict[int, GenerationStats] = {}
        self._service = service
        self._requests = requests
        self._stream = EventStream(service.thread, model.scheduler)
        self._leaving = Leaving()
        self._later: dict[int, list[tuple[int, Request]]] = {}  # by the answer whose prompt they share
        self._blocked: dict[int, tuple[Finding, ...]] = {}  # answers that there will not be, and why

    def submit(self, refused: Sequence[tuple[Finding, ...]] = ()) -> None:
        """Tokenizes the prompts and submits the first answer to each: the others wait until its prompt is
        read, so that it is read once. `refused`: what keeps a prompt from being answered. Not for the event
        loop.
        """
        model = self.model
        with self._leaving.watched():
            prompts = [encode_prompt(model, asked.prompt, self._service.images) for asked in self._requests]
        for ids, _ in prompts:
            check_room(len(ids), model.engine.n_ctx)
        self.prompts, index = [ids for ids, _ in prompts], 0
        for number, (request, (ids, images)) in enumerate(zip(self._requests, prompts, strict=True)):
            if refused and refused[number]:
                self._blocked |= dict.fromkeys(range(index, index + request.n), refused[number])
                index += request.n
                continue
            first = engine_request(model, request, ids, images)
            seeded = [replace(first, sampling=_with_seed(first.sampling, i)) for i in range(request.n)]
            self._later[index] = [(index + i, seeded[i]) for i in range(1, request.n)]
            self._stream.submit(index, first)
            index += request.n

    @property
    def n_answers(self) -> int:
        return sum(request.n for request in self._requests)

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompts; one that gets several answers counts once."""
        return sum(map(len, self.prompts))

    @property
    def n_cached(self) -> int:
        """Of those, tokens that were found in the cache."""
        firsts = np.cumsum([0, *(request.n for request in self._requests[:-1])]).tolist()
        return sum(self.stats[first].n_cached for first in firsts if first in self.stats)

    @property
    def n_generated(self) -> int:
        return sum(stats.n_generated for stats in self.stats.values())

    @property
    def finished(self) -> list[GenerationStats]:
        """Of the answers that were given; not of prompts that got none."""
        return [stats for index, stats in self.stats.items() if index not in self._blocked]

    def pieces(self) -> AsyncIterator[Piece]:
        """The events of all answers, in the order of their coming, as far as the guard lets them pass."""
        shield = self._service.shield
        if shield is None:
            return self._pieces()
        return shield.watch(self._pieces(), self._conversation, lambda i: len(self._prompt_of(i)), self._end)

    def _prompt_of(self, answer: int) -> list[int]:
        return self.prompts[self._number(answer)]

    def _number(self, answer: int) -> int:
        """Of the request that an answer is for."""
        ends = np.cumsum([request.n for request in self._requests])
        return int(np.searchsorted(ends, answer, "right"))

    def _conversation(self, answer: int) -> Conversation:
        return conversation_of(self.model, self._requests[self._number(answer)].prompt)

    def _end(self, answer: int, stats: GenerationStats) -> None:
        self.stats[answer] = stats
        self._stream.end(answer)

    async def _pieces(self) -> AsyncIterator[Piece]:
        for index, findings in self._blocked.items():
            self.stats[index] = GenerationStats(len(self._prompt_of(index)), 0, 0, 0.0, 0.0)
            yield Piece(index, blocked(self.stats[index], findings))
        while len(self.stats) < self.n_answers:
            index, event = await self._stream.next()
            if siblings := self._later.pop(index, None):
                await self._service.off_loop(self._submit_siblings, siblings)
            if event.text is not None:
                if event.text.stats is not None:
                    self.stats[index] = event.text.stats
                yield Piece(index, event.text)

    def _submit_siblings(self, siblings: Sequence[tuple[int, Request]]) -> None:
        for index, request in siblings:
            self._stream.submit(index, request)

    async def whole(self) -> list[list[TextEvent]]:
        """All events of each answer."""
        found: list[list[TextEvent]] = [[] for _ in range(self.n_answers)]
        async for index, event in self.pieces():
            found[index].append(event)
        return found

    def close(self) -> None:
        """Ends what is not over, images that are read included."""
        self._leaving.leave()
        if self._stream.close():
            self._service.metrics.cancelled.inc()


class Service:
    """Prompts to token ids, requests to schedulers, within the limits of the queue."""

    def __init__(
        self,
        pool: ModelPool,
        thread: EngineThread,
        metrics: Metrics,
        max_queue: int,
        shield: Shield | None = None,
        images: ImageAccess = NO_URLS,
    ) -> None:
        self.models = pool
        self.images = images
        self.shield = shield
        self.thread = thread
        self.metrics = metrics
        self.max_queue = max_queue
        self.n_active = 0  # answers that are asked for and not over
        self.draining = False
        self._workers = ThreadPoolExecutor(_THREADS, thread_name_prefix="prompts")
        self._image_workers = ThreadPoolExecutor(_IMAGE_THREADS, thread_name_prefix="images")

    async def off_loop(
        self, function: Callable[..., Result], *arguments: Any, with_images: bool = False
    ) -> Result:
        """Runs `function` in a thread of the pool; its errors become `HTTPError`s."""
        workers = self._image_workers if with_images else self._workers
        try:
            return await asyncio.get_running_loop().run_in_executor(workers, function, *arguments)
        except HTTPError:
            raise
        except Exception as error:
            raise as_http_error(error) from error

    @asynccontextmanager
    async def places(self, n: int) -> AsyncIterator[None]:
        """Room for `n` answers in the queue, for as long as the block lasts. HTTPError (503) without it."""
        limit = self.models.options.parallel + self.max_queue
        if self.draining:
            raise HTTPError("the server is shutting down", status=503, retry_after=5)
        if n > limit:
            raise HTTPError(f"{n} answers at once; this server has room for {limit}", code="too_many")
        if self.n_active + n > limit:
            self.metrics.refused.inc()
            raise HTTPError("the queue is full", status=503, code="queue_full", retry_after=1)
        self.n_active += n
        try:
            yield
        finally:
            self.n_active -= n

    @asynccontextmanager
    async def generate(self, model: Model, requests: Sequence[Generate]) -> AsyncIterator[Answers]:
        """Submits `requests`; they are ended when the block is left. Raises HTTPError."""
        async with self.places(sum(request.n for request in requests)):
            answers = Answers(self, model, requests)
            try:
                images = any(request.prompt.images for request in requests)
                refused = await self._refused(model, requests)
                await self.off_loop(answers.submit, refused, with_images=images)
                yield answers
            finally:
                answers.close()
                self.metrics.count(answers.finished)

    async def _refused(self, model: Model, requests: Sequence[Generate]) -> list[tuple[Finding, ...]]:
        """What is found in each prompt that keeps it from being answered."""
        if self.shield is None:
            return []
        for request in requests:  # before time goes into what is far too long
            await self.off_loop(_check_length, model, request.prompt)
        conversations = [conversation_of(model, request.prompt) for request in requests]
        return await asyncio.gather(*map(self.shield.judge_prompt, conversations))

    async def embed(
        self,
        model: Model,
        inputs: Sequence[str | Sequence[int]],
        normalize: bool = True,
        truncate: bool = False,
        by_token: bool = False,
    ) -> tuple[list[Any], int]:
        """A vector for each input, of length 1 if `normalize`, and the number of tokens. All inputs run in
        one batch. `truncate`: a text that is too long loses its end. `by_token`: with pooling "none" there
        is a vector for each token; without it that is an error.
        """
        if model.pooling == NONE and not by_token:
            raise HTTPError("with --pooling none a text has no one vector: ask /embedding for its tokens'")
        async with self.places(1):
            prompts = await self.off_loop(_embedding_prompts, model, inputs, truncate)
            stream = EventStream(self.thread, model.scheduler)
            vectors: dict[int, Any] = {}
            try:
                for i, prompt in enumerate(prompts):
                    stream.submit(i, HiddenRequest(prompt, model.adapters))
                for _ in prompts:
                    i, event = await stream.next()
                    assert event.hidden is not None
                    vectors[i] = pool(event.hidden, model.pooling, normalize)
            finally:
                stream.close()
        return [vectors[i] for i in range(len(prompts))], sum(map(len, prompts))

    def close(self) -> None:
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._image_workers.shutdown(wait=False, cancel_futures=True)
        if self.shield is not None:
            self.shield.close()


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
    """Token ids of a prompt without images. Raises TemplateError, TokenizerError, OptionError, HTTPError."""
    return encode_prompt(model, prompt)[0]


def encode_prompt(
    model: Model,
    prompt: Chat | Text,
    access: ImageAccess = NO_URLS,
) -> tuple[list[int], tuple[EmbeddedImage, ...]]:
    """Token ids of a prompt, those of images' rows below 0, and its images. Raises what `prompt_ids` does,
    and ImageError.
    """
    _check_length(model, prompt)
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
    """Of its prompt, for which no image is embedded."""
    if not (sent := chat.images):
        return len(prompt_ids(model, chat))
    _check_length(model, chat)
    vision = model.vision(sent[0].where)

    def count(picture: Picture) -> int:
        return vision.count(vision.tiles(picture))

    texts, counts = open_images(model.conversation(chat.messages), access.fetch, count)
    return vision.count_prompt(partial(_encode_messages, model, chat), texts, counts)


def _encode_messages(
    model: Model, chat: Chat, messages: Sequence[Mapping[str, Any]], markers: Mapping[str, int]
) -> list[int]:
    shown, tools = shown_tools(model.template, messages, chat.tools.offered, **chat.extra)
    return encode_chat(model.tokenizer, model.template, shown, tools, markers=markers or None, **chat.extra)


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


def engine_request(
    model: Model, request: Generate, ids: Sequence[int], images: tuple[EmbeddedImage, ...] = ()
) -> Request:
    """The engine's request for one answer."""
    chat = isinstance(request.prompt, Chat)
    template = model.template if chat else None
    sampling = request.sampling
    if request.ignore_eos:
        never = [(token, float("-inf")) for token in sorted(model.tokenizer.eog)]
        sampling = replace(sampling, logit_bias=[*sampling.logit_bias, *never])
    own = model.card or ModelCard(model.name)
    stop_loops, limits = request.stop_loops, request.limits
    if stop_loops is None:  # who wants no end gets none; a form may have parts that repeat
        stop_loops = model.stop_loops and not request.ignore_eos and request.grammar is None
    return Request(
        ids,
        sampling,
        max_tokens=own.max_tokens if request.max_tokens is None else request.max_tokens,
        stop=(*(request.stop or own.stop), *(template.stop_strings if template else ())),
        logprobs=request.logprobs,
        end_tokens=stop_token_ids(model.tokenizer, template) if template else frozenset(),
        stop_loops=stop_loops,
        grammar=None if request.grammar is None else model.grammars.compile(request.grammar),
        adapters=model.adapters if request.adapters is None else request.adapters,
        draft=request.draft,
        images=images,
        criteria=() if limits is None else (limits.criterion(model.tokenizer, len(ids)),),
    )


def _check_length(model: Model, prompt: Chat | Text) -> None:
    """Refuses texts that cannot fit, before time and memory go into their tokens. (Templates may strip.)"""
    if isinstance(prompt, Chat):
        contents = [message.get("content") for message in prompt.messages]
    else:
        contents = [prompt.text, prompt.suffix]
    texts = [text for content in contents for text in _texts(content)]
    fewest = sum(model.tokenizer.fewest_tokens(text.strip()) for text in texts)
    if fewest >= model.engine.n_ctx:
        raise too_long(f"at least {fewest}", model.engine.n_ctx)


def _texts(content: Any) -> list[str]:
    """The texts of a message's content, which may have parts."""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return [text for text in texts if isinstance(text, str)]


def check_room(n_tokens: int, n_ctx: int) -> None:
    if n_tokens >= n_ctx:
        raise too_long(str(n_tokens), n_ctx)


def _with_seed(options: SamplingOptions, i: int) -> SamplingOptions:
    """The options of answer number `i`: a given seed goes up by one from answer to answer."""
    if i == 0 or options.seed == RANDOM_SEED:
        return options
    return replace(options, seed=(options.seed + i) % MAX_SEED)


def _embedding_prompts(
    model: Model, inputs: Sequence[str | Sequence[int]], truncate: bool
) -> list[list[int]]:
    prompts = []
    texts = [text for text in inputs if isinstance(text, str)]
    for text in () if truncate else texts:
        check_length(model.tokenizer.fewest_tokens(text), model.engine.n_ctx)
    encoded = iter(model.tokenizer.encode_all(texts))
    for i, given in enumerate(inputs):
        ids = next(encoded) if isinstance(given, str) else list(given)
        if not ids:
            raise HTTPError(f"input {i} is empty: there is nothing to embed", param="input")
        try:
            model.engine.check_tokens(ids)
        except TokenizerError as error:
            raise HTTPError(f"input {i}: {error}", param="input") from None
        ids = ids[: model.engine.n_ctx] if truncate else ids
        check_length(len(ids), model.engine.n_ctx)
        prompts.append(ids)
    return prompts
