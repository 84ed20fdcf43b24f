"""What a conversion will do, decided and checked before anything is written, and doing it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pyllamacpu.convert.metadata_edits import MetadataEdits
from pyllamacpu.errors import OptionError
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.weights import tensor_cache
from pyllamacpu.weights.output import (
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
from pyllamacpu.weights.stream import Item

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
    metadata_edits: MetadataEdits = field(default_factory=MetadataEdits)
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
    keys: list[KeyValue]
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
            tensor_cache.release_all()


def build_conversion(
    source: Path,
    files: tuple[Path, ...],
    options: ConvertOptions,
    type_name: str,
    keys: list[KeyValue],
    items: list[Item],
    notes: tuple[str, ...],
) -> Conversion:
    """MetadataEdits applied, tensors divided among files, names given to these."""
    keys = options.metadata_edits.apply(keys)
    values = {key.name: key.value for key in keys}
    name = str(values.get("general.name") or source.stem)
    path = target_path(options.outfile, name, type_name)
    parts = divide(items, options.limits)
    paths = part_paths(path, len(parts))
    refuse_source(paths, files)
    if not any(parts) and not any(name.startswith("tokenizer.") for name in values):
        raise OptionError(f"{source}: there is nothing to write")
    return Conversion(source, files, type_name, keys, parts, paths, notes, options.threads)
