"""Models that were made here from others: weights, and a card with what belongs to the name beside them.

Each is a folder `created/<id>/` of the store: the weights (hard links where the disk has them, so that they
cost nothing) and `card.json`. The card has the name, so a model appears, and takes the place of an older one
of its name, by one rename. Of two folders with one name the newer counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pyllamacpu.errors import OutputError, StoreError
from pyllamacpu.files import check_space, lock_file, read_regular, sync_directory
from pyllamacpu.store.model_names import file_stem, is_name, same_name
from pyllamacpu.store.paths import store_home
from pyllamacpu.store.quants import part_names, split_part

_CARD = "card.json"
_ADAPTERS = "adapters"
_MAX_CARD = 16 << 20  # bytes
_MAX_TIME = 253402300799.0  # the last second of the year 9999
_WHOLE = {"num_ctx": 1, "num_predict": -2}  # the least of each
_MODEL = re.compile(r"[0-9a-f]{16}")
_UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.part")
_GONE = re.compile(r"\.[0-9a-f]{16}\.gone")
_SAMPLING = frozenset({
    "temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "repeat_penalty", "repeat_last_n",
    "presence_penalty", "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta",
})  # fmt: skip

OnCopied = Callable[[int, int], None]
"""Called with the bytes copied so far and in all."""


@dataclass(frozen=True)
class ModelCard:
    """What belongs to a name beside its weights.

    `parameters` by Ollama's names: sampling options, stop, num_ctx, num_predict. `messages` stand before
    every conversation. `template`: a Jinja source or the name of a format, instead of the file's own.
    """

    name: str
    parent: str = ""  # the model that it was made from
    system: str = ""
    template: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Mapping[str, Any]] = ()
    license: Sequence[str] = ()
    created: float = 0.0  # seconds since 1970

    @property
    def sampling(self) -> dict[str, Any]:
        return {name: value for name, value in self.parameters.items() if name in _SAMPLING}

    @property
    def stop(self) -> tuple[str, ...]:
        return tuple(self.parameters.get("stop", ()))

    @property
    def max_tokens(self) -> int | None:
        """Of an answer; None: as many as the context holds."""
        limit = self.parameters.get("num_predict")
        return limit if isinstance(limit, int) and limit > 0 else None

    @property
    def n_ctx(self) -> int | None:
        wanted = self.parameters.get("num_ctx")
        return wanted if isinstance(wanted, int) else None


_TYPES: dict[str, type | tuple[type, ...]] = {
    "name": str, "parent": str, "system": str, "template": str, "parameters": dict, "messages": list,
    "license": list, "created": (int, float),
}  # fmt: skip


def created_dir() -> Path:
    """The folder of all of them; it need not exist."""
    return store_home() / "created"


def created_models() -> dict[str, Path]:
    """The first file of the weights of each, by name."""
    newest: dict[str, tuple[float, Path]] = {}
    for folder in _folders(_MODEL):
        with contextlib.suppress(StoreError):
            card, weights = _read(folder / _CARD), _weights(folder)
            if weights is not None and card.created >= newest.get(card.name, (-1.0, weights))[0]:
                newest[card.name] = card.created, weights
    return {name: path for name, (_, path) in sorted(newest.items())}


def card_of(path: Path) -> ModelCard | None:
    """The card of the model whose file this is; None for a file that was not made here. Raises StoreError
    for a card that cannot be read.
    """
    return _read(path.absolute().parent / _CARD) if is_created(path) else None


def is_created(path: Path) -> bool:
    """Whether this is where models made here are; nothing is read."""
    folder = path.absolute().parent
    return _MODEL.fullmatch(folder.name) is not None and folder.parent == created_dir()


def adapters_of(path: Path) -> list[Path]:
    """The LoRA adapters of the model made here whose file this is; none of any other file."""
    return sorted((path.parent / _ADAPTERS).glob("*.gguf")) if card_of(path) is not None else []


def make_model(card: ModelCard, write: Callable[[Path], object], adapters: Sequence[Path] = ()) -> Path:
    """A new model, in the place of one of the same name: `write` makes its weights at the path that it is
    given (or parts numbered after it). Until all is on the disk nothing has changed. Returns the first file.
    """
    name = os.urandom(8).hex()
    folder, final = created_dir() / f".{name}.part", created_dir() / name
    older = [other for other in _folders(_MODEL) if _is_named(other, card.name)]
    newest = max((_read(other / _CARD).created for other in older), default=0.0)
    card = ModelCard(**{**_values(card), "created": max(time.time(), newest + 1e-3)})
    _sweep()
    with _unfinished(folder):
        write(folder / f"{file_stem(card.name)}.gguf")
        for number, adapter in enumerate(adapters):
            (folder / _ADAPTERS).mkdir(exist_ok=True)
            link_files([adapter], folder / _ADAPTERS / f"{number:03d}.gguf")
        with open(folder / _CARD, "w", encoding="utf-8") as out:
            json.dump(_values(card), out, indent=1)
            out.flush()
            os.fsync(out.fileno())
        sync_directory(folder)
        os.replace(folder, final)
    sync_directory(created_dir())
    for other in older:
        _remove(other)
    weights = _weights(final)
    assert weights is not None
    return weights


def link_files(files: Sequence[Path], target: Path, on_copied: OnCopied = lambda done, total: None) -> None:
    """The weights of another model at `target`, under its name: hard links, or copies on another disk."""
    total, done = sum(file.stat().st_size for file in files), 0
    for file, name in zip(files, names_like(files, target.name), strict=True):
        own = target.with_name(name)
        try:
            os.link(file.resolve(), own)
            done += own.stat().st_size
        except OSError:
            check_space(own, file.stat().st_size)
            for n_bytes in _copy(file, own):
                done += n_bytes
                on_copied(done, total)
        on_copied(done, total)


def remove_model(path: Path) -> bool:
    """Removes the model made here whose file this is; False for any other file."""
    if card_of(path) is None:
        return False
    _remove(path.absolute().parent)
    return True


def names_like(files: Sequence[Path], name: str) -> list[str]:
    """Names for the files of a model, split as it is."""
    if len(files) == 1:
        return [name]
    stem = name.removesuffix(".gguf")
    return [f"{stem}-{no:05d}-of-{len(files):05d}.gguf" for no in range(1, len(files) + 1)]


def _copy(source: Path, target: Path) -> Iterator[int]:
    try:
        with open(source, "rb") as file, open(target, "xb") as out:
            while chunk := file.read(1 << 22):
                out.write(chunk)
                yield len(chunk)
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        raise OutputError(target, f"cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def _unfinished(folder: Path) -> Iterator[None]:
    """A folder that is gone at the end unless it got another name, locked meanwhile against `_sweep`."""
    try:
        folder.mkdir(parents=True)
        lock = open(folder / "lock", "wb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise OutputError(folder, f"cannot be written: {error.strerror or error}") from error
    try:
        with lock:
            lock_file(lock)
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    """Removes what killed runs left: unfinished folders that no process has locked, and removed ones."""
    for folder in _folders(_GONE):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in _folders(_UNFINISHED):
        with contextlib.suppress(OSError), open(folder / "lock", "r+b") as lock:
            if lock_file(lock):
                shutil.rmtree(folder, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Out of sight in one step, then away."""
    hidden = folder.with_name(f".{folder.name}.gone")
    try:
        os.replace(folder, hidden)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(folder, f"cannot be removed: {error.strerror or error}") from error
    shutil.rmtree(hidden, ignore_errors=True)


