"""The tiny model of the tests in plain numpy: the inputs of every matrix, and logits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from tiny_model import DIM, HEADS, LAYERS, weights

HEAD = DIM // HEADS
EPS = 1e-5

Array = npt.NDArray[np.float64]


class NumpyTiny:
    """`run(ids)` gives logits (n_tokens, n_vocab) and the input of each weight (n_tokens, cols)."""

    def __init__(self, seed: int = 0) -> None:
        self.w = {k: v.astype(np.float64) for k, v in weights(np.random.default_rng(seed)).items()}

    def run(self, ids: list[int]) -> tuple[Array, dict[str, Array]]:
        inputs: dict[str, Array] = {}

        def linear(name: str, x: Array) -> Array:
            inputs[name] = x
            return x @ self.w[name].T

        x = self.w["token_embd.weight"][ids]
        for i in range(LAYERS):
            at = f"blk.{i}."
            h = norm(x)
            q, k, v = (linear(f"{at}attn_{n}.weight", h) for n in "qkv")
            x = x + linear(f"{at}attn_output.weight", attention(rope(q), rope(k), v))
            h = norm(x)
            gate, up = (linear(f"{at}ffn_{n}.weight", h) for n in ("gate", "up"))
            x = x + linear(f"{at}ffn_down.weight", gate / (1 + np.exp(-gate)) * up)
        return linear("output.weight", norm(x)), inputs


def norm(x: Array) -> Array:
    """The tests' norm weights are 1."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)


def rope(x: Array) -> Array:
    """Rotates adjacent pairs of each head."""
    pairs = x.reshape(len(x), -1, HEAD // 2, 2)
    angle = np.arange(len(x))[:, None, None] * 10000.0 ** (-np.arange(HEAD // 2) * 2 / HEAD)
    a, b = pairs[..., 0], pairs[..., 1]
    turned = [a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)]
    return np.stack(turned, -1).reshape(len(x), -1, HEAD)


def attention(q: Array, k: Array, v: Array) -> Array:
    """q (n, heads, head), k and v with fewer heads: causal."""
    n, share = len(q), HEADS // k.shape[1]
    k, v = k.repeat(share, 1), v.reshape(n, -1, HEAD).repeat(share, 1)
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(HEAD)
    scores[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hts,shd->thd", scores / scores.sum(-1, keepdims=True), v).reshape(n, -1)


def log_softmax(logits: Array) -> Array:
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
