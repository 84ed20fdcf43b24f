"""Opening a checkpoint: finding out what kind it is, and its tensors and config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pyllamacpu.convert.formats.json_file import read_json
from pyllamacpu.convert.formats.meta import is_meta, is_meta_file, read_meta
from pyllamacpu.convert.formats.safetensors import read_safetensors
from pyllamacpu.convert.formats.shards import ReadFile, Sharded, check_numbered, read_indexed, read_together
from pyllamacpu.convert.formats.torch_file import read_torch
from pyllamacpu.convert.quantized.methods import undo_quantization
from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights import tensor_cache
from pyllamacpu.weights.data_file import close_files
from pyllamacpu.weights.lazy_tensor import LazyTensor

Kind = Literal["safetensors", "torch", "meta"]


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint. Nothing is in memory but descriptions until tensors are read.

    `tensors`: by the checkpoint's own names, quantized ones under the name of the plain weight. `config`:
    config.json, params.json or adapter_config.json; empty when there is none. `quantization` names the
    quantization that was undone, empty for plain weights. `files` hold the tensors; the source is only read.
    `lost`: tensors that an index names and no file has, with what to say of each.
    `notes`: what the user should know.
    """

    path: Path
    kind: Kind
    tensors: Mapping[str, LazyTensor] = field(repr=False)
    config: dict[str, Any] = field(repr=False)
    files: tuple[Path, ...]
    quantization: str = ""
    lost: Mapping[str, str] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where tokenizer and config files are."""
        return self.path if self.path.is_dir() else self.path.parent

    def close(self) -> None:
        """Gives memory and handles back; tensors can still be read."""
        tensor_cache.release_all()
        close_files(self.files)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a folder (safetensors, torch or Meta files), or one such file. Raises CheckpointError."""
    where = Path(path)
    if where.is_dir():
        return _open_folder(where)
    if not where.exists():
        raise CheckpointError(where, "no such file or folder")
    return _open_file(where)


def holds_model(folder: Path) -> bool:
    """Whether a folder holds the weights of a whole model."""
    patterns = ("model*.safetensors", "pytorch_model*.bin", "consolidated*.safetensors", "consolidated*.pth")
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def _open_folder(folder: Path) -> Checkpoint:
    """Prefers what is safe to read and named as a whole model; other files beside it are left alone."""
    for stem, kind in _WHOLE.items():
        index = folder / f"{stem}.index.json"
        if index.is_file():
            return _finish(folder, kind, _beside(index, stem, read_indexed(index, _READERS[kind])))
        if (folder / stem).is_file():
            read = read_together([folder / stem], _READERS[kind])
            return _finish(folder, kind, _beside(folder / stem, stem, read))
    if is_meta(folder):
        meta_tensors, params, ranks = read_meta(folder)
        return Checkpoint(folder, "meta", meta_tensors, params, tuple(ranks))
    loose_kinds: tuple[tuple[Kind, str], ...] = (("safetensors", ".safetensors"), ("torch", ".bin"))
    for kind, suffix in loose_kinds:
        pattern = "*" if kind == "safetensors" else "pytorch_model*"
        loose = sorted(file for file in folder.glob(pattern + suffix) if not file.name.startswith("."))
        if loose:
            check_numbered(folder, loose)
            return _finish(folder, kind, read_together(loose, _READERS[kind]))
    raise CheckpointError(
        folder, "holds no checkpoint: no *.safetensors, pytorch_model*.bin or consolidated.*.pth files"
    )


def _beside(chosen: Path, stem: str, read: Sharded) -> Sharded:
    """With a note where the folder holds the model once more: whole, or in numbered files."""
    name, suffix = stem.rsplit(".", 1)
    whole, numbered = chosen.parent / stem, f"{name}-*-of-*.{suffix}"
    others = [path.name for path in (whole, *sorted(chosen.parent.glob(numbered))) if path.is_file()]
    left = [other for other in others if chosen.parent / other not in read.files]
    if not left:
        return read
    more = f" and {len(left) - 1} more files" if len(left) > 1 else ""
    note = f"{left[0]}{more} left alone: the model is read from {chosen.name}"
    return replace(read, notes=(*read.notes, note))


def _open_file(path: Path) -> Checkpoint:
    if path.name.endswith(".index.json"):
        kind: Kind = "safetensors" if ".safetensors" in path.name else "torch"
        return _finish(path, kind, read_indexed(path, _READERS[kind]))
    if is_meta_file(path) and (path.parent / "params.json").is_file():
        return _open_folder(path.parent)
    if path.suffix in _SUFFIXES:
        kind = _SUFFIXES[path.suffix]
        return _finish(path, kind, read_together([path], _READERS[kind]))
    raise CheckpointError(path, f"is not a checkpoint: its name should end in {', '.join(_SUFFIXES)}")


def _read_safetensors(path: Path) -> dict[str, LazyTensor]:
    return read_safetensors(path)[0]


def _finish(path: Path, kind: Kind, read: Sharded) -> Checkpoint:
    config = _config(path)
    plain = undo_quantization(read.tensors, config, path if path.is_dir() else path.parent)
    notes = (*read.notes, *plain.notes)
    return Checkpoint(path, kind, plain.tensors, config, tuple(read.files), plain.method, read.lost, notes)


def _config(path: Path) -> dict[str, Any]:
    folder = path if path.is_dir() else path.parent
    for name in ("config.json", "params.json", "adapter_config.json"):
        if (folder / name).is_file():
            return read_json(folder / name)
    return {}


_READERS: dict[Kind, ReadFile] = {"safetensors": _read_safetensors, "torch": read_torch}
_WHOLE: dict[str, Kind] = {
    "model.safetensors": "safetensors",
    "pytorch_model.bin": "torch",
    "adapter_model.safetensors": "safetensors",
    "adapter_model.bin": "torch",
    "adapters.safetensors": "safetensors",
}
_SUFFIXES: dict[str, Kind] = {".safetensors": "safetensors", ".bin": "torch", ".pt": "torch", ".pth": "torch"}
