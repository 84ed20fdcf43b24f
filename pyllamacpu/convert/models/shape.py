"""What a checkpoint's config says about the model, and how a GGUF file says it.

Keys and their types are those that llama.cpp's loader reads (docs/gguf.md of the ggml project); `config.py`
reads config.json and params.json into this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pyllamacpu.convert.models.mllama_vision import VisionShape
from pyllamacpu.convert.models.rope import Rope
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.model.llama4_attention import Llama4Attention

Layout = Literal["hf", "meta"]
NO_OUTPUT = "a LlamaModel has no output matrix: the token embedding stands in for it"


def window_note(window: int) -> str:
    return (
        f"attention within {window} tokens is written as llama.attention.sliding_window; llama.cpp does not "
        "read that key for llama models"
    )


@dataclass(frozen=True)
class ModelShape:
    """Sizes in elements, contexts in tokens. `layout` tells how tensors are named and q/k rows ordered.

    `vocab_size` 0: unknown, the embedding's rows tell it. `sliding_window` 0: none. `moe_step` n: every n-th
    layer has experts, 0: none. `attention`: Llama 4's, None for others. `cross_layers` attend to images,
    which `vision` makes states of (Llama 3.2 Vision); `extra_rows` of the embedding follow the vocabulary.
    """

    arch: Literal["llama", "llama4", "mllama"]
    layout: Layout
    n_layers: int
    dim: int
    n_heads: int
    kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    n_ctx: int
    norm_eps: float
    rope: Rope
    explicit_head_dim: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False
    sliding_window: int = 0
    n_experts: int = 0
    n_experts_used: int = 0
    expert_ffn_dim: int = 0
    moe_step: int = 0
    attention: Llama4Attention | None = None
    cross_layers: tuple[int, ...] = ()
    extra_rows: int = 0
    vision: VisionShape | None = None
    image_token: int = 0  # that images' rows take the place of, where it is not the released one; 0: it is
    notes: tuple[str, ...] = ()

    @property
    def chunked(self) -> bool:
        """Whether a layer attends in chunks."""
        return self.attention is not None and any(self.attention.chunked)

    @property
    def n_embeddings(self) -> int:
        """Rows of the embedding; 0: unknown."""
        return self.vocab_size + self.extra_rows if self.vocab_size else 0

    def has_experts(self, layer: int) -> bool:
        return self.moe_step > 0 and (layer + 1) % self.moe_step == 0

    def keys(self, vocab_size: int) -> list[KeyValue]:
        """The architecture's own metadata; `vocab_size` is the number of rows of the output."""
        whole, real = ValueType.UINT32, ValueType.FLOAT32
        found = [
            KeyValue("block_count", self.n_layers, whole),
            KeyValue("context_length", self.n_ctx, whole),
            KeyValue("embedding_length", self.dim, whole),
            KeyValue("feed_forward_length", self.ffn_dim, whole),
            KeyValue("attention.head_count", self.n_heads, whole),
            KeyValue("attention.head_count_kv", self.kv_heads, whole),
            *self.rope.keys(),
            KeyValue("rope.freq_base", self.rope.theta, real),
            KeyValue("attention.layer_norm_rms_epsilon", self.norm_eps, real),
        ]
        if self.explicit_head_dim or self.head_dim * self.n_heads != self.dim:
            found.append(KeyValue("attention.key_length", self.head_dim, whole))
            found.append(KeyValue("attention.value_length", self.head_dim, whole))
        if self.sliding_window:
            found.append(KeyValue("attention.sliding_window", self.sliding_window, whole))
        found.append(KeyValue("vocab_size", vocab_size, whole))
        found.append(KeyValue("rope.dimension_count", self.head_dim, whole))
        if self.arch == "llama4":
            found += self._llama4_keys()
        elif self.moe_step:
            found += self._expert_keys()
        if self.cross_layers:
            layers = KeyValue("attention.cross_attention_layers", list(self.cross_layers), ValueType.INT32)
            found += [layers, KeyValue("attention.cross_attention_permuted", False)]
            found.append(KeyValue("image_token_id", self.image_token or vocab_size, whole))
        if self.vision is not None:
            found += self.vision.keys(self.dim)
        return [KeyValue(f"{self.arch}.{name}", value, kind) for name, value, kind in found]

    def tower_keys(self) -> list[KeyValue]:
        """Metadata of a file that holds the vision tower alone."""
        found = self.vision.keys(self.dim) if self.vision else []
        return [KeyValue(f"{self.arch}.{name}", value, kind) for name, value, kind in found]

    def _expert_keys(self) -> list[KeyValue]:
        counts = {"expert_count": self.n_experts, "expert_used_count": self.n_experts_used}
        return [KeyValue(name, n, ValueType.UINT32) for name, n in counts.items()]

    def _llama4_keys(self) -> list[KeyValue]:
        whole = ValueType.UINT32
        found = [
            KeyValue("interleave_moe_layer_step", self.moe_step, whole),
            KeyValue("expert_feed_forward_length", self.expert_ffn_dim, whole),
        ]
        if self.image_token:
            found.append(KeyValue("image_token_id", self.image_token, whole))
        if self.moe_step:
            found += self._expert_keys()
        return found + (self.attention.metadata(self.n_experts) if self.attention else [])
