"""A tensor that is read when its rows are asked for.

Rows are slices along the first axis: a converter reads slabs of them, so that its memory does not grow with
the checkpoint. `raw()` gives the stored elements, `read()` their values. Everything here may be called from
several threads at once. The operations that stay lazy (concatenate, transpose …) are in `lazy_ops.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import CheckpointError

Array = npt.NDArray[Any]
Rows = Callable[[int, int], Array]

# Element types by the names of safetensors, with the numpy type that holds the stored bits. Floating-point
# kinds that numpy does not know are held as unsigned integers of their size.
STORED: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<u2"),
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "F8_E4M3FNUZ": np.dtype("u1"),
    "F8_E5M2FNUZ": np.dtype("u1"),
    "F8_E8M0": np.dtype("u1"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("u1"),
}
_STRIP = 16  # elements
FLOATS = frozenset(name for name in STORED if name.startswith(("F", "BF")))


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor of `shape` and `dtype` (a key of STORED, or a GGUF type name) whose rows are read on demand.

    `stored(start, stop)` gives rows start to stop of the stored elements: what `raw()` calls once the bounds
    are checked. `source` names the file and the tensor, for errors. A tensor without dimensions has one row.
    `flat`, if any, is the one-dimensional tensor that this one is a view of. `decode` gives the values of
    stored elements; by default those of `dtype`.
    """

    shape: tuple[int, ...]
    dtype: str
    source: str
    stored: Rows = field(repr=False)
    flat: LazyTensor | None = field(default=None, repr=False)
    decode: Callable[[Array], Array] | None = field(default=None, repr=False)

    @property
    def n_rows(self) -> int:
        """The length of the first axis; 1 for a tensor without dimensions."""
        return self.shape[0] if self.shape else 1

    @property
    def n_elements(self) -> int:
        return prod(self.shape)

    @property
    def n_bytes(self) -> int:
        """Bytes of all elements as `raw()` gives them (not for GGUF's block types)."""
        return self.n_elements * STORED[self.dtype].itemsize

    @property
    def is_float(self) -> bool:
        return self.dtype not in STORED or self.dtype in FLOATS

    def raw(self, start: int = 0, stop: int | None = None) -> Array:
        """Rows [start, stop) as stored, (stop - start, *shape[1:]): uint16 for F16 and BF16, uint8 for
        8-bit floats, otherwise numpy's own type. It may be read-only. Raises CheckpointError.
        """
        stop = self.n_rows if stop is None else stop
        if not 0 <= start <= stop <= self.n_rows:
            raise IndexError(f"{self.source}: rows {start} to {stop} of {self.n_rows}")
        with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinities are the reader's to judge
            return self.stored(start, stop)

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Rows [start, stop) as values, (stop - start, *shape[1:]): float32 for floating-point kinds (F64
        rounded, all others exact), bool for BOOL, integers as they are. Raises CheckpointError.
        """
        values = self.raw(start, stop)
        with np.errstate(over="ignore", invalid="ignore"):
            return self.decode(values) if self.decode else decode(values, self.dtype)


def decode(stored: Array, dtype: str) -> Array:
    """The values of stored elements of `dtype` (a key of STORED); shapes are kept."""
    if dtype == "BF16":
        wide = stored.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if dtype == "F16":
        return _half_values(stored)
    if dtype in ("F32", "F64"):
        return stored.astype(np.float32, copy=False)  # a double beyond float32 becomes infinite
    if dtype in FLOATS:
        return _byte_values(dtype)[stored]
    if dtype == "BOOL":
        return stored.astype(np.bool_)
    return stored


def _half_values(stored: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """float16 as float32: exponent and mantissa move into place, and a factor mends the exponent's bias,
    exactly also for subnormals. Infinities and NaN, which it would not keep, take numpy's slower way.
    """
    if stored.size and int((stored & np.uint16(0x7FFF)).max()) >= 0x7C00:
        return stored.view(np.float16).astype(np.float32)
    wide = stored.view(np.int16).astype(np.int32)  # the sign fills the upper half
    wide <<= 13
    wide &= np.int32(-0x70002000)  # bit 31 and bits 13 to 27
    values = wide.view(np.float32)
    values *= np.float32(2.0**112)
    return values


def turned(view: Array) -> Array:
    """A contiguous copy of a transposed view, in strips that stay in the cache (numpy's own copy does not,
    and is up to thirty times slower).
    """
    if view.ndim < 2 or view.strides[-1] <= view.strides[-2]:
        return np.ascontiguousarray(view)
    result = np.empty(view.shape, view.dtype)
    for start in range(0, view.shape[-1], _STRIP):
        result[..., start : start + _STRIP] = view[..., start : start + _STRIP]
    return result


@cache
def _byte_values(dtype: str) -> npt.NDArray[np.float32]:
    """The values of all 256 codes of an 8-bit float kind, (256,) float32.

    E4M3 has NaN at 0x7F and 0xFF and no infinities, E5M2 is like IEEE (both: OCP 8-bit floating point,
    2023); the FNUZ kinds have one more bias and their only NaN at 0x80; E8M0 is a power of two, 0xFF NaN.
    """
    codes = np.arange(256)
    if dtype == "F8_E8M0":
        powers = np.ldexp(np.ones(256), codes - 127)
        powers[255] = np.nan
        return powers.astype(np.float32)
    mantissa_bits = 3 if "E4M3" in dtype else 2
    unsigned_zero = dtype.endswith("FNUZ")
    bias = (7 if mantissa_bits == 3 else 15) + unsigned_zero
    exponent = (codes & 0x7F) >> mantissa_bits
    mantissa = codes & ((1 << mantissa_bits) - 1)
    fraction = np.where(exponent > 0, mantissa + (1 << mantissa_bits), mantissa)
    values = np.ldexp(fraction.astype(np.float64), np.maximum(exponent, 1) - bias - mantissa_bits)
    values = np.where(codes & 0x80, -values, values)
    if unsigned_zero:
        values[0x80] = np.nan
    elif mantissa_bits == 3:
        values[[0x7F, 0xFF]] = np.nan
    else:
        values[exponent == 31] = np.nan
        values[[0x7C, 0xFC]] = np.inf, -np.inf
    table: npt.NDArray[np.float32] = values.astype(np.float32)
    table.flags.writeable = False
    return table


def view_of(flat: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    """The one-dimensional tensor `flat` seen with `shape`, of as many elements."""
    row_shape = shape[1:]
    row = prod(row_shape)

    def stored(start: int, stop: int) -> Array:
        return flat.stored(start * row, stop * row).reshape(stop - start, *row_shape)

    return LazyTensor(shape, flat.dtype, flat.source, stored, flat, flat.decode)


def from_array(array: Array, source: str, dtype: str | None = None) -> LazyTensor:
    """A tensor already in memory, for small ones that are computed. Its `dtype`, when not given, is told
    by the array's: float16 becomes F16. Raises CheckpointError for an array of another kind.
    """
    if dtype is None:
        dtype = _dtype_of(array, source)
    values = np.ascontiguousarray(array).view(STORED[dtype]).reshape(-1)
    return view_of(LazyTensor((values.size,), dtype, source, lambda a, b: values[a:b]), array.shape)


def _dtype_of(array: Array, source: str) -> str:
    kind = {"f": "F", "i": "I", "u": "U"}.get(array.dtype.kind)
    name = "BOOL" if array.dtype == np.bool_ else f"{kind}{array.dtype.itemsize * 8}"
    if name not in STORED:
        raise CheckpointError(source, f"arrays of type {array.dtype} cannot be converted")
    return name


def computed(shape: tuple[int, ...], source: str, rows: Rows) -> LazyTensor:
    """A tensor of float32 whose rows are computed by `rows(start, stop)` whenever they are asked for."""
    return LazyTensor(shape, "F32", source, rows)
