"""Adapters of single experts: a GGUF file holds one pair for all experts of a layer's matrix.

PEFT has an A and a B for each expert that it adapts (Mixtral's w1, w2 and w3), which may be of different
ranks. In the file all have the largest, filled up with zeros, as experts without an adapter are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pyllamacpu.convert.lora_pairs import Pair
from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights.lazy_ops import concatenate, map_rows, stack
from pyllamacpu.weights.lazy_tensor import LazyTensor, from_array

_EXPERT = re.compile(r"(.+\.experts)\.(0|[1-9]\d{0,5})\.([^.]+\.weight)")


def ranks_in_file(pairs: Mapping[str, Pair]) -> dict[str, int]:
    """Of each pair: its own rank, or the largest of the experts beside it."""
    found = {name: pair.rank for name, pair in pairs.items()}
    for members in _groups(pairs).values():
        largest = max(found[name] for name in members.values())
        found |= dict.fromkeys(members.values(), largest)
    return found


def with_stacks(source: Path, pairs: Mapping[str, Pair], n_experts: int) -> dict[str, Pair]:
    """The pairs, those of single experts as one by the name of the layer's: A (n, rank, in), B (n, out,
    rank). Raises CheckpointError.
    """
    groups = _groups(pairs) if n_experts else {}
    single = {name for members in groups.values() for name in members.values()}
    found = {name: pair for name, pair in pairs.items() if name not in single}
    for name, members in groups.items():
        if max(members) >= n_experts:
            raise CheckpointError(
                source, f"the base model has no {members[max(members)]}: it has {n_experts} experts"
            )
        found[name] = _stacked(source, {i: pairs[member] for i, member in members.items()}, n_experts)
    return found


def _groups(pairs: Mapping[str, Pair]) -> dict[str, dict[int, str]]:
    """By the name of the layer's matrix: the number of each expert, and the name of its pair."""
    found: dict[str, dict[int, str]] = {}
    for name in pairs:
        if match := _EXPERT.fullmatch(name):
            found.setdefault(f"{match[1]}.{match[3]}", {})[int(match[2])] = name
    return found


def _stacked(source: Path, members: Mapping[int, Pair], n_experts: int) -> Pair:
    sides = {i: _sides(source, pair) for i, pair in members.items()}
    first, rank = next(iter(members.values())), max(pair.rank for pair in members.values())
    a, b = next(iter(sides.values()))
    n_in, n_out = a.shape[1], b.shape[0]
    for pair, (own_a, own_b) in zip(members.values(), sides.values(), strict=True):
        if (own_a.shape, own_b.shape) != ((pair.rank, n_in), (n_out, pair.rank)):
            raise CheckpointError(
                source,
                f"{pair.module}: A {own_a.shape} and B {own_b.shape} do not fit those of {first.module}",
            )
    all_a, all_b = ({i: both[k] for i, both in sides.items()} for k in (0, 1))
    return Pair(
        first.module,
        stack(list(_filled(all_a, 0, (rank, n_in), n_experts))),
        stack(list(_filled(all_b, 1, (n_out, rank), n_experts))),
    )


def _sides(source: Path, pair: Pair) -> tuple[LazyTensor, LazyTensor]:
    if pair.a is None or pair.b is None:
        raise CheckpointError(source, f"{pair.module} has only one of A and B")
    return pair.a, pair.b


def _filled(
    parts: Mapping[int, LazyTensor], axis: int, shape: tuple[int, int], n: int
) -> Iterator[LazyTensor]:
    """One side of each expert in float32, with zeros behind it along the rank's axis."""
    for i in range(n):
        if i not in parts:
            yield _zeros(shape)
            continue
        own = map_rows(parts[i], lambda values: np.asarray(values, np.float32))
        missing = shape[axis] - own.shape[axis]
        rest = (missing, shape[1]) if axis == 0 else (shape[0], missing)
        yield concatenate([own, _zeros(rest)], axis) if missing else own


def _zeros(shape: tuple[int, int]) -> LazyTensor:
    return from_array(np.zeros(shape, np.float32), "experts without an adapter")
