"""What a conversion will do, decided and checked before anything is written, and doing it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pyllamacpu.convert.metadata_edits import MetadataEdits
from pyllamacpu.convert.target_path import target_path
from pyllamacpu.errors import OptionError
from pyllamacpu.files import GGUF_FILE, InputFiles
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.quantize.file_types import parse_file_type
from pyllamacpu.weights.opens import why_it_would_not_open
from pyllamacpu.weights.output import ModelOutput, Progress, SplitLimits, divide, part_paths
from pyllamacpu.weights.stream import OutputTensor


@dataclass(frozen=True)
class ConvertOptions:
    """What the user asks for. `outfile` may hold {name} and {ftype}; `base`: the config of a LoRA's base
    model.
    """

    outfile: str | None = None
    outtype: str = "auto"
    vocab_only: bool = False
    name: str | None = None
    metadata_edits: MetadataEdits = field(default_factory=MetadataEdits)
    limits: SplitLimits = field(default_factory=SplitLimits)
    drop_extra_tokens: bool = False
    ignored_config: frozenset[str] = frozenset()
    mmproj: bool = False  # the vision tower alone
    base: Path | None = None
    adapters: tuple[tuple[str, float], ...] = ()  # LoRA files and their scales, merged into a GGUF file
    force: bool = False  # replace files of another kind
    threads: int | None = None


@dataclass(frozen=True, eq=False)
class Conversion:
    """What will be written; `file_type` names the type of most tensors, `notes` are for the user. `tower`:
    what goes into a file beside it.
    """

    output: ModelOutput
    file_type: str
    notes: tuple[str, ...]
    threads: int | None = None
    tower: Conversion | None = None

    @property
    def all(self) -> list[Conversion]:
        """This one, and that of the tower."""
        return [self, *([] if self.tower is None else [self.tower])]

    def write(self) -> Generator[Progress, None, None]:
        """Writes the files: all of them whole, or none; then likewise the tower's. Raises PyllamacpuError."""
        for part in self.all:
            yield from part.output.write(part.threads)

    def run(self) -> None:
        """The same to the end."""
        for _ in self.write():
            pass


def build_conversion(
    source: Path,
    inputs: Sequence[Path],
    options: ConvertOptions,
    type_name: str,
    keys: list[KeyValue],
    tensors: list[OutputTensor],
    notes: tuple[str, ...],
) -> Conversion:
    """Metadata edited, tensors divided among files, names given to these. Raises OptionError, OutputError."""
    edited = options.metadata_edits.apply(keys)
    if edited != keys and not options.vocab_only:
        _check_edited(keys, edited, tensors)
    keys = edited
    notes = (*notes, *_without_effect(options))
    values = {key.name: key.value for key in keys}
    path = target_path(options.outfile, _name(values.get("general.name")) or source.stem, type_name)
    parts = divide(tensors, options.limits)
    if not any(parts) and not any(name.startswith("tokenizer.") for name in values):
        raise OptionError(f"{source}: there is nothing to write")
    paths, protected = part_paths(path, len(parts)), _protected(source, options)
    output = ModelOutput(paths, keys, parts, InputFiles(inputs), protected, options.force)
    output.check_paths()
    return Conversion(output, type_name, (*notes, *output.notes), options.threads)


def _check_edited(keys: list[KeyValue], edited: list[KeyValue], tensors: list[OutputTensor]) -> None:
    """Raises OptionError for edits with which a model can no longer be opened."""
    declared = [(tensor.name, tensor.shape, tensor.kind) for tensor in tensors]
    reason = why_it_would_not_open(edited, declared)
    if reason and not why_it_would_not_open(keys, declared):
        raise OptionError(f"--metadata, --remove-metadata: what they make could not be opened: {reason}")


def _without_effect(options: ConvertOptions) -> list[str]:
    """Notes. Raises OptionError for a type that there is not, also where none is needed."""
    if not options.vocab_only or options.outtype.strip().lower() == "auto":
        return []
    parse_file_type(options.outtype)
    return [f"--outtype {options.outtype} has no effect with --vocab-only, which writes no tensors"]


def _protected(source: Path, options: ConvertOptions) -> list[Path]:
    """All that may be read beside the weights: what is in the folders of the source and of the base, but for
    GGUF files, which are earlier results.
    """
    if GGUF_FILE.recognise(source):
        return []
    folders = [folder for folder in (source, options.base) if folder and folder.is_dir()]
    beside = [path for folder in folders for path in folder.iterdir()]
    if source.is_file():
        beside += [path for path in source.parent.iterdir() if path.suffix in (".json", ".model", ".jinja")]
    return [path for path in beside if path.is_file() and not GGUF_FILE.recognise(path)]


def _name(value: object) -> str:
    """Strings of a GGUF file come as bytes; what is not a text is not a name."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""
