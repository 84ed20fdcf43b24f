"""Writing GGUF version 3 files, little-endian.

The order of the calls follows the file: metadata, then the description of every tensor, then their bytes in
any order and in pieces of any size, so that a model larger than memory can be written. The file grows
beside its target and gets its name when it is whole.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pyllamacpu import files
from pyllamacpu.errors import GGUFError
from pyllamacpu.files import PartialFile
from pyllamacpu.gguf.keys import metadata_keys
from pyllamacpu.gguf.metadata import Metadata
from pyllamacpu.gguf.strings import StringArray
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.gguf.values import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMS,
    MAX_NAME,
    SCALAR_DTYPE,
    SCALAR_FORMAT,
    ValueType,
)

Buffer: TypeAlias = "bytes | bytearray | memoryview | npt.NDArray[Any]"

_FROM_DTYPE = {dtype: kind for kind, dtype in SCALAR_DTYPE.items()}
_TENSOR_DTYPE = {
    np.dtype(np.float32): TensorType.F32,
    np.dtype(np.float16): TensorType.F16,
    np.dtype(np.float64): TensorType.F64,
    np.dtype(np.int8): TensorType.I8,
    np.dtype(np.int16): TensorType.I16,
    np.dtype(np.int32): TensorType.I32,
    np.dtype(np.int64): TensorType.I64,
}


class _Planned(NamedTuple):
    """A declared tensor and its place among the tensors' bytes."""

    shape: tuple[int, ...]
    kind: TensorType
    offset: int
    n_bytes: int


