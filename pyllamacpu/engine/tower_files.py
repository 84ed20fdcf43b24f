"""Finding the vision tower of a text model: in the file that is named, in the model's own, or beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pyllamacpu.engine.tower import TowerFile
from pyllamacpu.errors import GGUFError, ModelError, OptionError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.model.towers import TOWERS, tower_kind

_PREFERRED = ("bf16", "f16", "q8_0", "f32")  # of towers that differ in their types only


def open_tower(file: GGUFFile, dim: int, mmproj: Any) -> TowerFile | None:
    """The tower of the model of `file`: in the file `mmproj`, in the model's own, or in one beside it; None
    where there is none. mmproj False: none. Raises GGUFError, ModelError, OptionError.
    """
    arch = str(file.metadata.get("general.architecture"))
    if mmproj is False:
        return None
    if mmproj is not None:
        if not isinstance(mmproj, (str, os.PathLike)):
            raise OptionError(f"mmproj={mmproj!r:.80}: give the path of a GGUF file with a vision tower")
        if not os.fspath(mmproj) or not os.path.exists(mmproj):
            raise OptionError(
                f"mmproj {os.fsdecode(mmproj)!r}: no such file; give the path of a vision tower (mmproj)"
            )
        return _opened(Path(mmproj), arch, dim)
    if tower_kind(file.metadata) is not None and any(name.startswith("v.") for name in file.tensors):
        own = TowerFile(file)
        own.check_fits(arch, dim)
        return own
    return _beside(Path(file.paths[0]), arch, dim)


def _opened(path: Path, arch: str, dim: int) -> TowerFile:
    file = GGUFFile.open(path)
    try:
        found = TowerFile(file)
        found.check_fits(arch, dim)
    except BaseException:
        file.close()
        raise
    return found


def _beside(model: Path, arch: str, dim: int) -> TowerFile | None:
    """The first that fits of the files beside a model."""
    for path in _files_beside(model):
        try:
            return _opened(path, arch, dim)
        except (GGUFError, ModelError, OSError):
            continue  # another model's; `unfit_towers` tells
    return None


def unfit_towers(file: GGUFFile) -> list[str]:
    """Why none of the files beside a model is its tower: a sentence for each. None when one is."""
    arch = str(file.metadata.get("general.architecture"))
    dim = file.metadata.get(f"{arch}.embedding_length")
    found = []
    for path in _files_beside(Path(file.paths[0])):
        try:
            _opened(path, arch, dim if isinstance(dim, int) else 0).file.close()
            return []
        except (GGUFError, ModelError, OSError) as error:
            found.append(str(error))
    return found


def missing_tower(model: object, arch: str | None, file: GGUFFile | None = None) -> OptionError:
    """What to say of an image for a model without a tower; of its `file`, also what is wrong beside it."""
    if arch in TOWERS and file is not None and (unfit := unfit_towers(file)):
        why = "; ".join(unfit[:4])
        return OptionError(
            f"{model}: the model reads text only, for no vision tower in its folder fits: {why}"
        )
    if arch in ("llama4", "mllama"):
        return OptionError(
            f"{model}: the model reads text only, for its vision tower is missing: put the file that is "
            f"published beside it (mmproj-….gguf) into its folder, or name it with mmproj; of a checkpoint, "
            "`pyllamacpu convert FOLDER --mmproj` writes it"
        )
    return OptionError(f"{model}: {arch} models read no images")


def _files_beside(model: Path) -> list[Path]:
    """Those in a model's folder that are called mmproj: one with its own name before others, then by type."""
    return sorted(model.absolute().parent.glob("*mmproj*.gguf"), key=lambda path: _rank(path, model))


def _rank(path: Path, model: Path) -> tuple[Any, ...]:
    name = path.stem.lower()
    plain = name.replace("mmproj", "").strip("-._")
    own = bool(plain) and model.stem.lower().startswith(plain.rsplit("-", 1)[0])
    kind = next((i for i, kind in enumerate(_PREFERRED) if name.endswith(kind)), len(_PREFERRED))
    return not own, kind, name
