"""The GGUF files of a model: divided into parts, and written whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pyllamacpu.errors import OptionError
from pyllamacpu.files import FileKind, InputFiles, check_output, check_space
from pyllamacpu.gguf.file_kinds import gguf_kind, kind_name
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.gguf.values import DEFAULT_ALIGNMENT, ValueType
from pyllamacpu.gguf.writer import GGUFWriter, publish_all
from pyllamacpu.weights import tensor_cache
from pyllamacpu.weights.data_file import close_files
from pyllamacpu.weights.stream import OutputTensor, encode_all

MAX_PARTS = 65535
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
_PART = re.compile(r"-(\d{5})-of-(\d{5})$")


@dataclass(frozen=True)
class SplitLimits:
    """When a new part begins; 0 means no limit. Bytes count tensors only."""

    max_tensors: int = 0
    max_bytes: int = 0


def divide(tensors: Sequence[OutputTensor], limits: SplitLimits) -> list[list[OutputTensor]]:
    """Tensors by part. A tensor larger than the limit has a part of its own. Raises OptionError for too many
    parts.
    """
    parts: list[list[OutputTensor]] = [[]]
    size = 0
    for tensor in tensors:
        full = limits.max_tensors and len(parts[-1]) >= limits.max_tensors
        large = limits.max_bytes and size + tensor.n_bytes > limits.max_bytes
        if parts[-1] and (full or large):
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += tensor.n_bytes
    if len(parts) > MAX_PARTS:
        raise OptionError(
            f"{len(parts)} parts are more than the {MAX_PARTS} that there can be; raise the limits"
        )
    return parts


def part_paths(path: Path, n_parts: int, always_numbered: bool = False) -> list[Path]:
    """`model.gguf` itself, or model-00001-of-00003.gguf and so on."""
    if n_parts == 1 and not always_numbered:
        return [path]
    stem = _PART.sub("", path.name.removesuffix(".gguf"))
    return [path.with_name(f"{stem}-{no:05}-of-{n_parts:05}.gguf") for no in range(1, n_parts + 1)]


@dataclass(frozen=True, eq=False)
class Progress:
    """Rows of a tensor have been written. `index` counts tensors from 0; `ended`: the last of this one.

    `done` and `total` are bytes of all tensors in the result.
    """

    tensor: OutputTensor
    index: int
    done: int
    total: int
    ended: bool


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """All that will be written: the tensors of each of `paths`, and the metadata of the first.

    `inputs` are never written to, and must stay what they are until all is read; what is `protected` is not
    written to either. `force`: files of another kind are replaced.
    """

    paths: Sequence[Path]
    metadata: Sequence[KeyValue]
    parts: Sequence[Sequence[OutputTensor]]
    inputs: InputFiles
    protected: Sequence[Path] = ()
    force: bool = False

    @property
    def kind(self) -> FileKind:
        """What the result is."""
        types = [key.value for key in self.metadata if key.name == "general.type"]
        return gguf_kind(kind_name(types[0] if types else None, any(self.parts)))

    @property
    def notes(self) -> list[str]:
        """What the user should know of the files' names."""
        named = _PART.search(self.paths[0].name.removesuffix(".gguf")) if len(self.paths) == 1 else None
        if named is None or int(named[2]) < 2:
            return []
        said = f"is named as part {int(named[1])} of {int(named[2])}, and will be the whole in one file"
        return [f"{self.paths[0].name} {said}"]

    @property
    def tensors(self) -> list[OutputTensor]:
        return [tensor for part in self.parts for tensor in part]

    @property
    def n_bytes(self) -> int:
        """Of all tensors in the result."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def n_elements(self) -> int:
        return sum(tensor.n_elements for tensor in self.tensors)

    def check_paths(self) -> None:
        """Raises OutputError for a path that cannot or must not be written to."""
        for path in self.paths:
            check_output(path, (*self.inputs.paths, *self.protected), self.kind, self.force)

    def write(self, threads: int | None = None) -> Generator[Progress, None, None]:
        """Writes the files; they appear when the iterator ends, all of them or, after an error or when it is
        closed early, none.

        Raises OutputError, and CheckpointError or GGUFError for a source that cannot be read or whose weights
        the types cannot hold.
        """
        self.check_paths()
        done, total = 0, self.n_bytes
        with ExitStack() as stack:
            stack.callback(tensor_cache.release_all)
            stack.callback(close_files, self.inputs.paths)
            writers = self._writers()
            for writer in writers:
                stack.callback(writer.abort)
            check_space(self.paths[0], sum(writer.n_bytes for writer in writers))
            by_name = {t.name: w for w, part in zip(writers, self.parts, strict=True) for t in part}
            for slab in encode_all(self.tensors, threads):
                by_name[slab.tensor.name].write(slab.tensor.name, slab.data)
                done += slab.data.nbytes
                yield Progress(slab.tensor, slab.index, done, total, slab.ended)
            self.inputs.check()
            publish_all(writers)

    def _writers(self) -> list[GGUFWriter]:
        """One per part, with everything declared."""
        alignment = next((int(k.value) for k in self.metadata if k.name == "general.alignment"), None)
        n_tensors, writers = sum(map(len, self.parts)), []
        for no, (path, tensors) in enumerate(zip(self.paths, self.parts, strict=True)):
            writer = GGUFWriter(path, alignment=alignment or DEFAULT_ALIGNMENT)
            for key in self.metadata if no == 0 else ():
                if key.name != "general.alignment":
                    writer.add(*key)
            if len(self.paths) > 1:
                writer.add("split.no", no, ValueType.UINT16)
                writer.add("split.count", len(self.paths), ValueType.UINT16)
                writer.add("split.tensors.count", n_tensors, ValueType.INT32)
            for tensor in tensors:
                writer.add_tensor(tensor.name, tensor.shape, tensor.kind)
            writers.append(writer)
        return writers
