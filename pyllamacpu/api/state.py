"""The state of a `Llama` object as a picklable value: tokens, cache, logits and random numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import OptionError


@dataclass(frozen=True)
class LlamaState:
    """What `Llama.save_state` returns. `model` says what it fits: only the same model with the same cache
    types.
    """

    model: tuple[Any, ...]
    tokens: tuple[int, ...]
    llama_state: bytes  # keys and values of `tokens`
    last: npt.NDArray[np.float32] | None  # (n_vocab,) logits behind the last token
    scores: npt.NDArray[np.float32] | None  # (n_tokens, n_vocab) with logits_all
    seed: int
    seeds: tuple[Any, ...]  # where the series of seeds for coming calls is
    sampler: Any = None  # options and state of the sampler behind `Llama.sample`

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    @property
    def input_ids(self) -> npt.NDArray[np.intc]:
        """(n_tokens,)"""
        return np.array(self.tokens, np.intc)

    @property
    def llama_state_size(self) -> int:
        """Bytes of keys and values."""
        return len(self.llama_state)


def check_state(state: Any, n_vocab: int) -> LlamaState:
    """`state`, whose fields may have come from a pickle of anything. Raises OptionError for wrong ones."""
    if not isinstance(state, LlamaState):
        raise OptionError(f"a state is what save_state returned, not {type(state).__name__}")
    checks: dict[str, Callable[[], bool]] = {
        "model": lambda: isinstance(state.model, tuple) and all(map(_is_plain, state.model)),
        "tokens": lambda: _are_tokens(state.tokens, n_vocab),
        "llama_state": lambda: isinstance(state.llama_state, bytes),
        "last": lambda: state.last is None or _is_logits(state.last, (n_vocab,)),
        "scores": lambda: state.scores is None or _has_scores(state, n_vocab),
        "seed": lambda: type(state.seed) is int and -1 <= state.seed < 1 << 64,
        "seeds": lambda: _are_seeds(state.seeds),
    }
    for name, sound in checks.items():
        if not sound():
            raise OptionError(f"the saved state is damaged, or not of this program: its {name}")
    return state


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, tuple))


def _are_tokens(value: Any, n_vocab: int) -> bool:
    return isinstance(value, tuple) and all(type(token) is int and 0 <= token < n_vocab for token in value)


def _is_logits(value: Any, shape: Sequence[int]) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.float32 and value.shape == tuple(shape)


def _has_scores(state: LlamaState, n_vocab: int) -> bool:
    return _is_logits(state.scores, (len(state.tokens), n_vocab))


def _are_seeds(value: Any) -> bool:
    try:
        random.Random().setstate(value)
    except Exception:  # whatever Python's own check runs into
        return False
    return True
