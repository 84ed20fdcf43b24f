"""The vision tower of a checkpoint, as a file of its own beside the text model's (mmproj)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

from pyllamacpu.convert.checkpoint import Checkpoint
from pyllamacpu.convert.conversion import Conversion, ConvertOptions, build_conversion
from pyllamacpu.convert.general import general_keys, size_label
from pyllamacpu.convert.metadata_edits import MetadataEdits
from pyllamacpu.convert.models.plain_names import plain_name
from pyllamacpu.convert.models.vision_llama4 import map_vision, read_vision, vision_keys
from pyllamacpu.convert.target_path import target_path
from pyllamacpu.convert.types import file_type_of, tensor_types
from pyllamacpu.errors import CheckpointError
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.quantize.file_types import FILE_TYPES, FileType, file_type_keys
from pyllamacpu.weights.output import SplitLimits
from pyllamacpu.weights.stream import OutputTensor

PREFIX = "mmproj-"
_OWN_TYPES = ("auto", "f32", "f16", "bf16", "q8_0")  # beside a text model of another type the tower is Q8_0


def plan_tower(
    source: Path, checkpoint: Checkpoint, options: ConvertOptions, alone: bool
) -> Conversion | None:
    """The conversion of the tower, beside the text model's or `alone` (then as `options` say); None: the
    checkpoint has none. Raises CheckpointError, OptionError.
    """
    layout = "meta" if checkpoint.kind == "meta" else "hf"
    where = checkpoint.folder / ("params.json" if layout == "meta" else "config.json")
    shape = read_vision(where, checkpoint.config, layout)
    found = {plain_name(name): tensor for name, tensor in checkpoint.tensors.items()}
    if shape is None or not any(name.startswith("vision_") for name in found):
        if alone:
            raise CheckpointError(checkpoint.path, "has no vision tower that --mmproj could write")
        return None
    tensors = map_vision(checkpoint.path, shape, found)
    file_type = _file_type(options, checkpoint, alone)
    size = size_label(sum(prod(tensor.shape) for tensor in tensors.values()))
    general = general_keys(checkpoint.folder, checkpoint.config, {}, size, options.name, "mmproj")
    keys = [
        KeyValue("general.architecture", "clip"),
        *general,
        *vision_keys(shape, tensors),
        *file_type_keys(file_type.number),
    ]
    kinds, said = tensor_types(tensors, file_type, {key.name: key.value for key in keys})
    items = [OutputTensor(name, tensor, kinds[name]) for name, tensor in tensors.items()]
    path = _path(source, options, keys, file_type, alone)
    own = replace(options, outfile=str(path).replace("{", "{{").replace("}", "}}"))
    if not alone:
        own = replace(own, metadata_edits=MetadataEdits(), limits=SplitLimits())
    return build_conversion(source, checkpoint.files, own, file_type.name, keys, items, tuple(said))


def _file_type(options: ConvertOptions, checkpoint: Checkpoint, alone: bool) -> FileType:
    if not alone and options.outtype.strip().lower() not in _OWN_TYPES:
        return FILE_TYPES["Q8_0"]
    return file_type_of(options.outtype, checkpoint.tensors.values())


def _path(
    source: Path, options: ConvertOptions, keys: Sequence[KeyValue], file_type: FileType, alone: bool
) -> Path:
    """Beside a text model its name with mmproj- before it."""
    name = next(str(key.value) for key in keys if key.name == "general.name")
    path = target_path(options.outfile, name or source.stem, file_type.name)
    return path if alone and options.outfile else path.with_name(PREFIX + path.name)
