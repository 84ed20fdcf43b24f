"""Reading GGUF files: versions 1 to 3, both byte orders, split files.

The file is mapped, not read, and nothing in it is trusted: every length, offset, type and count is checked
when the file is opened, and whatever is wrong raises `GGUFError`. Source of the format: docs/gguf.md of the
ggml project. Version 1 has 32-bit counts, lengths and dimensions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import GGUFError
from pyllamacpu.gguf.byteswap import swap_tensor
from pyllamacpu.gguf.metadata import MAX_ENTRIES, Metadata, read_metadata
from pyllamacpu.gguf.overrides import OverriddenMetadata, Overrides
from pyllamacpu.gguf.source import ByteOrder, Cursor, Source
from pyllamacpu.gguf.types import REMOVED_TYPES, TensorType
from pyllamacpu.gguf.values import DEFAULT_ALIGNMENT, MAX_DIMS, ValueType

_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_MAX_ELEMENTS = (1 << 63) - 1


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's description.

    `shape` is in numpy's order: the last dimension is the one that lies together.
    """

    name: str
    shape: tuple[int, ...]
    type: TensorType
    n_bytes: int
    n_elements: int
    part: int  # which file of a split model holds it, from 0
    offset: int  # bytes from the start of that file


class GGUFFile:
    """An open GGUF model, possibly in several parts; a context manager.

    `metadata` is that of the first part. Arrays from `data()` stay valid after `close()` for as long as
    they live.
    """

    def __init__(self, sources: list[Source], metadata: Metadata, tensors: dict[str, TensorInfo]) -> None:
        self._sources = sources
        self.metadata: Metadata = metadata
        self.tensors: dict[str, TensorInfo] = tensors
        self.byteorder: ByteOrder = sources[0].byteorder
        self.version: int = sources[0].version
        self.paths: tuple[Path, ...] = tuple(Path(source.path) for source in sources)
        self.n_bytes: int = sum(source.size for source in sources)  # of all parts
        self._closed = False
        self._checks: list[Callable[[], None]] = []

    @classmethod
    def open(cls, path: str | os.PathLike[str], kv_overrides: Overrides | None = None) -> GGUFFile:
        """Opens and validates a model; any part of a split one may be named. kv_overrides: metadata in place
        of the file's own, by keys. Raises GGUFError, and OptionError for what cannot be overridden.
        """
        sources: list[Source] = []
        try:
            metadata, tensors = _open_parts(os.fspath(path), sources)
            if kv_overrides is not None:
                metadata = OverriddenMetadata(metadata, kv_overrides)
            return cls(sources, metadata, tensors)
        except BaseException:
            for source in sources:
                source.close()
            raise

    def data(self, name: str) -> npt.NDArray[np.uint8]:
        """The tensor's bytes, flat and read-only: a view of the mapped file.

        Tensors of a big-endian file are copied and come as little-endian bytes too.
        """
        info = self._info(name)
        source = self._sources[info.part]
        view = source.bytes[info.offset : info.offset + info.n_bytes]
        if self.byteorder == "little":
            return view
        swapped = swap_tensor(view, info.type)
        swapped.flags.writeable = False
        return swapped

    def release(self, name: str, start: int = 0, stop: int | None = None) -> None:
        """Drops the tensor's pages (of its bytes `start` to `stop`) from this process's memory; they can be
        read again.
        """
        info = self._info(name)
        stop = info.n_bytes if stop is None else min(stop, info.n_bytes)
        self._sources[info.part].release(info.offset + start, stop - start)

    def release_all(self) -> None:
        """Drops all pages of all parts from this process's memory."""
        if not self._closed:
            for source in self._sources:
                source.release(0, source.size)

    def sample(self, name: str, n_bytes: int = 64) -> bytes:
        """Bytes of the tensor as they stand in the file, from its beginning and its middle: enough to tell
        models apart. Raises GGUFError when they are no longer there.
        """
        info = self._info(name)
        source = self._sources[info.part]
        middle = info.offset + info.n_bytes // 2
        found = b"".join(
            source.bytes[start : min(start + n_bytes, info.offset + info.n_bytes)].tobytes()
            for start in (info.offset, middle)
        )
        source.check_intact()
        self.release(name)  # the system maps much around each place that is read
        return found

    @property
    def statuses(self) -> tuple[os.stat_result, ...]:
        """What the system said about each part when it was opened."""
        return tuple(source.status for source in self._sources)

    def content(self, piece_bytes: int = 16 << 20) -> Iterator[npt.NDArray[np.uint8]]:
        """All bytes of all parts in pieces, each dropped from this process's memory when the next is asked
        for. Raises GGUFError when a part was cut short.
        """
        for source in self._sources:
            for start in range(0, source.size, piece_bytes):
                yield source.bytes[start : start + piece_bytes]
                source.release(start, piece_bytes)
            source.check_intact()

    def check_intact(self) -> None:
        """Raises GGUFError when a part was cut short since it was opened: what was read may be wrong."""
        for source in self._sources:
            source.check_intact()
        for check in self._checks:
            check()

    def also_check(self, check: Callable[[], None]) -> None:
        """`check_intact` calls this too: of a file whose bytes stand for some of this one's."""
        self._checks.append(check)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._checks.clear()
            for source in self._sources:
                source.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _info(self, name: str) -> TensorInfo:
        if self._closed:
            raise GGUFError(self.paths[0], "the file has been closed")
        info = self.tensors.get(name)
        if info is None:
            raise GGUFError(self.paths[0], f"has no tensor {name!r}")
        return info


