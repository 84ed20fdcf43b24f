"""Tensors of a GGUF file as the kernels read them: packed matrices, padded vectors, tables of rows.

An architecture enumerates its tensors as `TensorSpec`s, once: loading, counting, replacing and showing all go
by that list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import ModelError, NativeError
from pyllamacpu.gguf.reader import GGUFFile, TensorInfo
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.model.codebooks import ensure_codebook
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.model.expert_memory import ExpertMemory
from pyllamacpu.model.panel_file import PanelFile, Panels, PanelWriter
from pyllamacpu.native import ffi, lib, pointer

if TYPE_CHECKING:
    from pyllamacpu.model.pack_cache import PackCache

LANES = 16  # vectors and rows are padded to a multiple of this


@dataclass(frozen=True, eq=False)
class Matrix:
    """A (rows, cols) weight matrix, packed. `quantized`: it multiplies 8-bit activations instead of float32
    ones; `int16`: these, in 16 bits.
    """

    name: str
    rows: int
    cols: int
    type: TensorType
    handle: Any
    int16: bool = False

    @property
    def quantized(self) -> bool:
        return not (self.type.is_float or self.int16)

    @property
    def n_bytes(self) -> int:
        return int(lib.pl_matrix_bytes(self.handle)) if self.handle else 0  # only described


@dataclass(frozen=True, eq=False)
class Experts(Sequence[Matrix]):
    """(n, rows, cols) weights, packed: matrices of one name, shape and type, one for each expert. With a
    `memory` they stay in the file, and are read into it when they are needed.
    """

    name: str
    matrices: tuple[Matrix, ...]
    memory: ExpertMemory | None = None

    def __getitem__(self, i: Any) -> Any:
        return self.matrices[i]

    def __len__(self) -> int:
        return len(self.matrices)

    @property
    def n_bytes(self) -> int:
        """In memory for itself alone."""
        return 0 if self.memory else sum(matrix.n_bytes for matrix in self.matrices)


@dataclass(frozen=True, eq=False)
class Vector:
    """(size,) float32, padded with zeros to a multiple of 16."""

    name: str
    size: int
    values: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Table:
    """(rows, cols) of which single rows are looked up: the bytes as they are in the file, read where they
    lie.
    """

    name: str
    rows: int
    cols: int
    type: TensorType
    data: npt.NDArray[np.uint8]


Weight: TypeAlias = Matrix | Experts | Vector | Table
W = TypeVar("W", Matrix, Experts, Vector, Table)


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of an architecture: its name in the model, how it is read, and its shape.

    matrix: (rows, cols), packed. int16_matrix: likewise, and floats of the file are multiplied in 16 bits,
    where the CPU does that faster (8-bit weights are not: they would take twice their room). experts: (n,
    rows, cols), packed. float_matrices: likewise, but in float32 whatever the file's type: small ones that
    float32 is multiplied with. int16_matrices: those in 16 bits, where the CPU does that faster. vector:
    (size,). table: (rows, cols), looked up row by row. unused: older files have it, and it says nothing
    new.
    """

    name: str
    kind: Literal[
        "matrix", "int16_matrix", "experts", "float_matrices", "int16_matrices", "vector", "table", "unused"
    ]
    shape: tuple[int, ...] = ()
    optional: bool = False
    tensor: str = ""  # the file's name for it, where that is another one (tied weights)
    reshaped: bool = False  # the file may divide the elements among other axes


def _item(data: Callable[[], npt.NDArray[np.uint8]], i: int) -> npt.NDArray[np.uint8]:
    found: npt.NDArray[np.uint8] = data()[i]
    return found


