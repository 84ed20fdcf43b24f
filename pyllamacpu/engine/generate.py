"""What is asked of a model, and the state of an answer: logits in, tokens and text events out.

Nothing here computes logits: the scheduler does, for many answers at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.images import EmbeddedImage
from pyllamacpu.engine.session import Logits, Session
from pyllamacpu.engine.token_ids import check_length, check_tokens, text_tokens
from pyllamacpu.errors import ContextError, OptionError, TokenizerError
from pyllamacpu.model.lora import AdapterScales
from pyllamacpu.sampling.grammar import CompiledGrammar
from pyllamacpu.sampling.loops import LoopDetector
from pyllamacpu.sampling.rows import Mask
from pyllamacpu.sampling.sampler import LogitsProcessor, Sampler, SamplingOptions, TokenLogprobs, top_logprobs
from pyllamacpu.sampling.stop import StopMatcher
from pyllamacpu.text.stream import StreamDecoder
from pyllamacpu.text.tokenizer import Tokenizer

TokenIds = npt.NDArray[np.intc]
StoppingCriterion = Callable[[TokenIds, Logits], bool]
"""(ids of prompt and answer, the logits after them) -> whether the answer ends. As for logits processors, the
rows of images are not among the ids.
"""
FinishReason = Literal["stop", "length", "loop", "content_filter"]  # the last is the server's


@dataclass(frozen=True)
class GenerationStats:
    """What a generation cost: tokens and seconds. `n_cached` of the `n_prompt` tokens needed no work.
    `n_image` of them stand for images, for which the vision tower worked `image_seconds` before.
    """

    n_prompt: int
    n_cached: int
    n_generated: int
    prompt_seconds: float
    generate_seconds: float
    n_drafted: int = 0  # tokens that were guessed and verified
    n_accepted: int = 0  # of those, tokens that came true
    n_image: int = 0
    image_seconds: float = 0.0

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
    that, has a `finish_reason` and `stats`, and the stop string that ended it, if one did. A token that ends
    the answer (end of turn) is in no event.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: FinishReason | None = None
    stats: GenerationStats | None = None
    stop_string: str | None = None


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
    end_tokens: frozenset[int] = frozenset()  # that end the answer, beside the vocabulary's own
    stop_loops: bool = False  # end the answer, with the reason "loop", when a passage repeats again and again
    penalize_prompt: bool = True  # whether penalties count the prompt, as llama-cli; not in llama-cpp-python
    endless: bool = False  # tokens without text or end, until the context is full: then a ContextError
    progress: bool = False  # events tell how much of the prompt is read
    grammar: CompiledGrammar | None = None  # the form of the answer, which ends when nothing can follow
    adapters: AdapterScales | None = None  # that the model is changed by; None: the engine's own choice
    draft: bool = True  # guess tokens ahead, where the scheduler knows how; endless ones are never guessed
    images: tuple[EmbeddedImage, ...] = ()  # whose ids are in the prompt
    n_said: int = 0  # of the prompt's last tokens: an answer's beginning, which may end inside a character
    session: Session | None = None  # an empty one, which the answer leaves to its owner with its last logits

    def __post_init__(self) -> None:
        if not hasattr(self.n_said, "__index__") or not 0 <= self.n_said <= len(self.prompt):
            raise OptionError(f"n_said={self.n_said!r:.80}: the prompt has {len(self.prompt)} tokens")

    @property
    def n_image(self) -> int:
        """Tokens of the prompt that stand for images."""
        return sum(token < 0 for token in self.prompt) if self.images else 0


@dataclass(frozen=True)
class HiddenRequest:
    """Asks for the states (n_tokens, dim) of a text after the final norm."""

    prompt: Sequence[int]
    adapters: AdapterScales | None = None  # as of a Request


@dataclass(frozen=True)
class ScoreRequest(HiddenRequest):
    """Asks for the log-probabilities of a text's own tokens behind the first, each beside the `n_best`."""

    n_best: int = 0