class GGUFWriter:
    """Writes one GGUF file; a context manager that keeps the file only when its block ends without an error.

        with GGUFWriter(path, "llama") as writer:
            writer.add("llama.block_count", 2)
            writer.add_tensor("token_embd.weight", (32000, 4096), TensorType.Q8_0)
            for piece in pieces:
                writer.write("token_embd.weight", piece)

    Raises GGUFError for anything that could not be read back and for tensors left incomplete, OutputError
    when the file cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], arch: str | None = None, alignment: int = DEFAULT_ALIGNMENT
    ) -> None:
        self.path = Path(path)
        if alignment < 8 or alignment & (alignment - 1):
            raise GGUFError(path, f"alignment must be a power of two from 8 on, not {alignment}")
        self.alignment = alignment
        self._values: dict[str, bytes] = {}
        self._infos: dict[str, _Planned] = {}
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self._written: dict[str, int] = {}
        self._data_bytes = 0
        self._data_start = 0
        self._part: PartialFile | None = None
        if arch is not None:
            self.add("general.architecture", arch)
        if alignment != DEFAULT_ALIGNMENT:
            self.add("general.alignment", alignment, ValueType.UINT32)

    def add(self, key: str, value: Any, kind: ValueType | None = None) -> None:
        """Adds one metadata value. `kind` is the type of a number, or of an array's elements.

        Without it: bool, str and bytes as they are; int as uint32, or int32, uint64, int64 where it does
        not fit; float as float32; numpy arrays and scalars by their dtype; sequences by what all their
        elements fit in.
        """
        self._still_open(key)
        if not 0 < len(key.encode()) <= MAX_NAME:
            raise GGUFError(self.path, f"metadata key {key[:40]!r} must have 1 to {MAX_NAME} bytes")
        if key in self._values:
            raise GGUFError(self.path, f"metadata key {key!r} was added twice")
        try:
            self._values[key] = _pack_value(value, kind)
        except (TypeError, ValueError, OverflowError, struct.error) as error:
            raise GGUFError(self.path, f"metadata {key!r} cannot be written: {error}") from error

    def copy_metadata(self, metadata: Metadata, skip: Iterable[str] = ()) -> None:
        """Adds all of another file's metadata with its types, but for `skip`, split.* and what is there."""
        dropped = {*skip, *self._values, "general.alignment"}
        for key in metadata_keys(metadata):
            if key.name not in dropped and not key.name.startswith("split."):
                self.add(*key)

    def add_tensor(self, name: str, shape: Sequence[int], kind: TensorType) -> None:
        """Declares a tensor; `shape` in numpy's order (rows, columns)."""
        self._still_open(name)
        shape = tuple(int(n) for n in shape)
        if not 0 < len(name.encode()) <= MAX_NAME or name in self._infos:
            raise GGUFError(self.path, f"tensor name {name[:40]!r} is empty, too long or taken")
        if not 1 <= len(shape) <= MAX_DIMS or min(shape) < 1 or shape[-1] % kind.block_size:
            raise GGUFError(
                self.path,
                f"tensor {name!r} of shape {shape} cannot be {kind.name} (blocks of {kind.block_size})",
            )
        n_bytes = prod(shape) // kind.block_size * kind.block_bytes
        self._infos[name] = _Planned(shape, kind, self._data_bytes, n_bytes)
        self._data_bytes += self._padded(n_bytes)

    def add_array(self, name: str, array: npt.NDArray[Any], kind: TensorType | None = None) -> None:
        """Declares a tensor and keeps its data until `close`.

        `array` holds plain numbers whose dtype tells the type; with `kind`, it may be uint16 (bfloat16 or
        float16 bits), or uint8 rows of blocks, shape (rows, row bytes).
        """
        if kind is None:
            kind = _TENSOR_DTYPE.get(array.dtype.newbyteorder("="))
            if kind is None:
                raise GGUFError(
                    self.path, f"tensor {name!r}: {array.dtype} is not a tensor type; say which one it holds"
                )
        shape = tuple(array.shape)
        if array.dtype == np.uint8 and shape:
            n_blocks, rest = divmod(shape[-1], kind.block_bytes)
            if rest:
                raise GGUFError(
                    self.path, f"tensor {name!r}: rows of {shape[-1]} bytes are not whole {kind.name} blocks"
                )
            shape = (*shape[:-1], n_blocks * kind.block_size)
        elif kind.block_size != 1 or array.dtype.itemsize != kind.block_bytes:
            raise GGUFError(
                self.path, f"tensor {name!r}: {array.dtype} numbers are not {kind.name} data; quantize them"
            )
        self.add_tensor(name, shape, kind)
        self._arrays[name] = array

    def write(self, name: str, data: Buffer) -> None:
        """Appends bytes to a declared tensor. After the first call nothing more can be declared."""
        if name not in self._infos:
            raise GGUFError(self.path, f"tensor {name!r} was not declared")
        part = self._begin()
        array = _flat_bytes(data)
        _, _, offset, n_bytes = self._infos[name]
        done = self._written.get(name, 0)
        if done + array.nbytes > n_bytes:
            raise GGUFError(
                self.path, f"tensor {name!r} takes {n_bytes} bytes, {done + array.nbytes} were written"
            )
        part.write(array.data, self._data_start + offset + done)
        self._written[name] = done + array.nbytes

    @property
    def n_bytes(self) -> int:
        """Of the whole file, as far as it is declared."""
        return self._padded(len(self._header())) + self._data_bytes

    def write_hollow(self, path: Path) -> None:
        """Writes what is declared so far to another file, with zeros in the place of tensors: it opens as
        the file itself would, and takes hardly any space. Raises OSError.
        """
        with open(path, "wb") as file:
            file.write(self._header())
            file.truncate(self.n_bytes)

    def close(self) -> None:
        """Writes what is left, checks that all tensors are whole, and gives the file its name."""
        publish_all([self])

    def finish(self) -> PartialFile:
        """Writes what is left and checks that all tensors are whole; only the name is missing then."""
        part = self._begin()
        for name, array in self._arrays.items():
            if name not in self._written:
                self.write(name, array)
        for name, (_, _, _, n_bytes) in self._infos.items():
            if self._written.get(name, 0) != n_bytes:
                raise GGUFError(
                    self.path, f"tensor {name!r} has {self._written.get(name, 0)} of its {n_bytes} bytes"
                )
        part.finish()
        return part

    def abort(self) -> None:
        """Removes the unfinished file."""
        if self._part is not None:
            self._part.discard()

    def __enter__(self) -> GGUFWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _still_open(self, what: str) -> None:
        if self._part is not None:
            raise GGUFError(self.path, f"{what!r} comes too late: tensor data has been written already")

    def _begin(self) -> PartialFile:
        """The file, opened at the first call with everything up to the tensors' bytes."""
        if self._part is None:
            header = self._header()
            self._data_start = self._padded(len(header))
            self._part = PartialFile(self.path)
            self._part.write(header)
            self._part.resize(self._data_start + self._data_bytes)  # the last tensor is padded too
        return self._part

    def _padded(self, n_bytes: int) -> int:
        return -(-n_bytes // self.alignment) * self.alignment

    def _header(self) -> bytes:
        parts = [MAGIC, struct.pack("<IQQ", 3, len(self._infos), len(self._values))]
        for key, packed in self._values.items():
            parts += [_pack_string(key.encode()), packed]
        for name, (shape, kind, offset, _) in self._infos.items():
            dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
            parts += [_pack_string(name.encode()), dims, struct.pack("<IQ", kind, offset)]
        return b"".join(parts)


def publish_all(writers: Sequence[GGUFWriter]) -> None:
    """Finishes files that belong together, and gives them their names when all are whole; after an error none
    is there. Raises GGUFError, OutputError.
    """
    try:
        files.publish_all([writer.finish() for writer in writers])
    finally:
        for writer in writers:
            writer.abort()


def _flat_bytes(data: Buffer) -> npt.NDArray[np.uint8]:
    """The data as little-endian bytes, flat; a view where that is possible."""
    if not isinstance(data, np.ndarray):
        return np.frombuffer(data, np.uint8)
    little = data.astype(data.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8)


def _pack_string(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def _pack_strings(strings: Sequence[bytes]) -> bytes:
    """A vocabulary has a quarter of a million: nothing is called for each."""
    lengths = np.fromiter(map(len, strings), "<u8", len(strings)).tobytes()
    parts = [b""] * (2 * len(strings))
    parts[::2] = [lengths[at : at + 8] for at in range(0, len(lengths), 8)]
    parts[1::2] = strings
    return b"".join(parts)


def _pack_value(value: Any, kind: ValueType | None) -> bytes:
    """The value with its type in front.

    Raises TypeError, ValueError or struct.error for what does not fit.
    """
    if isinstance(value, (str, bytes)):
        if kind not in (None, ValueType.STRING):
            raise TypeError(f"a string is no {kind.name.lower()}")
        return struct.pack("<I", ValueType.STRING) + _pack_string(_raw(value))
    if isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, np.generic):
        return struct.pack("<I", ValueType.ARRAY) + _pack_array(value, kind)
    if isinstance(value, Mapping) or value is None:
        raise TypeError(f"{type(value).__name__} has no GGUF type")
    kind = kind if kind is not None else _scalar_kind([value])
    return struct.pack("<I", kind) + struct.pack("<" + SCALAR_FORMAT[kind], value)


def _raw(value: str | bytes) -> bytes:
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def _pack_array(value: Any, kind: ValueType | None) -> bytes:
    """The type of the elements, their number, the elements."""
    if isinstance(value, StringArray):
        return struct.pack("<IQ", ValueType.STRING, len(value)) + _pack_strings(value.bytes_list())
    if isinstance(value, np.ndarray):
        return _pack_numbers(value, kind)
    kind = kind if kind is not None else _element_kind(value)
    head = struct.pack("<IQ", kind, len(value))
    if kind == ValueType.STRING:
        return head + _pack_strings([_raw(item) for item in value])
    if kind == ValueType.ARRAY:
        return head + b"".join(_pack_array(item, None) for item in value)
    return head + struct.pack(f"<{len(value)}{SCALAR_FORMAT[kind]}", *value)


def _pack_numbers(array: npt.NDArray[Any], kind: ValueType | None) -> bytes:
    if array.ndim != 1:
        return _pack_array(list(array), ValueType.ARRAY)
    kind = kind if kind is not None else _FROM_DTYPE[array.dtype.newbyteorder("=")]
    dtype = SCALAR_DTYPE[kind]
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise TypeError(f"{array.dtype} numbers are no {kind.name.lower()}")
    return struct.pack("<IQ", kind, len(array)) + array.astype(dtype.newbyteorder("<")).tobytes()


def _element_kind(values: Sequence[Any]) -> ValueType:
    if not values:
        raise ValueError("an empty list has no element type; say which one")
    if all(isinstance(item, (str, bytes)) for item in values):
        return ValueType.STRING
    if all(
        isinstance(item, (Sequence, np.ndarray)) and not isinstance(item, (str, bytes)) for item in values
    ):
        return ValueType.ARRAY
    return _scalar_kind(values)


def _scalar_kind(values: Sequence[Any]) -> ValueType:
    """The type that all these numbers fit in."""
    if all(isinstance(item, np.generic) for item in values) and len({item.dtype for item in values}) == 1:
        return _FROM_DTYPE[values[0].dtype]
    if all(isinstance(item, bool) for item in values):
        return ValueType.BOOL
    if all(isinstance(item, (int, np.integer)) and not isinstance(item, bool) for item in values):
        low, high = min(values), max(values)
        if low >= 0:
            return ValueType.UINT32 if high < 1 << 32 else ValueType.UINT64
        return ValueType.INT32 if low >= -(1 << 31) and high < 1 << 31 else ValueType.INT64
    if all(isinstance(item, (int, float, np.number)) and not isinstance(item, bool) for item in values):
        return ValueType.FLOAT32
    raise TypeError("its elements have no common GGUF type")
