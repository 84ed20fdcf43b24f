"""From what a person types to a model file: a path, a name in the store, a known name, a model on the hub."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyllamacpu.errors import StoreError
from pyllamacpu.store.created import ModelCard, card_of, created_models
from pyllamacpu.store.paths import expanded, models_dir
from pyllamacpu.store.quants import is_model, part_names, quant_of
from pyllamacpu.store.starter_model import STARTER

if TYPE_CHECKING:
    from pyllamacpu.store.hub import HubRef
    from pyllamacpu.store.watched import OnDownload

_SUFFIX = ".gguf"
_CUTOFF = 0.6  # likeness from which a name is worth suggesting


@dataclass(frozen=True)
class StoredModel:
    """A model on this machine: the name that `resolve_model` takes, its first file, and its size in all."""

    name: str
    path: Path
    size: int  # bytes of all parts
    modified: float  # seconds since the epoch


def resolve_model(
    name: str | None, refresh: bool = False, *, paths: bool = True, on_download: OnDownload | None = None
) -> Path:
    """The file of the model that `name` means; None is the starter model.

    An existing file wins, then the hub's names, then names in the store, then those of the catalogue, then
    user/repo[:quant] of the hub. `refresh` asks the hub even if the cache would do; without `paths` a name is
    never that of a file; `on_download` is called for downloads from the hub. Raises StoreError that says
    what is near.
    """
    found = _meant(name, paths)
    if isinstance(found, Path):
        return found
    if found is None:
        return starter_path()
    from pyllamacpu.store.hub import fetch

    return fetch(found, refresh, on_download)


def check_name(name: str | None) -> None:
    """Raises StoreError for a name that means nothing; nothing is fetched."""
    _meant(name, paths=True)


def _meant(name: str | None, paths: bool) -> Path | HubRef | None:
    """A file, a model of the hub, or the starter model. Raises StoreError."""
    if name is None:
        return None
    if not name.strip():
        raise StoreError(
            "the model's name is empty: give a path, a name from `pyllamacpu list` or hf.co/user/repo"
        )
    path = expanded(name) if paths else None
    if path is not None and _is_file(path):
        return path
    from pyllamacpu.store.hub import parse_hub_ref
    from pyllamacpu.store.network import without_secrets

    if reference := parse_hub_ref(name):
        return reference
    if found := _in_store(name):
        return found
    if _is_starter_entry(name):
        return None
    if reference := _catalogued(name) or _bare_hub_ref(name, path):
        return reference
    raise StoreError(without_secrets(_unknown(name, path)))


def list_models() -> list[StoredModel]:
    """All models in the store and in the hub's cache, by name."""
    from pyllamacpu.store.hub import cached_models

    stored = [_entry(name, model_files(path)) for name, path in _store_files().items()]
    stored += [_created_entry(name, path) for name, path in created_models().items()]
    cached = [_entry(str(reference), parts) for reference, parts in cached_models()]
    return sorted((entry for entry in stored + cached if entry), key=lambda entry: entry.name.lower())


def model_files(path: Path) -> list[Path]:
    """All files of the model that `path` is a file of."""
    return [path.with_name(part) for part in part_names(path.name)]


def _entry(name: str, parts: Sequence[Path]) -> StoredModel | None:
    """The listing of one model; None when a part is missing or gone meanwhile."""
    try:
        stats = [part.stat() for part in parts]
    except OSError:
        return None
    return StoredModel(
        name, parts[0], sum(stat.st_size for stat in stats), max(stat.st_mtime for stat in stats)
    )


def _created_entry(name: str, path: Path) -> StoredModel | None:
    """As old as its card: the weights may be another model's too."""
    entry, card = _entry(name, model_files(path)), card_of(path)
    return replace(entry, modified=card.created) if entry and card else entry


