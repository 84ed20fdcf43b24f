"""From a prompt to a stream of text: read the prompt, then sample, evaluate, decode and look for stop
strings.

The lock given to these functions is held for one step at a time, never while a caller looks at what was
yielded; each generation works on a session of its own, so that others may run between two steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.session import Logits, Progress, Session
from pyllamacpu.errors import ContextError, OptionError, TokenizerError
from pyllamacpu.sampling.sampler import LogitsProcessor, Sampler, SamplingOptions, TokenLogprobs, top_logprobs
from pyllamacpu.sampling.stop import StopMatcher
from pyllamacpu.text.stream import StreamDecoder
from pyllamacpu.text.tokenizer import Tokenizer

TokenIds = npt.NDArray[np.intc]
StoppingCriterion = Callable[[TokenIds, Logits], bool]
FinishReason = Literal["stop", "length"]
Lock = AbstractContextManager[object]


@dataclass(frozen=True)
class GenerationStats:
    """What a generation cost: tokens and seconds. `n_cached` of the `n_prompt` tokens needed no work."""

    n_prompt: int
    n_cached: int
    n_generated: int
    prompt_seconds: float
    generate_seconds: float

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens/s, of those that were evaluated."""
        return _rate(self.n_prompt - self.n_cached, self.prompt_seconds)

    @property
    def generate_rate(self) -> float:
        """Generated tokens/s."""
        return _rate(self.n_generated, self.generate_seconds)


def _rate(n_tokens: int, seconds: float) -> float:
    return n_tokens / seconds if seconds > 0 else 0.0


@dataclass(frozen=True)
class TextEvent:
    """A piece of generated text, never half a character, with the tokens that were sampled for it.

    `logprobs` has one entry per token when they were asked for. The last event of a generation, and only
    that, has a `finish_reason` and `stats`. A token that ends the answer (end of turn) is in no event.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stats: GenerationStats | None = None


@dataclass(frozen=True)
class Request:
    """What to generate. `max_tokens` None: as many as the context holds. `logprobs`: how many alternatives,
    or None.
    """

    prompt: Sequence[int]
    sampling: SamplingOptions
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    processors: tuple[LogitsProcessor, ...] = ()
    criteria: tuple[StoppingCriterion, ...] = ()
    on_prompt: Progress | None = None
    end_tokens: frozenset[int] = frozenset()  # that end the answer, beside the vocabulary's own


def make_sampler(
    options: SamplingOptions,
    session: Session,
    tokenizer: Tokenizer | None,
    processors: Sequence[LogitsProcessor] = (),
) -> Sampler:
    """A sampler for this session's vocabulary and context."""
    if tokenizer is None:
        return Sampler(options, session.n_vocab, n_ctx=session.n_ctx, processors=processors)

    def token_bytes(token: int) -> bytes:
        return tokenizer.token_bytes(token) if token < tokenizer.n_vocab else b""

    def tokenize(text: bytes) -> list[int]:
        return tokenizer.encode(text, add_special=False)

    return Sampler(
        options, session.n_vocab, token_bytes, tokenize, n_ctx=session.n_ctx, processors=processors
    )


class TokenLoop:
    """Samples token after token behind what the session has read.

    `history` is all of it, prompt and answer. A sampled token is evaluated when the next one is asked for, so
    the last one costs nothing.
    """

    def __init__(
        self, session: Session, sampler: Sampler, criteria: Sequence[StoppingCriterion] = ()
    ) -> None:
        self.session = session
        self.sampler = sampler
        self.history = list(session.tokens)
        self._criteria = tuple(criteria)
        self._pending: list[int] = []
        sampler.accept_prompt(self.history)

    def next(self) -> int | None:
        """The next token, or None when a stopping criterion holds. Raises ContextError when the context is
        full.
        """
        if self._pending:
            self.session.append(self._pending)
            self._pending.clear()
        logits = self.session.last
        if logits is None:
            raise OptionError("there are no logits to sample from: evaluate at least one token first")
        if self._criteria and self._should_stop(logits):
            return None
        token = self.sampler.sample(logits)
        self.push([token])
        return token

    def _should_stop(self, logits: Logits) -> bool:
        ids = np.array(self.history, np.intc)
        return any(criterion(ids, logits) for criterion in self._criteria)

    def push(self, tokens: Sequence[int]) -> None:
        """Puts `tokens` behind the history, to be evaluated before the next one is sampled."""
        self.sampler.accept_prompt(tokens)
        self._pending.extend(tokens)
        self.history.extend(tokens)


