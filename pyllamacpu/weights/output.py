"""The files of a conversion: their names, how tensors are divided among them, and writing them whole or not
at all.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pyllamacpu.errors import CheckpointError, OptionError
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.gguf.values import DEFAULT_ALIGNMENT, ValueType
from pyllamacpu.gguf.writer import GGUFWriter
from pyllamacpu.weights.stream import Item, encode_all

DEFAULT_NAME = "{name}-{ftype}.gguf"
MAX_PARTS = 65535
_PART = re.compile(r"-\d{5}-of-\d{5}$")
_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_HEADER = 1 << 16  # bytes of descriptions, besides the metadata's own size

OnProgress = Callable[[str, int, int], None]
"""Called with the tensor's name, the bytes written so far, and the bytes in all."""


@dataclass(frozen=True)
class SplitLimits:
    """When a new part begins; 0 means no limit. Bytes count tensors only."""

    max_tensors: int = 0
    max_bytes: int = 0


def parse_size(text: str) -> int:
    """`500M`, `2G` (powers of ten, as llama.cpp's converter counts), or bytes. Raises OptionError."""
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text.strip().upper())
    if not match or not int(match[1]):
        raise OptionError(f"{text!r} is no size; write 500M or 2G")
    return int(match[1]) * _UNITS.get(match[2], 1)


def target_path(pattern: str | None, name: str, ftype: str) -> Path:
    """The output's path. `{name}` and `{ftype}` ({FTYPE}) stand for the model's name and the type.

    A folder gets a file of the default name. Raises OptionError for other braces.
    """
    text = pattern or DEFAULT_NAME
    if text.endswith("/") or Path(text).is_dir():
        text = str(Path(text) / DEFAULT_NAME)
    plain = re.sub(r"[\s/\\]+", "-", name.strip()).strip(".-") or "model"
    values = {"name": plain, "NAME": plain.upper(), "ftype": ftype.lower(), "FTYPE": ftype.upper()}
    values |= {"outtype": values["ftype"], "OUTTYPE": values["FTYPE"]}
    try:
        path = Path(text.format(values["ftype"], **values))
    except (KeyError, IndexError, ValueError, AttributeError):
        raise OptionError(f"--outfile {text!r}: only {{name}} and {{ftype}} can stand in braces") from None
    if not path.absolute().parent.is_dir():
        raise OptionError(f"--outfile: the folder {path.parent} does not exist")
    if path.is_dir():
        raise OptionError(f"--outfile: {path} is a folder")
    return path


def divide(items: Sequence[Item], limits: SplitLimits) -> list[list[Item]]:
    """Tensors by part. A tensor larger than the limit has a part of its own. Raises OptionError for too many
    parts.
    """
    parts: list[list[Item]] = [[]]
    size = 0
    for item in items:
        full = limits.max_tensors and len(parts[-1]) >= limits.max_tensors
        large = limits.max_bytes and size + item.n_bytes > limits.max_bytes
        if parts[-1] and (full or large):
            parts.append([])
            size = 0
        parts[-1].append(item)
        size += item.n_bytes
    if len(parts) > MAX_PARTS:
        raise OptionError(
            f"{len(parts)} parts are more than the {MAX_PARTS} that there can be; raise the limits"
        )
    return parts


def part_paths(path: Path, n_parts: int) -> list[Path]:
    """`model.gguf` itself, or model-00001-of-00003.gguf and so on."""
    if n_parts == 1:
        return [path]
    stem = _PART.sub("", path.name.removesuffix(".gguf"))
    return [path.with_name(f"{stem}-{no:05}-of-{n_parts:05}.gguf") for no in range(1, n_parts + 1)]


def check_space(path: Path, n_bytes: int) -> None:
    """Raises OptionError when the disk has no room for `n_bytes` more."""
    free = shutil.disk_usage(path.absolute().parent).free
    if n_bytes > free:
        raise OptionError(
            f"{path}: {n_bytes / 1e9:.2f} GB are needed, the disk has {free / 1e9:.2f} GB left; make "
            f"room, choose "
            "another folder or a smaller type"
        )


class Output:
    """The files being written. They get their names together, when all are whole."""

    def __init__(
        self, paths: Sequence[Path], keys: Sequence[KeyValue], parts: Sequence[Sequence[Item]]
    ) -> None:
        alignment = next(
            (int(key.value) for key in keys if key.name == "general.alignment"), DEFAULT_ALIGNMENT
        )
        self._writers = [GGUFWriter(path, alignment=alignment) for path in paths]
        self._parts = parts
        n_tensors = sum(map(len, parts))
        for no, (writer, items) in enumerate(zip(self._writers, parts, strict=True)):
            for key in keys if no == 0 else ():
                if key.name != "general.alignment":
                    writer.add(*key)
            if len(paths) > 1:
                writer.add("split.no", no, ValueType.UINT16)
                writer.add("split.count", len(paths), ValueType.UINT16)
                writer.add("split.tensors.count", n_tensors, ValueType.INT32)
            for item in items:
                writer.add_tensor(item.name, item.shape, item.kind)

    def write(self, on_progress: OnProgress | None = None, threads: int | None = None) -> None:
        """Encodes and writes all tensors. Raises CheckpointError, GGUFError."""
        total = sum(item.n_bytes for part in self._parts for item in part)
        done = 0
        for writer, items in zip(self._writers, self._parts, strict=True):
            for slab in encode_all(items, threads):
                writer.write(slab.item.name, slab.data)
                done += slab.data.nbytes
                if on_progress:
                    on_progress(slab.item.name, done, total)
            writer.finish()

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for writer in self._writers:
                    writer.publish()
        finally:
            for writer in self._writers:
                writer.abort()


def header_bytes(keys: Sequence[KeyValue], n_tensors: int) -> int:
    """About what metadata and descriptions take, for asking whether the disk has room."""
    size = _HEADER + 128 * n_tensors
    for key in keys:
        value = key.value
        if isinstance(value, str):
            size += len(value) * 4
        elif hasattr(value, "__len__"):
            size += sum(len(x) * 4 + 8 if isinstance(x, (str, bytes)) else 8 for x in value)
    return size


def refuse_source(target: Sequence[Path], sources: Sequence[Path]) -> None:
    """Raises CheckpointError when a file of the result would replace one of the source."""
    known = {source.resolve() for source in sources}
    for path in target:
        if path.resolve() in known or (path.exists() and any(path.samefile(source) for source in sources)):
            raise CheckpointError(path, "is the source, which is never written to; give another --outfile")
