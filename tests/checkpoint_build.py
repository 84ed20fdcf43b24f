"""Small checkpoints for the tests: safetensors files built by hand, so that they can also be built wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
Array = npt.NDArray[Any]


def safetensors_header(tensors: dict[str, Array], kinds: dict[str, str]) -> dict[str, Any]:
    header: dict[str, Any] = {}
    offset = 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": kinds.get(name, NAMES[array.dtype.name]),
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    return header


def safetensors_bytes(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def write_safetensors(path: Path, tensors: dict[str, Array], kinds: dict[str, str] | None = None) -> Path:
    """`kinds` names the type of tensors whose numpy type does not tell it, such as BF16 kept in uint16."""
    header = safetensors_header(tensors, kinds or {})
    path.write_bytes(safetensors_bytes(header, b"".join(array.tobytes() for array in tensors.values())))
    return path


def write_index(path: Path, weight_map: dict[str, str]) -> Path:
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def bf16_bits(values: Array) -> npt.NDArray[np.uint16]:
    """float32 cut to bfloat16 (towards zero): the bits."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
