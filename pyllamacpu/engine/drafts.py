"""Drafts: guesses of an answer's next tokens, cheap to make, which the model then verifies in one step.

A draft never changes an answer: each of its tokens is compared with the token that is chosen anyway. Prompt
lookup copies what followed the newest tokens where they stood in the text before (Saxena, "Prompt Lookup
Decoding", 2023; the search for the longest match is that of LZ77).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import OptionError
from pyllamacpu.sampling.sampler import Sampler

MAX_DRAFT = 15  # tokens of a draft at most; a sequence can be cut back by as many (pages.KEPT_BEHIND)
_MAX_MATCH = 16  # tokens from which longer matches count alike
_PLACES = 8  # earlier places of the newest two tokens that are looked at
_NEAR = 32  # tokens from where the last copy went on, within which a place belongs to the same passage
_GAP = 3  # tokens that may differ before a passage is given up

# The least length of a match of each class, and how often the next token follows it, before any was counted:
# somewhere in the text, and in the passage that was copied last.
_CLASSES = (0, 1, 2, 3, 4, 6, 9, 15)
_ANYWHERE = (0.1, 0.2, 0.3, 0.45, 0.6, 0.7, 0.8, 0.9)
_SAME_PASSAGE = (0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95)
_CLASS_OF = tuple(max(i for i, least in enumerate(_CLASSES) if least <= n) for n in range(_MAX_MATCH + 1))


class Evidence(NamedTuple):
    """What speaks for a drafted token: tokens of one kind come true about equally often."""

    kind: str
    prior: float  # how often, before any was counted


class Draft(NamedTuple):
    """Tokens that may follow, and what speaks for each, given that those before it came true."""

    tokens: list[int]
    evidence: list[Evidence]


NO_DRAFT = Draft([], [])


class Drafter(Protocol):
    """What a source keeps for one answer; only the source that made it knows more."""

    def close(self) -> None: ...


class Wish(NamedTuple):
    """Asks for at most `n` tokens behind `history`, which has grown since the last time, if at all."""

    drafter: Any
    history: Sequence[int]
    n: int
    probability: Callable[[Evidence], float]  # how often tokens came true for which this speaks
    sampler: Sampler | None = None  # what the next token is chosen with


class DraftSource(Protocol):
    """Makes drafts, with a drafter for each answer."""

    is_free: bool  # its drafts take next to no time, so they are made even while none are verified

    @property
    def weight_bytes(self) -> int: ...

    def start(self) -> Drafter: ...

    def catch_up(self, wishes: Sequence[Wish]) -> None:
        """Reads what is new, if that takes long and is to be done once."""

    def propose(self, wishes: Sequence[Wish], step_seconds: float) -> list[Draft]:
        """A draft for each; a step of the model takes `step_seconds` (0: not known yet)."""

    def close(self) -> None: ...


class _Light:
    """Sources whose drafters make their drafts by themselves, and keep nothing."""

    is_free = True
    weight_bytes = 0

    def catch_up(self, wishes: Sequence[Wish]) -> None:
        """There is nothing that takes long."""

    def propose(self, wishes: Sequence[Wish], step_seconds: float) -> list[Draft]:
        return [wish.drafter.propose(wish.history, wish.n) for wish in wishes]

    def close(self) -> None:
        """There is nothing to let go of."""


class PromptLookup(_Light):
    """Drafts that are copied from the prompt and the answer so far."""

    def __init__(self, max_tokens: int = MAX_DRAFT) -> None:
        self.max_tokens = max_tokens

    def start(self) -> Lookup:
        return Lookup(self.max_tokens)


class _PairIndex:
    """Where the pairs of tokens of a growing text stand."""

    def __init__(self) -> None:
        self._newest: dict[int, int] = {}  # a pair's newest place, that of its second token
        self._before: list[int] = []  # the place of the same pair before, or -1

    def extend(self, text: Sequence[int]) -> None:
        newest, before = self._newest, self._before
        for i in range(len(before), len(text)):
            pair = text[i - 1] << 32 | text[i] if i else -1
            before.append(newest.get(pair, -1))
            newest[pair] = i

    def places(self) -> list[int]:
        """Earlier places of the text's last pair, the newest first."""
        found, at = list[int](), self._before[-1] if self._before else -1
        while at > 0 and len(found) < _PLACES:
            found.append(at)
            at = self._before[at]
        return found


