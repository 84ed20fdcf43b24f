"""Reading torch files (`pytorch_model.bin`, `consolidated.00.pth`) without torch.

Two formats. Since torch 1.6: a zip archive, uncompressed, with `NAME/data.pkl` and one entry `NAME/data/KEY`
per storage. Before: pickles one after another (a magic number, a version, system facts, the value, the
storages' keys), then each storage as a 64-bit element count and its bytes. Tensors are read in place.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from pyllamacpu.convert.formats.torch_pickle import Storage, TensorSpec, TorchGlobals
from pyllamacpu.convert.formats.unpickler import PickleStream, Unpickler
from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights.data_file import DataFile, from_file, pointer_hint
from pyllamacpu.weights.lazy_ops import cached, transpose
from pyllamacpu.weights.lazy_tensor import STORED, Array, LazyTensor

MAX_PICKLE = 256 << 20  # bytes
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "state", "app", "weights", "params")
_DEEPEST = 4  # levels that training programs put around the tensors
_SLAB = 16 << 20  # bytes read at a time where rows have gaps
_LOCAL_HEADER = 30  # bytes, before the name and the extra field


def read_torch(path: str | os.PathLike[str]) -> dict[str, LazyTensor]:
    """The tensors of one file by name. Values that are not tensors are left out.

    Raises CheckpointError for damage, for a pickle that wants anything but tensors (nothing of it is run),
    and for files without tensors.
    """
    file = DataFile(path)
    start = file.read(0, min(4, file.size)).tobytes()
    value = _read_zip(file) if start == b"PK\x03\x04" else _read_legacy(file)
    tensors = {name: _lazy(file, name, spec) for name, spec in _state_dict(file, value).items()}
    if not tensors:
        raise CheckpointError(file.path, "holds no tensors")
    return tensors


def _state_dict(file: DataFile, value: Any, level: int = 0) -> dict[str, TensorSpec]:
    """The named tensors, also where a training program has put them some levels deeper. What lies beside
    them without a dot in its name (a generator's state) is not a weight.
    """
    if type(value) is not dict:
        raise CheckpointError(file.path, f"holds a {type(value).__name__}, not a dict of tensors")
    found = {name: spec for name, spec in value.items() if type(spec) is TensorSpec}
    inner = next((value[key] for key in WRAPPERS if type(value.get(key)) is dict), None)
    deeper = {} if inner is None or level == _DEEPEST else _state_dict(file, inner, level + 1)
    if any("." in str(name) for name in deeper):
        found = {name: spec for name, spec in found.items() if "." in str(name)}
    if found and deeper:
        raise CheckpointError(file.path, f"holds tensors on two levels, {next(iter(found))!r} above others")
    found = found or deeper
    if any(type(name) is not str for name in found):
        raise CheckpointError(file.path, "holds tensors without a name")
    return found


# the zip format


def _read_zip(file: DataFile) -> Any:
    entries = _zip_entries(file)
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise CheckpointError(file.path, "is a zip archive, but not torch's: it should hold one data.pkl")
    prefix = pickles[0].removesuffix("data.pkl")
    _check_byteorder(file, entries.get(prefix + "byteorder"))
    known = TorchGlobals(file.path)

    def storage(saved_id: Any) -> Storage:
        found = known.storage(saved_id)
        begin, end = entries.get(f"{prefix}data/{found.key}", (0, -1))
        if end < begin:
            raise CheckpointError(file.path, f"has no data for storage {found.key[:40]!r}; download it again")
        if found.n_bytes != end - begin:
            raise known.fail(
                f"storage {found.key[:40]!r} should have {found.n_bytes} bytes, the archive has {end - begin}"
            )
        found.offset = begin
        return found

    begin, end = entries[pickles[0]]
    if end - begin > MAX_PICKLE:
        raise CheckpointError(file.path, f"its data.pkl has {end - begin} bytes, too many for tensor names")
    return Unpickler(PickleStream(file, begin, end), known.table, storage).load()


def _zip_entries(file: DataFile) -> dict[str, tuple[int, int]]:
    """Where each entry's bytes are, [begin, end) in the file: in it, uncompressed, without overlaps."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, EOFError, zlib.error) as error:
        raise CheckpointError(file.path, f"truncated or damaged: {error}; download it again") from error
    except (IndexError, OverflowError, RuntimeError, ArithmeticError, MemoryError) as error:
        raise CheckpointError(file.path, f"damaged zip archive: {type(error).__name__}") from error
    entries: dict[str, tuple[int, int]] = {}
    for info in infos:
        if info.filename in entries:
            raise CheckpointError(file.path, f"damaged: entry {info.filename!r} occurs twice")
        entries[info.filename] = _zip_range(file, info)
    ordered = sorted(place for place in entries.values() if place[0] < place[1])
    if any(second[0] < first[1] for first, second in pairwise(ordered)):
        raise CheckpointError(file.path, "damaged: entries of the archive overlap")
    return entries


def _zip_range(file: DataFile, info: zipfile.ZipInfo) -> tuple[int, int]:
    name = info.filename
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise CheckpointError(file.path, f"entry {name!r} is compressed or encrypted, which torch never does")
    if info.header_offset < 0 or info.header_offset + _LOCAL_HEADER > file.size:
        raise CheckpointError(file.path, f"truncated or damaged: entry {name!r} is not in the file")
    header = file.read(info.header_offset, _LOCAL_HEADER).tobytes()
    if header[:4] != b"PK\x03\x04":
        raise CheckpointError(file.path, f"damaged: entry {name!r} has no header")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    begin = info.header_offset + _LOCAL_HEADER + lengths
    if info.file_size != info.compress_size or begin + info.file_size > file.size:
        raise CheckpointError(file.path, f"truncated or damaged: entry {name!r} does not fit the file")
    return begin, begin + info.file_size


def _check_byteorder(file: DataFile, place: tuple[int, int] | None) -> None:
    """Files of torch before 2.1 do not say; all machines that wrote them were little-endian."""
    if (
        place is not None
        and (order := file.read(place[0], min(place[1] - place[0], 16)).tobytes()) != b"little"
    ):
        raise CheckpointError(
            file.path, f"its byte order is {order.decode('latin-1')!r}; only little-endian files can be read"
        )


# the older format


def _read_legacy(file: DataFile) -> Any:
    known = TorchGlobals(file.path)
    stream = PickleStream(file, 0, min(file.size, MAX_PICKLE))
    if not _is_legacy(stream, known):
        raise CheckpointError(
            file.path,
            f"is not a torch file: neither a zip archive nor torch's older format{pointer_hint(file)}",
        )
    if (version := Unpickler(stream, {}).load()) != LEGACY_VERSION:
        number = version if type(version) is int else "?"
        raise CheckpointError(file.path, f"torch file of the unknown version {number}")
    system = Unpickler(stream, {}).load()
    if type(system) is dict and system.get("little_endian") is False:
        raise CheckpointError(file.path, "its byte order is big; only little-endian files can be read")
    storages: dict[str, Storage] = {}

    def storage(saved_id: Any) -> Storage:
        found = known.storage(saved_id)
        if len(saved_id) == 6 and saved_id[5] is not None:
            raise CheckpointError(file.path, "holds storages that are views of others (torch before 0.4)")
        first = storages.setdefault(found.key, found)
        if (first.n_bytes, first.dtype) != (found.n_bytes, found.dtype):
            raise known.fail(f"storage {found.key[:40]!r} has two sizes")
        return first

    value = Unpickler(stream, known.table, storage).load()
    _place_legacy(file, known, storages, Unpickler(stream, {}).load(), stream.pos)
    return value


def _is_legacy(stream: PickleStream, known: TorchGlobals) -> bool:
    """Whether the file begins with the magic number. A pickle with anything hostile raises here already."""
    if stream.file.size < 16 or stream.file.read(0, 1)[0] != 0x80:
        return False
    magic = Unpickler(stream, known.table, known.storage).load()
    return bool(magic == LEGACY_MAGIC) if type(magic) is int else False


def _place_legacy(
    file: DataFile, known: TorchGlobals, storages: dict[str, Storage], keys: Any, start: int
) -> None:
    """Gives every storage its offset: they follow from byte `start` on in the order of `keys`."""
    names = [key for key in keys if type(key) is str] if type(keys) is list else []
    if len(names) != len(storages) or set(names) != storages.keys():
        raise known.fail("its list of storages is not the one its tensors name")
    for key in names:
        storage = storages[key]
        itemsize = STORED[storage.dtype].itemsize if storage.dtype else 1
        n_elements = int.from_bytes(file.read(start, 8).tobytes(), "little")
        if n_elements * itemsize != storage.n_bytes:
            raise known.fail(f"storage {key[:40]!r} has {n_elements} elements in the data")
        storage.offset = start + 8
        start += 8 + storage.n_bytes
        if start > file.size:
            raise CheckpointError(
                file.path, f"truncated: storage {key[:40]!r} ends at byte {start}, the file has {file.size}"
            )


# strided views


def _lazy(file: DataFile, name: str, spec: TensorSpec) -> LazyTensor:
    """The tensor of a description whose storage has been placed."""
    if spec.storage.offset is None:
        raise CheckpointError(file.path, f"tensor {name!r} has no data")
    itemsize = STORED[spec.dtype].itemsize
    place = spec.storage.offset + spec.offset * itemsize
    if not prod(spec.shape) or spec.strides == _packed(spec.shape, spec.strides):
        return from_file(file, name, spec.dtype, spec.shape, place)
    order = sorted(range(len(spec.shape)), key=lambda axis: (-spec.strides[axis], axis))
    shape = tuple(spec.shape[axis] for axis in order)
    strides = tuple(spec.strides[axis] for axis in order)
    if strides == _packed(shape, strides):  # a transposed tensor
        dense = from_file(file, name, spec.dtype, shape, place)
        return transpose(dense, [order.index(axis) for axis in range(len(order))])
    extent = sum((n - 1) * stride for n, stride in zip(spec.shape, spec.strides, strict=True)) + 1
    elements = from_file(file, name, spec.dtype, (extent,), place)
    return _strided(elements, spec.shape, spec.strides)


def _packed(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor without gaps; those given where an axis has one element and any will do."""
    packed = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return tuple(old if n == 1 else new for n, new, old in zip(shape, packed, strides, strict=True))


def _strided(elements: LazyTensor, shape: tuple[int, ...], strides: tuple[int, ...]) -> LazyTensor:
    """A view with gaps of the elements (extent,): read in slabs where rows follow each other, otherwise
    with all of them held in memory.
    """
    itemsize = STORED[elements.dtype].itemsize
    row = sum((n - 1) * stride for n, stride in zip(shape[1:], strides[1:], strict=True)) + 1
    step = strides[0]
    if step < row:
        elements = cached(elements)
    n_slab = max(1, _SLAB // (max(step, row) * itemsize))

    def stored(start: int, stop: int) -> Array:
        result = np.empty((stop - start, *shape[1:]), STORED[elements.dtype])
        for low in range(start, stop, n_slab):
            high = min(low + n_slab, stop)
            span = elements.raw(low * step, (high - 1) * step + row)
            byte_strides = tuple(stride * itemsize for stride in strides)
            view = np.lib.stride_tricks.as_strided(
                span, (high - low, *shape[1:]), byte_strides, writeable=False
            )
            result[low - start : high - start] = view
        return result

    return LazyTensor(shape, elements.dtype, elements.source, stored)
