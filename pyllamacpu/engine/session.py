"""One sequence with the logits of its newest token: what a chat, or a `Llama` object, keeps between calls."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.pages import Sequence as KVSequence
from pyllamacpu.engine.token_ids import check_length
from pyllamacpu.errors import ContextError, ModelError, OptionError

Logits = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]


class LogitsEngine(Protocol):
    """The part of an engine that a session uses. `eval` returns (1, n_vocab) for "last", (n_tokens, n_vocab)
    for "all".
    """

    @property
    def n_ctx(self) -> int: ...
    @property
    def n_vocab(self) -> int: ...
    def sequence(self) -> KVSequence: ...
    def eval(
        self, sequence: Any, tokens: Any, *, logits: Any, on_progress: Progress | None = None
    ) -> Logits: ...


class Session:
    """A sequence of an engine, the logits (n_vocab,) that follow its last token, and optionally all of its
    logits.

    `last` is None while nothing has been evaluated since the sequence was cut or loaded, and where a step was
    interrupted before its logits came here. With `keep_all`, `scores` (n_ctx, n_vocab) holds the logits that
    follow each token, `n_scored` of them from the start. `history`: the tokens of a request at work, among
    which what is evaluated ahead is not.

    While no request works on it, its pages may be taken for others (`park`): the tokens stay, and are
    evaluated again before the next change.
    """

    def __init__(
        self, engine: LogitsEngine, sequence: KVSequence | None = None, keep_all: bool = False
    ) -> None:
        """Raises ContextError when memory has no room for all logits."""
        self.engine = engine
        self.sequence: KVSequence = engine.sequence() if sequence is None else sequence
        self.n_ctx: int = engine.n_ctx
        self.n_vocab: int = engine.n_vocab
        self.history: Sequence[int] | None = None
        self.to_save = False  # it is left as it is until its owner has saved it
        self._parked: list[int] | None = None  # the tokens, while their pages are let go
        self._saved: bytes | None = None  # what `save` gives of a parked session
        self._last: Logits | None = None
        self._last_at = 0  # how many tokens they follow
        self.scores: Logits | None = _room(self.n_ctx, self.n_vocab) if keep_all else None
        self.n_scored = 0

    @property
    def last(self) -> Logits | None:
        return self._last if self._last_at == len(self) else None

    @last.setter
    def last(self, row: Logits | None) -> None:
        self._last, self._last_at = row, len(self)

    @property
    def tokens(self) -> Sequence[int]:
        """The tokens evaluated so far; of drafted ones those that came true."""
        tokens, n = self._all_tokens, len(self)
        return tokens if len(tokens) == n else tokens[:n]

    @property
    def _all_tokens(self) -> list[int]:
        tokens = self.sequence.tokens  # first: another thread may park it meanwhile
        return tokens if (parked := self._parked) is None else parked

    @property
    def visible_tokens(self) -> list[int]:
        """The same in ids of the vocabulary: placeholders where rows of images are."""
        images = self.sequence.cache.images
        return list(self.tokens) if images is None else images.visible(self.tokens)

    def __len__(self) -> int:
        n = len(self._all_tokens)
        return n if (history := self.history) is None else min(n, len(history))

    @property
    def images(self) -> dict[bytes, Any]:
        """The images, by their digests, whose rows are among the tokens."""
        return self.sequence.images

    def park(self) -> bool:
        """Lets go of the pages, so that others have room; whether there were any. Only between steps."""
        if self.history is not None or self._parked is not None or not self.sequence.tokens:
            return False
        try:
            self._saved = self.save() if self.to_save else None
        except MemoryError:
            return False
        self._parked = self.sequence.tokens
        self._let_go()
        return True

    def _let_go(self) -> None:
        """An empty sequence, which still has its images."""
        self.sequence.tokens = []  # not emptied: another thread may be reading the list
        self.sequence.truncate(0)
        self.sequence.image_keys = None

    def unpark(self, make_room: Callable[[], bool] = lambda: False) -> None:
        """Evaluates the tokens again, if their pages were let go. `make_room` is asked for pages until it
        returns False. Raises ContextError: it stays parked.
        """
        while self._parked is not None:
            try:
                self._evaluate_again(self._parked)
            except ContextError:
                if not make_room():
                    raise

    def _evaluate_again(self, tokens: list[int]) -> None:
        self._let_go()  # should an interrupt have kept `park` from it
        try:
            self.engine.eval(self.sequence, tokens, logits="none")
        except BaseException:
            self._let_go()
            raise
        self._parked = self._saved = None

    def append(self, tokens: Sequence[int], on_progress: Progress | None = None) -> None:
        """Evaluates `tokens` behind the sequence. Raises ContextError when they do not fit."""
        if not tokens:
            return
        start = len(self)
        check_length(start + len(tokens), self.n_ctx)
        progress = None if on_progress is None else _shifted(on_progress, start)
        self.unpark()
        self.last = None
        mode = "last" if self.scores is None else "all"
        try:
            logits = self.engine.eval(self.sequence, list(tokens), logits=mode, on_progress=progress)
        except BaseException as error:
            if self.scores is not None:  # steps that were done have no rows in `scores`
                if isinstance(error, Exception):
                    self.truncate(start)
                else:  # Ctrl-C: nothing is evaluated again
                    self.sequence.truncate(self.sequence.reusable(start))
                    self.n_scored = min(self.n_scored, len(self))
            raise
        self.follow(len(self) - len(logits), logits)

    def follow(self, start: int, logits: Logits) -> None:
        """Keeps the logits (n, n_vocab) that follow the tokens from `start` on, or the last (1, n_vocab)."""
        if self.scores is not None:
            self.scores[start : start + len(logits)] = logits
            self.n_scored = start + len(logits)
        # A copy: the engine's own array belongs to whichever sequence is evaluated next.
        self._last, self._last_at = np.array(logits[-1], np.float32), start + len(logits)

    def row(self, position: int | None) -> Logits | None:
        """The logits that follow the token at a position, those of the newest for None; there may be none.

        Raises OptionError for one whose logits are not kept.
        """
        if position is None or position == len(self) - 1:
            return self.last
        if self.scores is None or not 0 <= position < len(self):
            raise OptionError(
                f"idx={position}: only the last position has logits, unless the model is opened with "
                "logits_all"
            )
        row: Logits = self.scores[position]
        return row

    def writable_scores(self) -> Logits:
        """`scores`, or (n_tokens, n_vocab) with the last row filled; `last` is what is written there."""
        rows = self.scores
        if rows is None:
            rows = np.zeros((max(len(self), 1), self.n_vocab), np.float32)
            if self.last is not None:
                rows[-1] = self.last
        if self.last is not None:
            self.last = rows[-1 if self.scores is None else len(self) - 1]
        return rows

    def inherit_scores(self, other: Session, n: int) -> None:
        """Takes over the logits that follow the first `n` tokens, which are the other's too."""
        if self.scores is not None and other.scores is not None:
            self.n_scored = min(n, other.n_scored)
            self.scores[: self.n_scored] = other.scores[: self.n_scored]

    def truncate(self, n: int) -> None:
        """Forgets all tokens from position `n` on. Those before it are evaluated again as far as their keys
        were let go (`Sequence.reusable`).
        """
        if n < len(self):
            if self._parked is not None and n == 0:
                self._parked = self._saved = None
            self.unpark()
            kept, n_scored = self.sequence.reusable(n), min(self.n_scored, n)
            lost = list(self.tokens[kept:n])
            self.last, self.n_scored = None, min(self.n_scored, kept)  # should what follows fail
            self.sequence.truncate(kept)
            if lost:
                self.engine.eval(self.sequence, lost, logits="none")
            self.n_scored = n_scored
            self.last = self.scores[n - 1].copy() if self.scores is not None and 0 < n == n_scored else None

    def fork(self) -> Session:
        """An independent session with the same tokens; the cache pages are shared."""
        other = Session(self.engine, self._text_sequence(), keep_all=self.scores is not None)
        other.last = self.last if len(other) == len(self) else None
        other.inherit_scores(self, len(other))
        return other

    def _text_sequence(self) -> KVSequence:
        """A fork of the sequence, without what is drafted."""
        self.unpark()
        n, sequence = len(self), self.sequence.fork()
        sequence.truncate(sequence.reusable(n))
        return sequence

    def save(self, make_room: Callable[[], bool] = lambda: False) -> bytes:
        """Tokens, keys and values as bytes. `make_room`: as `unpark` asks for it."""
        if self._saved is not None:
            return self._saved
        self.unpark(make_room)
        out = io.BytesIO()
        if len(self) == len(self.sequence):
            self.sequence.save(out)
            return out.getvalue()
        sequence = self._text_sequence()
        sequence.save(out)
        sequence.close()
        return out.getvalue()

    def load(self, data: bytes, tokens: Sequence[int], last: Logits | None, scores: Logits | None) -> None:
        """Becomes what `save` returned, with its logits. With keep_all, where the rows in `scores` are not
        given, the tokens are evaluated again.
        """
        self._parked = self._saved = self.last = None
        self.n_scored = 0
        source = io.BytesIO(data)
        self.sequence.load(source)
        if source.read(1):
            self.sequence.truncate(0)
            raise OptionError("the saved state is damaged: it is longer than it says")
        if self.visible_tokens != list(tokens):
            self.sequence.truncate(0)
            raise ModelError("the saved state is damaged: its cache holds other tokens than it says")
        if self.scores is not None and len(tokens):
            if scores is None:
                again = list(self.tokens)
                self.sequence.truncate(0)
                self.append(again)
                last = self.last if last is None else last
            else:
                self.scores[: len(tokens)] = scores
                self.n_scored = len(tokens)
            self.scores[len(tokens) - 1] = last
        self.last = None if last is None else last.copy()

    def close(self) -> None:
        self._parked = self._saved = None
        self.sequence.close()


def park_one(sessions: Iterable[Session]) -> bool:
    """Lets go of the pages of one session that no request works on; False when there is none."""
    return any(session.park() for session in list(sessions))


def _room(n_ctx: int, n_vocab: int) -> Logits:
    try:
        return np.zeros((n_ctx, n_vocab), np.float32)
    except MemoryError:
        raise ContextError(
            f"logits_all needs {n_ctx} x {n_vocab} float32 values, more than fit in memory: lower n_ctx"
        ) from None


def _shifted(on_progress: Progress, start: int) -> Progress:
    """Progress of a whole prompt, of which the first `start` tokens need no work."""
    return lambda done, total: on_progress(start + done, start + total)
