"""A request on its way through the scheduler, and what happens to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.batch import Entry, Wanted
from pyllamacpu.engine.cost_model import StepSize
from pyllamacpu.engine.generate import Generation, HiddenRequest, Request, ScoreRequest, TextEvent
from pyllamacpu.engine.pages import Sequence as KVSequence
from pyllamacpu.engine.speculation import DraftedAnswer
from pyllamacpu.engine.token_ids import stand_for_images
from pyllamacpu.errors import ContextError
from pyllamacpu.sampling.rows import top_logprobs_rows
from pyllamacpu.sampling.sampler import TokenLogprobs

SCORED = 32  # tokens that are scored in one step: each has a row of logits
RESERVED = 256  # tokens of an answer that must fit before its request is admitted

Floats = npt.NDArray[np.float32]
State = Literal["waiting", "reading", "decoding", "finished"]


class Event(NamedTuple):
    """What happened to a request: one of a piece of text, progress (prompt tokens read, all of them), hidden
    states (n_tokens, dim), scores of tokens, or an error.
    """

    handle: Handle
    text: TextEvent | None = None
    progress: tuple[int, int] | None = None
    hidden: Floats | None = None
    scores: list[TokenLogprobs] | None = None
    error: Exception | None = None

    @property
    def is_last(self) -> bool:
        ended = self.text is not None and self.text.finish_reason is not None
        return ended or not (self.hidden is None and self.scores is None and self.error is None)


class Handle:
    """A request on its way. While `paused` it is passed over: its reader is slow."""

    def __init__(
        self,
        request: Request | HiddenRequest,
        number: int,
        generation: Generation | None,
        owner: Any = None,
    ) -> None:
        self.request = request
        self.owner = owner  # whoever is to be given its events
        self.number = number  # in the order of their coming
        self.state: State = "waiting"
        self.paused = False
        self.cancelled = False
        self.is_loading = False  # pages of it are being read from the disk
        self._looked_up = False  # on the disk, since it last began to wait
        self.n_cached = 0  # prompt tokens that were found in the prefix cache
        self._generation = generation
        self._session = request.session if isinstance(request, Request) else None
        self._sequence: Any = None
        if self._session is not None:
            self._sequence, self._session.history = self._session.sequence, self.history
        self._states: list[Any] = []  # hidden states, or scores, of the tokens that were evaluated
        self._passed_over = 0  # steps since it got a chunk of its prompt
        self._row: int | None = None  # of the scheduler's logits: a token is to be chosen from it
        self.drafts: DraftedAnswer | None = None
        self._admitted_at = self._read_at = 0.0

    @property
    def is_finished(self) -> bool:
        return self.state == "finished"

    @property
    def is_running(self) -> bool:
        return self.state == "reading" or self.state == "decoding"

    @property
    def can_go_on(self) -> bool:
        """Whether steps are to care for it."""
        return not self.paused and not self.is_loading

    @property
    def history(self) -> Sequence[int]:
        """The tokens that are evaluated, or are to be."""
        return self.request.prompt if self._generation is None else self._generation.history

    @property
    def sequence(self) -> KVSequence:
        sequence: KVSequence = self._sequence
        return sequence

    @property
    def generation(self) -> Generation:
        assert self._generation is not None
        return self._generation

    @property
    def unread(self) -> int:
        """Tokens that are to be evaluated before the next one can be chosen; below 0: drafted tokens that
        were evaluated ahead.
        """
        return len(self.history) - len(self.sequence)

    @property
    def draft(self) -> list[int]:
        """The drafted tokens that the step at hand verifies."""
        return [] if self.drafts is None else self.drafts.draft

    @property
    def n_drafted(self) -> tuple[int, int]:
        """Drafted tokens that were verified, and those that came true."""
        drafts = self.drafts
        if drafts is None:
            return 0, 0
        return drafts.n_drafted + len(drafts.draft), drafts.n_accepted + drafts.n_true

    @property
    def may_draft(self) -> bool:
        """Whether tokens may be guessed ahead: not where others may come between two of them, nor behind
        images, which those who guess have not seen.
        """
        request = self.request
        guessed = isinstance(request, Request) and request.draft and not request.endless
        return guessed and not stand_for_images(request.prompt)

    def hold_images(self) -> None:
        """The sequence keeps its images, which it may read again."""
        if isinstance(self.request, Request):
            self.sequence.images.update((image.digest, image) for image in self.request.images)

    def forget_draft(self) -> None:
        """The step at hand verifies nothing."""
        if self.drafts is not None:
            self.drafts.draft, self.drafts.n_true = [], 0

    @property
    def n_reusable(self) -> int:
        """Tokens that need not be evaluated if they are found; the last one's logits are needed."""
        n, session = len(self.history) - 1, self._session  # which another thread may take away
        return n if session is None or session.scores is None else min(n, session.n_scored)

    @property
    def n_tokens_most(self) -> int:
        """Tokens that are certain to come to stand in the cache, as far as admission counts them."""
        left = 0 if self._generation is None else self._generation.n_left
        return len(self.history) + (RESERVED if left is None else min(left, RESERVED))

    def entry(self, n: int) -> Entry:
        """The next `n` tokens, and what is wanted of them."""
        start, history, session = len(self.sequence), self.history, self._session
        tokens = history[start : start + n]
        if isinstance(self.request, ScoreRequest):
            return Entry(self.sequence, tokens, "all")
        if self._generation is None:
            return Entry(self.sequence, tokens, "none", "all")
        wanted: Wanted = "last" if start + n == len(history) else "none"
        if draft := self.draft:
            return Entry(self.sequence, [*tokens, *draft], "all")
        if session is not None and session.scores is not None:
            wanted = "all"
        return Entry(self.sequence, tokens, wanted)

    def take_states(self, pool: Any, hidden: Floats, logits: Floats) -> None:
        """Of the tokens that a step has evaluated. Raises what is wrong with the logits."""
        if not isinstance(self.request, ScoreRequest):
            self._states.append(hidden)
            return
        n = len(self.sequence)
        following = self.history[n + 1 - len(logits) : n + 1]
        counts = [self.request.n_best] * len(following)
        for entry in top_logprobs_rows(pool, logits, range(len(following)), following, counts):
            if isinstance(entry, Exception):
                raise entry
            self._states.append(entry)

    def states(self) -> Event:
        """What was asked for, when all is read."""
        if isinstance(self.request, ScoreRequest):
            return Event(self, scores=self._states)
        return Event(self, hidden=np.concatenate(self._states))

    def verify(self, token: int | Exception) -> bool:
        """Whether the token that is chosen was evaluated ahead, as a draft. If not, what was is dropped."""
        n = len(self.history)
        if self.sequence.tokens[n : n + 1] != [token]:
            self.drop_unverified()
            return False
        if self.drafts is not None:
            self.drafts.n_true += 1
        return True

    def drop_unverified(self) -> None:
        """Takes drafted tokens, which nobody has chosen, out of the sequence."""
        if self._sequence is not None and self.unread < 0:
            self.sequence.truncate(len(self.history))

    def next_row(self, logits: Floats, n: int) -> None:
        """The token behind the first `n` came true: the next one is to be chosen from the row behind it."""
        assert self._row is not None
        self._row += 1
        if (session := self._session) is not None:
            session.follow(n, logits[self._row : self._row + 1, : session.n_vocab])

    def no_row(self, n: int) -> None:
        """No more tokens can be chosen before the next step; of those evaluated, the first `n` are chosen."""
        self._row = None
        if len(self.sequence) > n:
            self.sequence.truncate(n)

    def push(self, tokens: Sequence[int]) -> None:
        """Puts `tokens` behind the history. Only while no step is running."""
        assert self._generation is not None
        self._generation.push(tokens)

    def forget_session(self) -> None:
        """Nobody wants the session that the request was given any more."""
        self._session = None


def within_rows(handles: Sequence[Handle], counts: Sequence[int]) -> list[int]:
    """The tokens that a step reads of each: at most `counts`, of texts that are scored `SCORED` in all."""
    left, found = SCORED, []
    for handle, n in zip(handles, counts, strict=True):
        if isinstance(handle.request, ScoreRequest):
            n = min(n, left)
            left -= n
        found.append(n)
    return found


def step_size(work: list[tuple[Handle, int]]) -> StepSize:
    """Of a step, before it is run."""
    decoding = sum(n for h, n in work if n == 1 or h.draft)
    positions = sum(n * len(h.sequence) for h, n in work)
    return StepSize(sum(n for _, n in work) - decoding, decoding, positions)


def too_long(handle: Handle, n_ctx: int) -> ContextError:
    """The error of a request whose history does not fit in the context."""
    return ContextError(
        f"{len(handle.history)} tokens do not fit in the context of {n_ctx}: ask for fewer or raise n_ctx"
    )