def _is_file(path: Path) -> bool:
    """True for anything but a directory; False also for a name too long, or with a null byte."""
    try:
        return path.exists() and not path.is_dir()
    except (OSError, ValueError):
        return False


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _directory_hint(path: Path) -> str:
    """Why a directory is not a model, and what it holds."""
    inside = sorted(entry.name for entry in path.glob(f"*{_SUFFIX}"))
    hint = f"give one of its files: {', '.join(inside[:3])}" if inside else "it holds no GGUF file"
    return f"{path} is a directory; {hint}"


def _store_files() -> dict[str, Path]:
    """The first files of all models in the store, by name: the path inside the store without `.gguf`. One
    that ends in other letters (`M.GGUF`) has them in its name where it would be another's without.
    """
    store, found = models_dir(), {}
    paths = sorted(path for path in store.rglob("*") if is_model(path.name) and path.is_file())
    paths = [path for path in paths if not path.name.startswith(".")]
    names = {path: path.relative_to(store).as_posix() for path in paths}
    plain = Counter(name[: -len(_SUFFIX)] for name in names.values())
    for path, name in names.items():
        bare = name[: -len(_SUFFIX)]
        found[bare if plain[bare] == 1 or name.endswith(_SUFFIX) else name] = path
    return found


def is_starter(name: str | None) -> bool:
    """Whether `name` means the starter model; nothing is fetched."""
    if name is None:
        return True
    path = expanded(name)
    if _is_file(path):
        return path.name == STARTER.filename
    return _stored_name(name, _store_index()) == STARTER.filename.removesuffix(_SUFFIX) or _is_starter_entry(
        name
    )


def own_sampling(name: str | None) -> dict[str, Any]:
    """Sampler options that a model brings along, for what nobody chose: the starter model has some, and those
    that were created with some.
    """
    if card := own_card(name):
        return card.sampling
    return dict(STARTER.sampling) if is_starter(name) else {}


def own_card(name: str | None) -> ModelCard | None:
    """What a created model has beside its weights; None for any other, and for a name that is not known.
    Nothing is fetched. Raises StoreError for a name that fits several models.
    """
    if name is None:
        return None
    path = expanded(name)
    if _is_file(path):
        return card_of(path)
    found = created_models()
    stored = _stored_name(name, _store_index()) if found else None
    return card_of(found[stored]) if stored in found else None


def _in_store(name: str) -> Path | None:
    """The stored model of this name; the starter model is fetched when it is damaged or missing."""
    files = _store_index()
    found = _stored_name(name, files)
    if found == STARTER.filename.removesuffix(_SUFFIX):
        return starter_path()
    return files[found] if found else None


def starter_path() -> Path:
    """The starter model's file, fetched first when it is not in the store yet."""
    from pyllamacpu.store import starter  # as few imports as a path needs

    return starter.starter_path()


def _catalogued(name: str) -> HubRef | None:
    """The model on the hub that a known name such as `llama3.2:1b` means."""
    from pyllamacpu.store import catalogue
    from pyllamacpu.store.hub import HubRef

    entry = catalogue.find(name)
    return HubRef(entry.repo, quant=entry.quant) if entry else None


def _is_starter_entry(name: str) -> bool:
    """Whether a known name means the file that the starter model is."""
    from pyllamacpu.store.hub import HubRef

    return _catalogued(name) == HubRef(STARTER.hub_repo, quant=quant_of(STARTER.filename))


def _bare_hub_ref(name: str, path: Path | None) -> HubRef | None:
    """`user/repo[:quant]`, unless it looks like a path: a suffix, or a folder that there is (`path` is None
    where names are no paths).
    """
    rest = name.partition("/")[2]
    looks_like_path = name.lower().endswith(_SUFFIX) or name.startswith((".", "~", "/"))
    if not rest or "/" in rest or looks_like_path:
        return None
    if path is not None and (_is_directory(path.parent) or _is_directory(path)):
        return None
    from pyllamacpu.store.hub import parse_hub_ref

    try:
        return parse_hub_ref(f"hf.co/{name}")
    except StoreError:
        return None


