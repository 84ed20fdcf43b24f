"""What a model's weights are going to take in memory, where its experts may stay in the file."""

from __future__ import annotations

import os

from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.model.config import ModelConfig
from pyllamacpu.model.registry import expert_tensors

_ROOM = 0.9  # of memory for weights, when memory for experts is proposed
_PACKED = 1.1  # bytes of a packed matrix at most, by those in the file
_READERS = 32 << 20  # bytes, of the buffers of those that read experts


def weight_file_bytes(file: GGUFFile, config: ModelConfig, expert_memory: int | None) -> int:
    """What the weights take in memory, about: of experts that stay in the file, the memory for some."""
    total = sum(info.n_bytes for info in file.tensors.values())
    if expert_memory is None:
        return total
    experts = sum(info.n_bytes for info in expert_tensors(file, config))
    return total - experts + min(experts, expert_memory)


def weight_bytes(path: str | os.PathLike[str], expert_memory: int | None) -> int:
    """`weight_file_bytes` of the model at `path`. Raises GGUFError, ModelError."""
    with GGUFFile.open(path) as file:
        return weight_file_bytes(file, ModelConfig.from_metadata(file.metadata, file.tensors), expert_memory)


def has_experts(path: str | os.PathLike[str]) -> bool:
    """Whether the model at `path` has some. Raises GGUFError, ModelError."""
    with GGUFFile.open(path) as file:
        return bool(expert_tensors(file, ModelConfig.from_metadata(file.metadata, file.tensors)))


def experts_in_file(file: GGUFFile, config: ModelConfig, memory: int) -> str:
    """With how much memory for its experts the model would fit; "" when with none, or it has no experts."""
    experts = expert_tensors(file, config)
    room = int(_ROOM * memory) - weight_file_bytes(file, config, 0)
    largest = max((info.n_bytes for info in experts), default=0) // max(1, config.n_experts)
    at_once = 3 * config.n_experts_used * largest
    if not experts or room < _PACKED * at_once + _READERS:
        return ""
    size = f"{room / 1e9:.1f}GB" if room >= 1e9 else f"{room // 10**6}MB"
    return f"with its experts in the file it would fit: --expert-memory {size} (expert_memory=… in Python)"
