"""Small integers packed in words, and groups of columns with a scale each: what quantized formats share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights.lazy_tensor import Array, LazyTensor

# The values of 4-bit floats (OCP microscaling formats, 2023: E2M1), by code.
FP4_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def unpack(words: Array, bits: int, n: int) -> npt.NDArray[np.uint8]:
    """The first n values of `bits` bits each in rows of 32-bit words, (rows, n_words) to (rows, n) uint8.

    Value i begins at bit i * bits, lowest bits first; values may cross from one word into the next.
    """
    rows = words.shape[0]
    raw = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return raw[:, :n]
    if bits == 4:
        values = np.empty((rows, raw.shape[1], 2), np.uint8)
        np.bitwise_and(raw, 15, out=values[..., 0])
        np.right_shift(raw, 4, out=values[..., 1])
        return values.reshape(rows, -1)[:, :n]
    return _unpack_crossing(words, bits)[:, :n]


def _unpack_crossing(words: Array, bits: int) -> npt.NDArray[np.uint8]:
    """For values that cross words: `bits` words hold 32 of them, so the 32 places are taken one by one."""
    rows, n_words = words.shape
    periods = -(-n_words // bits)
    padded = np.zeros((rows, periods * bits + 1), np.uint32)
    padded[:, :n_words] = words.view(np.uint32)
    values = np.empty((rows, periods, 32), np.uint8)
    mask = np.uint32((1 << bits) - 1)
    for place in range(32):
        word, shift = divmod(place * bits, 32)
        found = padded[:, word:-1:bits] >> np.uint32(shift)
        if shift + bits > 32:
            found |= padded[:, word + 1 :: bits][:, :periods] << np.uint32(32 - shift)
        values[:, :, place] = found & mask
    return values.reshape(rows, periods * 32)


def words_for(n: int, bits: int) -> int:
    """32-bit words that n values of `bits` bits fill."""
    return -(-n * bits // 32)


def apply_groups(
    codes: Array, zeros: Array | int, scales: Array, group_of: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.float32]:
    """(codes - zeros) * scales in float32, for groups of columns.

    codes: (rows, columns) integers. zeros, scales: (rows, groups). `group_of` (columns,) says which group a
    column is in; without it they are equal runs of columns, in order (the last may be shorter).
    """
    rows, columns = codes.shape
    n_groups = scales.shape[1]
    values = codes.astype(np.float32)
    if group_of is None and columns % n_groups == 0:
        parts = values.reshape(rows, n_groups, columns // n_groups)
        parts -= zeros if isinstance(zeros, int) else zeros[:, :, None].astype(np.float32)
        parts *= scales[:, :, None]
        return values
    if group_of is None:
        group_of = np.arange(columns) // -(-columns // n_groups)
    values -= zeros if isinstance(zeros, int) else np.take(zeros.astype(np.float32), group_of, axis=1)
    values *= np.take(scales, group_of, axis=1)
    return values


def part(tensors: Mapping[str, LazyTensor], name: str, *, of: LazyTensor) -> LazyTensor:
    """The tensor that must come with another one. Raises CheckpointError when it does not."""
    found = tensors.get(name)
    if found is None:
        raise CheckpointError(of.source, f"comes without {name}; the checkpoint is incomplete")
    return found


def check_shape(tensor: LazyTensor, shape: tuple[int, ...], dtypes: tuple[str, ...] = ()) -> None:
    """Raises CheckpointError when the tensor has another shape, or none of the types."""
    if tensor.shape != shape:
        raise CheckpointError(tensor.source, f"has the shape {tensor.shape}, but {shape} is needed")
    if dtypes and tensor.dtype not in dtypes:
        raise CheckpointError(tensor.source, f"is {tensor.dtype}, but {' or '.join(dtypes)} is needed")


def check_matrix(tensor: LazyTensor, dtypes: tuple[str, ...]) -> None:
    """Raises CheckpointError when the tensor is not a matrix of one of the types."""
    if len(tensor.shape) != 2 or 0 in tensor.shape or tensor.dtype not in dtypes:
        raise CheckpointError(
            tensor.source, f"{tensor.dtype} {tensor.shape} is not a matrix of {' or '.join(dtypes)}"
        )


def group_numbers(tensor: LazyTensor) -> npt.NDArray[np.int64]:
    """The group of each column (n_columns,) as stored, which may be outside."""
    with np.errstate(invalid="ignore"):  # NaN becomes a number far outside
        return tensor.read().reshape(-1).astype(np.int64)


def read_groups(tensor: LazyTensor, n_columns: int, n_groups: int) -> npt.NDArray[np.int64] | None:
    """The group of each column (n_columns,), or None when they are in order and equally long.

    Raises CheckpointError when one is outside 0 to n_groups - 1.
    """
    groups = group_numbers(tensor)
    if groups.size != n_columns or (groups.size and not 0 <= groups.min() <= groups.max() < n_groups):
        raise CheckpointError(
            tensor.source,
            f"{groups.size} columns in groups up to {groups.max(initial=-1)}; "
            f"{n_columns} columns in {n_groups} groups are needed",
        )
    if n_columns % n_groups == 0 and np.array_equal(groups, np.arange(n_columns) // (n_columns // n_groups)):
        return None
    return groups


FLOAT_KINDS = ("F16", "BF16", "F32")
Tensors = dict[str, LazyTensor]
Config = Mapping[str, Any]
