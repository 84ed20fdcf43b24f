"""What a group of layers keeps of the tokens it has read: the shape of its pages, which positions stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KVKind = Literal["causal", "chunked", "image"]


@dataclass(frozen=True)
class KVSpace:
    """Keys and values of `n_layers` layers that are kept alike. A model names its spaces.

    causal: every position is kept. chunked: only positions of the current chunk of `chunk` tokens are
    read, pages of earlier chunks may go. image: keys are the states of the sequence's images
    (cross-attention). An encoder has no space at all.
    """

    name: str
    n_layers: int
    kv_heads: int
    k_dim: int  # elements of a key, per head
    v_dim: int  # elements of a value, per head
    kind: KVKind = "causal"
    chunk: int = 0  # tokens; chunked spaces only
