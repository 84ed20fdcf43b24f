"""What a conversion will do, decided and checked before anything is written, and doing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from pyllamacpu.convert import held
from pyllamacpu.convert.checkpoint import Checkpoint, open_checkpoint
from pyllamacpu.convert.config import read_config
from pyllamacpu.convert.edits import Edits
from pyllamacpu.convert.fields import Key
from pyllamacpu.convert.general import general_keys, size_label
from pyllamacpu.convert.names import Mapped, map_tensors
from pyllamacpu.convert.output import (
    OnProgress,
    Output,
    SplitLimits,
    check_space,
    divide,
    header_bytes,
    part_paths,
    refuse_source,
    target_path,
)
from pyllamacpu.convert.shape import ModelShape
from pyllamacpu.convert.stream import Item
from pyllamacpu.convert.types import file_type_of, tensor_types
from pyllamacpu.convert.vocabulary import Vocabulary, read_json, read_vocabulary
from pyllamacpu.errors import CheckpointError, OptionError
from pyllamacpu.gguf.values import MAGIC, ValueType
from pyllamacpu.quantize.file_types import FileType

QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class ConvertOptions:
    """What the user asks for. `outfile` may hold {name} and {ftype}; `base`: the config of a LoRA's base
    model.
    """

    outfile: str | None = None
    outtype: str = "auto"
    vocab_only: bool = False
    name: str | None = None
    edits: Edits = field(default_factory=Edits)
    limits: SplitLimits = field(default_factory=SplitLimits)
    drop_extra_tokens: bool = False
    ignored_config: frozenset[str] = frozenset()
    base: Path | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Conversion:
    """A plan. `paths` and `parts` belong together; `keys` is the metadata; `notes` are for the user."""

    source: Path
    files: tuple[Path, ...]  # of the source
    file_type: str
    keys: list[Key]
    parts: list[list[Item]]
    paths: list[Path]
    notes: tuple[str, ...]
    threads: int | None = None

    @property
    def items(self) -> list[Item]:
        return [item for part in self.parts for item in part]

    @property
    def n_bytes(self) -> int:
        """Of all tensors in the result."""
        return sum(item.n_bytes for item in self.items)

    @property
    def n_elements(self) -> int:
        return sum(item.tensor.n_elements for item in self.items)

    def run(self, on_progress: OnProgress | None = None) -> None:
        """Writes the files: all of them whole, or none. Raises PyllamacpuError."""
        check_space(self.paths[0], self.n_bytes + header_bytes(self.keys, len(self.items)))
        try:
            with Output(self.paths, self.keys, self.parts) as output:
                output.write(on_progress, self.threads)
        finally:
            held.release_all()


def plan_conversion(source: Path, options: ConvertOptions) -> Conversion:
    """Reads everything but the weights. Raises CheckpointError, GGUFError or OptionError for what cannot be
    done.
    """
    from pyllamacpu.convert.gguf_source import plan_gguf
    from pyllamacpu.convert.lora import is_adapter, plan_adapter

    if not source.exists():
        raise CheckpointError(source, "no such file or folder")
    if source.is_file() and _is_gguf(source):
        return plan_gguf(source, options)
    if is_adapter(source):
        return plan_adapter(source, options)
    return _plan_checkpoint(source, options)


def _is_gguf(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _plan_checkpoint(source: Path, options: ConvertOptions) -> Conversion:
    if options.vocab_only and source.is_dir() and read_json(source / "config.json"):
        return _plan_vocabulary(source, options)
    checkpoint = open_checkpoint(source)
    shape = _shape(checkpoint, options)
    mapped = map_tensors(checkpoint.path, shape, checkpoint.tensors)
    shape = mapped.shape
    vocabulary = _vocabulary(checkpoint.folder, checkpoint.config, shape, options)
    if not shape.vocab_size:
        raise CheckpointError(checkpoint.path, "neither config nor tensors tell the size of the vocabulary")
    file_type = file_type_of(options.outtype, checkpoint.tensors.values())
    general = _general(checkpoint.folder, checkpoint.config, options, _size(mapped))
    return finish(
        source,
        checkpoint.files,
        options,
        file_type,
        mapped,
        _metadata(shape, general, vocabulary, file_type.number),
        (*_said(checkpoint), *shape.notes, *mapped.notes, *vocabulary.notes),
    )


def _said(checkpoint: Checkpoint) -> list[str]:
    method = checkpoint.quantization
    return [f"the weights are quantized ({method}); their plain values are converted"] if method else []


def _shape(checkpoint: Checkpoint, options: ConvertOptions) -> ModelShape:
    layout = "meta" if checkpoint.kind == "meta" else "hf"
    name = "params.json" if layout == "meta" else "config.json"
    if not checkpoint.config:
        raise CheckpointError(checkpoint.folder, f"has no {name}, which says what model it is")
    return read_config(checkpoint.folder / name, checkpoint.config, layout, options.ignored_config)


def _vocabulary(
    folder: Path, config: Mapping[str, Any], shape: ModelShape, options: ConvertOptions
) -> Vocabulary:
    inner = config.get("text_config")
    merged = {**inner, **config} if isinstance(inner, dict) else config
    return read_vocabulary(
        folder,
        merged,
        shape.vocab_size,
        meta=shape.layout == "meta",
        drop_extra=options.drop_extra_tokens,
        pre=options.edits.text("tokenizer.ggml.pre"),
    )


def _plan_vocabulary(source: Path, options: ConvertOptions) -> Conversion:
    """Only the tokenizer and the config; weights need not be there."""
    config = read_json(source / "config.json")
    shape = read_config(source / "config.json", config, "hf", options.ignored_config)
    vocabulary = _vocabulary(source, config, shape, options)
    if not vocabulary.n_tokens:
        raise CheckpointError(source, "has no tokenizer files")
    general = _general(source, config, options, "")
    keys = [
        Key("general.architecture", shape.arch),
        *general,
        *shape.keys(shape.vocab_size or vocabulary.n_tokens),
    ]
    return conclude(
        source, (), options, "vocab", keys + vocabulary.keys, [], (*shape.notes, *vocabulary.notes)
    )


def _general(folder: Path, config: Mapping[str, Any], options: ConvertOptions, size: str) -> list[Key]:
    return general_keys(folder, config, read_json(folder / "generation_config.json"), size, options.name)


def _size(mapped: Mapped) -> str:
    total = sum(prod(tensor.shape) for tensor in mapped.tensors.values())
    experts = sum(prod(t.shape) for name, t in mapped.tensors.items() if "_exps." in name)
    return size_label(total, mapped.shape.n_experts, experts)


def _metadata(shape: ModelShape, general: list[Key], vocabulary: Vocabulary, number: int) -> list[Key]:
    return [
        Key("general.architecture", shape.arch),
        *general,
        *shape.keys(shape.vocab_size),
        Key("general.file_type", number, ValueType.UINT32),
        Key("general.quantization_version", QUANTIZATION_VERSION, ValueType.UINT32),
        *vocabulary.keys,
    ]


def finish(
    source: Path,
    files: tuple[Path, ...],
    options: ConvertOptions,
    file_type: FileType,
    mapped: Mapped,
    keys: list[Key],
    notes: tuple[str, ...],
) -> Conversion:
    """The plan of a model's tensors, once their types are chosen."""
    kinds, said = tensor_types(mapped.tensors, file_type, {key.name: key.value for key in keys})
    items = [Item(name, tensor, kinds[name]) for name, tensor in mapped.tensors.items()]
    if options.vocab_only:
        return conclude(source, files, options, "vocab", keys, [], notes)
    return conclude(source, files, options, file_type.name, keys, items, (*notes, *said))


def conclude(
    source: Path,
    files: tuple[Path, ...],
    options: ConvertOptions,
    type_name: str,
    keys: list[Key],
    items: list[Item],
    notes: tuple[str, ...],
) -> Conversion:
    """Edits applied, tensors divided among files, names given to these."""
    keys = options.edits.apply(keys)
    values = {key.name: key.value for key in keys}
    name = str(values.get("general.name") or source.stem)
    path = target_path(options.outfile, name, type_name)
    parts = divide(items, options.limits)
    paths = part_paths(path, len(parts))
    refuse_source(paths, files)
    if not any(parts) and not any(name.startswith("tokenizer.") for name in values):
        raise OptionError(f"{source}: there is nothing to write")
    return Conversion(source, files, type_name, keys, parts, paths, notes, options.threads)
