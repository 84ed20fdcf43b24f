"""A small Llama with random weights and a byte-fallback vocabulary, written as a GGUF file for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pyllamacpu.gguf import GGUFWriter, ValueType

BOS, EOS, PRE, SUF, MID = 1, 2, 3, 4, 5
SPECIALS = ["<unk>", "<s>", "</s>", "<PRE>", "<SUF>", "<MID>"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]
SPACED = ["", "the", "a", "hello", "hell", "hel", "he", "h", "t", "th"]
WORDS = [*(f"▁{word}" for word in SPACED), "e", "é", "日", "h", "l", "o", "t", "th", "world"]
PIECES = [*SPECIALS, *BYTES, *WORDS]
BYTE_0 = len(SPECIALS)
CHAT = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if tools %}{{ 'tools: ' + tools | tojson + '\n' }}{% endif %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
DIM, HEADS, KV_HEADS, FFN, LAYERS = 48, 3, 1, 64, 2


def byte(value: int) -> int:
    """The token of one raw byte."""
    return BYTE_0 + value


def vocabulary(fill_in: bool = True) -> dict[str, Any]:
    """tokenizer.* metadata."""
    types = [2, *[3] * (len(SPECIALS) - 1), *[6] * 256, *[1] * len(WORDS)]
    keys: dict[str, Any] = {
        "model": "llama",
        "tokens": PIECES if fill_in else [p.replace("<PRE>", "<x>").replace("<SUF>", "<y>") for p in PIECES],
        "token_type": np.array(types, np.int32),
        "scores": np.array([0.0] * (BYTE_0 + 256) + [-float(i) for i in range(len(WORDS))], np.float32),
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def write_model(
    path: Path, *, text: bool = True, seed: int = 0, n_ctx: int = 256, padding: int = 0, **metadata: Any
) -> Path:
    """Writes the model; with `text` it has a tokenizer and a chat template. `metadata` keys use __ for dots.

    A value of None leaves the key out. padding: rows of the embedding and the output without a token, which
    the model prefers to all others.
    """
    keys: dict[str, Any] = {
        "general.name": "tiny",
        "llama.block_count": LAYERS,
        "llama.context_length": n_ctx,
        "llama.embedding_length": DIM,
        "llama.feed_forward_length": FFN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }
    if text:
        keys |= {**vocabulary(), "tokenizer.chat_template": CHAT}
    keys |= {name.replace("__", "."): value for name, value in metadata.items()}
    with GGUFWriter(path, "llama") as writer:
        for key, value in keys.items():
            if value is not None:
                writer.add(key, value, ValueType.FLOAT32 if isinstance(value, float) else None)
        for name, array in weights(np.random.default_rng(seed)).items():
            rows = np.resize(array[:1] * 100 * np.float32([[1], [-1]]), (padding, DIM))  # one of two is > 0
            padded = name in ("token_embd.weight", "output.weight")
            writer.add_array(name, np.concatenate([array, rows]) if padded else array)
    return path


def weights(random: np.random.Generator) -> dict[str, np.ndarray]:
    """Float32 tensors, wide enough that logits differ clearly."""
    kv = DIM // HEADS * KV_HEADS
    shapes = {"attn_q": (DIM, DIM), "attn_k": (kv, DIM), "attn_v": (kv, DIM), "attn_output": (DIM, DIM)}
    shapes |= {"ffn_gate": (FFN, DIM), "ffn_up": (FFN, DIM), "ffn_down": (DIM, FFN)}
    found = {"token_embd.weight": random.normal(0, 1, (len(PIECES), DIM))}
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            found[f"blk.{layer}.{name}.weight"] = random.normal(0, 0.2, shape)
        for name in ("attn_norm", "ffn_norm"):
            found[f"blk.{layer}.{name}.weight"] = np.ones(DIM)
    found["output_norm.weight"] = np.ones(DIM)
    found["output.weight"] = random.normal(0, 0.5, (len(PIECES), DIM))
    return {name: array.astype(np.float32) for name, array in found.items()}