def _open_parts(path: str, sources: list[Source]) -> tuple[Metadata, dict[str, TensorInfo]]:
    """Opens all parts of the model at `path`, filling `sources` in order."""
    sources.append(Source(path))
    metadata, tensors = _read_part(sources[0], 0)
    n_parts = _split_number(path, metadata, "split.count", 1)
    if n_parts <= 1:
        named = _PART_NAME.fullmatch(path)
        if named and int(named["count"]) > 1 and "split.count" in metadata:  # without it: a model in one file
            raise GGUFError(
                path, f"is named as one of {int(named['count'])} parts, but its split.count is {n_parts}"
            )
        return metadata, tensors
    paths = _part_paths(path, n_parts)
    here = paths.index(path)
    if here == 0:
        _check_part(path, metadata, n_parts, 0)
    else:  # start again from the first part
        sources.pop().close()
        sources.append(Source(paths[0]))
        metadata, tensors = _read_part(sources[0], 0)
        _check_part(paths[0], metadata, n_parts, 0)
    for part in range(1, n_parts):
        sources.append(Source(paths[part]))
        part_metadata, part_tensors = _read_part(sources[part], part)
        _check_part(paths[part], part_metadata, n_parts, part)
        if sources[part].byteorder != sources[0].byteorder:
            raise GGUFError(
                paths[part], f"its byte order differs from {paths[0]}; get the parts from one download"
            )
        for name, info in part_tensors.items():
            if name in tensors:
                raise GGUFError(paths[part], f"tensor {name!r} is also in part {tensors[name].part + 1}")
            tensors[name] = info
    expected = _split_number(path, metadata, "split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise GGUFError(
            paths[0], f"the {n_parts} parts hold {len(tensors)} tensors, split.tensors.count says {expected}"
        )
    return metadata, tensors


def _part_paths(path: str, n_parts: int) -> list[str]:
    """The paths of all parts, which must exist, by the name of one of them."""
    found = _PART_NAME.fullmatch(path)
    if found is None or int(found["count"]) != n_parts or not 1 <= int(found["no"]) <= n_parts:
        raise GGUFError(
            path, f"is one of {n_parts} parts and must be named like model-00001-of-{n_parts:05}.gguf"
        )
    paths = [f"{found['stem']}-{no:05}-of-{n_parts:05}.gguf" for no in range(1, n_parts + 1)]
    for part in paths:
        if not os.path.exists(part):
            raise GGUFError(part, f"this part of {n_parts} is missing; download it next to the others")
    return paths


def _check_part(path: str, metadata: Mapping[str, Any], n_parts: int, part: int) -> None:
    count = _split_number(path, metadata, "split.count", 1)
    number = _split_number(path, metadata, "split.no", -1)
    if count != n_parts or number != part:
        raise GGUFError(
            path, f"should be part {part + 1} of {n_parts}, but says split.no {number}, split.count {count}"
        )