def _store_index() -> dict[str, Path]:
    """All that has a plain name here; a file of the store goes before a created model."""
    return {**created_models(), **_store_files()}


def _stored_name(name: str, files: dict[str, Path]) -> str | None:
    """The stored model that is meant: the whole name in any case, else the only one that begins with it."""
    from pyllamacpu.store import catalogue

    starter = STARTER.filename.removesuffix(_SUFFIX)
    bare = name[: -len(_SUFFIX)] if name.lower().endswith(_SUFFIX) else name
    if (exact := next((known for known in (name, bare) if known in files), None)) is not None:
        return exact
    wanted = bare.lower()
    known = dict.fromkeys([*files, starter])
    whole = [other for other in known if other.lower() == wanted]
    # A few letters are not enough to begin a download: the starter model counts from its family's name on.
    begun = [other for other in known if other.lower().startswith(wanted)]
    if catalogue.is_known(name):  # what begins like a known name is another model, unless it is the starter
        begun = [other for other in begun if other == starter]
    if starter in begun and starter not in files and len(wanted) < len("smollm2"):
        begun.remove(starter)
    fitting = whole or begun
    if len(fitting) > 1:
        raise StoreError(f"{name} fits several models: {', '.join(fitting)}; give more of the name")
    return fitting[0] if fitting else None


def _unknown(name: str, path: Path | None) -> str:
    """One line for a name that means nothing: what is near, and what to do."""
    if path is not None and _is_directory(path):
        return _directory_hint(path)
    if path is not None and os.path.islink(path):
        return f"{name}: a symbolic link to {os.readlink(path)}, which is not there; give another path"
    if name.lower().startswith(("http://", "https://")):
        return f"{name}: only addresses on huggingface.co are fetched; download the file and give its path"
    from pyllamacpu.store import catalogue

    near = (path and _near_files(path)) or [*_near_names(name), *catalogue.near_names(name)]
    is_file = path is not None and (name.lower().endswith(_SUFFIX) or os.sep in name)
    listing = "`pyllamacpu list` and `pyllamacpu list --known`"
    if near:
        hint = f"did you mean {_either(near)}?" + ("" if is_file else f" (see {listing})")
    else:
        hint = "" if is_file else f"see {listing}"
    return "; ".join(filter(None, [f"{name}: {'no such file' if is_file else 'no such model'}", hint]))


def _either(words: Sequence[str]) -> str:
    """ "a, b or c"."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _near_names(name: str) -> list[str]:
    """Names of models that are like `name`, or that begin like it."""
    wanted = name.lower().removesuffix(_SUFFIX)
    known = {model.name for model in list_models()} | {STARTER.filename.removesuffix(_SUFFIX)}
    likeness = {other: _likeness(wanted, other.lower().removesuffix(_SUFFIX)) for other in known}
    near = [other for other in sorted(known) if likeness[other] >= _CUTOFF]
    return sorted(near, key=lambda other: -likeness[other])[:3]


def _likeness(wanted: str, name: str) -> float:
    """From 0 to 1: how near `wanted` is to the whole of `name`, or to as much of its beginning."""
    import difflib

    last = name.rsplit("/", 1)[-1]
    beginnings = (name, last, name[: len(wanted) + 1], last[: len(wanted) + 1])
    return max(difflib.SequenceMatcher(None, wanted, begin).ratio() for begin in beginnings)


def _near_files(path: Path) -> list[str]:
    """Files of like name in the directory that a mistyped path points into."""
    import difflib

    try:
        names = [entry.name for entry in path.parent.iterdir() if is_model(entry.name) and _is_file(entry)]
    except (OSError, ValueError):
        return []
    return [str(path.parent / name) for name in difflib.get_close_matches(path.name, names, 3, _CUTOFF)]
