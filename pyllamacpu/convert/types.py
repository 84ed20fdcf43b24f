"""Which type each tensor of a conversion gets: the mixes of `quantize`, or the checkpoint's own type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pyllamacpu.errors import OptionError
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.quantize.file_types import FILE_TYPES, FileType, parse_file_type
from pyllamacpu.quantize.recipes import (
    Choice,
    ModelTraits,
    SourceTensor,
    TypeOptions,
    choose_types,
    file_order,
    needs_imatrix,
    quantizable,
)
from pyllamacpu.weights.blocks import can_quantize, needs_importance
from pyllamacpu.weights.lazy_tensor import LazyTensor


def file_type_of(text: str, tensors: Iterable[LazyTensor]) -> FileType:
    """The type called `text`; `auto` is the 16-bit type of most of the checkpoint's weights, F16 where there
    is none.

    Raises OptionError for an unknown name.
    """
    if text.strip().lower() != "auto":
        found = parse_file_type(text)
        if found.copies:
            raise OptionError(
                "COPY keeps a GGUF file's types; for a checkpoint use auto, f32 or another type"
            )
        return found
    elements: Counter[str] = Counter()
    for tensor in tensors:
        elements[tensor.dtype] += tensor.n_elements
    return FILE_TYPES["BF16" if elements["BF16"] > elements["F16"] else "F16"]


def tensor_types(
    tensors: Mapping[str, LazyTensor], file_type: FileType, metadata: Mapping[str, Any]
) -> tuple[dict[str, TensorType], list[str]]:
    """The type of each tensor, and what to say about those that cannot have the type they should.

    Vectors and small matrices that are not multiplied with weights stay F32. Raises OptionError for types
    that cannot be written from a checkpoint.
    """
    described = [
        SourceTensor(name, tensors[name].shape or (1,), TensorType.F32) for name in file_order(tensors)
    ]  # the rules count along the order of llama-quantize
    chosen = choose_types(described, file_type, ModelTraits.of(metadata), TypeOptions(), has_imatrix=False)
    kinds = {name: choice.kind for name, choice in chosen.items()}
    for name, kind in kinds.items():
        if not quantizable(name, tensors[name].shape):
            continue
        if needs_imatrix(name, kind, file_type) or needs_importance(kind):
            raise OptionError(
                f"{file_type.name} needs an importance matrix ({name} would be {kind.name}): convert to "
                f"bf16, then use "
                "`pyllamacpu quantize --imatrix`"
            )
        if kind != TensorType.F32 and not can_quantize(kind):
            raise OptionError(
                f"{file_type.name}: {name} cannot be written as {kind.name}; choose another type"
            )
    return kinds, fallbacks(chosen, {name: tensor.shape[-1:] for name, tensor in tensors.items()})


def fallbacks(chosen: Mapping[str, Choice], columns: Mapping[str, tuple[int, ...]]) -> list[str]:
    """One sentence for each pair of types, with the number of tensors."""
    counted: Counter[tuple[TensorType, TensorType, int]] = Counter()
    for name, choice in chosen.items():
        if choice.fell_back:
            counted[choice.wanted, choice.kind, columns[name][0]] += 1
    return [
        f"{n} tensors with rows of {cols} elements cannot be {wanted.name} (blocks of {wanted.block_size}): "
        f"they become {kind.name}"
        for (wanted, kind, cols), n in counted.items()
    ]
