"""Quantized layers for the tests, packed value by value, and the weights they stand for.

Each function takes a matrix (n_out, n_in) float32 and gives the parts of a layer by their last names, the
types that numpy does not tell, and the plain weight.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Layer = tuple[dict[str, Array], dict[str, str], Array]
GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def packed(codes: Array, bits: int, dense: bool = True) -> Array:
    """Rows of small integers in 32-bit words, by Python's own integers."""
    per_word = 32 // bits
    rows = []
    for row in codes.tolist():
        number = 0
        for index, value in enumerate(row):
            at = index * bits if dense else index // per_word * 32 + index % per_word * bits
            number |= value << at
        n_words = -(-len(row) * bits // 32) if dense else -(-len(row) // per_word)
        rows.append(np.frombuffer(number.to_bytes(4 * n_words, "little"), np.int32))
    return np.stack(rows)


def e4m3_values() -> Array:
    """The values of the 256 codes of E4M3, from its definition."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, (codes & 7) / 8
    size = np.where(exponent, (1 + mantissa) * 2.0 ** (exponent - 7), mantissa * 2.0**-6)
    size[codes & 127 == 127] = np.nan
    return np.where(codes & 128, -size, size).astype(np.float32)


def in_groups(weight: Array, bits: int, g_idx: Array) -> tuple[Array, Array, Array, Array]:
    """Codes (n_out, n_in), zero points and scales (n_out, n_groups), and the plain weight."""
    n_groups = int(g_idx.max()) + 1
    low = np.stack([weight[:, g_idx == g].min(1) for g in range(n_groups)], 1)
    high = np.stack([weight[:, g_idx == g].max(1) for g in range(n_groups)], 1)
    scale = ((high - low) / ((1 << bits) - 1)).astype(np.float16)
    zero = np.clip(np.round(-low / scale.astype(np.float32)), 1, (1 << bits) - 1).astype(int)
    codes = np.round(weight / scale.astype(np.float32)[:, g_idx]).astype(int) + zero[:, g_idx]
    codes = np.clip(codes, 0, (1 << bits) - 1)
    plain = (codes - zero[:, g_idx]).astype(np.float32) * scale.astype(np.float32)[:, g_idx]
    return codes, zero, scale, plain


def gptq(weight: Array, bits: int = 4, act_order: bool = False) -> Layer:
    g_idx = (np.arange(weight.shape[1]) // GROUP).astype(np.int32)
    if act_order:
        g_idx = np.random.default_rng(9).permutation(g_idx)
    codes, zero, scale, plain = in_groups(weight, bits, g_idx)
    parts = {
        "qweight": packed(codes, bits).T.copy(),
        "qzeros": packed((zero - 1).T, bits),
        "scales": scale.T.copy(),
        "g_idx": g_idx,
    }
    return parts, {}, plain


def awq(weight: Array) -> Layer:
    codes, zero, scale, plain = in_groups(weight, 4, np.arange(weight.shape[1]) // GROUP)

    def words(values: Array) -> Array:
        ordered = values.reshape(values.shape[0], -1, 8)[:, :, list(AWQ_ORDER)]
        return packed(ordered.reshape(values.shape), 4)

    return {"qweight": words(codes.T), "qzeros": words(zero.T), "scales": scale.T.copy()}, {}, plain


def fp8(weight: Array, block: tuple[int, int] | None = None) -> Layer:
    """Scales per row, or per block."""
    height, width = block or (1, weight.shape[1])
    grid = np.array(
        [
            [np.abs(weight[r : r + height, c : c + width]).max() for c in range(0, weight.shape[1], width)]
            for r in range(0, weight.shape[0], height)
        ]
    )
    scale = (grid / 448).astype(np.float32)
    wide = np.repeat(np.repeat(scale, height, 0), width, 1)[: weight.shape[0], : weight.shape[1]]
    values = e4m3_values()
    order = np.argsort(values[:127])
    codes = order[np.clip(np.searchsorted(values[order], np.abs(weight / wide)), 0, 126)].astype(np.uint8)
    codes |= (weight < 0).astype(np.uint8) << 7
    name = "weight_scale_inv" if block else "weight_scale"
    return {"weight": codes, name: scale}, {"weight": "F8_E4M3"}, values[codes] * wide


def compressed_int4(weight: Array) -> Layer:
    codes, zero, scale, _ = in_groups(weight, 4, np.arange(weight.shape[1]) // GROUP)
    symmetric = np.clip(codes - zero[:, np.arange(weight.shape[1]) // GROUP], -8, 7)
    parts = {
        "weight_packed": packed(symmetric + 8, 4),
        "weight_shape": np.array(weight.shape),
        "weight_scale": scale.astype(np.float32),
    }
    return parts, {}, symmetric.astype(np.float32) * np.repeat(scale.astype(np.float32), GROUP, 1)


def nf4(weight: Array) -> Layer:
    """With values of our own for the codes: they are in the file."""
    levels = (np.linspace(-1, 1, 16) + np.random.default_rng(3).uniform(-0.03, 0.03, 16)).astype(np.float32)
    blocks = weight.reshape(-1, 64)
    largest = np.abs(blocks).max(1).astype(np.float32)
    codes = np.abs(blocks[:, :, None] / largest[:, None, None] - levels).argmin(2).reshape(-1)
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": weight.shape})
    parts = {
        "weight": (codes[::2] << 4 | codes[1::2]).astype(np.uint8)[:, None],
        "weight.absmax": largest,
        "weight.quant_map": levels,
        "weight.quant_state.bitsandbytes__nf4": np.frombuffer(state.encode(), np.uint8),
    }
    return parts, {}, (levels[codes].reshape(-1, 64) * largest[:, None]).reshape(weight.shape)


def int8(weight: Array) -> Layer:
    largest = np.abs(weight).max(1).astype(np.float32)
    codes = np.round(weight * 127 / largest[:, None]).astype(np.int8)
    plain = codes.astype(np.float32) * largest[:, None] * np.float32(1 / 127)
    return {"weight": codes, "SCB": largest, "weight_format": np.array(0, np.uint8)}, {}, plain


_CT = {"quant_method": "compressed-tensors"}
METHODS: dict[str, tuple[dict[str, Any], Callable[[Array], Layer]]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": GROUP}, gptq),
    "gptq_act_order": (
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True},
        lambda weight: gptq(weight, 4, True),
    ),
    "gptq_8bit": ({"quant_method": "gptq", "bits": 8, "group_size": GROUP}, lambda weight: gptq(weight, 8)),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}, awq),
    "fbgemm": ({"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}, fp8),
    "fp8_blocks": (
        {"quant_method": "fp8", "weight_block_size": [32, 16]},
        lambda weight: fp8(weight, (32, 16)),
    ),
    "compressed_fp8": (
        _CT | {"format": "float-quantized", "config_groups": {"g": {"weights": {"num_bits": 8}}}},
        fp8,
    ),
    "compressed_int4": (
        _CT | {"format": "pack-quantized", "config_groups": {"g": {"weights": {"num_bits": 4}}}},
        compressed_int4,
    ),
    "nf4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, nf4),
    "int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, int8),
}


def gptq_symmetric(weight: Array, bits: int = 4, stored_minus: int = 1) -> Layer:
    """The middle code is zero; `stored_minus`: 1 as `gptq` stores it, 0 as `gptq_v2` does."""
    g_idx = (np.arange(weight.shape[1]) // GROUP).astype(np.int32)
    middle, n_groups = 1 << (bits - 1), int(g_idx.max()) + 1
    scale = np.stack([np.abs(weight[:, g_idx == g]).max(1) for g in range(n_groups)], 1) / (middle - 1)
    scale = scale.astype(np.float16)
    codes = np.clip(np.round(weight / scale.astype(np.float32)[:, g_idx]) + middle, 0, 2 * middle - 1).astype(
        int
    )
    zeros = np.full((n_groups, weight.shape[0]), middle - stored_minus)
    parts = {"qweight": packed(codes, bits).T.copy(), "qzeros": packed(zeros, bits), "scales": scale.T.copy()}
    parts["g_idx"] = g_idx
    return parts, {}, (codes - middle).astype(np.float32) * scale.astype(np.float32)[:, g_idx]


def mlx(weight: Array, bits: int = 4) -> Layer:
    """Affine: every group's smallest value is code 0."""
    groups = weight.reshape(weight.shape[0], -1, GROUP)
    low, high = groups.min(2), groups.max(2)
    scale, bias = ((high - low) / ((1 << bits) - 1)).astype(np.float16), low.astype(np.float16)
    wide, base = scale.astype(np.float32)[:, :, None], bias.astype(np.float32)[:, :, None]
    codes = np.clip(np.round((groups - base) / wide), 0, (1 << bits) - 1)
    parts = {
        "weight": packed(codes.reshape(weight.shape).astype(int), bits).view(np.uint32),
        "scales": scale,
        "biases": bias,
    }
    return parts, {}, (codes.astype(np.float32) * wide + base).reshape(weight.shape)


METHODS["mlx"] = ({"group_size": GROUP, "bits": 4}, mlx)
METHODS["mlx_6bit"] = ({"group_size": GROUP, "bits": 6, "mode": "affine"}, lambda weight: mlx(weight, 6))
METHODS["gptq_v2"] = (
    {"quant_method": "gptq", "bits": 8, "group_size": GROUP, "checkpoint_format": "gptq_v2", "sym": True},
    lambda weight: gptq_symmetric(weight, 8, 0),
)
METHODS["gptq_mislabelled"] = (
    {"quant_method": "gptq", "bits": 8, "group_size": GROUP, "checkpoint_format": "gptq", "sym": True},
    lambda weight: gptq_symmetric(weight, 8, 0),
)
METHODS["gptq_v1_called_v2"] = (
    {"quant_method": "gptq", "bits": 8, "group_size": GROUP, "checkpoint_format": "gptq_v2", "sym": True},
    lambda weight: gptq_symmetric(weight, 8, 1),
)
