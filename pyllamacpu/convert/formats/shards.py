"""Checkpoints in several files: the index that says which tensor is where."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pyllamacpu.convert.formats.json_file import read_json
from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights.lazy_tensor import LazyTensor

ReadFile = Callable[[Path], dict[str, LazyTensor]]

_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>\d{5,6})-of-(?P<count>\d{5,6})", re.DOTALL)


@dataclass(frozen=True)
class Sharded:
    """The tensors of several files. `lost`: those that an index names and no file has, and what to say of
    each: whether they are needed is not told here.
    """

    tensors: dict[str, LazyTensor]
    files: list[Path]
    lost: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_indexed(index: Path, read: ReadFile) -> Sharded:
    """All tensors of a sharded checkpoint, by its `*.index.json`, and the files that hold them.

    Where each tensor is, the files themselves tell: those that the index forgot, or places in another file,
    are taken too. Raises CheckpointError when two files hold one tensor, and when no file is there.
    """
    by_file = _weight_map(index)
    missing = {name: names for name, names in by_file.items() if not _is_file(index.parent / name)}
    tensors: dict[str, LazyTensor] = {}
    files = [index.parent / name for name in by_file if name not in missing]
    for path in files:
        _merge(tensors, path, read(path))
    named = {name: file_name for file_name, names in by_file.items() for name in names}
    lost = [name for name in named if name not in tensors]
    for path in _unnamed(index, files) if lost else []:
        found = read(path)
        if any(name in found for name in lost):
            _merge(tensors, path, found)
            files.append(path)
    if not files:
        raise CheckpointError(index, _missing_text(missing, len(by_file)))
    moved = [name for name in lost if name in tensors]
    notes = f"{index.name} places {len(moved)} tensors wrongly: {_some(moved)}; they are read where they are"
    said = {
        name: f"{named[name]} has no {name}, which {index.name} places there"
        for name in lost
        if name not in tensors
    }
    if missing:
        left = {file: [name for name in names if name in said] for file, names in missing.items()}
        text = _missing_text({file: names for file, names in left.items() if names}, len(by_file))
        said |= {name: f"{index.name}: {text}" for names in left.values() for name in names}
    return Sharded(tensors, sorted(files), said, (notes,) if moved else ())


def _unnamed(index: Path, files: list[Path]) -> list[Path]:
    """Files beside an index that it does not name, and that look like shards of the same checkpoint."""
    stem, suffix = index.name.removesuffix(".index.json").rsplit(".", 1)
    return [path for path in sorted(index.parent.glob(f"{stem}*.{suffix}")) if path not in files]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # an impossible name
        return False


def read_together(paths: list[Path], read: ReadFile) -> Sharded:
    """All tensors of several files without an index. Raises CheckpointError for one that occurs twice."""
    tensors: dict[str, LazyTensor] = {}
    for path in paths:
        _merge(tensors, path, read(path))
    return Sharded(tensors, paths)


def check_numbered(folder: Path, paths: list[Path]) -> None:
    """Raises CheckpointError when files named like model-00001-of-00003 are not all there, or are of two
    checkpoints.
    """
    found: dict[tuple[str, str], set[int]] = {}
    for path in paths:
        if match := _NUMBERED.fullmatch(path.stem):
            found.setdefault((match["stem"], match["count"]), set()).add(int(match["number"]))
    if len(found) > 1:
        raise CheckpointError(folder, f"holds parts of {len(found)} checkpoints; name one's index.json")
    for (stem, count), numbers in found.items():
        missing = sorted(set(range(1, int(count) + 1)) - numbers)
        if missing:
            names = [f"{stem}-{number:0{len(count)}}-of-{count}{paths[0].suffix}" for number in missing[:5]]
            raise CheckpointError(folder, f"{len(missing)} of {int(count)} files missing: {_some(names)}")


def _merge(tensors: dict[str, LazyTensor], path: Path, found: dict[str, LazyTensor]) -> None:
    for name, tensor in found.items():
        if name in tensors:
            raise CheckpointError(path, f"tensor {name!r} is also at {tensors[name].source}")
        tensors[name] = tensor


def _weight_map(index: Path) -> dict[str, list[str]]:
    """The names of the tensors in each file, files in order of their names."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise CheckpointError(index, "has no weight_map")
    by_file: dict[str, list[str]] = {}
    for name, file_name in weight_map.items():
        if (
            not isinstance(file_name, str)
            or Path(file_name).name != file_name
            or file_name in ("", ".", "..")
        ):
            raise CheckpointError(index, f"places {name!r} in {file_name!r}, which is not a file beside it")
        by_file.setdefault(file_name, []).append(name)
    return dict(sorted(by_file.items()))


def _missing_text(missing: dict[str, list[str]], n_files: int) -> str:
    names = [name for group in missing.values() for name in group]
    return (
        f"{len(missing)} of its {n_files} files missing: {_some(list(missing))}; "
        f"without them {len(names)} tensors are lost: {_some(names)}"
    )


def _some(names: list[str], limit: int = 4) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
