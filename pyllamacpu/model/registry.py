"""Architectures: which module describes which kind of model, and a model as the engine holds it.

An architecture is a module of `pyllamacpu.model` and one line of architectures.py. The module defines

    unsupported(config) -> str                      why this config cannot be run, or ""
    kv_spaces(config) -> tuple of KVSpace           what its layers keep of the tokens read
    tensors(config, found) -> iterator of TensorSpec   all its tensors
    record(plan, config, weights)                   its layers, as ops of a plan

and, where layers attend to images (a KV space of the kind "image"),

    record_without_images(plan, config, weights)    the other layers
    record_image(plan, config, weights)             keys and values of an image's states

It is imported when a model of its kind is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from pyllamacpu.errors import ModelError
from pyllamacpu.model.architectures import MODULES

if TYPE_CHECKING:
    from pyllamacpu.gguf.reader import GGUFFile, TensorInfo
    from pyllamacpu.graph.recorder import Recorder
    from pyllamacpu.model.config import ModelConfig
    from pyllamacpu.model.expert_memory import ExpertMemory
    from pyllamacpu.model.kv_space import KVSpace
    from pyllamacpu.model.pack_cache import PackCache
    from pyllamacpu.model.weights import TensorSpec, Weights


class Architecture(Protocol):
    def unsupported(self, config: ModelConfig) -> str: ...
    def kv_spaces(self, config: ModelConfig) -> tuple[KVSpace, ...]: ...
    def tensors(self, config: ModelConfig, found: Mapping[str, TensorInfo]) -> Iterator[TensorSpec]: ...
    def record(self, plan: Recorder, config: ModelConfig, weights: Weights) -> None: ...


def architecture(config: ModelConfig, where: object) -> Architecture:
    """The module of a model of this config. Raises ModelError, which names the file `where`, if the model
    cannot be run.
    """
    if config.arch not in MODULES:
        raise ModelError(f"{where}: {config.arch} models cannot be run yet; {', '.join(MODULES)} models can")
    found = cast(Architecture, import_module(MODULES[config.arch]))
    if reason := found.unsupported(config):
        raise ModelError(f"{where}: {reason}")
    return found


@dataclass(frozen=True, eq=False)
class Model:
    """An architecture with its config and weights."""

    architecture: Architecture
    config: ModelConfig
    weights: Weights

    @property
    def kv_spaces(self) -> tuple[KVSpace, ...]:
        return self.architecture.kv_spaces(self.config)

    def record(self, plan: Recorder) -> None:
        """Notes its layers in `plan`."""
        self.architecture.record(plan, self.config, self.weights)

    @property
    def record_without_images(self) -> Callable[[Recorder], None] | None:
        """Notes the layers that do not attend to images; None for models that never do."""
        return self._recording("record_without_images")

    @property
    def record_image(self) -> Callable[[Recorder], None] | None:
        """Notes what keeps an image's states; None for models that never attend to them."""
        return self._recording("record_image")

    def _recording(self, name: str) -> Callable[[Recorder], None] | None:
        found = getattr(self.architecture, name, None)
        return None if found is None else lambda plan: found(plan, self.config, self.weights)


def load(
    file: GGUFFile,
    config: ModelConfig,
    pool: Any,
    on_bytes: Callable[[int, int], None] | None = None,
    expert_memory: ExpertMemory | None = None,
    pack_cache: PackCache | None = None,
) -> Model:
    """Reads and packs every tensor of `file`; without a `pool` they are only described (weights.py). With an
    `expert_memory` experts stay in the file; with a `pack_cache` packed ones are kept in its folder.

    Raises ModelError for a kind of model that cannot be run, and for tensors that are missing, misshapen,
    left over or of a type that cannot be run.
    """
    from pyllamacpu.model.weights import load_weights

    kind = architecture(config, file.paths[0])
    specs = kind.tensors(config, file.tensors)
    return Model(kind, config, load_weights(file, specs, pool, on_bytes, expert_memory, pack_cache))


def expert_tensors(file: GGUFFile, config: ModelConfig) -> list[TensorInfo]:
    """Those with a matrix for each expert, which may stay in the file."""
    specs = architecture(config, file.paths[0]).tensors(config, file.tensors)
    names = [spec.tensor or spec.name for spec in specs if spec.kind == "experts"]
    return [file.tensors[name] for name in names if name in file.tensors]
