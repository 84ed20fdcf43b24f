"""The one way to generate: requests come in, steps mix them, events go out.

A step evaluates one token of each answer that is being written and chunks of the prompts that are being
read, in one call of the engine. Because a token's logits do not depend on the batch, each request gets the
tokens that it would get alone.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from pyllamacpu.engine.admission import begin_reading, fits
from pyllamacpu.engine.batch import Entry, n_wanted
from pyllamacpu.engine.chunks import Unread, share_budget
from pyllamacpu.engine.cost_model import CostModel, StepSize
from pyllamacpu.engine.drafts import DraftSource
from pyllamacpu.engine.generate import Generation, GenerationStats, HiddenRequest, Request
from pyllamacpu.engine.handle import Event, Floats, Handle, step_size, too_long, within_rows
from pyllamacpu.engine.interrupts import Uninterrupted
from pyllamacpu.engine.pages import PAGE, KVCache
from pyllamacpu.engine.pages import Sequence as KVSequence
from pyllamacpu.engine.prefix_cache import PrefixCache
from pyllamacpu.engine.session import Session, park_one
from pyllamacpu.engine.speculation import Speculation, most_drafted
from pyllamacpu.engine.token_ids import check_ids, check_length
from pyllamacpu.errors import ContextError, OptionError, RequestCancelled
from pyllamacpu.native import ending_when
from pyllamacpu.sampling.rows import Mask, prepare_rows
from pyllamacpu.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pyllamacpu.engine.disk_cache import DiskCache

ITL_TARGET = 0.1  # seconds between two tokens of an answer, while prompts are read beside it
_LOADING_LOOK = 0.001  # seconds


class StepEngine(Protocol):
    """The part of an engine that a scheduler uses."""

    @property
    def n_ctx(self) -> int: ...
    @property
    def n_batch(self) -> int: ...
    @property
    def n_vocab(self) -> int: ...
    @property
    def cache(self) -> KVCache: ...
    @property
    def pool(self) -> Any: ...
    def sequence(self) -> KVSequence: ...
    def outputs(self, entries: Sequence[Entry], buffer: Any) -> Any: ...
    def logits_buffer(self, n_rows: int) -> Any: ...
    def exclusive(self) -> Any: ...


class Scheduler:
    """Steps the requests of one engine. `submit` and `cancel` may be called by any thread, `step` by one at a
    time.
    """

    def __init__(
        self,
        engine: StepEngine,
        tokenizer: Tokenizer | None,
        itl_target: float = ITL_TARGET,
        prefixes: PrefixCache | None = None,
        max_running: int | None = None,
        drafts: DraftSource | None = None,
        disk: DiskCache | None = None,
    ) -> None:
        """itl_target: seconds that a step may take while an answer is being written. prefixes: another
        scheduler's of the same engine, to share them. max_running: requests at a time; None: as a step holds.
        drafts: what guesses tokens ahead. disk: where `prefixes` are kept too; closed with the scheduler.
        """
        self.engine = engine
        self.tokenizer = tokenizer
        self.itl_target = itl_target
        self.max_running = min(max_running or engine.n_batch, engine.n_batch)
        self.prefixes = PrefixCache(engine.cache) if prefixes is None else prefixes
        self.disk = disk
        self.on_loaded: Callable[[], None] | None = None  # called by the disk's thread when there is work
        self.costs = CostModel()
        self._speculation = None if drafts is None else Speculation(drafts, self.costs.rows)
        self.n_steps = self.n_evaluated = 0  # steps, and the tokens in them
        self._n_submitted = 0
        self._arrived: deque[Handle] = deque()
        self._waiting: list[Handle] = []
        self._running: list[Handle] = []
        self._events: list[Event] = []
        self._chosen: deque[tuple[Handle, int | Exception]] = deque()  # tokens that are yet to be taken
        self._logits = engine.logits_buffer(1)
        self.sessions: WeakSet[Session] = WeakSet()  # whose pages others may have while they rest

    def submit(self, request: Request | HiddenRequest, owner: Any = None) -> Handle:
        """Takes on a request; its events come from later steps. `owner` is kept at the handle.

        Raises TokenizerError, OptionError, ContextError when it cannot be served.
        """
        prompt = check_ids(request.prompt, self.engine.n_vocab, self.engine.cache.images)
        if not prompt:
            raise OptionError("the prompt is empty: give at least one token")
        generation = None
        if isinstance(request, Request):
            generation = Generation(request, self.tokenizer, self.engine.n_vocab, self.engine.n_ctx)
        else:
            check_length(len(prompt), self.engine.n_ctx)
        self._n_submitted += 1
        handle = Handle(request, self._n_submitted, generation, owner)
        if self._speculation is not None and generation is not None and handle.may_draft:
            handle.drafts = self._speculation.start(generation.history, generation.sampler)
        self._arrived.append(handle)
        return handle

    def cancel(self, handle: Handle) -> None:
        """Ends a request before the next step, and a step that is for cancelled requests only. There is no
        event for it.
        """
        handle.cancelled = True

    def nested(self) -> Scheduler:
        """A scheduler for requests that are made in the middle of a step of this one."""
        inner = Scheduler(self.engine, self.tokenizer, self.itl_target, self.prefixes)  # without a disk
        inner.sessions = self.sessions
        return inner

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._arrived or self._events) or any(h.can_go_on for h in self._unfinished())

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def n_waiting(self) -> int:
        return len(self._waiting) + len(self._arrived)

    def unfinished(self) -> list[Handle]:
        """All requests that are here."""
        return [*self._arrived, *self._unfinished()]

    def _unfinished(self) -> list[Handle]:
        return [*self._waiting, *self._running]

    def step(self) -> list[Event]:
        """Goes one step on with all requests; what happened. Nothing is lost when it is interrupted."""
        self.settle()
        if unsampled := [h for h in self._running if h._row is not None]:
            self._sample_all(unsampled)  # an interrupt came in the middle of the last step
        else:
            self._admit()
            if work := self._plan():
                self._evaluate(work)
            elif any(h.is_loading for h in self._waiting):
                time.sleep(_LOADING_LOOK)  # whoever steps all the time shall not spin
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Ends all requests without events, and lets go of all pages."""
        self.end_all()
        if self.disk is not None:
            self.disk.close()
        self.prefixes.clear()

    def end_all(self) -> None:
        """Ends all requests without events."""
        for handle in self.unfinished():
            self.cancel(handle)
        self.settle()

    def settle(self) -> None:
        """Carries out what was submitted and cancelled since the last step, as each step does first."""
        while self._arrived:
            if self._arrived[0] not in self._waiting:  # not as an interrupt has left it
                self._waiting.append(self._arrived[0])
            self._arrived.popleft()
        for handle in [h for h in self._unfinished() if h.cancelled]:  # also what an interrupt left here
            self._leave(handle)

    # Ending

    def _leave(self, handle: Handle, keep_pages: bool = True) -> None:
        """Takes a request out. Its pages stay in the prefix cache, and with whoever gave it a session."""
        handle.drop_unverified()
        if keep_pages and handle._generation is not None and handle._sequence is not None:
            self.prefixes.insert(handle._sequence)
        if handle._session is None and handle._sequence is not None:
            handle._sequence.close()
        if (session := handle._session) is not None:
            session.history = None
            self.sessions.add(session)
        if handle.drafts is not None:
            handle.drafts.drafter.close()
        running, waiting = ([h for h in hs if h is not handle] for hs in (self._running, self._waiting))
        handle.state, handle._row, self._running, self._waiting = "finished", None, running, waiting

    def _fail(self, handle: Handle, error: Exception) -> None:
        self._events.append(Event(handle, error=error))  # first: an interrupt may come
        self._leave(handle, keep_pages=False)

    def _finish(self, handle: Handle) -> None:
        generation, request, now = handle._generation, handle.request, time.perf_counter()
        assert generation is not None and isinstance(request, Request)
        stats = GenerationStats(
            len(request.prompt),
            handle.n_cached,
            generation.n_generated,
            handle._read_at - handle._admitted_at,
            now - handle._read_at,
            *handle.n_drafted,
            request.n_image,
            sum(image.take_seconds() for image in request.images),
        )
        self._events.append(Event(handle, text=generation.last_event(stats)))
        self._leave(handle)

    # Admission

    def _admit(self) -> None:
        """Lets requests run in the order of their coming, as long as their pages fit."""
        while handle := next((h for h in self._waiting if h.can_go_on), None):
            if handle._sequence is None:
                handle._sequence = self.engine.sequence()
                if handle.request.adapters is not None:
                    handle._sequence.adapters = handle.request.adapters
            claiming = [*self._running, *(h for h in self._waiting if h.is_loading)]
            if claiming and not self._fits(handle, claiming):
                unread = [h for h in self._running if h.paused]
                if not unread:
                    return
                self._preempt(max(unread, key=lambda h: h.number))  # whose reader is slow waits for its own
                continue
            page_seconds = self.costs.seconds(StepSize(prompt=PAGE))
            if self.disk is not None and begin_reading(self.disk, handle, page_seconds, self.on_loaded):
                continue
            self._begin(handle)

    def _fits(self, handle: Handle, claiming: Sequence[Handle]) -> bool:
        if len(claiming) >= self.max_running:
            return False
        return fits(handle, claiming, self.engine.cache, self.prefixes)

    def _begin(self, handle: Handle) -> None:
        handle._admitted_at = handle._admitted_at or time.perf_counter()
        waiting, running = [h for h in self._waiting if h is not handle], [*self._running, handle]
        handle.state, self._waiting, self._running = "reading", waiting, running  # no interrupt comes between
        if handle._generation is not None:
            handle.hold_images()
            n = self.prefixes.extend(handle.sequence, handle.history[: handle.n_reusable])
            handle.n_cached = handle.n_cached or min(n, len(handle.request.prompt))

    def _preempt(self, handle: Handle) -> None:
        """Sends a running request back to wait. It goes on later where it was: its pages are left in the
        prefix cache, and what is gone by then is evaluated again.
        """
        handle.drop_unverified()
        if handle._generation is not None:
            self.prefixes.insert(handle.sequence)
        handle.sequence.truncate(0)
        handle._states.clear()
        handle._looked_up = False
        waiting = sorted([*self._waiting, handle], key=lambda h: h.number)
        running = [h for h in self._running if h is not handle]
        handle.state, self._waiting, self._running = "waiting", waiting, running

    def make_room(self) -> bool:
        """Sends the youngest request back to wait, where one can be; it loses nothing. Between steps."""
        ready = [] if self._chosen else [h for h in self._running if h._row is None]
        if ready:
            self._preempt(max(ready, key=lambda h: h.number))
        return bool(ready)

    def _reserve(self, handle: Handle, n: int) -> bool:
        """Makes room for `n` more tokens, at the expense of sessions that rest, or of the youngest request;
        False when it cannot run in this step.
        """
        while handle.is_running:
            try:
                handle.sequence.prepare(n)
                return True
            except ContextError as error:
                handle.sequence.trim()
                if park_one(self.sessions):
                    continue
                if len(self._running) == 1:
                    self._fail(handle, error)
                else:
                    self._preempt(max(self._running, key=lambda h: h.number))
        return False

    # A step

    def _plan(self) -> list[tuple[Handle, int]]:
        """Who gets how many tokens."""
        decoding: list[Handle] = []
        reading: list[Handle] = []
        n_ctx = self.engine.n_ctx
        for handle in list(self._running):
            handle.forget_draft()
            unread = handle.unread
            if unread <= 0:  # its logits were lost to an interrupt
                handle.sequence.truncate(len(handle.history) - 1)
                unread = 1
            if handle.paused:
                continue
            if len(handle.history) > n_ctx:
                self._fail(handle, too_long(handle, n_ctx))
            elif unread == 1 and handle.state == "decoding":
                decoding.append(handle)
            else:
                reading.append(handle)
        work = [(h, 1) for h in self._rotated(decoding) if h.is_running and self._reserve(h, 1)]
        if reading:
            work += self._plan_prompts([h for h in reading if h.is_running], work)
        work = [(h, n) for h, n in work if h.is_running]
        return work if self._speculation is None or reading else self._with_drafts(self._speculation, work)

    def _with_drafts(
        self, speculation: Speculation, work: list[tuple[Handle, int]]
    ) -> list[tuple[Handle, int]]:
        """The work of a step that only writes answers, with the drafted tokens that it verifies."""
        drafted = [(h, h.drafts) for h, _ in work if h.drafts is not None]
        for handle, drafts in drafted:
            room = self.engine.n_ctx - len(handle.history)
            drafts.room = most_drafted(handle.generation.n_left, room)
        others = len(work) - len(drafted)
        speculation.plan([drafts for _, drafts in drafted], others, self.engine.n_batch)
        for handle, drafts in drafted:
            if drafts.error is not None:
                self._fail(handle, drafts.error)
            elif drafts.draft and not handle.sequence.try_prepare(1 + len(drafts.draft)):
                handle.forget_draft()  # nobody is sent away for a draft
        return [(h, n + len(h.draft)) for h, n in work if h.is_running]

    def _rotated(self, decoding: list[Handle]) -> list[Handle]:
        """As many as a step holds, each in its turn."""
        n, most = len(decoding), self.engine.n_batch
        if n <= most:
            return decoding
        first = self.n_steps * most % n
        return [*decoding[first:], *decoding[:first]][:most]

    def _plan_prompts(
        self, reading: list[Handle], decoding: list[tuple[Handle, int]]
    ) -> list[tuple[Handle, int]]:
        budget = self.engine.n_batch - len(decoding)
        if not reading or budget <= 0:
            return []
        if decoding:
            size = StepSize(0, len(decoding), sum(len(h.sequence) for h, _ in decoding))
            depth = max(len(h.sequence) for h in reading)
            budget = min(budget, self.costs.prompt_budget(self.itl_target, size, depth))
        prompts = [Unread(len(h.sequence), h.unread, h._passed_over) for h in reading]
        work = []
        for handle, n in zip(reading, within_rows(reading, share_budget(prompts, budget)), strict=True):
            handle._passed_over = 0 if n else handle._passed_over + 1
            if n and handle.is_running and self._reserve(handle, n):
                work.append((handle, n))
        return work

    def _evaluate(self, work: list[tuple[Handle, int]]) -> None:
        """Runs the step, then goes on with those whose logits it brought."""
        entries = [handle.entry(n) for handle, n in work]
        rows = [n_wanted(entry.logits, len(entry.tokens)) for entry in entries]
        if len(self._logits) < sum(rows):
            self._logits = self.engine.logits_buffer(sum(rows))
        size = step_size(work)
        started = time.perf_counter()
        try:
            with ending_when(lambda: all(handle.cancelled for handle, _ in work)):
                hidden = self.engine.outputs(entries, self._logits).hidden
        except RequestCancelled:
            return
        except Exception as error:
            self._evaluate_apart(work, error)
            return
        self.costs.observe(size, time.perf_counter() - started)
        self.n_steps += 1
        self.n_evaluated += sum(n for _, n in work)
        at = states = 0
        for (handle, n), n_rows in zip(work, rows, strict=True):
            at += n_rows
            if handle._generation is not None:
                self._advance(handle, at - 1 if n_rows else None, n_rows)
            else:
                n_states = 0 if n_rows else n
                states += n_states
                self._take_states(handle, hidden[states - n_states : states], self._logits[at - n_rows : at])
        self._sample_all([h for h, _ in work if h._row is not None])
        if self._speculation is not None:
            self._count_drafts(self._speculation, [h for h, _ in work])

    def _sample_all(self, handles: list[Handle]) -> None:
        """A round for the next token of each, and one more for each drafted token that came true."""
        while handles:
            self._sample(handles)
            handles = [h for h in handles if h._row is not None]

    def _count_drafts(self, speculation: Speculation, handles: list[Handle]) -> None:
        drafts = [h.drafts for h in handles if h.drafts is not None and h.drafts.draft]
        speculation.verified(len(handles), drafts)

    def _evaluate_apart(self, work: list[tuple[Handle, int]], error: Exception) -> None:
        """A step failed: whoever fails alone too is out."""
        if len(work) == 1:
            self._fail(work[0][0], error)
            return
        for handle, n in work:
            self._evaluate([(handle, n)])

    def _take_states(self, handle: Handle, hidden: Floats, logits: Floats) -> None:
        try:
            with self.engine.exclusive():
                handle.take_states(self.engine.pool, hidden, logits[:, : self.engine.n_vocab])
        except Exception as error:
            self._fail(handle, error)
            return
        if handle.unread == 0:
            self._leave(handle)
            self._events.append(handle.states())

    def _advance(self, handle: Handle, row: int | None, n_rows: int) -> None:
        """Tokens of a request were evaluated; the last of its `n_rows` rows of logits is `row`."""
        session, request = handle._session, handle.request
        assert isinstance(request, Request)
        if row is not None and handle.draft:  # first the row behind the history, then those of the draft
            row, n_rows = row - len(handle.draft), n_rows - len(handle.draft)
        if row is not None and session is not None:
            logits = self._logits[row + 1 - n_rows : row + 1, : self.engine.n_vocab]
            session.follow(len(handle.sequence) - len(handle.draft) - n_rows, logits)
        is_read = handle.unread <= 0
        if handle.state == "reading":
            if request.progress:
                read = min(len(handle.sequence), len(request.prompt))
                self._events.append(Event(handle, progress=(read, len(request.prompt))))
            if is_read:
                handle.state = "decoding"
                handle._read_at = handle._read_at or time.perf_counter()
                self.prefixes.insert(handle.sequence)  # for others with the same beginning
        if is_read:
            handle._row = row

    def _sample(self, handles: list[Handle]) -> None:
        """Chooses the next token of each from its row of logits."""
        self._take_chosen()
        masks: dict[Handle, Mask | None] = {}  # of those that go on
        for handle in handles:
            generation = handle.generation
            if handle._row is None:
                continue
            try:
                if generation.must_end(self._row_of(handle)):
                    self._finish(handle)
                else:
                    masks[handle] = generation.mask()
            except Exception as error:  # a criterion's own, or a grammar's
                self._fail(handle, error)
        if not masks:
            return
        samplers, rows = zip(*((h.generation.sampler, h._row) for h in masks), strict=True)
        with self.engine.exclusive():
            sample = prepare_rows(samplers, self._logits, rows, list(masks.values()))
            with Uninterrupted():  # else random numbers would be drawn for nothing
                self._chosen.extend(zip(masks, sample(self.engine.pool), strict=True))
        self._take_chosen()

    def _take_chosen(self) -> None:
        while self._chosen:
            with Uninterrupted():
                handle, token = self._chosen.popleft()
                if handle.is_running:  # not cancelled after an interrupt
                    self._take(handle, token)

    def _take(self, handle: Handle, token: int | Exception) -> None:
        generation, n = handle.generation, len(handle.history)
        is_drafted = handle.verify(token)
        try:
            if isinstance(token, Exception):
                raise token
            event = generation.take(token, self._row_of(handle))
        except Exception as error:
            self._fail(handle, error)
            return
        goes_on = is_drafted and generation.reason is None
        handle.next_row(self._logits, n) if goes_on else handle.no_row(n)
        if event is not None:
            self._events.append(Event(handle, text=event))
        if generation.reason is not None:
            self._finish(handle)

    def _row_of(self, handle: Handle) -> Floats:
        row: Floats = self._logits[handle._row, : self.engine.n_vocab]
        return row
