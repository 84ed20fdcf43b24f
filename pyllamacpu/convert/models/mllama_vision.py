"""The vision tower of Llama 3.2 Vision: its sizes, and how a GGUF file says them (ollama's keys)."""

from __future__ import annotations

from dataclasses import dataclass

from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.model.mllama_vision import TILES


@dataclass(frozen=True)
class VisionShape:
    """Sizes in elements, of images in pixels. `states`: layers whose inputs go to the text model too."""

    n_layers: int
    n_global_layers: int
    dim: int
    n_heads: int
    ffn_dim: int
    image_size: int
    patch_size: int
    norm_eps: float
    states: tuple[int, ...]
    max_tiles: int = TILES
    channels: int = 3

    @property
    def tile_tokens(self) -> int:
        """Patches of a tile and its class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def output_dim(self) -> int:
        return self.dim * (1 + len(self.states))

    def keys(self, projection_dim: int) -> list[KeyValue]:
        """Metadata without the architecture's prefix."""
        whole = {
            "block_count": self.n_layers,
            "global.block_count": self.n_global_layers,
            "embedding_length": self.dim,
            "feed_forward_length": self.ffn_dim,
            "attention.head_count": self.n_heads,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "max_num_tiles": self.max_tiles,
            "num_channels": self.channels,
            "projection_dim": projection_dim,
        }
        found = [KeyValue(f"vision.{name}", value, ValueType.UINT32) for name, value in whole.items()]
        states = KeyValue("vision.intermediate_layers_indices", list(self.states), ValueType.INT32)
        eps = KeyValue("vision.attention.layer_norm_epsilon", self.norm_eps, ValueType.FLOAT32)
        return [*found, states, eps]
