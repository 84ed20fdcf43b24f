"""Torch files for the tests, built opcode by opcode without torch, so that they can also be built wrong."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "uint16": "BFloat16Storage",  # numpy has none: its bits
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
MARK, STOP, TUPLE, REDUCE, BUILD = b"(", b".", b"t", b"R", b"b"
EMPTY_DICT, EMPTY_TUPLE, SETITEM, SETITEMS, PERSID, NONE = b"}", b")", b"s", b"u", b"Q", b"N"
PROTOCOL = b"\x80\x02"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    raw = value.to_bytes(15, "little", signed=True)
    return b"\x8a\x0f" + raw


def name(module: str, attribute: str) -> bytes:
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def group(*items: bytes) -> bytes:
    return MARK + b"".join(items) + TUPLE


def storage(kind: str, key: str, n_elements: int) -> bytes:
    return group(text("storage"), name("torch", kind), text(key), text("cpu"), number(n_elements)) + PERSID


def tensor(saved: bytes, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    arguments = group(
        saved,
        number(offset),
        group(*map(number, shape)),
        group(*map(number, strides)),
        b"\x89",
        name("collections", "OrderedDict") + EMPTY_TUPLE + REDUCE,
    )
    return name("torch._utils", "_rebuild_tensor_v2") + arguments + REDUCE


def dictionary(items: dict[str, bytes]) -> bytes:
    return EMPTY_DICT + MARK + b"".join(text(key) + value for key, value in items.items()) + SETITEMS


def strides_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))


def write_zip(path: Path, data_pkl: bytes, storages: dict[str, bytes], **more: bytes) -> Path:
    """A torch zip archive; `more` are further entries."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        archive.writestr("archive/byteorder", b"little")
        for key, raw in storages.items():
            archive.writestr(f"archive/data/{key}", raw)
        for entry, raw in more.items():
            archive.writestr(f"archive/{entry}", raw)
    return path


def write_torch(path: Path, tensors: dict[str, Array]) -> Path:
    """Arrays as torch would save them, a storage each; uint16 stands for the bits of bfloat16."""
    items = {
        key: tensor(
            storage(STORAGES[array.dtype.name], str(index), array.size),
            0,
            array.shape,
            strides_of(array.shape),
        )
        for index, (key, array) in enumerate(tensors.items())
    }
    raw = {str(index): array.tobytes() for index, array in enumerate(tensors.values())}
    return write_zip(path, PROTOCOL + dictionary(items) + STOP, raw)