def make_sampler(
    options: SamplingOptions,
    n_vocab: int,
    n_ctx: int,
    tokenizer: Tokenizer | None,
    processors: Sequence[LogitsProcessor] = (),
) -> Sampler:
    """A sampler for a model's vocabulary and context."""
    if tokenizer is None:
        return Sampler(options, n_vocab, n_ctx=n_ctx, processors=processors)

    def token_bytes(token: int) -> bytes:
        return tokenizer.token_bytes(token) if token < tokenizer.n_vocab else b""

    def tokenize(text: bytes) -> list[int]:
        return tokenizer.encode(text, add_special=False)

    n_tokens = min(tokenizer.n_vocab, n_vocab)
    return Sampler(
        options, n_vocab, token_bytes, tokenize, n_ctx=n_ctx, processors=processors, n_tokens=n_tokens
    )


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
        tokens = text_tokens(session.tokens)
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
            self._sampler = make_sampler(options, session.n_vocab, session.n_ctx, tokenizer, processors)
            self._accepted = []
        return self._sampler

    def get_state(self) -> Any:
        """Options and state as a picklable value; None before the first call and with processors."""
        if self._sampler is None or self._key is None or self._key[1]:
            return None
        return {"options": self._key[0], "accepted": self._accepted, "state": self._sampler.get_state()}

    def set_state(self, state: Any, session: Session, tokenizer: Tokenizer | None) -> None:
        """Goes on where `get_state` was called. Raises OptionError for anything else."""
        self._sampler = None
        if state is None:
            return
        options, inner, accepted = _sampler_parts(state)
        self._fitting(session, options, tokenizer, ()).set_state(inner)
        self._accepted = check_tokens(accepted, session.n_vocab)


def _sampler_parts(state: Any) -> tuple[SamplingOptions, dict[str, Any], list[int]]:
    """Options, state and tokens of what `StepSampler.get_state` returned. Raises OptionError."""
    keys = ("options", "state", "accepted")
    options, inner, accepted = map(state.get, keys) if isinstance(state, dict) else (None, None, None)
    if not (isinstance(options, SamplingOptions) and isinstance(inner, dict) and isinstance(accepted, list)):
        raise OptionError("the saved state of the sampler is damaged, or not of this program")
    return options, inner, accepted


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
        self._n_known = 0  # characters that come next, and are known

    @property
    def stopped(self) -> bool:
        """Whether a stop string was complete; it is not part of the text."""
        return self._matcher.stopped

    @property
    def stop_string(self) -> str | None:
        """The one that was."""
        return self._matcher.matched

    def push(self, token: int) -> str:
        """The text that `token` completes. Ids of padding rows, behind the vocabulary, have none."""
        if self._stream is None or token >= self._n_vocab:
            return ""
        return self._new(self._matcher.push(self._stream.push(token))[0])

    def finish(self) -> str:
        """The text that was held back. The bytes of a character that never became whole are left out."""
        return "" if self.stopped else self._new(self._matcher.flush())

    def _new(self, text: str) -> str:
        n = min(self._n_known, len(text))
        self._n_known -= n
        return text[n:]

    def go_on(self, tokens: Sequence[int]) -> None:
        """The text begins with `tokens`, and is known as far as `push` and `finish` give it. A character or a
        stop string that they begin is completed by what follows.
        """
        for token in tokens:
            self.push(token)
            if self.stopped:  # as nothing stopped there before: the stop strings are others now
                self._matcher.reset()
        self._n_known = self._matcher.n_held


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


