"""One sequence with the logits of its newest token: what a chat, or a `Llama` object, keeps between calls."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import ContextError, ModelError, OptionError, TokenizerError

Logits = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]


class KVSequence(Protocol):
    """The part of an engine's sequence that a session uses."""

    @property
    def tokens(self) -> Sequence[int]: ...
    def __len__(self) -> int: ...
    def truncate(self, n: int) -> None: ...
    def fork(self) -> KVSequence: ...
    def close(self) -> None: ...
    def save(self) -> bytes: ...
    def load(self, data: bytes) -> None: ...


class LogitsEngine(Protocol):
    """The part of an engine that a session uses. `eval` returns (1, n_vocab) for "last", (n_tokens, n_vocab)
    for "all".
    """

    @property
    def n_ctx(self) -> int: ...
    @property
    def n_vocab(self) -> int: ...
    def sequence(self) -> Any: ...
    def eval(
        self, sequence: Any, tokens: Any, *, logits: Any, on_progress: Progress | None = None
    ) -> Logits: ...


class Session:
    """A sequence of an engine, the logits (n_vocab,) that follow its last token, and optionally all of its
    logits.

    `last` is None while nothing has been evaluated since the sequence was cut or loaded: the next `read`
    evaluates at least one token again. With `keep_all`, `scores` (n_ctx, n_vocab) holds the logits that
    follow each token.
    """

    def __init__(
        self, engine: LogitsEngine, sequence: KVSequence | None = None, keep_all: bool = False
    ) -> None:
        self.engine = engine
        self.sequence: KVSequence = engine.sequence() if sequence is None else sequence
        self.n_ctx: int = engine.n_ctx
        self.n_vocab: int = engine.n_vocab
        self.last: Logits | None = None
        self.scores: Logits | None = np.zeros((self.n_ctx, self.n_vocab), np.float32) if keep_all else None

    @property
    def tokens(self) -> Sequence[int]:
        """The tokens evaluated so far."""
        return self.sequence.tokens

    def __len__(self) -> int:
        return len(self.sequence)

    def read(self, tokens: Sequence[int], on_progress: Progress | None = None) -> int:
        """Makes this sequence exactly `tokens` and `last` their logits; returns how many were reused.

        The longest common prefix is kept. `on_progress(done, total)` counts the whole of `tokens`.
        Raises ContextError when they are more than the context, OptionError when there are none.
        """
        if not tokens:
            raise OptionError("the prompt is empty: give at least one token")
        check_length(len(tokens), self.n_ctx)
        shared = common_prefix(self.tokens, tokens)
        if shared == len(tokens) == len(self) and self.last is not None:
            return shared
        kept = min(shared, len(tokens) - 1)
        self.truncate(kept)
        self.append(tokens[kept:], on_progress)
        return kept

    def append(self, tokens: Sequence[int], on_progress: Progress | None = None) -> None:
        """Evaluates `tokens` behind the sequence. Raises ContextError when they do not fit."""
        if not tokens:
            return
        start = len(self)
        check_length(start + len(tokens), self.n_ctx)
        progress = None if on_progress is None else shifted(on_progress, start)
        self.last = None
        mode = "last" if self.scores is None else "all"
        try:
            logits = self.engine.eval(self.sequence, list(tokens), logits=mode, on_progress=progress)
        except BaseException:
            if self.scores is not None:  # chunks that were done have no rows in `scores`
                self.sequence.truncate(start)
            raise
        if self.scores is not None:
            self.scores[start : start + len(tokens)] = logits
        # A copy: the engine's own array belongs to whichever sequence is evaluated next.
        self.last = np.array(logits[-1], np.float32)

    def truncate(self, n: int) -> None:
        """Forgets all tokens from position `n` on."""
        if n < len(self):
            self.sequence.truncate(n)
            self.last = None if self.scores is None or n == 0 else self.scores[n - 1].copy()

    def fork(self) -> Session:
        """An independent session with the same tokens; the cache pages are shared."""
        other = Session(self.engine, self.sequence.fork(), keep_all=self.scores is not None)
        other.last = self.last
        if self.scores is not None and other.scores is not None:
            other.scores[: len(self)] = self.scores[: len(self)]
        return other

    def load(self, data: bytes, tokens: Sequence[int], last: Logits | None, scores: Logits | None) -> None:
        """Becomes what `sequence.save()` wrote, with its logits. The rows in `scores` are needed only with
        keep_all.
        """
        self.last = None
        self.sequence.load(data)
        if list(self.tokens) != list(tokens):
            self.sequence.truncate(0)
            raise ModelError("the saved state is damaged: its cache holds other tokens than it says")
        if self.scores is not None and len(tokens):
            if scores is None:  # kept without them: read again when logits are asked for
                self.sequence.truncate(0)
                return
            self.scores[: len(tokens)] = scores
        self.last = None if last is None else last.copy()

    def close(self) -> None:
        self.sequence.close()


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens `a` and `b` have in common from the start."""
    n = min(len(a), len(b))
    if list(a[:n]) == list(b[:n]):
        return n
    return next(i for i in range(n) if a[i] != b[i])


def shifted(on_progress: Progress, start: int) -> Progress:
    """Progress of a whole prompt, of which the first `start` tokens need no work."""
    return lambda done, total: on_progress(start + done, start + total)


def check_length(n_tokens: int, n_ctx: int) -> None:
    if n_tokens > n_ctx:
        raise ContextError(
            f"{n_tokens} tokens do not fit in the context of {n_ctx}: shorten the prompt or raise n_ctx (-c)"
        )


def check_tokens(tokens: Iterable[int], n_vocab: int) -> list[int]:
    """`tokens` as ints, each inside the vocabulary. Raises TokenizerError for any that is not."""
    try:
        ids = [operator.index(token) for token in tokens]
    except TypeError:
        raise TokenizerError("token ids must be whole numbers") from None
    if ids and not (min(ids) >= 0 and max(ids) < n_vocab):
        wrong = next(token for token in ids if not 0 <= token < n_vocab)
        raise TokenizerError(f"token id {wrong} is outside the vocabulary of {n_vocab} tokens")
    return ids
