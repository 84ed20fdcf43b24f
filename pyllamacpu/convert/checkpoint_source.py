"""The conversion of a whole model, from a checkpoint of any kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from pyllamacpu.convert.checkpoint import Checkpoint, open_checkpoint
from pyllamacpu.convert.conversion import Conversion, ConvertOptions, build_conversion
from pyllamacpu.convert.formats.json_file import read_optional_json
from pyllamacpu.convert.general import general_keys, sampling_notes, size_label
from pyllamacpu.convert.models.config import read_config
from pyllamacpu.convert.models.leftovers import VISION_LEFT_OUT
from pyllamacpu.convert.models.names import Mapped, map_tensors
from pyllamacpu.convert.models.shape import ModelShape
from pyllamacpu.convert.tokenizers.vocabulary import Vocabulary, read_vocabulary
from pyllamacpu.convert.types import file_type_of, tensor_types
from pyllamacpu.convert.unused_options import check_ignored, check_used
from pyllamacpu.convert.vision import PREFIX, plan_tower
from pyllamacpu.errors import CheckpointError
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.quantize.file_types import FileType, file_type_keys
from pyllamacpu.weights.stream import OutputTensor


def plan_checkpoint(source: Path, options: ConvertOptions) -> Conversion:
    """The plan of a model, with that of its vision tower. Raises CheckpointError, OptionError."""
    check_used(source, "whole model", options)
    if options.vocab_only and source.is_dir() and read_optional_json(source / "config.json"):
        return _plan_vocabulary(source, options)
    checkpoint = open_checkpoint(source)
    shape = _shape(checkpoint, options)
    tower = None
    if not options.vocab_only and shape.vision is None:  # otherwise it is in the text model's file
        tower = plan_tower(source, checkpoint, options, options.mmproj)
    if options.mmproj and tower is not None:
        return tower
    mapped = map_tensors(checkpoint.path, shape, checkpoint.tensors, checkpoint.lost)
    shape = mapped.shape
    if options.mmproj:
        return _with_tower_alone(source, checkpoint, options, mapped)
    vocabulary = _vocabulary(checkpoint.folder, checkpoint.config, shape, options)
    if not shape.vocab_size:
        raise CheckpointError(checkpoint.path, "neither config nor tensors tell the size of the vocabulary")
    file_type = file_type_of(options.outtype, checkpoint.tensors.values())
    general = _general(checkpoint.folder, checkpoint.config, options, _size(mapped))
    said = (*shape.notes, *mapped.notes, *vocabulary.notes, *sampling_notes(_generation(checkpoint.folder)))
    notes = (*checkpoint.notes, *_left_behind(checkpoint), *said)
    if tower is not None:
        beside = f"the vision tower becomes {tower.output.paths[0]}"
        notes = (*(note for note in notes if not note.endswith(VISION_LEFT_OUT)), beside)
    metadata = _metadata(shape, general, vocabulary, file_type.number)
    text = _with_types(source, checkpoint.files, options, file_type, mapped, metadata, notes)
    return replace(text, tower=tower)


def _with_tower_alone(
    source: Path, checkpoint: Checkpoint, options: ConvertOptions, mapped: Mapped
) -> Conversion:
    """What the file of the whole model would have of its vision tower."""
    tensors = {name: tensor for name, tensor in mapped.tensors.items() if name.startswith(("v.", "mm."))}
    tower, file_type = Mapped(tensors, mapped.shape, ()), file_type_of(options.outtype, tensors.values())
    keys = [
        KeyValue("general.architecture", mapped.shape.arch),
        *general_keys(checkpoint.folder, checkpoint.config, {}, _size(tower), options.name, "mmproj"),
        *mapped.shape.tower_keys(),
        *file_type_keys(file_type.number),
    ]
    if not options.outfile:
        options = replace(options, outfile=f"{PREFIX}{{name}}-{{ftype}}.gguf")
    return _with_types(source, checkpoint.files, options, file_type, tower, keys, checkpoint.notes)


def _left_behind(checkpoint: Checkpoint) -> list[str]:
    name = "adapter_config.json"
    found = (checkpoint.folder / name).is_file()
    return [f"{name} is left alone: the folder holds a whole model and no adapter"] if found else []


def _shape(checkpoint: Checkpoint, options: ConvertOptions) -> ModelShape:
    layout = "meta" if checkpoint.kind == "meta" else "hf"
    name = "params.json" if layout == "meta" else "config.json"
    if not checkpoint.config:
        raise CheckpointError(checkpoint.folder, f"has no {name}, which says what model it is")
    path = checkpoint.folder / name
    check_ignored(options, {path: checkpoint.config})
    return read_config(path, checkpoint.config, layout, options.ignored_config)


def _vocabulary(
    folder: Path, config: Mapping[str, Any], shape: ModelShape, options: ConvertOptions
) -> Vocabulary:
    inner = config.get("text_config")
    merged = {**inner, **config} if isinstance(inner, dict) else config
    return read_vocabulary(
        folder,
        merged,
        shape.n_embeddings,
        meta=shape.layout == "meta",
        drop_extra=options.drop_extra_tokens,
        pre=options.metadata_edits.text("tokenizer.ggml.pre"),
    )


def _plan_vocabulary(source: Path, options: ConvertOptions) -> Conversion:
    """Only the tokenizer and the config; weights need not be there."""
    path = source / "config.json"
    config = read_optional_json(path)
    check_ignored(options, {path: config})
    shape = read_config(path, config, "hf", options.ignored_config)
    vocabulary = _vocabulary(source, config, shape, options)
    if not vocabulary.n_tokens:
        raise CheckpointError(source, "has no tokenizer files")
    general = _general(source, config, options, "")
    keys = [
        KeyValue("general.architecture", shape.arch),
        *general,
        *shape.keys(shape.vocab_size or vocabulary.n_tokens),
    ]
    notes = (*shape.notes, *vocabulary.notes, *sampling_notes(_generation(source)))
    return build_conversion(source, (), options, "vocab", keys + vocabulary.keys, [], notes)


def _general(folder: Path, config: Mapping[str, Any], options: ConvertOptions, size: str) -> list[KeyValue]:
    return general_keys(folder, config, _generation(folder), size, options.name)


def _generation(folder: Path) -> dict[str, Any]:
    return read_optional_json(folder / "generation_config.json")


def _size(mapped: Mapped) -> str:
    total = sum(prod(tensor.shape) for tensor in mapped.tensors.values())
    experts = sum(prod(t.shape) for name, t in mapped.tensors.items() if "_exps." in name)
    return size_label(total, mapped.shape.n_experts, experts)


def _metadata(
    shape: ModelShape, general: list[KeyValue], vocabulary: Vocabulary, number: int
) -> list[KeyValue]:
    return [
        KeyValue("general.architecture", shape.arch),
        *general,
        *shape.keys(shape.vocab_size),
        *file_type_keys(number),
        *vocabulary.keys,
    ]


def _with_types(
    source: Path,
    files: tuple[Path, ...],
    options: ConvertOptions,
    file_type: FileType,
    mapped: Mapped,
    keys: list[KeyValue],
    notes: tuple[str, ...],
) -> Conversion:
    """The plan of a model's tensors, once their types are chosen."""
    kinds, said = tensor_types(mapped.tensors, file_type, {key.name: key.value for key in keys})
    items = [OutputTensor(name, tensor, kinds[name]) for name, tensor in mapped.tensors.items()]
    if options.vocab_only:
        return build_conversion(source, files, options, "vocab", keys, [], notes)
    return build_conversion(source, files, options, file_type.name, keys, items, (*notes, *said))
