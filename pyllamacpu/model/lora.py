"""LoRA adapters at run time: low-rank additions to the weights of a loaded model, from GGUF files.

A weight W (out, in) becomes W + scale * alpha / rank * B A with A (rank, in) and B (out, rank); `scale` is
the caller's, for each sequence. Of the token embedding A is a table (n_vocab, rank), and B (dim, rank);
experts have an A and a B each, (n, rank, in) and (n, out, rank).
alpha 0: not divided by the rank. The file is llama.cpp's (src/llama-adapter.cpp): general.type "adapter",
adapter.type "lora", adapter.lora.alpha, and tensors NAME.lora_a, NAME.lora_b.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import AdapterError, ModelError, OptionError
from pyllamacpu.gguf.metadata import architecture_of, text_of
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.model.weights import Experts, Matrix, Table, Vector, Weights
from pyllamacpu.native import ffi, lib, pointer
from pyllamacpu.units import exact

MAX_RANK = 256
MAX_SCALE = 1e4
MIN_ALPHA, MAX_ALPHA = 1e-9, 1e9  # but for the sign; what float32 holds, times a scale too
_SUFFIXES = (".lora_a", ".lora_b")


@dataclass(frozen=True, eq=False)
class LowRankPair:
    """What is added to a weight, but for the caller's scale: factor * B A."""

    a: Matrix | Table | Experts
    b: Matrix | Experts
    factor: float

    @property
    def rank(self) -> int:
        first: Matrix = self.b[0] if isinstance(self.b, Experts) else self.b
        return first.cols


@dataclass(frozen=True, eq=False)
class Adapter:
    """`pairs` by the names of the model's weights. `digest`: of what the file holds, wherever it lies."""

    name: str
    path: Path
    pairs: Mapping[str, LowRankPair]
    alpha: float
    digest: str

    @property
    def rank(self) -> int:
        """The largest."""
        return max(pair.rank for pair in self.pairs.values())

    @property
    def n_bytes(self) -> int:
        sizes = (
            w.data.nbytes if isinstance(w, Table) else w.n_bytes
            for p in self.pairs.values()
            for w in (p.a, p.b)
        )
        return sum(sizes)


AdapterScales = tuple[tuple[Adapter, float], ...]
"""The adapters that a sequence uses, in the order of loading, each once, and none with the scale 0."""


def load_adapter(path: str | os.PathLike[str], arch: str, weights: Weights, pool: Any) -> Adapter:
    """Reads the adapter for a model of the architecture `arch` with these weights.

    Raises AdapterError when the file is not an adapter, or one of another model; GGUFError when it is
    damaged.
    """
    where = Path(path)
    if where.is_dir():
        raise AdapterError(
            where, f"is a folder; make a GGUF adapter of it first: pyllamacpu convert {where} -o ADAPTER.gguf"
        )
    with GGUFFile.open(path) as file:
        alpha = adapter_alpha(file, arch)
        found = _AdapterReader(file, weights, pool)
        pairs = {name: found.pair(name, alpha) for name in adapter_names(file)}
        file.check_intact()
    return Adapter(where.stem, where, pairs, alpha, found.digest.hexdigest())


def check_scale(scale: object) -> float:
    """Raises OptionError unless it is a number that an adapter may be scaled by."""
    if (
        isinstance(scale, bool)
        or not isinstance(scale, (int, float, np.integer, np.floating))
        or not abs(scale) <= MAX_SCALE
    ):
        raise OptionError(
            f"the scale of an adapter is {scale!r}: must be a number from {exact(-MAX_SCALE)} "
            f"to {exact(MAX_SCALE)}"
        )
    return float(scale) + 0.0  # -0.0 is 0.0


def adapter_alpha(file: GGUFFile, arch: str) -> float:
    """adapter.lora.alpha, once it is certain that the file is a LoRA adapter of such a model."""
    path, get = file.paths[0], file.metadata.get
    kind = text_of(file.metadata, "general.type")
    if kind != "adapter":
        raise AdapterError(
            path, f"is not an adapter (its general.type is {kind or 'not stated'}); models go to -m"
        )
    if (kind := text_of(file.metadata, "adapter.type")) != "lora":
        raise AdapterError(path, f"is an adapter of type {kind!r}; only lora can be applied")
    if (own := architecture_of(file.metadata)) != arch:
        raise AdapterError(path, f"is an adapter for {own} models, and this one is {arch}")
    if get("adapter.alora.invocation_tokens") is not None:
        raise AdapterError(
            path, "is an activated LoRA (aLoRA), which counts from certain tokens on; that is not supported"
        )
    alpha = get("adapter.lora.alpha")
    if (
        not isinstance(alpha, (int, float, np.floating))
        or isinstance(alpha, bool)
        or not (alpha == 0 or MIN_ALPHA <= abs(alpha) <= MAX_ALPHA)
    ):
        raise AdapterError(
            path,
            f"adapter.lora.alpha is {alpha!r}: must be 0, or a number of a size from {exact(MIN_ALPHA)} to "
            f"{exact(MAX_ALPHA)}",
        )
    return float(alpha)


