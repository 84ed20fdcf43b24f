"""The state of a `Llama` object as a picklable value: tokens, cache, logits and random numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


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
