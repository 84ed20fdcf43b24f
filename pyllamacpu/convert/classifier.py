"""The conversion of a checkpoint that classifies texts (Prompt Guard) instead of writing them."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from pyllamacpu.convert.checkpoint import open_checkpoint
from pyllamacpu.convert.conversion import Conversion, ConvertOptions, build_conversion
from pyllamacpu.convert.formats.json_file import read_optional_json
from pyllamacpu.convert.general import general_keys, size_label
from pyllamacpu.convert.models.deberta import is_classifier, map_deberta, read_deberta
from pyllamacpu.convert.tokenizers.unigram_pipeline import read_unigram_pipeline
from pyllamacpu.convert.types import file_type_of, tensor_types
from pyllamacpu.convert.unused_options import check_ignored, check_used
from pyllamacpu.errors import CheckpointError
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.model.architectures import DEBERTA
from pyllamacpu.quantize.file_types import file_type_keys
from pyllamacpu.weights.stream import OutputTensor


def classifies(source: Path) -> bool:
    """Whether a folder, or a file in one, is the checkpoint of a classifier that can be converted."""
    return is_classifier(read_optional_json(_folder(source) / "config.json"))


def _folder(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def plan_classifier(source: Path, options: ConvertOptions) -> Conversion:
    """Raises CheckpointError, OptionError."""
    check_used(source, "classifier of texts", options)
    folder = _folder(source)
    path = folder / "config.json"
    config: dict[str, Any] = read_optional_json(path)
    check_ignored(options, {path: config})
    shape = read_deberta(path, config, options.ignored_config)
    tokenizer, notes = read_unigram_pipeline(folder, shape.vocab_size)
    if options.vocab_only:
        if not tokenizer:
            raise CheckpointError(source, "has no tokenizer files")
        keys = _keys(folder, config, options, [*shape.keys(), *tokenizer], "")
        return build_conversion(source, (), options, "vocab", keys, [], tuple(notes))
    checkpoint = open_checkpoint(source)
    if lost := next(iter(checkpoint.lost.values()), None):
        raise CheckpointError(checkpoint.path, lost)
    tensors, said = map_deberta(shape, checkpoint.tensors)
    file_type = file_type_of(options.outtype, checkpoint.tensors.values())
    size = size_label(sum(prod(tensor.shape) for tensor in checkpoint.tensors.values()))
    own = [*shape.keys(), *file_type_keys(file_type.number), *tokenizer]
    keys = _keys(folder, config, options, own, size)
    kinds, fallen = tensor_types(tensors, file_type, {key.name: key.value for key in keys})
    items = [OutputTensor(name, tensor, kinds[name]) for name, tensor in tensors.items()]
    all_notes = (*checkpoint.notes, *said, *notes, *fallen)
    return build_conversion(source, checkpoint.files, options, file_type.name, keys, items, all_notes)


def _keys(
    folder: Path, config: dict[str, Any], options: ConvertOptions, own: list[KeyValue], size: str
) -> list[KeyValue]:
    general = general_keys(folder, config, {}, size, options.name)
    return [KeyValue("general.architecture", DEBERTA), *general, *own]