def adapter_names(file: GGUFFile) -> list[str]:
    """The weights that it changes. Every tensor is the A or B of one, and none lacks the other."""
    path = file.paths[0]
    for name in file.tensors:
        if "magnitude" in name or "dora" in name.lower():
            raise AdapterError(path, f"{name}: DoRA adapters cannot be applied; merge it into its model")
        if not name.endswith(_SUFFIXES):
            raise AdapterError(
                path, f"the tensor {name} is neither the A nor the B of a LoRA (.lora_a, .lora_b)"
            )
    names = list(dict.fromkeys(name[: -len(".lora_a")] for name in file.tensors))
    for name in names:
        for suffix in _SUFFIXES:
            if name + suffix not in file.tensors:
                raise AdapterError(path, f"the tensor {name}{suffix} is missing")
    if not names:
        raise AdapterError(path, "has no tensors")
    return names


class _AdapterReader:
    """Takes pairs out of `file`, checking them against the model's weights."""

    def __init__(self, file: GGUFFile, weights: Weights, pool: Any) -> None:
        self.file, self.weights, self.pool = file, weights, pool
        from hashlib import sha256  # which takes a while to come, and most runs have no adapters

        self.digest = sha256()
        room = sum(_packed_bytes(info.shape) for info in file.tensors.values())
        self._arena = ffi.gc(lib.pl_weight_arena_new(room), lib.pl_weight_arena_free)

    def error(self, reason: str) -> AdapterError:
        return AdapterError(self.file.paths[0], reason)

    def pair(self, name: str, alpha: float) -> LowRankPair:
        weight = self.weights.get(name)
        if weight is None:
            raise self.error(f"{name}: the model has no such weight")
        if isinstance(weight, Vector):
            raise self.error(f"{name}: norms and biases cannot be changed by a LoRA")
        (kind_a, a, shape_a), (kind_b, b, shape_b) = (self._values(name + suffix) for suffix in _SUFFIXES)
        rank = shape_b[-1]
        shape = _shape(weight)
        n_out, n_in = shape[::-1] if isinstance(weight, Table) else shape[-2:]
        of_a = (n_in, rank) if isinstance(weight, Table) else (rank, n_in)
        if (shape_a, shape_b) != ((*shape[:-2], *of_a), (*shape[:-2], n_out, rank)):
            shapes = f"A {shape_a} and B {shape_b} do not fit the model's {shape}"
            raise self.error(f"{name}: {shapes}; the adapter is of another model, or damaged")
        if rank > MAX_RANK:
            raise self.error(f"{name}: the rank is {rank}; {MAX_RANK} is the limit")
        first: Matrix | Table | Experts
        if isinstance(weight, Table):
            first = Table(f"{name}.lora_a", n_in, rank, kind_a, a.copy())
        else:
            first = self._packed(f"{name}.lora_a", kind_a, a, shape_a)
        second = self._packed(f"{name}.lora_b", kind_b, b, shape_b)
        return LowRankPair(first, second, alpha / rank if alpha else 1.0)

    def _values(self, name: str) -> tuple[TensorType, npt.NDArray[np.uint8], tuple[int, ...]]:
        """Its bytes as one of the float types: A and B are small, and not worth another rounding."""
        info, data = self.file.tensors[name], self.file.data(name)
        if not 2 <= len(info.shape) <= 3 or min(info.shape) < 1:
            raise self.error(
                f"{name}: has the shape {info.shape}, and is neither a matrix nor one for each expert"
            )
        self.digest.update(f"{name} {info.type.name} {info.shape}".encode() + data.tobytes())
        try:
            values = dequantize(data, info.type, info.shape)
        except ModelError as error:
            raise self.error(f"{name}: {error}") from None
        if not np.isfinite(values).all():
            raise self.error(f"{name}: has values that are not finite numbers (NaN or infinity)")
        if info.type.is_float:
            return info.type, data, info.shape
        return TensorType.F32, values.view(np.uint8).reshape(-1), info.shape

    def _packed(
        self, name: str, kind: TensorType, data: npt.NDArray[np.uint8], shape: tuple[int, ...]
    ) -> Matrix | Experts:
        """A matrix, or one for each expert."""
        if len(shape) == 3:
            parts = data.reshape(shape[0], -1)
            return Experts(name, tuple(self._matrix(name, kind, part, shape[1:]) for part in parts))
        return self._matrix(name, kind, data, shape)

    def _matrix(
        self, name: str, kind: TensorType, data: npt.NDArray[np.uint8], shape: tuple[int, ...]
    ) -> Matrix:
        handle = lib.pl_matrix_new(self.pool, self._arena, int(kind), ffi.from_buffer(data), 0, *shape)
        pointer(handle, f"loading {name}")
        owned = ffi.gc(handle, lib.pl_matrix_free, lib.pl_matrix_bytes(handle))
        return Matrix(name, shape[0], shape[1], kind, owned)


def _shape(weight: Matrix | Table | Experts) -> tuple[int, ...]:
    if isinstance(weight, Experts):
        return (len(weight), *_shape(weight.matrices[0]))
    return weight.rows, weight.cols


def _packed_bytes(shape: tuple[int, ...]) -> int:
    """Of matrices of float32 in panels of 16 rows, with room for their alignment."""
    rows, cols = shape[-2:] if len(shape) > 1 else (1, *shape)
    return math.prod(shape[:-2]) * (4 * (-(-rows // 16) * 16) * cols + 64)
