"""Llama 3.2's vision tower in numpy, row by row and in float64, from a checkpoint's tensors by Hugging Face's
names: for numbers of tiles and tables of which there are no outputs of Meta's code.
"""

from __future__ import annotations

from math import erf
from typing import Any

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
_erf = np.vectorize(erf)


def states(
    tensors: dict[str, npt.NDArray[np.float32]],
    vision: dict[str, Any],
    pixels: npt.NDArray[np.float32],
    ratio: int,
    n_tiles: int,
) -> Doubles:
    """pixels: (max_num_tiles, 3, size, size); ratio: the aspect ratio's number -> (n_tiles * tokens, dim)"""
    t = {name.removeprefix("vision_model."): value.astype(np.float64) for name, value in tensors.items()}
    width, patch, n = vision["hidden_size"], vision["patch_size"], len(pixels)
    grid = vision["image_size"] // patch
    cut = pixels.reshape(n, 3, grid, patch, grid, patch).transpose(0, 2, 4, 1, 3, 5).reshape(n, grid**2, -1)
    x = cut @ t["patch_embedding.weight"].reshape(width, -1).T + _by_tile(t, "pre", ratio, n, width)
    x = np.concatenate([np.broadcast_to(t["class_embedding"], (n, 1, width)), x], axis=1)
    name = "gated_positional_embedding"
    gate, table = np.tanh(t[f"{name}.gate"]), t[f"{name}.tile_embedding.weight"][ratio]
    x = x + (1 - gate) * t[f"{name}.embedding"] + gate * table.reshape(x.shape)
    x = _norm(t, "layernorm_pre.", x, vision)
    tokens = x.shape[1]
    x = np.pad(x, ((0, 0), (0, 8 - tokens % 8), (0, 0)))
    row = np.arange(x.shape[0] * x.shape[1])
    padding = (row // x.shape[1] >= n_tiles) | (row % x.shape[1] >= tokens)
    hidden = padding[:, None] & padding[None, :]
    kept = []
    for i in range(vision["num_hidden_layers"]):
        kept += [x] if i in vision["intermediate_layers_indices"] else []
        x = _layer(t, f"transformer.layers.{i}.", x, hidden, vision, gated=False)
    x = _norm(t, "layernorm_post.", x, vision) + _by_tile(t, "post", ratio, n, width)
    for i in range(vision["num_global_layers"]):
        x = _layer(t, f"global_transformer.layers.{i}.", x, hidden, vision, gated=True)
    joined = np.concatenate([x, np.stack(kept, axis=-1).reshape(*x.shape[:2], -1)], axis=-1)
    rows = joined[:n_tiles, :tokens].reshape(n_tiles * tokens, -1)
    found: Doubles = rows @ t["multi_modal_projector.weight"].T + t["multi_modal_projector.bias"]
    return found


def _by_tile(t: dict[str, Doubles], place: str, ratio: int, n: int, width: int) -> Doubles:
    name = f"{place}_tile_positional_embedding"
    table: Doubles = np.tanh(t[f"{name}.gate"]) * t[f"{name}.embedding.weight"][ratio].reshape(n, 1, width)
    return table


def _norm(t: dict[str, Doubles], name: str, x: Doubles, vision: dict[str, Any]) -> Doubles:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + vision["norm_eps"])
    found: Doubles = scaled * t[f"{name}weight"] + t[f"{name}bias"]
    return found


def _layer(
    t: dict[str, Doubles], name: str, x: Doubles, hidden: Any, vision: dict[str, Any], gated: bool
) -> Doubles:
    gates = [np.tanh(t[f"{name}gate_{part}"]) if gated else 1.0 for part in ("attn", "ffn")]
    rows, heads = x.shape[0] * x.shape[1], vision["attention_heads"]
    h = _norm(t, f"{name}input_layernorm.", x, vision).reshape(rows, -1)
    q, k, v = (h @ t[f"{name}self_attn.{part}_proj.weight"].T for part in "qkv")
    q, k, v = (part.reshape(rows, heads, -1).transpose(1, 0, 2) for part in (q, k, v))
    scores = np.where(hidden, -np.inf, q @ k.transpose(0, 2, 1) / q.shape[-1] ** 0.5)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    a = (weights / weights.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(rows, -1)
    x = x + gates[0] * (a @ t[f"{name}self_attn.o_proj.weight"].T).reshape(x.shape)
    h = _norm(t, f"{name}post_attention_layernorm.", x, vision) @ t[f"{name}mlp.fc1.weight"].T
    h = h + t[f"{name}mlp.fc1.bias"]
    h = h * 0.5 * (1 + _erf(h / 2**0.5))
    found: Doubles = x + gates[1] * (h @ t[f"{name}mlp.fc2.weight"].T + t[f"{name}mlp.fc2.bias"])
    return found
