"""A GGUF file as the source: another type, other metadata, split, merged, or the vocabulary alone."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.convert.conversion import Conversion, ConvertOptions, build_conversion
from pyllamacpu.convert.types import fallbacks
from pyllamacpu.errors import GGUFError, OptionError
from pyllamacpu.gguf.keys import KeyValue, metadata_keys
from pyllamacpu.gguf.reader import GGUFFile, TensorInfo
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.quantize.file_types import FILE_TYPES, FileType, parse_file_type
from pyllamacpu.quantize.recipes import (
    Choice,
    ModelFacts,
    Tensor,
    TypeOptions,
    choose_types,
    file_order,
    needs_imatrix,
)
from pyllamacpu.weights.blocks import can_quantize, needs_importance
from pyllamacpu.weights.lazy_tensor import LazyTensor
from pyllamacpu.weights.stream import Item
from pyllamacpu.weights.tensor_cache import CachedTensor

_DROPPED = ("split.no", "split.count", "split.tensors.count")


def plan_gguf(source: Path, options: ConvertOptions) -> Conversion:
    """The plan. `auto` keeps the types. Tensors that are quantized already get another type only from a type
    that loses nothing more (f32, f16, bf16): everything else is `quantize`'s to decide. Raises GGUFError,
    OptionError.
    """
    if options.ignored_config or options.base:
        raise OptionError("--ignore-config and --base have no meaning for a GGUF file")
    file = GGUFFile.open(source)  # stays open as long as its tensors are wanted
    keys = [key for key in metadata_keys(file.metadata) if key.name not in _DROPPED]
    if options.name:
        keys = [key for key in keys if key.name != "general.name"]
        keys.append(KeyValue("general.name", options.name))
    if options.vocab_only:
        dropped = ("general.file_type", "general.quantization_version")
        kept = [key for key in keys if key.name not in dropped]
        return build_conversion(source, file.paths, options, "vocab", kept, [], ())
    file_type = _file_type(options.outtype)
    chosen = _choose(file, file_type)
    _check(file, chosen, file_type)
    items = [Item(name, lazy_tensor(file, info), chosen[name].kind) for name, info in file.tensors.items()]
    if not file_type.copies:
        keys = _set(keys, KeyValue("general.file_type", file_type.number, ValueType.UINT32))
        keys = _set(keys, KeyValue("general.quantization_version", 2, ValueType.UINT32))
    notes = fallbacks(chosen, {name: info.shape[-1:] for name, info in file.tensors.items()})
    name = file_type.name if not file_type.copies else _known_type(file)
    return build_conversion(source, file.paths, options, name, keys, items, tuple(notes))


def lazy_tensor(file: GGUFFile, info: TensorInfo) -> LazyTensor:
    """The tensor (rows of the matrices of a stack one below the other are not joined: its shape stays).

    Its dtype is the type's name; `raw` gives blocks, (rows, …, bytes of a row) uint8, or the numbers
    themselves.
    """
    kind, shape = info.type, info.shape
    inner = prod(shape[1:-1]) if len(shape) > 1 else 1
    row_bytes = kind.row_bytes(shape[-1]) * inner if len(shape) > 1 else kind.row_bytes(kind.block_size)
    plain = {TensorType.F32: "<f4", TensorType.F16: "<u2", TensorType.BF16: "<u2", TensorType.F64: "<f8"}.get(
        kind
    )

    source = f"{file.paths[min(info.part, len(file.paths) - 1)]}: {info.name}"
    whole = LazyTensor((info.n_bytes,), "U8", source, lambda start, stop: file.data(info.name)[start:stop])
    swapped = (
        CachedTensor(whole) if file.byteorder == "big" else None
    )  # such data comes as a copy of the whole

    def stored(start: int, stop: int) -> npt.NDArray[Any]:
        wanted = slice(start * row_bytes, stop * row_bytes)
        if swapped is not None:
            data = np.array(swapped.array(last=stop == shape[0])[wanted])
        else:
            data = np.array(file.data(info.name)[wanted])  # a copy: the file's own pages can go
            file.release(info.name, wanted.start, wanted.stop)
        typed = data.view(plain) if plain else data
        return typed.reshape(stop - start, *shape[1:-1], -1) if len(shape) > 1 else typed

    def decode(blocks: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        flat = np.ascontiguousarray(blocks).reshape(-1).view(np.uint8)
        n_elements = flat.size // kind.block_bytes * kind.block_size
        cols = shape[-1] if len(shape) > 1 else max(1, n_elements)
        values = dequantize(flat, kind, (n_elements // cols, cols))
        return np.asarray(values, np.float32).reshape(-1, *shape[1:])

    return LazyTensor(shape, kind.name, source, stored, decode=decode if kind.block_size > 1 else None)


def _file_type(text: str) -> FileType:
    return FILE_TYPES["COPY"] if text.strip().lower() == "auto" else parse_file_type(text)


def _choose(file: GGUFFile, file_type: FileType) -> dict[str, Choice]:
    if file_type.copies:
        return {name: Choice(info.type, info.type) for name, info in file.tensors.items()}
    infos = {name: file.tensors[name] for name in file_order(file.tensors)}
    tensors = [Tensor(name, info.shape, info.type) for name, info in infos.items()]
    return choose_types(tensors, file_type, ModelFacts.of(file.metadata), TypeOptions(), has_imatrix=False)


def _check(file: GGUFFile, chosen: dict[str, Choice], file_type: FileType) -> None:
    for name, info in file.tensors.items():
        kind = chosen[name].kind
        if kind == info.type:
            continue
        if not info.type.is_float and not kind.is_float:
            raise GGUFError(
                file.paths[0],
                f"{name} is {info.type.name} already, and quantizing it again to {kind.name} costs "
                f"quality; if that is "
                "wanted, use `pyllamacpu quantize --allow-requantize`",
            )
        if kind != TensorType.F32 and not can_quantize(kind):
            raise OptionError(
                f"{file_type.name}: {name} cannot be written as {kind.name}; choose another type"
            )
        if needs_imatrix(name, kind, file_type) or needs_importance(kind):
            raise OptionError(
                f"{file_type.name} needs an importance matrix: use `pyllamacpu quantize --imatrix`"
            )


def _set(keys: list[KeyValue], changed: KeyValue) -> list[KeyValue]:
    found = [changed if key.name == changed.name else key for key in keys]
    return found if any(key.name == changed.name for key in keys) else [*found, changed]


def _known_type(file: GGUFFile) -> str:
    number = file.metadata.get("general.file_type")
    return next(
        (kind.mix for kind in FILE_TYPES.values() if kind.number == number and kind.mix != "COPY"), "copy"
    )
