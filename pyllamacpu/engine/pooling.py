"""Embeddings: the final hidden states of a text, pooled to one vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import OptionError

Hidden = npt.NDArray[np.float64]

# The numbers of llama.cpp's pooling types. -1, the default, is the file's own, else the mean.
POOLING: dict[int, tuple[str, Callable[[Hidden], Hidden]]] = {
    -1: ("mean", lambda states: states.mean(axis=0)),
    0: ("none", lambda states: states),
    1: ("mean", lambda states: states.mean(axis=0)),
    2: ("cls", lambda states: states[0]),
    3: ("last", lambda states: states[-1]),
}


NONE, MEAN, CLS, LAST, RANK = range(5)
BY_NAME = {"none": NONE, "mean": MEAN, "cls": CLS, "last": LAST}


def own_pooling(metadata: Mapping[str, Any]) -> int:
    """What a file says of itself; the mean for one that says nothing, or something that gives no vector."""
    stated = metadata.get(f"{metadata.get('general.architecture')}.pooling_type")
    return stated if stated in (MEAN, CLS, LAST) else MEAN


def check_pooling(number: int) -> int:
    """`number` if it is a pooling type that a Llama can serve. Raises OptionError."""
    if not hasattr(number, "__index__"):
        raise OptionError(f"pooling_type={number!r:.40}: give a whole number")
    if number == RANK:
        raise OptionError(
            "pooling_type=4 (rank) needs a model with a head that ranks, which no architecture here has"
        )
    if number not in POOLING:
        names = ", ".join(f"{known} ({name})" for known, (name, _) in POOLING.items())
        raise OptionError(f"pooling_type={number!r} is not supported; choose one of {names}")
    return int(number)


def pool(states: npt.NDArray[np.float32], pooling: int, normalize: bool) -> Any:
    """One vector (dim,) as a list of floats, or with pooling "none" a list of them, from `states` (n_tokens,
    dim).
    """
    vectors: npt.NDArray[np.float64] = POOLING[pooling][1](states.astype(np.float64))
    if normalize:
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
        vectors = vectors / np.where(lengths > 0, lengths, 1)
    return vectors.astype(np.float32).tolist()
