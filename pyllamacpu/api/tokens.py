"""What the `Llama` class does with token ids: evaluate, sample, generate, logits, state."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.api.busy import Busy, closed_error
from pyllamacpu.api.caches import BaseLlamaCache
from pyllamacpu.api.compat import as_functions
from pyllamacpu.api.grammar import chosen_grammar
from pyllamacpu.api.image_calls import ImageCalls, image_list
from pyllamacpu.api.loading import LoadedModel, kv_limit, make_scheduler
from pyllamacpu.api.overrides import generate_by_hand, is_overridden
from pyllamacpu.api.prompts import warn_retired
from pyllamacpu.api.sampling_arguments import SamplingKeywords, sampling_options, with_sampling
from pyllamacpu.api.state import LlamaState, check_same_model, check_state, saved_scores
from pyllamacpu.engine.driver import Driver, Stream
from pyllamacpu.engine.engine import Engine
from pyllamacpu.engine.generate import Request, StepSampler, TextEvent
from pyllamacpu.engine.handle import Handle
from pyllamacpu.engine.session import Logits, Session, park_one
from pyllamacpu.engine.token_ids import check_length, check_tokens, common_prefix
from pyllamacpu.errors import ContextError, ModelError, OptionError, TokenizerError
from pyllamacpu.sampling.grammar import CompiledGrammar, Grammar, GrammarCompiler
from pyllamacpu.sampling.options import MAX_SEED, RANDOM_SEED, SamplingOptions
from pyllamacpu.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from pyllamacpu.engine.page_files import PageFiles

STREAMED_AHEAD = 2  # events of a stream that may lie unread before it is passed over


class Tokens(ImageCalls):
    """The calls of the `Llama` class that work on token ids.

    Whatever generates is a request to the scheduler, so that calls of several threads, and streams that are
    suspended, run side by side. The session is the sequence of the newest call, for looking at and for going
    on by hand (`eval`, `sample`, `save_state`); one that a request works on is forked before it is changed.
    """

    def __init__(
        self,
        parts: LoadedModel,
        *,
        logits_all: bool,
        seed: int | None,
        last_n_tokens_size: int,
        kv_bytes: int | None = None,
        disk: PageFiles | None = None,
    ) -> None:
        self._parts = parts
        self._logits_all = logits_all
        self.last_n_tokens_size = last_n_tokens_size
        self._busy = Busy()
        self.cache: BaseLlamaCache | None = None
        self._handle: Handle | None = None  # the request that works on the session, or did
        self._step_sampler = StepSampler()
        self._grammars: GrammarCompiler | None = None
        self.set_seed(seed)
        if parts.engine is not None:
            parts.engine.cache.limit_bytes = kv_limit(parts.engine, kv_bytes)
            self._driver = Driver(make_scheduler(parts.engine, parts.tokenizer, disk, drafts=parts.drafts))
            self._own_session = Session(parts.engine, keep_all=logits_all)
            self._driver.sessions.add(self._own_session)

    # The session

    @property
    def engine(self) -> Engine:
        """The engine. Raises ModelError after close() and for vocab_only."""
        self._busy.check()
        if self._parts.engine is None:
            raise ModelError("this Llama was opened with vocab_only=True and has no weights; open it without")
        return self._parts.engine

    @property
    def text_tokenizer(self) -> Tokenizer | None:
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
        return 0 if self.text_tokenizer is None else self.text_tokenizer.n_vocab

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
        """The session, for looking at."""
        assert self.engine is not None
        return self._own_session

    @contextmanager
    def _at_rest(self) -> Iterator[None]:
        """For `with`: no other thread steps or changes the session meanwhile."""
        assert self.engine is not None
        with self._driver.paused(), self._busy.lock:
            self._busy.check()
            yield

    def _changing(self, anew: bool = False) -> Session:
        """The session, for changing: a fork of it while a request works on it. Only at rest. anew: its tokens
        are not needed.
        """
        session, handle = self._session, self._handle
        if not anew:
            session.unpark(self._driver.make_room)
        if session.to_save or (handle is not None and not handle.is_finished):
            self._own_session = session.fork()
            self._driver.sessions.add(self._own_session)
            self._abandon(session, handle)
        self._handle = None
        return self._own_session

    def _abandon(self, session: Session, handle: Handle | None) -> None:
        """The session is no longer this object's."""
        if session.to_save:
            return
        if handle is not None and not handle.is_finished:
            handle.forget_session()
        else:
            session.close()

    def _submit(self, request: Request, ahead: int | None, is_saved: bool = False) -> Stream:
        """Hands a request to the scheduler. Its sequence becomes the session. is_saved: it is left as it is
        until its `to_save` is taken back.
        """
        stream = None
        try:
            with self._busy.lock:
                old = self._session
                if self._handle is None:  # moved by hand: the scheduler has not seen its pages
                    self._driver.prefixes.insert(old.sequence)
                session = Session(self.engine, keep_all=self._logits_all)
                session.inherit_scores(old, common_prefix(list(old.tokens), list(request.prompt)))
                session.to_save = is_saved
                stream = self._driver.submit(replace(request, session=session), ahead)
                before, self._own_session, self._handle = self._handle, session, stream.handle
                self._abandon(old, before)
            return stream
        except BaseException:  # an interrupt, whose traceback may be kept
            if stream is not None:
                stream.close()
            raise

    @property
    def n_tokens(self) -> int:
        """Tokens evaluated so far; setting it to less forgets those behind."""
        return len(self._session)

    @n_tokens.setter
    def n_tokens(self, n: int) -> None:
        with self._at_rest():
            if not hasattr(n, "__index__") or not 0 <= n <= self.n_tokens:
                raise OptionError(f"n_tokens can only be set to 0 to {self.n_tokens}, not {n!r:.80}")
            self._changing().truncate(n)

    @property
    def input_ids(self) -> npt.NDArray[np.intc]:
        """(n_ctx,): the evaluated tokens, then zeros."""
        tokens = self._session.visible_tokens
        ids = np.zeros(max(len(tokens), self.n_ctx()), np.intc)
        ids[: len(tokens)] = tokens
        return ids

    @input_ids.setter
    def input_ids(self, ids: npt.ArrayLike) -> None:
        """The first `n_tokens` of them become the evaluated tokens; those that differ are evaluated."""
        with self._at_rest():
            wanted = np.asarray(ids).tolist()[: self.n_tokens]
            n = common_prefix(self._session.visible_tokens, wanted)
            more = self._checked_ids(wanted[n:])
            session = self._changing()
            session.truncate(n)
            session.append(more)

    @property
    def _input_ids(self) -> npt.NDArray[np.intc]:
        return np.array(self._session.visible_tokens, np.intc)

    @property
    def eval_tokens(self) -> deque[int]:
        return deque(self._session.visible_tokens, maxlen=self._session.n_ctx)

    @property
    def scores(self) -> Logits:
        """Logits behind each evaluated token: (n_ctx, n_vocab) with logits_all.

        Otherwise (n_tokens, n_vocab), at least one row, of which only the last is filled. `sample` draws from
        what is written into the last row.
        """
        with self._at_rest():
            return self._session.writable_scores()

    @scores.setter
    def scores(self, rows: npt.ArrayLike) -> None:
        """Rows (n, n_vocab) as `scores` gives them; others raise OptionError."""
        mine = self.scores
        try:
            new = np.asarray(rows, np.float32)
        except (TypeError, ValueError) as error:
            raise OptionError(f"scores: {error}") from None
        if new.shape != mine.shape:
            raise OptionError(f"scores has the shape {mine.shape}, not {new.shape}")
        mine[:] = new

    @property
    def _scores(self) -> Logits:
        with self._at_rest():
            return self.scores[: self.n_tokens]

    @property
    def eval_logits(self) -> deque[list[float]]:
        """Logits behind the evaluated tokens; without logits_all only behind the last one."""
        with self._at_rest():
            session = self._session
            rows = saved_scores(session).tolist()
            return deque(rows, maxlen=1 if session.scores is None else session.n_ctx)

    # Calls

    def reset(self) -> None:
        """Forgets all tokens."""
        with self._at_rest():
            self._changing(anew=True).truncate(0)

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluates token ids behind those evaluated before.

        Raises TokenizerError for ids outside the vocabulary, ContextError when they do not fit.
        """
        with self._at_rest():
            session = self._changing()
            session.append(self._checked_ids(tokens))

    def logits(self, tokens: Sequence[int], images: Sequence[Any] = ()) -> Logits:
        """Logits (n_tokens, n_vocab) float32 behind each of `tokens` as a sequence of its own.

        `images` take the places of the model's placeholders among the tokens, row by row: each a path, bytes,
        an open binary file, a data URL, a picture of PIL, an array (height, width, 3) uint8, or pixels as
        processors give them (`pixel_values`). The session stays as it is. Raises OptionError for no tokens,
        TokenizerError, ContextError, ImageError.
        """
        images = image_list(images)
        ids = check_tokens(tokens, self.vision.n_ids) if images else self._checked_ids(tokens)
        if not ids:
            raise OptionError("logits() needs at least one token")
        check_length(len(ids), self.engine.n_ctx)
        held: Any = ()  # while they are read
        if images:
            ids, held = self.vision.prompt(ids, images)
        with self._at_rest():
            found = None
            while found is None:
                sequence = self.engine.sequence()
                try:
                    found = np.ascontiguousarray(self.engine.eval(sequence, ids, logits="all"))
                except ContextError:
                    if not (park_one(self._driver.sessions) or self._driver.make_room()):
                        raise
                finally:
                    sequence.close()
            del held
            return found

    @with_sampling(
        "top_k top_p min_p typical_p temp repeat_penalty frequency_penalty presence_penalty tfs_z "
        "mirostat_mode mirostat_eta mirostat_tau penalize_nl logits_processor grammar idx"
    )
    def sample(
        self,
        *,
        tfs_z: float = 1.0,
        penalize_nl: bool = True,
        logits_processor: Any = None,
        grammar: Any = None,
        idx: int | None = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> int:
        """A token to follow the evaluated ones; it is not evaluated yet. `idx`: to follow that position
        instead.

        Calls with the same options continue one series of random numbers. `sampling` takes any other field of
        SamplingOptions. Raises OptionError when nothing was evaluated.
        """
        if grammar is not None:
            raise OptionError("grammar: a single token has no form; give it to generate() or a completion")
        if idx is not None and (isinstance(idx, bool) or not isinstance(idx, (int, np.integer))):
            raise OptionError(f"idx={idx!r:.80}: give a position, a whole number")
        warn_retired(tfs_z, penalize_nl)
        options = self._options("sample", sampling, self._seed)
        with self._at_rest():
            session = self._session
            row = session.row(idx)
            if row is None:
                raise OptionError("there are no logits to sample from: call eval() first")
            return self._step_sampler.sample(
                session, row, options, self.text_tokenizer, as_functions("logits_processor", logits_processor)
            )

    @with_sampling(
        "tokens top_k top_p min_p typical_p temp repeat_penalty reset frequency_penalty "
        "presence_penalty tfs_z mirostat_mode mirostat_tau mirostat_eta penalize_nl logits_processor "
        "stopping_criteria grammar"
    )
    def generate(
        self,
        tokens: Sequence[int],
        *,
        reset: bool = True,
        tfs_z: float = 1.0,
        penalize_nl: bool = True,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        grammar: Any = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> Generator[int, Sequence[int] | None, None]:
        """Yields token ids to follow `tokens`, without end: end tokens are yielded like others.

        With `reset` the sequence becomes `tokens` (a common prefix is reused), otherwise they are put behind
        it. Ids given to the generator's `send` are put behind the token that was yielded last. With a
        `grammar` it ends with the form. Raises ContextError when the context is full, OptionError.
        """
        form = self.compiled(chosen_grammar(grammar))
        warn_retired(tfs_z, penalize_nl)
        options = self._options("generate", sampling, self._seed)
        ids = self._checked_ids(tokens)
        if is_overridden(self, Tokens, "eval", "sample"):
            keywords = {**sampling, "logits_processor": logits_processor}
            return generate_by_hand(
                self, ids, reset, as_functions("stopping_criteria", stopping_criteria), form, keywords
            )
        request = Request(
            ids,
            options,
            processors=as_functions("logits_processor", logits_processor),
            criteria=as_functions("stopping_criteria", stopping_criteria),
            penalize_prompt=False,
            endless=True,
            grammar=form,
        )
        return self._generate(request, reset)

    def _generate(self, request: Request, reset: bool) -> Generator[int, Sequence[int] | None, None]:
        if not reset:
            with self._at_rest():
                before = self._session
                images = tuple(before.images.values())
                request = replace(request, prompt=[*before.tokens, *request.prompt], images=images)
        stream = None
        try:
            stream = self._submit(request, ahead=0)
            while (event := stream.next().text) is not None and event.finish_reason is None:
                more = yield event.tokens[0]
                if more is not None:
                    with self._driver.paused():
                        stream.handle.push(self._checked_ids(more))
        finally:
            if stream is not None:
                stream.close()

    def _events(
        self,
        request: Request,
        on_prompt: Callable[[int, int], None] | None,
        ahead: int | None,
        save: Callable[[LlamaState], None] | None = None,
    ) -> Iterator[TextEvent]:
        """The text events of a request; `save` gets the state behind the last one."""
        request = replace(request, progress=on_prompt is not None)
        stream = session = None
        try:
            stream = self._submit(request, ahead, is_saved=save is not None)
            session = stream.session
            while True:
                event = stream.next()
                if event.progress is not None and on_prompt is not None:
                    on_prompt(*event.progress)
                if event.text is not None:
                    yield event.text
                if event.is_last:
                    break
            if save is not None and session is not None:
                with self._at_rest():
                    state = self._state_of(session)
                save(state)
        finally:
            if stream is not None:
                stream.close()
            if session is not None:
                session.to_save = False

    def compiled(self, grammar: Grammar | None) -> CompiledGrammar | None:
        """`grammar` for this vocabulary. Raises OptionError for what cannot be enforced."""
        if grammar is None:
            return None
        if self.text_tokenizer is None:
            raise TokenizerError("this model has no tokenizer: its answers cannot be given a form")
        if self._grammars is None:
            self._grammars = GrammarCompiler(self.text_tokenizer)
        return self._grammars.compile(grammar)

    # Seeds and options

    def set_seed(self, seed: int | None) -> None:
        """The seed that the seeds of coming calls are drawn from; None, -1 and 2^32 - 1 are a new random one
        each time.
        """
        seed = RANDOM_SEED if seed is None else seed
        SamplingOptions(seed=RANDOM_SEED if seed == MAX_SEED else seed)  # checks the range
        self._seed = RANDOM_SEED if seed == MAX_SEED else int(seed)
        self._seeds = random.Random(self._seed)

    def _next_seed(self) -> int:
        return RANDOM_SEED if self._seed == RANDOM_SEED else self._seeds.randrange(MAX_SEED)

    def _options(self, function: str, keywords: SamplingKeywords, seed: int) -> SamplingOptions:
        return sampling_options(function, keywords, seed, self.last_n_tokens_size)

    # State

    def save_state(self) -> LlamaState:
        """The session with its cache, its logits and the random numbers, as a picklable value."""
        with self._at_rest():
            return self._state_of(self._session)

    def _state_of(self, session: Session) -> LlamaState:
        """Only at rest."""
        data = session.save(self._driver.make_room)
        return LlamaState(
            input_ids=np.array(session.visible_tokens, np.intc),
            scores=saved_scores(session),
            n_tokens=len(session),
            llama_state=data,
            llama_state_size=len(data),
            seed=self._seed,
            model=self._fingerprint(),
            seeds=self._seeds.getstate(),
            sampler=self._step_sampler.get_state(),
            weights=self._parts.weights_digest,
        )

    def load_state(self, state: LlamaState) -> None:
        """Goes on where `save_state` was called. With logits_all, the tokens of a state without all logits
        are evaluated again.

        Raises ModelError for one of another model, cache type or precision, OptionError for no saved state.
        """
        state = check_state(state, self.n_vocab(), self.engine.n_embeddings)
        with self._at_rest():
            check_same_model(state, self._fingerprint(), self._parts.weights_digest)
            session = self._changing(anew=True)
            check_length(state.n_tokens, session.n_ctx)
            session.load(state.llama_state, state.tokens, state.last, state.all_scores)
            if state.seeds is not None:
                self._seed = state.seed
                self._seeds.setstate(state.seeds)
                self._step_sampler.set_state(state.sampler, session, self.text_tokenizer)

    @abstractmethod
    def _fingerprint(self) -> tuple[Any, ...]:
        """What a saved state must agree on."""

    def close(self) -> None:
        """Frees the model. Calling it again does nothing."""
        steps = nullcontext() if self._parts.engine is None else self._driver.paused()
        with steps, self._busy.lock:
            if not self._busy.closed:
                self._busy.closed = True
                if self._parts.engine is not None:
                    self._driver.close(closed_error())
                    self._own_session.close()
                self._parts.close()