class Lookup:
    """The text of one answer, searched for what its newest tokens repeat."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._index = _PairIndex()
        self._n = 0  # tokens at the last call
        self._source: int | None = None  # where the passage goes on that was copied last
        self._gap = 0  # tokens since the text left it

    def close(self) -> None:
        """There is nothing to let go of."""

    def propose(self, history: Sequence[int], n: int) -> Draft:
        self._index.extend(history)
        if self._source is not None:
            self._source += len(history) - self._n
        self._n = len(history)
        start, length, is_near = self._find(history)
        if start is None:
            return NO_DRAFT
        self._source = start
        tokens = _copied(history, start, min(n, self._max_tokens))
        return Draft(tokens, _EVIDENCE[is_near][length : length + len(tokens)])

    def _find(self, history: Sequence[int]) -> tuple[int | None, int, bool]:
        """Where what may follow begins, the length of the match before it, and whether it lies where the last
        copy came from.
        """
        best, length = None, 0
        for place in self._index.places():
            if (n := _match(history, place)) > length:
                best, length = place + 1, n
        source = self._source
        if best is not None:
            self._gap = 0
            return best, length, source is not None and abs(best - source) <= _NEAR
        if source is None or source >= len(history):
            return None, 0, False
        n = _match(history, source - 1)  # at most 1: a token of the passage was replaced by another
        self._gap += 1
        if self._gap > _GAP:
            self._source = None
            return None, 0, False
        return source, n, True


def _match(text: Sequence[int], place: int) -> int:
    """Tokens, up to `_MAX_MATCH`, that end at `place` as they end the text."""
    n, last = 0, len(text) - 1
    while n < _MAX_MATCH and n <= place and text[place - n] == text[last - n]:
        n += 1
    return n


def _copied(text: Sequence[int], start: int, n: int) -> list[int]:
    """`n` tokens from `start` on; a text that repeats itself goes on so behind its end."""
    found = list(text[start : start + n])
    while found and len(found) < n:
        found += found[: n - len(found)]
    return found


def _evidence(name: str, priors: Sequence[float]) -> list[Evidence]:
    """By the length of the match: each token that comes true makes it one longer."""
    kinds = [Evidence(name.format(least), prior) for least, prior in zip(_CLASSES, priors, strict=True)]
    return [kinds[_CLASS_OF[min(n, _MAX_MATCH)]] for n in range(_MAX_MATCH + MAX_DRAFT + 1)]


_EVIDENCE = (
    _evidence("match of {}", _ANYWHERE),
    _evidence("passage, match of {}", _SAME_PASSAGE),
)

_CALLED = Evidence("function", 0.5)


class CalledDrafts(_Light):
    """Drafts of a function that takes the token ids so far and returns some that may follow, as
    llama-cpp-python's draft models do.
    """

    is_free = False

    def __init__(self, function: Callable[[npt.NDArray[np.intc]], npt.ArrayLike]) -> None:
        self._function = function

    def start(self) -> CalledDrafts:
        return self

    def propose(self, wishes: Sequence[Wish], step_seconds: float) -> list[Draft]:
        return [self._draft(wish.history, wish.n) for wish in wishes]

    def _draft(self, history: Sequence[int], n: int) -> Draft:
        found = self._function(np.array(history, np.intc))
        try:
            ids = np.asarray(found).reshape(-1)[:n]
        except ValueError:  # a list in lists
            ids = np.array([None])
        if len(ids) and ids.dtype.kind not in "iu":
            raise OptionError(f"draft_model: it returned {found!r:.80}; give token ids")
        tokens: list[int] = ids.tolist()
        return Draft(tokens, [_CALLED] * len(tokens))
