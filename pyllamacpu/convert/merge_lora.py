"""LoRA adapters merged into the weights of a GGUF file: W + scale * alpha / rank * B A, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import AdapterError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.model.config import check_is_model
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.model.lora import adapter_alpha, adapter_names, check_scale
from pyllamacpu.weights.lazy_tensor import Array, LazyTensor, computed

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Added:
    """What is added to a weight, or to each matrix of a stack: (…, rows, rank) times (…, rank, cols)."""

    left: Floats
    right: Floats

    def rows(self, start: int, stop: int) -> Floats:
        """Rows [start, stop) of the matrices one below the other."""
        n = self.left.shape[-2]
        lefts, rights = (x.reshape(-1, *x.shape[-2:]) for x in (self.left, self.right))
        parts = []
        while start < stop:
            i, first = divmod(start, n)
            last = min(n, first + stop - start)
            parts.append(lefts[i, first:last] @ rights[i])
            start += last - first
        return np.concatenate(parts)


def read_added(base: GGUFFile, adapters: Sequence[tuple[str, float]]) -> dict[str, list[Added]]:
    """By the names of the base's tensors, what adapters (files and scales) add to them, in their order.

    Raises AdapterError, GGUFError, ModelError, OptionError.
    """
    if adapters:
        check_is_model(base.metadata)
    found: dict[str, list[Added]] = {}
    for path, scale in adapters:
        scale = check_scale(scale)
        with GGUFFile.open(path) as file:
            alpha = adapter_alpha(file, str(base.metadata.get("general.architecture")))
            for name in adapter_names(file):
                found.setdefault(name, []).append(_added(base, file, name, alpha, scale))
            file.check_intact()
    return found


def _added(base: GGUFFile, file: GGUFFile, name: str, alpha: float, scale: float) -> Added:
    info, path = base.tensors.get(name), file.paths[0]
    if info is None:
        raise AdapterError(path, f"{name}: the model has no such weight")
    if len(info.shape) < 2:
        raise AdapterError(path, f"{name}: norms and biases cannot be changed by a LoRA")
    a, b = (_values(file, f"{name}.lora_{part}") for part in "ab")
    # Of the embedding A is a table of tokens.
    left, right = (a, b.T) if name == "token_embd.weight" else (b, a)
    rank, stack = left.shape[-1], info.shape[:-2]
    wanted = (*stack, info.shape[-2], rank), (*stack, rank, info.shape[-1])
    if (left.shape, right.shape) != wanted:
        shapes = f"A {a.shape} and B {b.shape} do not fit the model's {info.shape}"
        raise AdapterError(path, f"{name}: {shapes}; the adapter is of another model, or damaged")
    return Added(left * np.float32(scale * (alpha / rank if alpha else 1.0)), right)


def _values(file: GGUFFile, name: str) -> Floats:
    info = file.tensors[name]
    values = dequantize(file.data(name), info.type, info.shape)
    if not np.isfinite(values).all():
        raise AdapterError(file.paths[0], f"{name}: has values that are not finite numbers (NaN or infinity)")
    return values


def merged(tensor: LazyTensor, added: Sequence[Added]) -> LazyTensor:
    """The float32 rows of a tensor with all that is added to it."""

    def rows(start: int, stop: int) -> Array:
        whole = np.asarray(tensor.read(start, stop), np.float32)
        for one in added:
            whole = whole + one.rows(start, stop)
        return whole

    return computed(tensor.shape, tensor.source, rows)


def notes(base: GGUFFile, added: Mapping[str, object]) -> list[str]:
    """What the person should know."""
    again = [name for name in added if not base.tensors[name].type.is_float]
    found = []
    if again:
        n = sum(prod(base.tensors[name].shape) for name in again)
        found.append(
            f"{len(again)} quantized tensors ({n / 1e6:.0f} M weights) are decoded, changed and quantized "
            "again, which costs quality: merge into the unquantized model where there is one, or use --lora "
            "when it runs"
        )
    if "token_embd.weight" in added and "output.weight" not in base.tensors:
        found.append("the output is tied to the embedding, and changes with it")
    return found
