"""Layers that are left out of a quantized file: `--prune-layers`.

Layers behind one that is gone move up, and what the metadata says of single layers moves with them: values of
which there is one for each layer, the numbers of layers that attend to images (mllama), and what Llama 4's
layers are by their number (chunks, rope, experts).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

import numpy as np

from pyllamacpu.errors import OptionError, PyllamacpuError
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.model.config import ModelConfig
from pyllamacpu.model.llama4_attention import INTERVAL, every
from pyllamacpu.quantize.recipes import layer_of


def kept_names(names: Iterable[str], n_layers: int, prune: Collection[int]) -> dict[str, str]:
    """New names of the tensors that stay, each with its old name. Raises OptionError for layers that there
    are not, or when none would stay.
    """
    wrong = [layer for layer in prune if not 0 <= layer < n_layers]
    if wrong or (prune and len(prune) >= n_layers):
        raise OptionError(f"--prune-layers: the model has layers 0 to {n_layers - 1}, and one must stay")
    found = {}
    for name in names:
        layer = layer_of(name)
        if layer not in prune:
            moved = _moved(layer, prune)
            found[re.sub(r"^blk\.\d+\.", f"blk.{moved}.", name) if moved != layer else name] = name
    return found


def pruned_keys(file: GGUFFile, arch: str, n_layers: int, prune: Collection[int]) -> list[KeyValue]:
    """The number of layers, and what is said of single ones. Raises OptionError where the layers that stay
    cannot be described.
    """
    n_left = n_layers - len(prune)
    found = {f"{arch}.block_count": KeyValue(f"{arch}.block_count", n_left, ValueType.UINT32)}
    for key in file.metadata:
        value = file.metadata[key] if key.startswith(f"{arch}.") else None
        if isinstance(value, np.ndarray) and len(value) == n_layers:
            found[key] = KeyValue(key, np.array(_kept(value.tolist(), prune), value.dtype))
    try:
        config = ModelConfig.from_metadata(file.metadata, file.tensors)
    except PyllamacpuError:  # which knows no more about it
        return list(found.values())
    for item in _of_config(config, file, prune):
        found[item.name] = item
    return list(found.values())


def _of_config(config: ModelConfig, file: GGUFFile, prune: Collection[int]) -> Iterator[KeyValue]:
    """What the kinds of layers follow from, where they are no values for each."""
    if config.mllama is not None:
        cross = [_moved(layer, prune) for layer in config.mllama.cross if layer not in prune]
        if not cross:
            raise OptionError("--prune-layers: one of the layers that attend to images must stay")
        yield KeyValue(f"{config.arch}.attention.cross_attention_layers", np.array(cross, np.int32))
    attention = config.llama4
    if attention is None:
        return
    n_left = config.n_layers - len(prune)
    patterns = {"rope.pattern": attention.roped}
    if attention.chunk_size:
        patterns["attention.sliding_window_pattern"] = attention.chunked
    for name, pattern in () if attention.plain else patterns.items():
        key, kept = f"{config.arch}.{name}", _kept(pattern, prune)
        if key in file.metadata or tuple(kept) != every(INTERVAL, n_left):
            yield KeyValue(key, kept, ValueType.BOOL)
    if config.n_experts and config.moe_layer_step:
        yield _expert_step(config, prune, n_left)


def _expert_step(config: ModelConfig, prune: Collection[int], n_left: int) -> KeyValue:
    step = config.moe_layer_step
    dense = tuple(_kept(every(step, config.n_layers), prune))
    fitting = next((n for n in range(1, n_left + 2) if every(n, n_left) == dense), None)
    if fitting is None:
        raise OptionError(
            f"--prune-layers: layers with experts stand {step} apart, and those that stay would not be even"
        )
    return KeyValue(f"{config.arch}.interleave_moe_layer_step", fitting, ValueType.UINT32)


def _kept(values: Collection[bool], prune: Collection[int]) -> list[bool]:
    return [value for layer, value in enumerate(values) if layer not in prune]


def _moved(layer: int, prune: Collection[int]) -> int:
    return layer - sum(gone < layer for gone in prune)
