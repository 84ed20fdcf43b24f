"""Which of Llama 4's layers attend in chunks, which have rope, and how their queries are scaled.

Loaders have Scout's and Maverick's values built in: chunks of 8192 tokens in three of four layers, the fourth
without rope and with all positions, temperature by position, normalized q and k but for 128 experts. Models
that differ state it in keys, below `llama4.`:

  attention.chunk_size              tokens; 0: no chunks (a name of ollama's)
  attention.sliding_window_pattern  n: every n-th layer sees all positions; or a bool per layer: chunked
                                    (llama.cpp's name)
  rope.pattern                      n: every n-th layer has no rope, 0: all have; or a bool per layer (ours)
  attention.temperature_length      tokens; 0: no temperature (llama.cpp's name; its llama4 does not read it)
  attention.temperature_scale       likewise
  use_qk_norm                       bool (ollama's name)
  attention.sliding_window          0: neither chunks nor layers without rope (llama.cpp's)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.gguf.values import ValueType

CHUNK, INTERVAL, TEMPERATURE_LENGTH, TEMPERATURE_SCALE = 8192, 4, 8192, 0.1
_QK_NORM_EXCEPTION = 128  # experts: Maverick, without q/k norm
_MAX_TOKENS = (1 << 31) - 1
MAX_TEMPERATURE_SCALE = 1e3


class Keys(Protocol):
    """Reads metadata of the architecture; errors name the key."""

    def get(self, key: str) -> Any: ...
    def whole(self, key: str, low: int, high: int, default: int | None = None) -> int: ...
    def real(self, key: str, low: float, high: float, default: float | None = None) -> float: ...
    def error(self, key: str, value: object, rule: str) -> Exception: ...


@dataclass(frozen=True)
class Llama4Attention:
    """`chunked` and `roped` have a value for each layer; `chunk_size` 0: every layer sees all positions.
    `temperature_length` 0: queries of layers without rope are not scaled by their position.
    """

    chunked: tuple[bool, ...]
    roped: tuple[bool, ...]
    chunk_size: int = CHUNK
    temperature_length: int = TEMPERATURE_LENGTH
    temperature_scale: float = TEMPERATURE_SCALE
    qk_norm: bool = True

    @property
    def plain(self) -> bool:
        """Neither chunks nor layers without rope: what `attention.sliding_window` 0 says."""
        return all(self.roped) and not (any(self.chunked) and self.chunk_size)

    def metadata(self, n_experts: int) -> list[KeyValue]:
        """The keys of what differs from what loaders have built in, without the architecture's name."""
        whole = ValueType.UINT32
        found = [KeyValue("attention.sliding_window", 0, whole)] if self.plain else []
        if not self.plain:
            if self.chunk_size != CHUNK:
                found.append(KeyValue("attention.chunk_size", self.chunk_size, whole))
            if self.chunk_size:
                found += _pattern("attention.sliding_window_pattern", self.chunked)
            found += _pattern("rope.pattern", self.roped)
        if not all(self.roped):
            if self.temperature_length != TEMPERATURE_LENGTH:
                found.append(KeyValue("attention.temperature_length", self.temperature_length, whole))
            if self.temperature_length and self.temperature_scale != TEMPERATURE_SCALE:
                scale = KeyValue("attention.temperature_scale", self.temperature_scale, ValueType.FLOAT32)
                found.append(scale)
        if self.qk_norm != usual_qk_norm(n_experts):
            found.append(KeyValue("use_qk_norm", self.qk_norm, ValueType.BOOL))
        return found


def usual_qk_norm(n_experts: int) -> bool:
    return n_experts != _QK_NORM_EXCEPTION


def every(interval: int, n_layers: int) -> tuple[bool, ...]:
    """False for every `interval`-th layer; 0: for none."""
    return tuple(not interval or (layer + 1) % interval != 0 for layer in range(n_layers))


def _pattern(name: str, layers: tuple[bool, ...]) -> list[KeyValue]:
    """As a number where it is periodic, none where it is the usual one."""
    n_layers = len(layers)
    if layers == every(INTERVAL, n_layers):
        return []
    for interval in (0, *range(1, n_layers + 1)) if name.startswith("rope.") else range(1, n_layers + 1):
        if layers == every(interval, n_layers):
            return [KeyValue(name, interval, ValueType.UINT32)]
    return [KeyValue(name, list(layers), ValueType.BOOL)]


def read_llama4_attention(keys: Keys, n_layers: int, n_experts: int) -> Llama4Attention:
    """Of a GGUF file. Raises what `keys.error` makes for values that make no sense."""
    plain = keys.get("attention.sliding_window") == 0
    roped = _layers(keys, "rope.pattern", n_layers, 0 if plain else INTERVAL)
    chunk = keys.whole("attention.chunk_size", 0, _MAX_TOKENS, 0 if plain else CHUNK)
    chunked = _layers(keys, "attention.sliding_window_pattern", n_layers, INTERVAL)
    norm = keys.get("use_qk_norm")
    if norm is not None and not isinstance(norm, (bool, np.bool_)):
        raise keys.error("use_qk_norm", norm, "must be true or false")
    return Llama4Attention(
        chunked=chunked if chunk else (False,) * n_layers,
        roped=roped,
        chunk_size=chunk,
        temperature_length=keys.whole("attention.temperature_length", 0, _MAX_TOKENS, TEMPERATURE_LENGTH),
        temperature_scale=keys.real(
            "attention.temperature_scale", 0.0, MAX_TEMPERATURE_SCALE, TEMPERATURE_SCALE
        ),
        qk_norm=usual_qk_norm(n_experts) if norm is None else bool(norm),
    )


def _layers(keys: Keys, key: str, n_layers: int, usual: int) -> tuple[bool, ...]:
    """A bool per layer from an interval or an array."""
    value = keys.get(key)
    if isinstance(value, (np.ndarray, list, tuple)):
        items: Sequence[Any] = value.tolist() if isinstance(value, np.ndarray) else value
        if len(items) < n_layers or any(item not in (0, 1) for item in items):
            raise keys.error(key, value, f"must have true or false for each of {n_layers} layers")
        return tuple(bool(item) for item in items[:n_layers])
    return every(keys.whole(key, 0, 1 << 16, usual), n_layers)
