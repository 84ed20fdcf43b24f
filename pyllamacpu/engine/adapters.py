"""The adapters (LoRA) that are loaded beside a model, and which of them sequences use at which scale."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import OptionError
from pyllamacpu.graph.adapters import GraphAdapters
from pyllamacpu.model.lora import Adapter, AdapterScales, check_scale
from pyllamacpu.model.weights import Experts, Weights


class LoadedAdapters:
    """In the order of their loading; never unloaded while the engine lives."""

    def __init__(self, adapters: Iterable[Adapter] = ()) -> None:
        self._adapters = tuple(adapters)

    def __len__(self) -> int:
        return len(self._adapters)

    def __iter__(self) -> Iterator[Adapter]:
        return iter(self._adapters)

    def __getitem__(self, i: int) -> Adapter:
        return self._adapters[i]

    def extended(self, more: Iterable[Adapter]) -> LoadedAdapters:
        """These, and more behind them."""
        return LoadedAdapters((*self._adapters, *more))

    def of_weights(self, weights: Weights) -> GraphAdapters | None:
        """What they change of a model's weights; None: there are no adapters."""
        if not self._adapters:
            return None
        names = {name for adapter in self._adapters for name in adapter.pairs}
        keys = {name: weights[name] for name in names}
        pairs = {
            id(w[0] if isinstance(w, Experts) else w): [a.pairs.get(name) for a in self._adapters]
            for name, w in keys.items()
        }
        return GraphAdapters(len(self._adapters), pairs)

    def scales(self, given: Iterable[tuple[int, float]]) -> AdapterScales:
        """From numbers of adapters and their scales, each number once. Raises OptionError."""
        wanted: dict[int, float] = {}
        for i, scale in given:
            if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < len(self._adapters):
                there = f"0 to {len(self._adapters) - 1}" if self._adapters else "none"
                raise OptionError(f"there is no adapter {i!r}; those loaded are {there}")
            if i in wanted:
                raise OptionError(f"adapter {i} is given twice")
            wanted[i] = check_scale(scale)
        return tuple((self._adapters[i], wanted[i]) for i in sorted(wanted) if wanted[i])

    def rows(self, sequences: Seq[AdapterScales]) -> npt.NDArray[np.float32] | None:
        """(n_sequences, n_adapters) scales; None: no sequence uses any."""
        if not any(sequences):
            return None
        numbers = {id(adapter): i for i, adapter in enumerate(self._adapters)}
        rows = np.zeros((len(sequences), len(self._adapters)), np.float32)
        for row, scales in zip(rows, sequences, strict=True):
            for adapter, scale in scales:
                row[numbers[id(adapter)]] = scale
        return rows
