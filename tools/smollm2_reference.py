"""SmolLM2 from its GGUF file as a transformers model in float32, and its tokenizer built by hand.

transformers' own GGUF loader is not used: it loses the digit splitting of this tokenizer, and its way of
undoing the order of q/k rows should not be the only witness.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf_llama import hf_name, read_file, reorder_heads, to_halves
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

CONTROL = 3  # tokenizer.ggml.token_type of special tokens


def build_model(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> LlamaForCausalLM:
    """The dequantized weights in Hugging Face's row order; tied output."""
    meta = {k.removeprefix("llama."): v for k, v in metadata.items() if k.startswith("llama.")}
    heads, kv_heads = meta["attention.head_count"], meta["attention.head_count_kv"]
    config = LlamaConfig(
        vocab_size=len(tensors["token_embd.weight"]),
        hidden_size=meta["embedding_length"],
        intermediate_size=meta["feed_forward_length"],
        num_hidden_layers=meta["block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=meta["context_length"],
        rms_norm_eps=meta["attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": meta["rope.freq_base"]},
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).eval().float()
    state = {
        hf_name(k): torch.from_numpy(v.copy())
        for k, v in reorder_heads(tensors, heads, kv_heads, to_halves).items()
    }
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model


def build_tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    """Byte-level BPE; digits one by one before the GPT-2 pattern (`tokenizer.ggml.pre` = smollm)."""
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer


def load(path: Path) -> tuple[LlamaForCausalLM, Tokenizer, dict[str, Any]]:
    metadata, tensors = read_file(path)
    return build_model(metadata, tensors), build_tokenizer(metadata), metadata


class EightBitInputs:
    """While active, the input of every matrix is rounded to int8 with one scale (max / 127) per 32 values."""

    def __init__(self, model: LlamaForCausalLM, block: int = 32) -> None:
        self.model, self.block = model, block

    def rounded(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        x = inputs[0].unflatten(-1, (-1, self.block))
        scale = (x.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-30)
        return (((x / scale).round() * scale).flatten(-2),)

    def __enter__(self) -> None:
        linears = [m for m in self.model.modules() if isinstance(m, torch.nn.Linear)]
        self.hooks = [m.register_forward_pre_hook(self.rounded) for m in linears]

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
