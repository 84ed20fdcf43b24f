"""A model small enough to quantize in every test, whole or in parts, the same bytes on every machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pyllamacpu.gguf import GGUFWriter, TensorType, ValueType
from pyllamacpu.quantize.imatrix import Imatrix, ImatrixEntry, write_imatrix

DIM, FFN, VOCAB, LAYERS = 32, 64, 40, 4
KEYS: dict[str, Any] = {
    "general.name": "small",
    "general.quantization_version": 1,
    "general.file_type": 0,
    "llama.block_count": LAYERS,
    "llama.context_length": 64,
    "llama.embedding_length": DIM,
    "llama.feed_forward_length": FFN,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": VOCAB,
    "tokenizer.ggml.model": "none",
}


def values(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Float32 numbers around 0 that no version of numpy makes otherwise."""
    n = int(np.prod(shape))
    mixed = (np.arange(1, n + 1, dtype=np.uint64) + np.uint64(seed * 7919)) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    return ((mixed >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - 1).reshape(shape)


def shapes(dim: int = DIM, ffn: int = FFN, layers: int = LAYERS) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, dim)}
    for layer in range(layers):
        found |= {
            f"blk.{layer}.attn_norm.weight": (dim,),
            f"blk.{layer}.attn_q.weight": (dim, dim),
            f"blk.{layer}.attn_k.weight": (dim // 2, dim),
            f"blk.{layer}.attn_v.weight": (dim // 2, dim),
            f"blk.{layer}.attn_output.weight": (dim, dim),
            f"blk.{layer}.ffn_norm.weight": (dim,),
            f"blk.{layer}.ffn_gate.weight": (ffn, dim),
            f"blk.{layer}.ffn_up.weight": (ffn, dim),
            f"blk.{layer}.ffn_down.weight": (dim, ffn),
        }
    return found | {"output_norm.weight": (dim,), "output.weight": (VOCAB, dim)}


def arrays(dim: int = DIM, ffn: int = FFN, layers: int = LAYERS) -> dict[str, np.ndarray]:
    found = shapes(dim, ffn, layers)
    return {name: values(shape, i) * 0.25 + ("norm" in name) for i, (name, shape) in enumerate(found.items())}


def write_model(
    path: Path,
    tensors: dict[str, np.ndarray] | None = None,
    n_parts: int = 1,
    kinds: dict[str, TensorType] | None = None,
    **keys: Any,
) -> Path:
    """Writes the model, in several files for `n_parts`; the path of the first. `keys` with __ for dots."""
    tensors = arrays() if tensors is None else tensors
    stem, names = str(path).removesuffix(".gguf"), list(tensors)
    step = -(-len(names) // n_parts)
    for part in range(n_parts):
        target = path if n_parts == 1 else Path(f"{stem}-{part + 1:05}-of-{n_parts:05}.gguf")
        with GGUFWriter(target, "llama" if part == 0 else None) as writer:
            if part == 0:
                _add_keys(writer, KEYS | {key.replace("__", "."): value for key, value in keys.items()})
            if n_parts > 1:
                writer.add("split.no", part, ValueType.UINT16)
                writer.add("split.count", n_parts, ValueType.UINT16)
                writer.add("split.tensors.count", len(names), ValueType.INT32)
            for name in names[part * step : (part + 1) * step]:
                writer.add_array(name, tensors[name], (kinds or {}).get(name))
    return path if n_parts == 1 else Path(f"{stem}-00001-of-{n_parts:05}.gguf")


def _add_keys(writer: GGUFWriter, keys: dict[str, Any]) -> None:
    for key, value in keys.items():
        writer.add(key, value, ValueType.FLOAT32 if isinstance(value, float) else None)


def write_matrix(path: Path, dim: int = DIM, ffn: int = FFN, layers: int = LAYERS) -> Path:
    """Importance for the matrices of the layers."""
    entries = {
        name: ImatrixEntry(np.abs(values((1, shape[-1]), 99 + i)) * 8 + 1, np.array([8], np.int64))
        for i, (name, shape) in enumerate(shapes(dim, ffn, layers).items())
        if name.startswith("blk.") and len(shape) == 2
    }
    write_imatrix(path, Imatrix(entries, ("text.txt", "more.txt"), 3, 16))
    return path