class StepSampler:
    """Samples one token at a time for a session that its caller moves; the random numbers go on from call to
    call.
    """

    def __init__(self) -> None:
        self._key: tuple[SamplingOptions, tuple[LogitsProcessor, ...]] | None = None
        self._sampler: Sampler | None = None
        self._accepted: list[int] = []

    def sample(
        self,
        session: Session,
        row: Logits,
        options: SamplingOptions,
        tokenizer: Tokenizer | None,
        processors: tuple[LogitsProcessor, ...] = (),
    ) -> int:
        """A token for the logits `row` (n_vocab,), which is not accepted: it may never be evaluated."""
        tokens = list(session.tokens)
        sampler = self._fitting(session, options, tokenizer, processors)
        if tokens[: len(self._accepted)] != self._accepted:
            sampler.set_state({**sampler.get_state(), "history": [], "ids": []})
            self._accepted = []
        sampler.accept_prompt(tokens[len(self._accepted) :])
        self._accepted = tokens
        return sampler.sample(row)

    def _fitting(
        self,
        session: Session,
        options: SamplingOptions,
        tokenizer: Tokenizer | None,
        processors: tuple[LogitsProcessor, ...],
    ) -> Sampler:
        if self._sampler is None or self._key != (options, processors):
            self._key = (options, processors)
            self._sampler = make_sampler(options, session, tokenizer, processors)
            self._accepted = []
        return self._sampler

    def get_state(self) -> Any:
        """Options and state as a picklable value; None before the first call and with processors."""
        if self._sampler is None or self._key is None or self._key[1]:
            return None
        return {"options": self._key[0], "accepted": self._accepted, "state": self._sampler.get_state()}

    def set_state(self, state: Any, session: Session, tokenizer: Tokenizer | None) -> None:
        """Goes on where `get_state` was called."""
        self._sampler = None
        if state is not None:
            self._fitting(session, state["options"], tokenizer, ()).set_state(state["state"])
            self._accepted = list(state["accepted"])


class TextDecoder:
    """Tokens to text that may be shown: whole characters, held back while they could begin a stop string.

    Without a tokenizer there is no text; stop strings then raise TokenizerError.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str]) -> None:
        if tokenizer is None and stop:
            raise TokenizerError(
                "this model has no tokenizer, so it cannot look for stop strings: work with token ids"
            )
        self._n_vocab = 0 if tokenizer is None else tokenizer.n_vocab
        self._stream = None if tokenizer is None else StreamDecoder(tokenizer)
        self._matcher = StopMatcher(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was complete; it is not part of the text."""
        return self._matcher.stopped

    def push(self, token: int) -> str:
        """The text that `token` completes. Ids of padding rows, behind the vocabulary, have none."""
        if self._stream is None or token >= self._n_vocab:
            return ""
        return self._matcher.push(self._stream.push(token))[0]

    def finish(self) -> str:
        """The text that was held back. The bytes of a character that never became whole are left out."""
        return "" if self.stopped else self._matcher.flush()


@dataclass
class _Pending:
    """What was sampled since the last event."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def take(self, text: str) -> TextEvent:
        event = TextEvent(text, tuple(self.tokens), tuple(self.logprobs))
        self.tokens.clear()
        self.logprobs.clear()
        return event


def token_limit(n_prompt: int, max_tokens: int | None, n_ctx: int) -> int:
    """How many tokens may be generated. Raises ContextError when the prompt leaves room for none."""
    if n_prompt >= n_ctx:
        raise ContextError(
            f"the prompt of {n_prompt} tokens leaves no room for an answer in the context of {n_ctx}: "
            "shorten it or raise n_ctx (-c)"
        )
    room = n_ctx - n_prompt
    return room if max_tokens is None else min(max_tokens, room)


def generate_text(
    session: Session, tokenizer: Tokenizer | None, request: Request, sampler: Sampler, lock: Lock
) -> Iterator[TextEvent]:
    """Text events for `request`; the session must be nobody else's until the iterator ends.

    Raises OptionError for an empty prompt and ContextError for one that leaves no room for an answer.
    """
    limit = token_limit(len(request.prompt), request.max_tokens, session.n_ctx)
    decoder = TextDecoder(tokenizer, request.stop)
    started = time.perf_counter()
    with lock:
        n_cached = session.read(request.prompt, request.on_prompt)
        loop = TokenLoop(session, sampler, request.criteria)
    read = time.perf_counter()
    ends = request.end_tokens if tokenizer is None else request.end_tokens | tokenizer.eog
    pending = _Pending()
    n_generated, text = 0, ""
    reason: FinishReason = "length"
    while n_generated < limit:
        with lock:
            token = loop.next()
        if token is None or token in ends:
            reason = "stop"
            break
        n_generated += 1
        pending.tokens.append(token)
        if request.logprobs is not None and session.last is not None:
            pending.logprobs.append(top_logprobs(session.last, token, request.logprobs))
        text = decoder.push(token)
        if decoder.stopped:
            reason = "stop"
            break
        if text or tokenizer is None:
            yield pending.take(text)
            text = ""
    stats = GenerationStats(
        len(request.prompt), n_cached, n_generated, read - started, time.perf_counter() - read
    )
    last = pending.take(text + decoder.finish())
    yield TextEvent(last.text, last.tokens, last.logprobs, reason, stats)