class _History:
    """Token ids that grow at the end, as a list and as the array that criteria are given: ids of the
    vocabulary, as the processors' are, without the rows of images.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self._array = np.empty(0, np.intc)
        self._n = 0  # of the array that are filled
        self._n_seen = 0  # tokens that it was filled from

    def array(self) -> TokenIds:
        more = text_tokens(self.tokens[self._n_seen :])
        self._n_seen, n = len(self.tokens), self._n + len(more)
        if n > len(self._array):
            grown = np.empty(max(2 * n, 256), np.intc)
            grown[: self._n] = self._array[: self._n]
            self._array = grown
        self._array[self._n : n] = more
        self._n = n
        copy: TokenIds = self._array[:n].copy()
        return copy


class Generation:
    """The state of one answer. `history` is what it stands on: the prompt, and the tokens chosen so far.

    For the logits behind the history: `must_end` first, then `sampler` chooses a token, then `take`. When
    `reason` is set, `last_event` is all that is left.

    Raises ContextError for a prompt that leaves no room for an answer, OptionError and TokenizerError for a
    request that cannot be served.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer | None, n_vocab: int, n_ctx: int) -> None:
        if request.endless:
            check_length(len(request.prompt), n_ctx)
        self._limit = None if request.endless else token_limit(len(request.prompt), request.max_tokens, n_ctx)
        self._request = request
        self._has_text = tokenizer is not None and not request.endless
        self._decoder = TextDecoder(None if request.endless else tokenizer, request.stop)
        self._decoder.go_on(request.prompt[len(request.prompt) - request.n_said :])
        self._ends = request.end_tokens
        if tokenizer is not None and (not request.endless or request.grammar is not None):
            self._ends |= tokenizer.eog
        self._constraint = None if request.grammar is None else request.grammar.start()
        self._loops = LoopDetector() if request.stop_loops else None
        self._history = _History(request.prompt)
        self._pending = _Pending()
        self._text = ""  # for the last event
        self.sampler = make_sampler(request.sampling, n_vocab, n_ctx, tokenizer, request.processors)
        self.sampler.accept_prompt(text_tokens(request.prompt), request.penalize_prompt)
        self.n_generated = 0
        self.reason: FinishReason | None = None

    @property
    def history(self) -> list[int]:
        return self._history.tokens

    @property
    def n_left(self) -> int | None:
        """Tokens that may still come; None: as many as the context holds."""
        return None if self._limit is None else self._limit - self.n_generated

    def must_end(self, logits: Logits) -> bool:
        """Whether the answer ends here, before another token: the limit is reached or a criterion holds."""
        if self._limit is not None and self.n_generated >= self._limit:
            self.reason = "length"
        elif self._request.criteria:
            ids = self._history.array()
            if any(criterion(ids, logits) for criterion in self._request.criteria):
                self.reason = "stop"
        return self.reason is not None

    def mask(self) -> Mask | None:
        """The tokens that may come next; None: any. Raises OptionError when the grammar gives up."""
        return None if self._constraint is None else self._constraint.mask()

    def take(self, token: int, logits: Logits) -> TextEvent | None:
        """The next token was chosen from `logits` (n_vocab,): the event that it completes."""
        if token in self._ends:
            self.reason = "stop"
            return None
        if self._constraint is not None:
            self._constraint.accept(token)
        self.n_generated += 1
        self._pending.tokens.append(token)
        if self._request.logprobs is not None:
            self._pending.logprobs.append(top_logprobs(logits, token, self._request.logprobs))
        text = self._decoder.push(token)
        if self._decoder.stopped:
            self.reason, self._text = "stop", text
            return None
        self.sampler.accept(token)
        self.history.append(token)
        if self._constraint is not None and self._constraint.is_complete:
            self.reason = "stop"
        elif self.n_generated == self._limit:
            self.reason = "length"
        elif self._loops is not None and self._loops.push(token):
            self.reason = "loop"
        return self._pending.take(text) if text or not self._has_text else None

    def push(self, tokens: Sequence[int]) -> None:
        """Puts `tokens` behind the history."""
        self.sampler.accept_prompt(text_tokens(tokens), self._request.penalize_prompt)
        self.history.extend(tokens)

    def last_event(self, stats: GenerationStats) -> TextEvent:
        """The end: the text that was held back, the reason and what it cost."""
        last = self._pending.take(self._text + self._decoder.finish())
        return TextEvent(last.text, last.tokens, last.logprobs, self.reason, stats, self._decoder.stop_string)
