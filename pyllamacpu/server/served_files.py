"""Which files are served: each by a name, with its adapters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyllamacpu.engine.weight_bytes import weight_bytes
from pyllamacpu.errors import OptionError
from pyllamacpu.store.created import ModelCard, adapters_of, card_of, is_created
from pyllamacpu.store.model_names import same_name
from pyllamacpu.store.resolve import model_files, resolve_model


@dataclass(frozen=True)
class ServedAdapter:
    """A LoRA adapter beside a model. `applied`: to requests that do not say which adapters they want."""

    name: str
    path: Path
    scale: float = 1.0
    applied: bool = True


@dataclass(frozen=True)
class ServedFile:
    """A model that can be asked for by its name, and the `adapters` that are loaded with it. The name of an
    adapter stands for its `base` with this one alone, which is number `adapter` there. given: the store's or
    hub's name of it, or "".
    """

    name: str
    path: Path
    given: str = ""
    adapters: tuple[ServedAdapter, ...] = ()
    base: ServedFile | None = None
    adapter: int = 0

    @property
    def with_adapters(self) -> list[ServedFile]:
        """The model, and one for each of its adapters."""
        own = [ServedFile(a.name, self.path, base=self, adapter=i) for i, a in enumerate(self.adapters)]
        return [self, *own]

    def weight_bytes(self, expert_memory: int | None = None) -> int:
        """Of the model and its adapters; of experts that stay in the file, the memory for some. Raises
        GGUFError, ModelError.
        """
        adapters = bytes_of(adapter.path for adapter in self.adapters)
        if expert_memory is None:
            return bytes_of(model_files(self.path)) + adapters
        return weight_bytes(self.path, expert_memory) + adapters

    @property
    def card(self) -> ModelCard | None:
        """What belongs to the name of a model that was created here. Raises StoreError."""
        return card_of(self.path)

    def is_called(self, name: str) -> bool:
        """By its name or its file's, unless the file has its name from a model that was created."""
        names = [self.name] if is_created(self.path) else [self.name, self.path.name]
        return same_name(name) in map(same_name, names)

    @property
    def modified(self) -> float:
        """Seconds since 1970."""
        try:
            card = self.card  # the weights may be another model's too
            return self.path.stat().st_mtime if card is None else card.created
        except OSError:
            return 0.0


def bytes_of(paths: Iterable[Path]) -> int:
    """Of all these files; 0 when one is gone."""
    try:
        return sum(path.stat().st_size for path in paths)
    except OSError:
        return 0


def served_file(text: str | None) -> ServedFile:
    """`NAME=MODEL`, or a model that is called by its own name; None: the starter model. Raises StoreError."""
    name, equals, model = (text or "").partition("=")
    if text is not None and (not equals or Path(text).exists()):
        name, model = "", text
    path = resolve_model(None if text is None else model)
    given = "" if Path(model).expanduser().exists() else model
    name = name or given or path.stem
    return ServedFile(name, path, given, own_adapters(name, path))


def check_names(models: Sequence[ServedFile]) -> None:
    """Raises OptionError where a name stands for two models or adapters: one could not be asked for."""
    names = [same_name(file.name) for model in models for file in model.with_adapters]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise OptionError(f"two models or adapters are called {twice}: give one another name, as NAME=FILE")


def own_adapters(name: str, path: Path) -> tuple[ServedAdapter, ...]:
    """Those that a model was created with, which are always applied."""
    return tuple(ServedAdapter(f"{name}-adapter-{i}", file) for i, file in enumerate(adapters_of(path)))
