"""The state of a `Llama` object as a picklable value: tokens, cache, logits and random numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.session import Logits, Session
from pyllamacpu.errors import OptionError


@dataclass(eq=False)
class LlamaState:
    """What `Llama.save_state` returns.

    input_ids: its first `n_tokens` are the evaluated tokens.
    scores: (n, n_vocab) logits behind the last `n` tokens: all of them with logits_all, else one or none.
    llama_state: keys and values of the tokens, `llama_state_size` bytes.
    seed: of the object.
    model: what it fits: only the same model with the same cache types and precision. () is not compared.
    seeds: where the series of seeds for coming calls is; None leaves it where it is.
    sampler: options and state of the sampler behind `Llama.sample`.
    """

    input_ids: npt.NDArray[np.intc]
    scores: npt.NDArray[np.float32]
    n_tokens: int
    llama_state: bytes
    llama_state_size: int
    seed: int
    model: tuple[Any, ...] = ()
    seeds: tuple[Any, ...] | None = None
    sampler: Any = None

    @property
    def tokens(self) -> tuple[int, ...]:
        """The evaluated tokens."""
        return tuple(int(token) for token in self.input_ids[: self.n_tokens])

    @property
    def last(self) -> npt.NDArray[np.float32] | None:
        """(n_vocab,) logits behind the last token, if they are here."""
        return None if len(self.scores) == 0 else np.asarray(self.scores[-1], np.float32)

    @property
    def all_scores(self) -> npt.NDArray[np.float32] | None:
        """(n_tokens, n_vocab) logits behind every token, if they are here."""
        return self.scores if len(self.scores) == self.n_tokens else None

    def without_random_numbers(self) -> LlamaState:
        """The same text, for going on with other random numbers."""
        return replace(self, seeds=None, sampler=None)


def check_state(state: Any, n_vocab: int, n_ids: int) -> LlamaState:
    """`state`, whose fields may have come from a pickle of anything. n_ids: with those behind the vocabulary,
    which stand for images. Raises OptionError for wrong ones.
    """
    if not isinstance(state, LlamaState):
        raise OptionError(f"a state is what save_state returned, not {type(state).__name__}")
    checks: dict[str, Callable[[], bool]] = {
        "model": lambda: isinstance(state.model, tuple) and all(map(_is_plain, state.model)),
        "n_tokens": lambda: type(state.n_tokens) is int and 0 <= state.n_tokens <= len(state.input_ids),
        "input_ids": lambda: _are_tokens(state.input_ids, state.n_tokens, max(n_vocab, n_ids)),
        "llama_state": lambda: isinstance(state.llama_state, bytes),
        "scores": lambda: _is_logits(state.scores, (len(state.scores), n_vocab)),
        "seed": lambda: type(state.seed) is int and -1 <= state.seed < 1 << 64,
        "seeds": lambda: state.seeds is None or _are_seeds(state.seeds),
    }
    for name, sound in checks.items():
        if not _holds(sound):
            raise OptionError(f"the saved state is damaged, or not of this program: its {name}")
    return state


def saved_scores(session: Session) -> Logits:
    """The logits behind all tokens if they are kept, else behind the last one: (n, n_vocab)."""
    if session.scores is not None and session.n_scored == len(session):
        rows: Logits = session.scores[: len(session)].copy()
        return rows
    last = [] if session.last is None else [session.last]
    return np.array(last, np.float32).reshape(len(last), session.n_vocab)


def _holds(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError):  # of a wrong type altogether
        return False


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float))


def _are_tokens(ids: Any, n: int, n_vocab: int) -> bool:
    whole = isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iu"
    return whole and bool(((ids[:n] >= 0) & (ids[:n] < n_vocab)).all())


def _is_logits(value: Any, shape: Sequence[int]) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float32 and value.shape == tuple(shape)


def _are_seeds(value: Any) -> bool:
    try:
        random.Random().setstate(value)
    except Exception:  # whatever Python's own check runs into
        return False
    return True
