"""Tensors of a checkpoint that have no place in the result: of no use, or a reason to stop.

Nothing is left out unless the data tells that it changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pyllamacpu.convert.models.plain_names import is_useless
from pyllamacpu.convert.models.shape import ModelShape
from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights.lazy_tensor import Array, LazyTensor

_VISION = re.compile(
    r"(vision_model|multi_modal_projector|vision_tower|vision_embeddings|vision_projection)\..*"
)
_ADAPTER = re.compile(r".*(\.lora_|\.base_layer\.|\.modules_to_save\.|\.original_module\.).*")
VISION_LEFT_OUT = "tensors of the vision tower are left out: the result reads text only"
_SLAB = 1 << 20  # elements compared at once


def check_no_adapter(path: Path, names: Iterable[str]) -> None:
    """Raises CheckpointError for the state of a model with an adapter that is not merged."""
    found = sorted(name for name in names if _ADAPTER.fullmatch(name))
    if found:
        raise CheckpointError(
            path,
            f"is the state of a model with an adapter that is not merged ({found[0]} and "
            f"{len(found) - 1} more such tensors); call PEFT's merge_and_unload(), save, and convert that",
        )


def check_rest(
    path: Path, shape: ModelShape, tensors: Mapping[str, LazyTensor], rest: Iterable[str]
) -> tuple[str, ...]:
    """What to say about tensors that have no place. Raises CheckpointError where they could matter."""
    vision: list[str] = []
    zeros: list[str] = []
    unknown: list[str] = []
    for name in sorted(rest):
        if is_useless(name) or (shape.tied and name in ("lm_head.weight", "output.weight")):
            continue
        if shape.arch == "llama4" and _VISION.fullmatch(name):
            vision.append(name)
        elif name.endswith(".bias") and all_zero(tensors[name]):
            zeros.append(name)
        else:
            unknown.append(name)
    if unknown:
        raise CheckpointError(path, _unknown_text(unknown))
    notes = []
    if zeros:
        notes.append(f"{len(zeros)} biases are all zero and are left out")
    if vision:
        notes.append(f"{len(vision)} {VISION_LEFT_OUT}")
    return tuple(notes)


def _unknown_text(unknown: list[str]) -> str:
    shown = ", ".join(unknown[:4]) + (f" and {len(unknown) - 4} more" if len(unknown) > 4 else "")
    if all(name.endswith("_proj.bias") for name in unknown):
        return (
            f"has biases that are not zero, and its config has none: {shown}; if the model was trained with "
            f"them, set attention_bias (q, k, v, o) or mlp_bias in config.json to true"
        )
    return f"has tensors that are not understood: {shown}"


def all_zero(tensor: LazyTensor) -> bool:
    return tensor.is_float and not any(part.any() for part, _ in _slabs(tensor, tensor))


def equal(first: LazyTensor, other: LazyTensor) -> bool:
    """Whether two tensors hold the same values."""
    if first.shape != other.shape or not (first.is_float and other.is_float):
        return False
    return all(bool((one == two).all()) for one, two in _slabs(first, other))


def _slabs(first: LazyTensor, other: LazyTensor) -> Iterator[tuple[Array, Array]]:
    step = max(1, _SLAB * first.n_rows // max(1, first.n_elements))
    for start in range(0, first.n_rows, step):
        stop = min(start + step, first.n_rows)
        yield first.read(start, stop), other.read(start, stop)
