"""A GGUF file as the source: another type, other metadata, split, merged, or the vocabulary alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pyllamacpu.convert.conversion import Conversion, ConvertOptions, build_conversion
from pyllamacpu.convert.merge_lora import Added, merged, read_added
from pyllamacpu.convert.merge_lora import notes as merge_notes
from pyllamacpu.convert.types import fallbacks
from pyllamacpu.convert.unused_options import check_used
from pyllamacpu.errors import GGUFError, OptionError
from pyllamacpu.gguf.keys import KeyValue, metadata_keys
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.quantize.file_types import (
    FILE_TYPE_KEY,
    FILE_TYPES,
    VERSION_KEY,
    FileType,
    file_type_keys,
    parse_file_type,
)
from pyllamacpu.quantize.recipes import (
    Choice,
    ModelTraits,
    SourceTensor,
    TypeOptions,
    choose_types,
    file_order,
    needs_imatrix,
)
from pyllamacpu.weights.blocks import can_quantize, needs_importance
from pyllamacpu.weights.gguf_tensors import gguf_tensor
from pyllamacpu.weights.lazy_tensor import LazyTensor
from pyllamacpu.weights.output import SPLIT_KEYS
from pyllamacpu.weights.stream import OutputTensor


def plan_gguf(source: Path, options: ConvertOptions) -> Conversion:
    """The plan. `auto` keeps the types. Tensors that are quantized already get another type only from a type
    that loses nothing more (f32, f16, bf16): everything else is `quantize`'s to decide. Raises GGUFError,
    OptionError.
    """
    check_used(source, "GGUF file", options)
    if options.adapters and options.vocab_only:
        raise OptionError("a vocabulary has no weights that an adapter (--lora) could change")
    file = GGUFFile.open(source)  # stays open as long as its tensors are wanted
    keys = [key for key in metadata_keys(file.metadata) if key.name not in SPLIT_KEYS]
    if options.name:
        keys = [key for key in keys if key.name != "general.name"]
        keys.append(KeyValue("general.name", options.name))
    if options.vocab_only:
        kept = [key for key in keys if key.name not in (FILE_TYPE_KEY, VERSION_KEY)]
        return build_conversion(source, file.paths, options, "vocab", kept, [], ())
    file_type = _file_type(options.outtype)
    chosen = _choose(file, file_type)
    _check(file, chosen, file_type)
    added = read_added(file, options.adapters)
    _check_merged(file, added, chosen)
    tensors = [
        OutputTensor(name, _source(file, name, added), chosen[name].kind, info.shape)
        for name, info in file.tensors.items()
    ]
    for key in [] if file_type.copies else file_type_keys(file_type.number):
        keys = _set(keys, key)
    notes = fallbacks(chosen, {name: info.shape[-1:] for name, info in file.tensors.items()})
    notes += merge_notes(file, added)
    name = file_type.name if not file_type.copies else _known_type(file)
    inputs = (*file.paths, *(Path(path) for path, _ in options.adapters))
    return build_conversion(source, inputs, options, name, keys, tensors, tuple(notes))


def _source(file: GGUFFile, name: str, added: Mapping[str, Sequence[Added]]) -> LazyTensor:
    tensor = gguf_tensor(file, file.tensors[name])
    return merged(tensor, added[name]) if name in added else tensor


def _check_merged(file: GGUFFile, added: Mapping[str, object], chosen: Mapping[str, Choice]) -> None:
    """Raises OptionError for changed tensors that cannot be written in their type again."""
    for name in added:
        kind = chosen[name].kind
        if not kind.is_float and (not can_quantize(kind) or needs_importance(kind)):
            raise OptionError(
                f"{file.paths[0]}: {name} is {kind.name}, which cannot be written again; choose another type "
                "(--outtype f16), or give the adapter with --lora when the model runs"
            )


def _file_type(text: str) -> FileType:
    return FILE_TYPES["COPY"] if text.strip().lower() == "auto" else parse_file_type(text)


def _choose(file: GGUFFile, file_type: FileType) -> dict[str, Choice]:
    if file_type.copies:
        return {name: Choice(info.type, info.type) for name, info in file.tensors.items()}
    infos = {name: file.tensors[name] for name in file_order(file.tensors)}
    tensors = [SourceTensor(name, info.shape, info.type) for name, info in infos.items()]
    return choose_types(tensors, file_type, ModelTraits.of(file.metadata), TypeOptions(), has_imatrix=False)


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
    number = file.metadata.get(FILE_TYPE_KEY)
    if not isinstance(number, int):  # files may hold anything
        return "copy"
    return next(
        (kind.mix for kind in FILE_TYPES.values() if kind.number == number and kind.mix != "COPY"), "copy"
    )
