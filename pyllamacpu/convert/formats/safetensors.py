"""Reading safetensors files, nothing in them trusted.

Format (huggingface/safetensors, README): eight bytes with the little-endian length of a JSON header, the
header, then the tensors' bytes. The header maps names to {"dtype", "shape", "data_offsets": [begin, end]},
offsets from the end of the header; "__metadata__" is a map of strings. The tensors must cover the data
without gaps or overlaps.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights.data_file import DataFile, from_file, pointer_hint
from pyllamacpu.weights.lazy_tensor import STORED, LazyTensor

MAX_HEADER = 100_000_000  # bytes, as the format's own reader has it
MAX_DIMS = 16
_MAX_ELEMENTS = (1 << 63) - 1


@dataclass(frozen=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int  # bytes from the end of the header
    end: int


def read_safetensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """The tensors of one file by name, and its `__metadata__`. Raises CheckpointError for any damage."""
    file = DataFile(path)
    header, data_start = _read_header(file)
    metadata = _metadata(file, header.pop("__metadata__", None))
    entries = [_entry(file, name, value) for name, value in header.items()]
    _check_cover(file, entries, file.size - data_start)
    return {
        entry.name: from_file(file, entry.name, entry.dtype, entry.shape, data_start + entry.begin)
        for entry in entries
    }, metadata


def _read_header(file: DataFile) -> tuple[dict[str, Any], int]:
    if file.size < 8:
        raise CheckpointError(file.path, f"not a safetensors file: only {file.size} bytes")
    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    if length > MAX_HEADER:
        raise CheckpointError(
            file.path, f"not a safetensors file: its header would have {length} bytes{pointer_hint(file)}"
        )
    if 8 + length > file.size:
        raise CheckpointError(
            file.path,
            f"truncated or damaged: the header needs {length} bytes, the file has {file.size - 8} more; "
            "download it again",
        )
    raw = file.read(8, length).tobytes()
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            file.path, f"its header is not sound JSON: {error or 'nested too deep'}"
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(file.path, "its header is not a JSON object")
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice!r} occurs twice")
    return found


def _metadata(file: DataFile, value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CheckpointError(file.path, "its __metadata__ is not a map of strings")
    return value


def _entry(file: DataFile, name: str, value: object) -> _Entry:
    """One tensor's description, checked against itself."""
    what = f"tensor {name!r}"
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        raise CheckpointError(file.path, f"{what} has no dtype, shape and data_offsets")
    dtype, dims, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in STORED:
        raise CheckpointError(
            file.path, f"{what} has the type {dtype!r}, which cannot be converted; known: {', '.join(STORED)}"
        )
    if not _are_counts(dims) or len(dims) > MAX_DIMS:
        raise CheckpointError(file.path, f"{what} has the impossible shape {_short(dims)}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise CheckpointError(file.path, f"{what} has the impossible data_offsets {_short(offsets)}")
    n_bytes = prod(dims) * STORED[dtype].itemsize
    begin, end = offsets
    if end - begin != n_bytes:
        raise CheckpointError(
            file.path,
            f"{what} of type {dtype} and shape {tuple(dims)} takes {n_bytes} bytes, "
            f"its data_offsets give {end - begin}",
        )
    return _Entry(name, dtype, tuple(dims), begin, end)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= _MAX_ELEMENTS for n in value
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _check_cover(file: DataFile, entries: list[_Entry], n_bytes: int) -> None:
    """The tensors must lie one after another from 0 to the end of the file."""
    ordered = sorted(entries, key=lambda entry: (entry.begin, entry.end))
    for entry in ordered:
        if entry.end > n_bytes:
            raise CheckpointError(
                file.path,
                f"truncated or damaged: tensor {entry.name!r} ends at byte {entry.end} of the data, "
                f"which has {n_bytes}; download it again",
            )
    if ordered and ordered[0].begin:
        raise CheckpointError(file.path, f"has {ordered[0].begin} bytes before its first tensor")
    for first, second in pairwise(ordered):
        if second.begin < first.end:
            raise CheckpointError(file.path, f"tensors {first.name!r} and {second.name!r} overlap")
        if second.begin > first.end:
            raise CheckpointError(
                file.path,
                f"has {second.begin - first.end} bytes that belong to no tensor before {second.name!r}",
            )
    end = ordered[-1].end if ordered else 0
    if end != n_bytes:
        raise CheckpointError(file.path, f"has {n_bytes - end} bytes after its last tensor")