def _split_number(path: str, metadata: Mapping[str, Any], key: str, default: int) -> int:
    value = metadata.get(key, default)
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not (0 <= value < 1 << 31 or key not in metadata)
    ):
        raise GGUFError(path, f"{key} must be a whole number, not {value!r}")
    if key == "split.count" and value > 65535:
        raise GGUFError(path, f"split.count {value} is out of range")
    return value


def _read_part(source: Source, part: int) -> tuple[Metadata, dict[str, TensorInfo]]:
    cursor = Cursor(source, 8)
    n_tensors = cursor.count("the number of tensors")
    n_keys = cursor.count("the number of metadata keys")
    metadata = read_metadata(cursor, n_keys)
    alignment = _alignment(source, metadata)
    smallest = 2 * source.width + 1 + 4 + 4 + 8  # a name of one byte, one dimension, type and offset
    if n_tensors > min(MAX_ENTRIES, cursor.left // smallest):
        raise cursor.fail(f"{n_tensors} tensors cannot fit in the file")
    infos = [_read_tensor(cursor, part, alignment) for _ in range(n_tensors)]
    data_start = -(-cursor.pos // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for info in infos:
        if info.name in tensors:
            raise cursor.fail(f"tensor {info.name!r} occurs twice")
        tensors[info.name] = _placed(cursor, info, data_start)
    _check_overlap(source, tensors)
    return metadata, tensors


def _alignment(source: Source, metadata: Metadata) -> int:
    key = "general.alignment"
    if key not in metadata:
        return DEFAULT_ALIGNMENT
    if metadata.value_type(key) != ValueType.UINT32:
        raise GGUFError(source.path, f"{key} must be a uint32, not {metadata.describe(key)}")
    alignment = int(metadata[key])
    if alignment < 8 or alignment & (alignment - 1):
        raise GGUFError(source.path, f"{key} must be a power of two from 8 on, not {alignment}")
    return alignment


def _read_tensor(cursor: Cursor, part: int, alignment: int) -> TensorInfo:
    """Reads one tensor's description; its `offset` still counts from the start of the data."""
    name = cursor.name("a tensor's name")
    what = f"tensor {name!r}"
    n_dims = cursor.u32(what)
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.fail(f"{what} has {n_dims} dimensions; 1 to {MAX_DIMS} are possible")
    dims = [cursor.count(what) for _ in range(n_dims)]
    kind = _tensor_type(cursor, what)
    offset = cursor.u64(what)
    if 0 in dims or (n_elements := prod(dims)) > _MAX_ELEMENTS:
        raise cursor.fail(f"{what} has the impossible shape {tuple(reversed(dims))}")
    if dims[0] % kind.block_size:
        raise cursor.fail(
            f"{what} has rows of {dims[0]} elements, not a multiple of {kind.name}'s {kind.block_size}"
        )
    if offset % alignment:
        raise cursor.fail(f"{what} has offset {offset}, not a multiple of the alignment {alignment}")
    n_bytes = n_elements // kind.block_size * kind.block_bytes
    return TensorInfo(name, tuple(reversed(dims)), kind, n_bytes, n_elements, part, offset)


def _tensor_type(cursor: Cursor, what: str) -> TensorType:
    number = cursor.u32(what)
    try:
        return TensorType(number)
    except ValueError:
        removed = REMOVED_TYPES.get(number)
    if removed:
        raise cursor.fail(
            f"{what} has type {removed}, which GGUF no longer has; get a newer file of this model"
        )
    raise cursor.fail(f"{what} has the unknown type {number}")


def _placed(cursor: Cursor, info: TensorInfo, data_start: int) -> TensorInfo:
    """The description with its offset counted from the start of the file, once it is known to be inside."""
    start = data_start + info.offset
    size = cursor.source.size
    if start + info.n_bytes > size:
        raise cursor.fail(
            f"truncated or damaged: tensor {info.name!r} ends at byte {start + info.n_bytes}, "
            f"the file has {size}; download it again"
        )
    return TensorInfo(info.name, info.shape, info.type, info.n_bytes, info.n_elements, info.part, start)


def _check_overlap(source: Source, tensors: dict[str, TensorInfo]) -> None:
    ordered = sorted(tensors.values(), key=lambda info: info.offset)
    for first, second in pairwise(ordered):
        if first.offset + first.n_bytes > second.offset:
            raise GGUFError(source.path, f"tensors {first.name!r} and {second.name!r} overlap")
