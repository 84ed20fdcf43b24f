"""The half of the `Llama` class that knows token ids only: evaluate, sample, generate, logits, state."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.api.compat import as_tuple
from pyllamacpu.api.loading import LoadedModel
from pyllamacpu.api.prompts import refuse_grammar, warn_retired
from pyllamacpu.api.sampling_arguments import sampling_options
from pyllamacpu.api.state import LlamaState
from pyllamacpu.engine.engine import Engine
from pyllamacpu.engine.generate import (
    LogitsProcessor,
    Request,
    StepSampler,
    TextEvent,
    TokenLoop,
    generate_text,
    make_sampler,
)
from pyllamacpu.engine.session import Logits, Session, check_length, check_tokens
from pyllamacpu.errors import ContextError, ModelError, OptionError
from pyllamacpu.sampling.options import MAX_SEED, RANDOM_SEED, SamplingOptions
from pyllamacpu.text.tokenizer import Tokenizer


class Turn:
    """The lock that calls queue on; entering it when the model has been closed raises ModelError."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.closed = False

    def __enter__(self) -> None:
        self.lock.acquire()
        if self.closed:
            self.lock.release()
            raise ModelError("this Llama has been closed; open the model again")

    def __exit__(self, *_: object) -> None:
        self.lock.release()


