"""Which layers of a Llama 3.2 Vision model attend to images, by keys of ollama's and one of ours.

  mllama.attention.cross_attention_layers     their numbers, from 0, all layers counted
  mllama.attention.cross_attention_permuted   bool (ours): rows of their q and k have the order of rotated
                                              layers, and the weights of their norms do not

ollama's converter reorders the rows of all layers' q and k, of these too, whose heads are normalized and not
rotated: the weights of the norms then stand in another order than the rows that they scale. Its older files
have text model and tower apart, and were made by another program.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

_CROSS = re.compile(r"blk\.(\d+)\.cross_attn_q_proj\.weight")


class Keys(Protocol):
    """Reads metadata of the architecture; errors name the key."""

    def get(self, key: str) -> Any: ...
    def error(self, key: str, value: object, rule: str) -> Exception: ...


@dataclass(frozen=True)
class MllamaLayers:
    """`cross`: numbers of the layers that attend to images. `permuted`: as the key says."""

    cross: tuple[int, ...]
    permuted: bool = False

    def in_row_order(self, norm: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The weights (head_dim,) of a norm in the order of the rows that they scale."""
        return np.ascontiguousarray(norm.reshape(2, -1).T.reshape(-1)) if self.permuted else norm


def read_mllama_layers(keys: Keys, n_layers: int, tensors: Mapping[str, Any]) -> MllamaLayers:
    """Raises ModelError that names the key and its value."""
    key = "attention.cross_attention_layers"
    stated, held = (
        keys.get(key),
        sorted(int(match[1]) for name in tensors if (match := _CROSS.fullmatch(name))),
    )
    cross = held if stated is None else _numbers(stated)
    if not cross or sorted(set(cross)) != cross or cross[-1] >= n_layers or cross[0] < 0:
        raise keys.error(key, stated, f"must be numbers of some of the {n_layers} layers, in order")
    permuted = keys.get("attention.cross_attention_permuted")
    if permuted is None:
        permuted = keys.get("vision.block_count") is not None
    if not isinstance(permuted, (bool, np.bool_)):
        raise keys.error("attention.cross_attention_permuted", permuted, "must be true or false")
    return MllamaLayers(tuple(cross), bool(permuted))


def _numbers(value: Any) -> list[int]:
    """Those of an array; nothing for other values."""
    items = value.tolist() if isinstance(value, np.ndarray) else value
    fine = isinstance(items, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in items)
    return list(items) if fine else []
