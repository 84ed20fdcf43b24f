"""What a dense Llama looks like in a GGUF file: names, the order of q/k rows, encodings. For fixture makers.

Written against the `gguf` package and llama.cpp's documented conventions, and deliberately not against
pyllamacpu: whatever these tools produce is what pyllamacpu is judged by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as QType

TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
BACK_NAMES = {ours: theirs for theirs, ours in LAYER_NAMES.items()}


def gguf_name(hf_name: str) -> str:
    """`model.layers.3.self_attn.q_proj.bias` -> `blk.3.attn_q.bias`."""
    if hf_name in TOP_NAMES:
        return TOP_NAMES[hf_name]
    _, _, layer, rest = hf_name.split(".", 3)
    stem, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{LAYER_NAMES[stem]}.{kind}"


def hf_name(name: str) -> str:
    """The inverse of `gguf_name`."""
    for theirs, ours in TOP_NAMES.items():
        if ours == name:
            return theirs
    _, layer, stem, kind = name.split(".")
    return f"model.layers.{layer}.{BACK_NAMES[stem]}.{kind}"


def to_pairs(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Reorder q or k rows so that rope turns neighbours (2i, 2i+1) instead of halves (i, i + head_dim / 2).

    rows: (n_heads * head_dim, ...) in Hugging Face's order; the same shape comes back.
    """
    half = rows.shape[0] // n_heads // 2
    order = np.arange(rows.shape[0]).reshape(n_heads, 2, half).transpose(0, 2, 1).ravel()
    return rows[order]


def to_halves(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """The inverse of `to_pairs`."""
    half = rows.shape[0] // n_heads // 2
    order = np.arange(rows.shape[0]).reshape(n_heads, half, 2).transpose(0, 2, 1).ravel()
    return rows[order]


def reorder_heads(
    tensors: dict[str, np.ndarray], n_heads: int, n_kv: int, order: Callable[[np.ndarray, int], np.ndarray]
) -> dict[str, np.ndarray]:
    """Apply `order` to the rows of all q and k weights and biases of a dict with GGUF names."""
    heads = {"attn_q": n_heads, "attn_k": n_kv}
    return {
        name: order(rows, heads[name.split(".")[-2]]) if name.split(".")[-2] in heads else rows
        for name, rows in tensors.items()
    }


def llama3_divisors(inv_freq: np.ndarray, scaling: dict[str, float]) -> np.ndarray:
    """`rope_freqs.weight` of Llama 3.1's rope scaling, (head_dim / 2): what each frequency is divided by.

    Long wavelengths are slowed by `factor`, short ones kept, and between them the speed is interpolated.
    """
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    turns = scaling["original_max_position_embeddings"] * np.asarray(inv_freq, np.float64) / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - kept) / factor + kept)).astype(np.float32)


def decode(data: np.ndarray, qtype: QType) -> np.ndarray:
    """Float32 values of encoded rows, by the `gguf` package."""
    return np.asarray(gguf.quants.dequantize(data, qtype), np.float32)


def write_file(
    path: Path,
    metadata: dict[str, Any],
    tensors: Iterable[tuple[str, np.ndarray, QType]],
    made_by: str,
) -> None:
    """Write a GGUF of architecture `llama` without a tokenizer; ints become uint32, floats float32.

    The data of a tensor is already encoded: float32, float16, or bytes (rows, bytes per row).
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.description", made_by)
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_float32(key, value)
    for name, data, qtype in tensors:
        writer.add_tensor(name, data, raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and all tensors as float32 in the file's own row order."""
    reader = gguf.GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {
        t.name: decode(t.data, t.tensor_type).reshape([int(n) for n in reversed(t.shape)])
        for t in reader.tensors
    }
    return metadata, tensors
