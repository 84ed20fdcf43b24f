"""The one request type of all dialects, and its way to the engine.

A dialect makes `Generate`s (or asks for embeddings); `Service` turns their prompts into token ids off the
event loop, submits them, and gives back their events.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from pyllamacpu.api.prompts import stop_token_ids
from pyllamacpu.engine.generate import GenerationStats, HiddenRequest, Request, TextEvent
from pyllamacpu.engine.images import EmbeddedImage
from pyllamacpu.engine.leaving import Leaving
from pyllamacpu.engine.pooling import NONE, pool
from pyllamacpu.model.lora import AdapterScales
from pyllamacpu.safety.shield import Conversation, Piece, Shield, blocked
from pyllamacpu.safety.shield_scanners import Finding
from pyllamacpu.sampling.grammar import CompiledGrammar, Grammar, ToolSchemaError
from pyllamacpu.sampling.options import MAX_SEED, RANDOM_SEED, SamplingOptions
from pyllamacpu.server.engine_thread import EngineThread, EventStream
from pyllamacpu.server.errors import HTTPError, as_http_error
from pyllamacpu.server.images import NO_URLS, ImageAccess
from pyllamacpu.server.line_limits import LineLimits
from pyllamacpu.server.metrics import Metrics
from pyllamacpu.server.models import Model, ModelPool
from pyllamacpu.server.prompts import (
    Chat,
    Text,
    check_fits,
    check_room,
    conversation_of,
    embedding_prompts,
    encode_prompt,
)
from pyllamacpu.server.tools import schema_refused
from pyllamacpu.store.created import ModelCard

Result = TypeVar("Result")

_THREADS = 4  # that render templates, tokenize and build grammars
_IMAGE_THREADS = 2  # that fetch and decode images, and run towers: texts do not wait for them


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
        for asked, (ids, _) in zip(self._requests, prompts, strict=True):
            check_room(len(ids), model.engine.n_ctx, asked.prompt.where)
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
            raise HTTPError(
                f"{n} answers at once; this server has room for {limit}", param="n", code="too_many"
            )
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
            await self.off_loop(check_fits, model, request.prompt)
        conversations = [conversation_of(model, request.prompt) for request in requests]
        return await asyncio.gather(*map(self.shield.judge_prompt, conversations))

    async def embed(
        self,
        model: Model,
        inputs: Sequence[str | Sequence[int]],
        normalize: bool = True,
        truncate: bool = False,
        by_token: bool = False,
        where: str = "input",
        adapters: AdapterScales | None = None,
    ) -> tuple[list[Any], int]:
        """A vector for each input, of length 1 if `normalize`, and the number of tokens. All inputs run in
        one batch. `truncate`: a text that is too long loses its end. `by_token`: with pooling "none" there
        is a vector for each token; without it that is an error. `where`: the inputs' field.
        `adapters`: as of an answer's request.
        """
        if model.pooling == NONE and not by_token:
            raise HTTPError("with --pooling none a text has no one vector: ask /embedding for its tokens'")
        async with self.places(1):
            prompts = await self.off_loop(embedding_prompts, model, inputs, truncate, where)
            stream = EventStream(self.thread, model.scheduler)
            vectors: dict[int, Any] = {}
            try:
                for i, prompt in enumerate(prompts):
                    stream.submit(i, HiddenRequest(prompt, model.adapters if adapters is None else adapters))
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
        grammar=_compiled(model, request),
        adapters=model.adapters if request.adapters is None else request.adapters,
        draft=request.draft,
        images=images,
        criteria=() if limits is None else (limits.criterion(model.tokenizer, len(ids)),),
    )


def _compiled(model: Model, request: Generate) -> CompiledGrammar | None:
    """The form of the answer. Raises OptionError, and HTTPError for the schema of a tool."""
    try:
        return None if request.grammar is None else model.grammars.compile(request.grammar)
    except ToolSchemaError as error:
        assert isinstance(request.prompt, Chat)
        raise schema_refused(request.prompt.tools, error) from None


def _with_seed(options: SamplingOptions, i: int) -> SamplingOptions:
    """The options of answer number `i`: a given seed goes up by one from answer to answer."""
    if i == 0 or options.seed == RANDOM_SEED:
        return options
    return replace(options, seed=(options.seed + i) % MAX_SEED)