def _folders(named: re.Pattern[str]) -> list[Path]:
    try:
        return sorted(entry for entry in created_dir().iterdir() if named.fullmatch(entry.name))
    except OSError:
        return []


def _is_named(folder: Path, name: str) -> bool:
    try:
        return same_name(_read(folder / _CARD).name) == same_name(name)
    except StoreError:
        return False


def _weights(folder: Path) -> Path | None:
    """The first file of the weights, when all of them are there."""
    files = sorted(path for path in folder.glob("*.gguf") if split_part(path.name).number == 1)
    parts = [path.with_name(name) for path in files for name in part_names(path.name)]
    return files[0] if files and all(part.is_file() for part in parts) else None


def _read(path: Path) -> ModelCard:
    """Raises StoreError."""
    try:
        values = json.loads(read_regular(path, _MAX_CARD))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path}: the card of a model cannot be read: {error}") from error
    if not isinstance(values, dict) or not _is_card(values):
        raise StoreError(f"{path}: this is not the card of a model")
    return ModelCard(**values)


def _is_card(values: dict[str, Any]) -> bool:
    known = values.keys() <= _TYPES.keys() and is_name(str(values.get("name", "")))
    if not known or not all(isinstance(value, _TYPES[key]) for key, value in values.items()):
        return False
    messages, parameters = values.get("messages", []), values.get("parameters", {})
    return (
        _are_texts(values.get("license", []))
        and all(isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages)
        and all(_is_parameter(key, value) for key, value in parameters.items())
        and 0 <= values.get("created", 0) <= _MAX_TIME
    )


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_parameter(name: str, value: object) -> bool:
    """Whether it has the type that it was written with; what a sampler makes of a number is the sampler's."""
    if name == "stop":
        return _are_texts(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    lowest = _WHOLE.get(name)
    return lowest is None or (isinstance(value, int) and value >= lowest)


def _values(card: ModelCard) -> dict[str, Any]:
    assert {entry.name for entry in fields(card)} == _TYPES.keys()
    return asdict(card)
