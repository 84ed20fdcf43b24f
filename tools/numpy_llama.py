"""A second oracle: a dense Llama in numpy, straight from a GGUF file, with rope on adjacent pairs.

    python tools/numpy_llama.py MODEL.gguf 1 5 9 12

It shares no code with transformers, so agreement of the two proves that the names, the order of q/k rows and
the rope keys in a fixture mean what llama.cpp's files mean. It can also round the input of each matrix to
8-bit blocks, which shows what a runner with integer dot products may lose.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from gguf_llama import read_file


def round_to_8bit(x: np.ndarray, block: int) -> np.ndarray:
    """x with every `block` neighbours of its last axis as int8 times a scale of max/127."""
    parts = x.reshape(*x.shape[:-1], -1, block)
    scale = np.abs(parts).max(-1, keepdims=True) / 127
    whole = np.rint(parts / np.where(scale == 0, 1, scale))
    return (whole * scale).reshape(x.shape)


class NumpyLlama:
    """`logits(ids) -> (n_tokens, n_vocab)`, float64 inside unless `dtype` says otherwise.

    With `block` set, the inputs of all matrices are rounded to 8 bits per block of that many values.
    """

    def __init__(self, path: Path, dtype: type = np.float64, block: int = 0) -> None:
        metadata, tensors = read_file(path)
        self.meta = {k.removeprefix("llama."): v for k, v in metadata.items() if k.startswith("llama.")}
        self.tensors: dict[str, np.ndarray] = {name: t.astype(dtype) for name, t in tensors.items()}
        self.block = block
        self.n_heads = int(self.meta["attention.head_count"])
        self.n_kv = int(self.meta.get("attention.head_count_kv", self.n_heads))
        dim = int(self.meta["embedding_length"])
        self.head_dim = int(self.meta.get("attention.key_length", dim // self.n_heads))

    def inv_freq(self) -> tuple[np.ndarray, float]:
        """Radians per position of each pair (head_dim / 2), and the factor on cos and sin."""
        n, base = self.head_dim, float(self.meta.get("rope.freq_base", 10000.0))
        freq = base ** (-np.arange(0, n, 2) / n)
        freq = freq / self.tensors.get("rope_freqs.weight", 1.0)
        kind = self.meta.get("rope.scaling.type", "linear")
        factor = float(self.meta.get("rope.scaling.factor", self.meta.get("rope.scale_linear", 1.0)))
        if kind == "linear":
            return freq / factor, 1.0
        if kind == "none":
            return freq, 1.0
        if kind != "yarn":
            raise ValueError(f"rope scaling type {kind!r} is not known here")
        return self.yarn(freq, base, factor)

    def yarn(self, freq: np.ndarray, base: float, factor: float) -> tuple[np.ndarray, float]:
        """YaRN (Peng et al. 2023): slow pairs are interpolated, fast ones kept, a ramp between them."""
        original = int(self.meta["rope.scaling.original_context_length"])

        def pair_with(turns: float) -> float:
            return self.head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

        fast = float(self.meta.get("rope.scaling.yarn_beta_fast", 32.0))
        slow = float(self.meta.get("rope.scaling.yarn_beta_slow", 1.0))
        low, high = max(math.floor(pair_with(fast)), 0), min(math.ceil(pair_with(slow)), self.head_dim - 1)
        ramp = np.clip((np.arange(freq.size) - low) / max(high - low, 0.001), 0, 1)
        scale = self.meta.get("rope.scaling.yarn_attn_factor", 0.1 * math.log(factor) + 1.0)
        return freq / factor * ramp + freq * (1 - ramp), float(scale)

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        y = (round_to_8bit(x, self.block) if self.block else x) @ self.tensors[f"{name}.weight"].T
        return y + self.tensors[f"{name}.bias"] if f"{name}.bias" in self.tensors else y

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        eps = float(self.meta["attention.layer_norm_rms_epsilon"])
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * self.tensors[f"{name}.weight"]

    def heads(self, x: np.ndarray, n_heads: int, rope: bool = True) -> np.ndarray:
        """(n_tokens, n_heads * head_dim) -> (n_heads, n_tokens, head_dim), turned by position if `rope`."""
        x = x.reshape(len(x), n_heads, self.head_dim).transpose(1, 0, 2)
        if not rope:
            return x
        freq, scale = self.inv_freq()
        angle = np.arange(x.shape[1])[:, None] * freq
        cos, sin = (np.cos(angle) * scale).astype(x.dtype), (np.sin(angle) * scale).astype(x.dtype)
        even, odd = x[..., 0::2], x[..., 1::2]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)

    def attention(self, x: np.ndarray, blk: str) -> np.ndarray:
        q = self.heads(self.linear(x, f"{blk}.attn_q"), self.n_heads)
        k = self.heads(self.linear(x, f"{blk}.attn_k"), self.n_kv)
        v = self.heads(self.linear(x, f"{blk}.attn_v"), self.n_kv, rope=False)
        k, v = (np.repeat(t, self.n_heads // self.n_kv, axis=0) for t in (k, v))
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(self.head_dim)
        scores[:, ~np.tri(len(x), dtype=bool)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = weights / weights.sum(-1, keepdims=True) @ v
        return self.linear(mixed.transpose(1, 0, 2).reshape(len(x), -1), f"{blk}.attn_output")

    def mlp(self, x: np.ndarray, blk: str) -> np.ndarray:
        gate = self.linear(x, f"{blk}.ffn_gate")
        return self.linear(gate / (1 + np.exp(-gate)) * self.linear(x, f"{blk}.ffn_up"), f"{blk}.ffn_down")

    def logits(self, ids: np.ndarray) -> np.ndarray:
        x = self.tensors["token_embd.weight"][ids]
        for layer in range(int(self.meta["block_count"])):
            blk = f"blk.{layer}"
            x = x + self.attention(self.norm(x, f"{blk}.attn_norm"), blk)
            x = x + self.mlp(self.norm(x, f"{blk}.ffn_norm"), blk)
        head = "output" if "output.weight" in self.tensors else "token_embd"
        return self.linear(self.norm(x, "output_norm"), head)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("ids", type=int, nargs="+")
    args = parser.parse_args()
    print(NumpyLlama(args.model).logits(np.array(args.ids)))


if __name__ == "__main__":
    main()