class TokenLevel:
    """One kept sequence over an engine, with the calls that move it. All calls queue on one lock.

    A generator holds the lock only while it computes. While one is suspended, other calls get a fork of the
    kept sequence, which becomes the kept one; the generator goes on with its own.
    """

    def __init__(self, parts: LoadedModel, *, logits_all: bool, seed: int, last_n_tokens_size: int) -> None:
        self._parts = parts
        self._logits_all = logits_all
        self.last_n_tokens_size = last_n_tokens_size
        self._turn = Turn()
        self._lent = False  # a suspended generator works on the kept session
        self._kept: Session | None = None
        self._step_sampler = StepSampler()
        self.set_seed(seed)
        if parts.engine is not None:
            self._kept = _new_session(parts.engine, logits_all)

    # The kept sequence

    @property
    def engine(self) -> Engine:
        """The engine. Raises ModelError after close() and for vocab_only."""
        if self._turn.closed:
            raise ModelError("this Llama has been closed; open the model again")
        if self._parts.engine is None:
            raise ModelError("this Llama was opened with vocab_only=True and has no weights; open it without")
        return self._parts.engine

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, or None for a file without one."""
        return self._parts.tokenizer

    def n_ctx(self) -> int:
        """Tokens in the context; for vocab_only what the model was trained with."""
        engine = self._parts.engine
        return self._stated("context_length") if engine is None else engine.n_ctx

    def n_vocab(self) -> int:
        """Tokens in the vocabulary: the length of a row of logits."""
        if self._parts.engine is not None:
            return self._parts.engine.n_vocab
        return 0 if self.tokenizer is None else self.tokenizer.n_vocab

    def n_embd(self) -> int:
        """Elements of a hidden state, and of an embedding."""
        engine = self._parts.engine
        return self._stated("embedding_length") if engine is None else engine.dim

    def _stated(self, key: str) -> int:
        """A number that the file states under its architecture's name, else 0."""
        value = self._parts.metadata.get(f"{self._parts.metadata.get('general.architecture')}.{key}")
        return value if isinstance(value, int) else 0

    @property
    def _session(self) -> Session:
        """The kept session, for looking at."""
        assert self.engine is not None
        assert self._kept is not None
        return self._kept

    def _own(self) -> Session:
        """The kept session, for changing: a fork of it while a suspended generator works on it."""
        session = self._session
        if self._lent:
            self._kept, self._lent = session.fork(), False
        return self._session

    @contextmanager
    def _borrowed(self) -> Iterator[Session]:
        """The kept session for as long as a generator lives."""
        with self._turn:
            session = self._own()
            self._lent = True
        try:
            yield session
        finally:
            with self._turn.lock:
                if session is self._kept:
                    self._lent = False
                elif not self._turn.closed:
                    session.close()

    @property
    def n_tokens(self) -> int:
        """Tokens evaluated so far; setting it to less forgets those behind."""
        return len(self._session)

    @n_tokens.setter
    def n_tokens(self, n: int) -> None:
        with self._turn:
            if not 0 <= n <= self.n_tokens:
                raise OptionError(f"n_tokens can only be set to 0 to {self.n_tokens}, not {n}")
            self._own().truncate(n)

    @property
    def input_ids(self) -> npt.NDArray[np.intc]:
        """(n_ctx,): the evaluated tokens, then zeros."""
        ids = np.zeros(self._session.n_ctx, np.intc)
        ids[: self.n_tokens] = self._session.tokens
        return ids

    @property
    def _input_ids(self) -> npt.NDArray[np.intc]:
        return np.array(self._session.tokens, np.intc)

    @property
    def eval_tokens(self) -> deque[int]:
        return deque(self._session.tokens, maxlen=self._session.n_ctx)

    @property
    def scores(self) -> Logits:
        """Logits behind each evaluated token: (n_ctx, n_vocab) with logits_all.

        Otherwise (n_tokens, n_vocab), at least one row, of which only the last is filled.
        """
        session = self._session
        if session.scores is not None:
            return session.scores
        rows = np.zeros((max(len(session), 1), session.n_vocab), np.float32)
        if session.last is not None:
            rows[-1] = session.last
        return rows

    @property
    def _scores(self) -> Logits:
        return self.scores[: self.n_tokens]

    @property
    def eval_logits(self) -> deque[list[float]]:
        """Logits behind the evaluated tokens; without logits_all only behind the last one."""
        session = self._session
        if session.scores is not None:
            return deque(session.scores[: len(session)].tolist(), maxlen=session.n_ctx)
        return deque([] if session.last is None else [session.last.tolist()], maxlen=1)

    # Calls

    def reset(self) -> None:
        """Forgets all tokens."""
        with self._turn:
            self._own().truncate(0)

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluates token ids behind those evaluated before.

        Raises TokenizerError for ids outside the vocabulary, ContextError when they do not fit.
        """
        with self._turn:
            session = self._own()
            session.append(check_tokens(tokens, session.n_vocab))

    def logits(self, tokens: Sequence[int]) -> Logits:
        """Logits (n_tokens, n_vocab) float32 behind each of `tokens` as a sequence of its own.

        The kept sequence stays as it is. Raises OptionError for no tokens, TokenizerError, ContextError.
        """
        with self._turn:
            ids = check_tokens(tokens, self.engine.n_vocab)
            if not ids:
                raise OptionError("logits() needs at least one token")
            check_length(len(ids), self.engine.n_ctx)
            sequence = self.engine.sequence()
            try:
                return np.ascontiguousarray(self.engine.eval(sequence, ids, logits="all"))
            finally:
                sequence.close()

    def sample(
        self,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_eta: float = 0.1,
        mirostat_tau: float = 5.0,
        penalize_nl: bool = True,
        logits_processor: Any = None,
        grammar: Any = None,
        idx: int | None = None,
        **sampling: Any,
    ) -> int:
        """A token to follow the evaluated ones; it is not evaluated yet. `idx`: to follow that position
        instead.

        Calls with the same options continue one series of random numbers. `sampling` takes any other field of
        SamplingOptions. Raises OptionError when nothing was evaluated.
        """
        refuse_grammar(grammar)
        warn_retired(tfs_z, penalize_nl)
        options = self._options("sample", locals(), sampling, seed=self._seed)
        with self._turn:
            session = self._session
            row = session.last if idx is None or idx == len(session) - 1 else self._row(session, idx)
            if row is None:
                raise OptionError("there are no logits to sample from: call eval() first")
            return self._step_sampler.sample(
                session, row, options, self.tokenizer, as_tuple(logits_processor)
            )

    def _row(self, session: Session, idx: int) -> Logits:
        if session.scores is None or not 0 <= idx < len(session):
            raise OptionError(
                f"idx={idx}: only the last position has logits, unless the model is opened with logits_all"
            )
        return session.scores[idx]

    def generate(
        self,
        tokens: Sequence[int],
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        typical_p: float = 1.0,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        reset: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        tfs_z: float = 1.0,
        mirostat_mode: int = 0,
        mirostat_tau: float = 5.0,
        mirostat_eta: float = 0.1,
        penalize_nl: bool = True,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        grammar: Any = None,
        **sampling: Any,
    ) -> Generator[int, Sequence[int] | None, None]:
        """Yields token ids to follow `tokens`, without end: end tokens are yielded like others.

        With `reset` the sequence becomes `tokens` (a common prefix is reused), otherwise they are put behind
        it. Ids given to the generator's `send` are put behind the token that was yielded last. Raises
        ContextError when the context is full.
        """
        refuse_grammar(grammar)
        warn_retired(tfs_z, penalize_nl)
        options = self._options("generate", locals(), sampling, seed=self._seed)
        ids = check_tokens(tokens, self.engine.n_vocab)
        return self._generate(ids, reset, options, as_tuple(logits_processor), as_tuple(stopping_criteria))

    def _generate(
        self,
        tokens: list[int],
        reset: bool,
        options: SamplingOptions,
        processors: tuple[LogitsProcessor, ...],
        criteria: tuple[Any, ...],
    ) -> Generator[int, Sequence[int] | None, None]:
        with self._borrowed() as session:
            with self._turn:
                if reset:
                    session.read(tokens)
                else:
                    session.append(tokens)
                loop = TokenLoop(
                    session, make_sampler(options, session, self.tokenizer, processors), criteria
                )
            while True:
                with self._turn:
                    token = loop.next()
                if token is None:
                    return
                more = yield token
                if more is not None:
                    loop.push(check_tokens(more, session.n_vocab))

    def _events(self, request: Request) -> Iterator[TextEvent]:
        """The text events of a generation on the kept sequence."""
        with self._borrowed() as session:
            sampler = make_sampler(request.sampling, session, self.tokenizer, request.processors)
            yield from generate_text(session, self.tokenizer, request, sampler, self._turn)

    # Seeds and options

    def set_seed(self, seed: int) -> None:
        """The seed that the seeds of coming calls are drawn from; -1 (or 2^32 - 1) is a new random one each
        time.
        """
        SamplingOptions(seed=RANDOM_SEED if seed == MAX_SEED else seed)  # checks the range
        self._seed = RANDOM_SEED if seed == MAX_SEED else int(seed)
        self._seeds = random.Random(self._seed)

    def _next_seed(self) -> int:
        return RANDOM_SEED if self._seed == RANDOM_SEED else self._seeds.randrange(MAX_SEED)

    def _options(
        self, function: str, arguments: dict[str, Any], more: dict[str, Any], seed: int
    ) -> SamplingOptions:
        return sampling_options(function, arguments, more, seed, self.last_n_tokens_size)

    # State

    def save_state(self) -> LlamaState:
        """The kept sequence with its cache, its logits and the random numbers, as a picklable value."""
        with self._turn:
            session = self._session
            return LlamaState(
                model=self._fingerprint(),
                tokens=tuple(session.tokens),
                llama_state=session.sequence.save(),
                last=session.last,
                scores=None if session.scores is None else session.scores[: len(session)].copy(),
                seed=self._seed,
                seeds=self._seeds.getstate(),
                sampler=self._step_sampler.get_state(),
            )

    def load_state(self, state: LlamaState) -> None:
        """Goes on where `save_state` was called. Raises ModelError for another model or cache type."""
        with self._turn:
            if state.model != self._fingerprint():
                raise ModelError(
                    f"the state is of another model or cache type: {state.model}, here {self._fingerprint()}"
                )
            session = self._own()
            check_length(state.n_tokens, session.n_ctx)
            session.load(state.llama_state, state.tokens, state.last, state.scores)
            self._seed = state.seed
            self._seeds.setstate(state.seeds)
            self._step_sampler.set_state(state.sampler, session, self.tokenizer)

    def _fingerprint(self) -> tuple[Any, ...]:
        """What a saved state must agree on."""
        raise NotImplementedError

    def close(self) -> None:
        """Frees the model. Calling it again does nothing."""
        with self._turn.lock:
            if not self._turn.closed:
                self._turn.closed = True
                if self._kept is not None:
                    self._kept.close()
                self._parts.close()


def _new_session(engine: Any, keep_all: bool) -> Session:
    try:
        return Session(engine, keep_all=keep_all)
    except MemoryError:
        raise ContextError(
            f"logits_all needs {engine.n_ctx} x {engine.n_vocab} float32 values, more than fit in memory: "
            "lower n_ctx"
        ) from None