class Weights(Mapping[str, Weight]):
    """The tensors of a model by their names."""

    def __init__(self, tensors: Mapping[str, Weight], prefix: str = "") -> None:
        self._tensors = tensors
        self._prefix = prefix

    def __getitem__(self, name: str) -> Weight:
        return self._tensors[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        n = len(self._prefix)
        return (name[n:] for name in self._tensors if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def under(self, prefix: str) -> Weights:
        """Those whose names begin with `prefix`, by what follows."""
        return Weights(self._tensors, self._prefix + prefix)

    def matrix(self, name: str) -> Matrix:
        return self._typed(name, Matrix)

    def experts(self, name: str) -> Experts:
        return self._typed(name, Experts)

    def vector(self, name: str) -> Vector:
        return self._typed(name, Vector)

    def table(self, name: str) -> Table:
        return self._typed(name, Table)

    def optional_vector(self, name: str) -> Vector | None:
        return self.vector(name) if name in self else None

    def linear(self, name: str) -> tuple[Matrix, Vector | None]:
        """The matrix `name`.weight, and the vector `name`.bias if there is one."""
        return self.matrix(f"{name}.weight"), self.optional_vector(f"{name}.bias")

    @property
    def n_bytes(self) -> int:
        """Bytes of packed matrices, and of memory for experts; the rest stays in the file, or is small."""
        matrices = {id(w): w.n_bytes for w in self.values() if isinstance(w, (Matrix, Experts))}
        memories = {w.memory for w in self.values() if isinstance(w, Experts) and w.memory}
        return sum(matrices.values()) + sum(memory.n_bytes for memory in memories)

    def _typed(self, name: str, kind: type[W]) -> W:
        weight = self[name]
        if not isinstance(weight, kind):
            raise TypeError(f"{self._prefix}{name} is a {type(weight).__name__}, not a {kind.__name__}")
        return weight


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without leading axes of one element, which some writers leave out and others add."""
    return shape[next((i for i, n in enumerate(shape) if n != 1), len(shape)) :]


def padded_vector(name: str, values: npt.NDArray[np.float32]) -> Vector:
    padded = np.zeros(-(-values.size // LANES) * LANES, np.float32)
    padded[: values.size] = values
    return Vector(name, values.size, padded)


def load_weights(
    file: GGUFFile,
    specs: Iterable[TensorSpec],
    pool: Any,
    on_bytes: Callable[[int, int], None] | None = None,
    expert_memory: ExpertMemory | None = None,
    pack_cache: PackCache | None = None,
) -> Weights:
    """The tensors of `specs`, in their order. Every tensor of the file must have a spec: one that is not
    understood could change the result.

    Without a `pool` weights are only described, in the file's types: enough to measure a plan. With an
    `expert_memory` the experts stay in the file, and it is started. Else, with a `pack_cache`, the packed
    matrices are mapped from a file, which is made when it is not there. `on_bytes(done, total)` is called
    after each matrix. A tensor of the wrong shape, a missing one, one left over, or one of a type that cannot
    be run is a ModelError that names file and tensor.
    """
    specs = tuple(specs)
    if pool is None:
        return _WeightLoader(file, _Described()).load_all(specs)
    if expert_memory is not None:
        if pack_cache is not None:
            pack_cache.skip(file, "its experts stay in the file")
        found = _WeightLoader(file, _Packed(file, pool), on_bytes, expert_memory).load_all(specs)
        expert_memory.start()
        return found
    panels = None if pack_cache is None else _cached(file, specs, pool, on_bytes, pack_cache)
    if panels is None:
        return _WeightLoader(file, _Packed(file, pool), on_bytes).load_all(specs)
    file.also_check(panels.check_intact)
    return _WeightLoader(file, _Mapped(panels), on_bytes).load_all(specs)


def _cached(
    file: GGUFFile,
    specs: tuple[TensorSpec, ...],
    pool: Any,
    on_bytes: Callable[[int, int], None] | None,
    pack_cache: PackCache,
) -> PanelFile | None:
    """The file of the packed matrices, if one can be had."""
    described = _WeightLoader(file, _Described()).load_all(specs)
    layout = [
        Panels(matrix.name, matrix.type, matrix.rows, matrix.cols, matrix.int16)
        for weight in described.values()
        for matrix in (weight if isinstance(weight, Experts) else [weight])
        if isinstance(matrix, Matrix)
    ]
    if not layout or not all(panels.panel_bytes for panels in layout):  # which loading explains
        return None

    def write(writer: PanelWriter) -> None:
        _WeightLoader(file, _Written(file, writer), on_bytes).load_all(specs)

    return pack_cache.open(file, layout, pool, write)


def check_tensors(file: GGUFFile, specs: Iterable[TensorSpec]) -> None:
    """Raises ModelError where `load_weights` would, by the file's header: nothing is loaded."""
    _WeightLoader(file, _Described()).check(specs)


class _Matrices(Protocol):
    """Where the loader's matrices come from, or go to."""

    described: bool  # there is nothing but shapes

    def matrix(self, panels: Panels, data: Callable[[], npt.NDArray[np.uint8]], in_file: bool) -> Any:
        """Its handle, or NULL. data: its bytes; in_file: as they are in the file."""


class _Described:
    described = True

    def matrix(self, panels: Panels, data: Callable[[], npt.NDArray[np.uint8]], in_file: bool) -> Any:
        return ffi.NULL


class _Packed:
    """Packed into memory."""

    described = False

    def __init__(self, file: GGUFFile, pool: Any) -> None:
        self._pool, self._is_mapped = pool, file.byteorder == "little"  # otherwise data is a copy
        # panels are at most a twentieth larger than the file's blocks, and padded to 16 rows
        n_bytes = sum(info.n_bytes for info in file.tensors.values()) * 11 // 10 + (4 << 20)
        self._arena = ffi.gc(lib.pl_weight_arena_new(n_bytes), lib.pl_weight_arena_free)

    def matrix(self, panels: Panels, data: Callable[[], npt.NDArray[np.uint8]], in_file: bool) -> Any:
        drop = in_file and self._is_mapped
        source = ffi.from_buffer(data())
        return pointer(
            lib.pl_matrix_new(self._pool, self._arena, panels.kind, source, drop, panels.rows, panels.cols),
            "packing",
        )


class _Written:
    """Packed into a file."""

    described = False

    def __init__(self, file: GGUFFile, writer: PanelWriter) -> None:
        self._writer, self._is_mapped = writer, file.byteorder == "little"

    def matrix(self, panels: Panels, data: Callable[[], npt.NDArray[np.uint8]], in_file: bool) -> Any:
        self._writer.add(panels, data(), in_file and self._is_mapped)
        return ffi.NULL


class _Mapped:
    """Taken from a file."""

    described = False

    def __init__(self, file: PanelFile) -> None:
        self._file = file

    def matrix(self, panels: Panels, data: Callable[[], npt.NDArray[np.uint8]], in_file: bool) -> Any:
        return pointer(self._file.take(panels), "mapping")


class _WeightLoader:
    """Takes tensors out of `file` one by one, checking their shapes."""

    def __init__(
        self,
        file: GGUFFile,
        matrices: _Matrices,
        on_bytes: Callable[[int, int], None] | None = None,
        expert_memory: ExpertMemory | None = None,
    ) -> None:
        self.file = file
        self.matrices = matrices
        self.on_bytes = on_bytes
        self.expert_memory = expert_memory
        self.total = sum(info.n_bytes for info in file.tensors.values())
        self.done = 0
        self.taken: set[str] = set()
        self.reshaped: set[str] = set()

    def load_all(self, specs: Iterable[TensorSpec]) -> Weights:
        found: dict[str, Weight] = {}
        for spec in specs:
            name = spec.tensor or spec.name
            if spec.kind == "unused":
                self.taken.add(name)
            elif not spec.optional or name in self.file.tensors:
                found[spec.name] = self.load(spec.kind, name, spec.shape, spec.reshaped)
        if not self.matrices.described:
            self._check_all_taken()
        return Weights(found)

    def check(self, specs: Iterable[TensorSpec]) -> None:
        """Names, shapes and types."""
        for spec in specs:
            name = spec.tensor or spec.name
            if spec.kind == "unused":
                self.taken.add(name)
            elif not spec.optional or name in self.file.tensors:
                if spec.reshaped:
                    self.reshaped.add(name)
                self._info(name, spec.shape)
        self._check_all_taken()

    def error(self, reason: str) -> ModelError:
        return ModelError(f"{self.file.paths[0]}: {reason}")

    def load(self, kind: str, name: str, shape: tuple[int, ...], reshaped: bool = False) -> Weight:
        readers: dict[str, Callable[..., Weight]] = {
            "vector": self.vector,
            "matrix": self.matrix,
            "int16_matrix": partial(self.matrix, int16=bool(lib.pl_prefers_int16())),
            "experts": self.experts,
            "float_matrices": self.float_matrices,
            "int16_matrices": partial(self.float_matrices, int16=bool(lib.pl_prefers_int16())),
            "table": self.table,
        }
        if reshaped:
            self.reshaped.add(name)
        return readers[kind](name, *shape)

    def matrix(self, name: str, rows: int, cols: int, int16: bool = False) -> Matrix:
        int16 = int16 and cols % 32 == 0 and self._type(name).is_float  # of 8-bit weights it would be twice
        if self.matrices.described:
            return Matrix(name, rows, cols, self._type(name), ffi.NULL, int16)
        info = self._info(name, (rows, cols))
        panels = Panels(name, info.type, rows, cols, int16)
        matrix = self._matrix(panels, lambda: self.file.data(name))
        self.file.release(name)
        return matrix

    def experts(self, name: str, n: int, rows: int, cols: int) -> Experts:
        if self.matrices.described:
            return Experts(name, (Matrix(name, rows, cols, self._type(name), ffi.NULL),) * n)
        info = self._info(name, (n, rows, cols))
        if self.expert_memory is not None:
            return self._stored(info, n, rows, cols)
        data = cache(lambda: self.file.data(name).reshape(n, -1))
        panels = Panels(name, info.type, rows, cols)
        matrices = tuple(self._matrix(panels, partial(_item, data, i)) for i in range(n))
        self.file.release(name)
        return Experts(name, matrices)

    def _stored(self, info: TensorInfo, n: int, rows: int, cols: int) -> Experts:
        """Experts that stay in the file."""
        memory = self.expert_memory
        assert memory is not None
        try:
            handles = [memory.add(info, i, n, rows, cols) for i in range(n)]
        except NativeError as error:
            raise self.error(str(error)) from None
        self._count(info.n_bytes)
        matrices = tuple(Matrix(info.name, rows, cols, info.type, handle) for handle in handles)
        return Experts(info.name, matrices, memory)

    def _count(self, n_bytes: int) -> None:
        self.done += n_bytes
        if self.on_bytes:
            self.on_bytes(self.done, self.total)

    def float_matrices(self, name: str, n: int, rows: int, cols: int, int16: bool = False) -> Experts:
        int16 = int16 and cols % 32 == 0
        if self.matrices.described:
            return Experts(name, (Matrix(name, rows, cols, TensorType.F32, ffi.NULL, int16),) * n)
        info = self._info(name, (n, rows, cols))

        @cache
        def values() -> npt.NDArray[np.uint8]:
            return dequantize(self.file.data(name), info.type, (n, rows * cols)).view(np.uint8)

        panels = Panels(name, TensorType.F32, rows, cols, int16)
        matrices = tuple(self._matrix(panels, partial(_item, values, i), False) for i in range(n))
        self.file.release(name)
        return Experts(name, matrices)

    def _matrix(
        self, panels: Panels, data: Callable[[], npt.NDArray[np.uint8]], in_file: bool = True
    ) -> Matrix:
        """The matrix of a tensor's bytes, or of a part of them. in_file: they are the file's own."""
        n_bytes = panels.rows * panels.type.row_bytes(panels.cols)
        try:
            handle = self.matrices.matrix(panels, data, in_file)
        except NativeError as error:
            raise self.error(f"loading {panels.name} ({n_bytes / 1e6:.1f} MB): {error}") from None
        self._count(n_bytes)
        if handle != ffi.NULL:
            handle = ffi.gc(handle, lib.pl_matrix_free, lib.pl_matrix_bytes(handle))
        return Matrix(panels.name, panels.rows, panels.cols, panels.type, handle, panels.int16)

    def vector(self, name: str, size: int) -> Vector:
        if self.matrices.described:
            return padded_vector(name, np.ones(size, np.float32))
        info = self._info(name, (size,))
        return padded_vector(name, dequantize(self.file.data(name), info.type, (size,)))

    def table(self, name: str, rows: int, cols: int) -> Table:
        if self.matrices.described:
            return Table(name, rows, cols, self._type(name), np.zeros(0, np.uint8))
        info = self._info(name, (rows, cols))
        return Table(name, rows, cols, info.type, self.file.data(name))

    def _check_all_taken(self) -> None:
        unused = sorted(set(self.file.tensors) - self.taken)
        if unused:
            shown = ", ".join(unused[:3]) + (f" and {len(unused) - 3} more" if len(unused) > 3 else "")
            raise self.error(
                f"tensors that this architecture has no use for: {shown}; the model is of a kind that "
                "cannot be run"
            )

    def _type(self, name: str) -> TensorType:
        return self.file.tensors[name].type if name in self.file.tensors else TensorType.F32

    def _info(self, name: str, shape: tuple[int, ...]) -> Any:
        info = self.file.tensors.get(name)
        if info is None:
            if name.replace("_exps", ".0") in self.file.tensors:
                raise self.error(
                    f"there is a tensor for each expert in the place of {name}, as in files of before April "
                    "2024, which cannot be run; convert the checkpoint again"
                )
            raise self.error(f"the tensor {name} is missing; the file is incomplete")
        found = tuple(info.shape)
        same = prod(found) == prod(shape) and shape[-1] % info.type.block_size == 0
        if _without_ones(found) != _without_ones(shape) and not (name in self.reshaped and same):
            raise self.error(
                f"the tensor {name} has shape {found}, not {shape} as its config says; the file is damaged"
            )
        if not info.type.runnable:
            raise self.error(
                f"the tensor {name} is {info.type.name}, which cannot be run; quantize the model again "
                "in another type"
            )
        ensure_codebook(info.type)
        self.taken.add(name)
        return info
