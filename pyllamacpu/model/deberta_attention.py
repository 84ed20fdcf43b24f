"""What sets DeBERTa's attention and outputs apart: the buckets of relative positions, and the labels.

Keys of GGUF files below `deberta-v2.`: `attention.relative_buckets_count` is T5's, `classifier.output_labels`
that of rerankers; `attention.max_relative_distance` is our own (llama.cpp does not know the architecture).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import ModelError
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.gguf.values import ValueType

_MAX = 1 << 16


class Keys(Protocol):
    """The keys of an architecture, as model/config.py reads them."""

    @property
    def metadata(self) -> Mapping[str, Any]: ...
    def whole(self, key: str, low: int, high: int, default: int | None = None) -> int: ...
    def get(self, key: str) -> Any: ...
    def error(self, key: str, value: object, rule: str) -> ModelError: ...


@dataclass(frozen=True)
class DebertaAttention:
    """n_buckets: keys and queries of relative positions are `2 * n_buckets`, one half for each direction.

    max_distance: tokens, from which on all distances share the last bucket; distances up to half of the
    buckets have one each, those beyond share more and more (logarithmic). Without `logarithmic` there is a
    bucket for each distance, and the outermost for all that are larger.
    """

    n_buckets: int
    max_distance: int
    logarithmic: bool
    labels: tuple[str, ...]

    @property
    def n_positions(self) -> int:
        return 2 * self.n_buckets

    def bucket_table(self, n_ctx: int) -> npt.NDArray[np.float32]:
        """(2 * n_ctx - 1,): the bucket, 0 to n_positions - 1, of the distances 1 - n_ctx to n_ctx - 1 from a
        key to its query. In float32, step by step as transformers' make_log_bucket_position computes it.
        """
        distance = np.arange(1 - n_ctx, n_ctx)
        buckets = distance.astype(np.float32)
        if self.logarithmic:
            middle = self.n_buckets // 2
            far = np.maximum(np.abs(distance), middle).astype(np.float32)
            span = np.log(np.float32((self.max_distance - 1) / middle))
            steps = np.ceil(np.log(far / np.float32(middle)) / span * np.float32(middle - 1))
            buckets = np.where(np.abs(distance) <= middle, buckets, np.sign(buckets) * (steps + middle))
        return np.clip(buckets + self.n_buckets, 0, self.n_positions - 1).astype(np.float32)

    def keys(self) -> list[KeyValue]:
        """Metadata without the architecture's prefix."""
        return [
            KeyValue("attention.relative_buckets_count", self.n_buckets, ValueType.UINT32),
            KeyValue("attention.max_relative_distance", self.max_distance, ValueType.UINT32),
            KeyValue("attention.logarithmic_buckets", self.logarithmic, ValueType.BOOL),
            KeyValue("classifier.output_labels", list(self.labels), ValueType.STRING),
        ]


def read_deberta_attention(keys: Keys) -> DebertaAttention:
    """Of a file's metadata. Raises ModelError that names the key."""
    n_buckets = keys.whole("attention.relative_buckets_count", 4, _MAX)
    logarithmic = keys.get("attention.logarithmic_buckets")
    if logarithmic not in (None, True, False):
        raise keys.error("attention.logarithmic_buckets", logarithmic, "must be true or false")
    max_distance = keys.whole("attention.max_relative_distance", n_buckets // 2 + 2, _MAX)
    named = keys.get("classifier.output_labels")
    labels = [] if named is None or isinstance(named, (str, bool, int, float)) else list(named)
    if not 2 <= len(labels) <= _MAX or not all(isinstance(label, str) for label in labels):
        raise keys.error("classifier.output_labels", labels[:4], "must be a list of two labels or more")
    return DebertaAttention(n_buckets, max_distance, logarithmic is not False, tuple(labels))
