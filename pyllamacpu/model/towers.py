"""Vision towers: from tiles of pixels to rows that stand in place of tokens' embeddings.

A tower is described as a model is (registry.py), by a module of `pyllamacpu.model` and one line of TOWERS.
The module defines

    read_config(keys) -> config         a frozen dataclass with, at the least, `dim` (of a row that the tower
                                        gives), `image_size` (pixels of a tile's side), `rows_per_tile`
    tensors(config, found) -> iterator of TensorSpec
    PARTS                               by name: the plans that it runs, without KV spaces
    encode(config, weights, run, tiles) -> rows   what `run(part, rows)` computes from an image's tiles
    cut(config, picture) -> Tiles       a picture as its tiles
    IMAGE_TOKENS                        by what they say: tokens' spellings, and ids as released; `image` is
                                        the one that a chat template writes, rows take the places of `patch`
    placeholders(config, ids, tiles)    the token ids that stand for an image in a prompt (ids: by the keys
                                        of IMAGE_TOKENS)
    given_tiles(config, pixels, more)   the tiles of an image that a processor cut, with what else it gave

Files: an mmproj file (architecture `clip`, llama.cpp's names), or the tensors inside ollama's files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import ImageError, ModelError
from pyllamacpu.gguf.metadata import architecture_of, text_of
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.units import exact

if TYPE_CHECKING:
    from pyllamacpu.gguf.reader import GGUFFile, TensorInfo
    from pyllamacpu.graph.recorder import Recorder
    from pyllamacpu.images.picture import Picture
    from pyllamacpu.images.tiles import Tiles
    from pyllamacpu.model.weights import Table, TensorSpec, Weights

Floats = npt.NDArray[np.float32]


class RunPart(Protocol):
    def __call__(self, part: str, rows: Floats, wanted: Sequence[int] | None = None) -> Floats:
        """What a part of the tower makes of rows (n, width) float32: of all, or of those `wanted`."""
        ...


TOWERS = {"llama4": "pyllamacpu.model.vision_llama4", "mllama": "pyllamacpu.model.mllama_vision"}
"""By the kind of projector (clip.projector_type), or the architecture of the file that holds a tower too."""
_MAX = 1 << 24


@dataclass(frozen=True)
class TowerPart:
    """A plan of a tower: what records its ops, and the rows of each run. Those that are not given are rows of
    zeros. Of parts that are not `lasting` only the one used last is kept.
    """

    record: Callable[[Recorder, Any, Weights], None]
    max_rows: Callable[[Any], int]
    lasting: bool = True


class TowerArchitecture(Protocol):
    PARTS: Mapping[str, TowerPart]
    IMAGE_TOKENS: Mapping[str, tuple[str, int]]

    def read_config(self, keys: TowerKeys) -> Any: ...
    def tensors(self, config: Any, found: Mapping[str, TensorInfo]) -> Iterator[TensorSpec]: ...
    def encode(self, config: Any, weights: Weights, run: RunPart, tiles: Tiles) -> Floats: ...
    def cut(self, config: Any, picture: Picture) -> Tiles: ...
    def given_tiles(self, config: Any, pixels: Floats, more: Mapping[str, Any]) -> Tiles: ...
    def placeholders(self, config: Any, ids: Mapping[str, int], tiles: Tiles) -> list[int]: ...


@dataclass(frozen=True)
class TowerKeys:
    """A tower's metadata: keys below `clip.vision.` or `<architecture>.vision.`, ranges checked."""

    where: str
    metadata: Mapping[str, Any]
    prefix: str

    def error(self, key: str, value: object, rule: str) -> ModelError:
        return ModelError(
            f"{self.where}: {self.prefix}{key} is {value!r:.60}: {rule}; the file is damaged or too new"
        )

    def get(self, key: str) -> Any:
        return self.metadata.get(self.prefix + key)

    def _missing(self, key: str, default: Any) -> Any:
        if default is None:
            raise ModelError(f"{self.where}: {self.prefix}{key} is missing; the file is incomplete")
        return default

    def whole(self, key: str, default: int | None = None, low: int = 1, high: int = _MAX) -> int:
        value = self.get(key)
        value = self._missing(key, default) if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, value, f"must be a whole number from {low} to {high}")
        return value

    def real(self, key: str, low: float, high: float, default: float | None = None) -> float:
        value = self.get(key)
        value = self._missing(key, default) if value is None else value
        if isinstance(value, (bool, str)) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.error(key, value, f"must be a number from {exact(low)} to {exact(high)}")
        return float(value)


def tower_kind(metadata: Mapping[str, Any]) -> str | None:
    """The kind of tower that a file holds, by itself or beside a text model; None: it holds none."""
    arch = architecture_of(metadata)
    if arch == "clip":
        kind = text_of(metadata, "clip.vision.projector_type") or text_of(metadata, "clip.projector_type")
        return str(kind or "?")
    return str(arch) if f"{arch}.vision.block_count" in metadata else None


def tower_keys(file: GGUFFile) -> TowerKeys:
    arch = file.metadata.get("general.architecture")
    return TowerKeys(str(file.paths[0]), file.metadata, f"{arch}.vision.")


def tower_architecture(kind: str | None, where: object) -> TowerArchitecture:
    """The module of a kind of tower. Raises ModelError when it cannot be run."""
    if kind not in TOWERS:
        said = "holds no vision tower" if kind is None else f"is a vision tower of the kind {kind!r:.40}"
        raise ModelError(f"{where}: {said}; towers of {', '.join(TOWERS)} models can be run")
    return cast(TowerArchitecture, import_module(TOWERS[kind]))


def no_rows(width: int) -> Table:
    """The embedding of a part whose rows are all given: id 0 is a row of `width` zeros."""
    from pyllamacpu.model.weights import Table

    return Table("zeros", 1, width, TensorType.F32, np.zeros(4 * width, np.uint8))


def given_numbers(more: Mapping[str, Any], key: str) -> list[int]:
    """The whole numbers that a processor gave with an image, as a list, an array or a tensor of any shape.
    Raises ImageError.
    """
    value = more[key]
    try:
        array = value.detach().numpy() if hasattr(value, "detach") else np.asarray(value)
        given = array.reshape(-1).tolist()
        whole = [int(item) for item in given]
    except (TypeError, ValueError, OverflowError):
        given, whole = [value], []
    if whole != given:
        raise ImageError("image", f"{key} is {value!r:.80}: give whole numbers")
    return whole
