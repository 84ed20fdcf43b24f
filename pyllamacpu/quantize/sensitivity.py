"""What quantizing each tensor costs: its error in every type, and how much the model minds.

The error of a type is measured on a sample of rows: the part of a tensor's weighted energy that is lost,
sum(importance * (w - q)^2) / sum(importance * w^2). How much the model minds is measured by running it with
one group of tensors quantized (`probe`) and everything else as it was: the KL divergence of its predictions,
which for small errors grows in proportion to them. Both together predict the divergence of any choice of
types: errors of different tensors are independent, so their costs add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.engine import Engine
from pyllamacpu.evaluate import Recorded, divergence_from
from pyllamacpu.gguf.reader import GGUFFile, TensorInfo
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.limits import cpus_usable
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.model.weight_override import Blocks
from pyllamacpu.quantize.allocate import Candidate
from pyllamacpu.quantize.recipes import Role, layer_of, role_of
from pyllamacpu.weights.blocks import can_quantize, needs_importance, quantize

T = TensorType
Floats = npt.NDArray[np.float32]

# What may be chosen, small to large. MXFP4 and the ternary types are for models trained for them.
KINDS = (
    *(T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.Q2_K, T.IQ3_XXS, T.IQ3_S, T.Q3_K),
    *(T.IQ4_XS, T.IQ4_NL, T.Q4_0, T.Q4_K, T.Q4_1, T.Q5_0, T.Q5_K, T.Q5_1, T.Q6_K, T.Q8_0, T.F16),
)
SAMPLE = 1 << 18  # elements of a tensor that errors are measured on
_NARROW = 0.7  # types with less than that share of the wanted bits: too far from the probes to trust
_UNTIL_SINGLE = 1 << 26  # weights up to which every tensor is probed by itself
_LAYER_GROUPS = 8  # of larger models
_MEASURABLE = 1e-5  # smaller errors drown in the rounding of activations


@dataclass(frozen=True)
class Errors:
    """Of one tensor: the share of its weighted energy that each type loses."""

    info: TensorInfo
    importance: Floats | None  # (matrices, cols)
    of: Mapping[TensorType, float]


def kinds_for(info: TensorInfo, importance: Floats | None, bits: float) -> list[TensorType]:
    """The types that a tensor can have when about `bits` per weight are wanted."""
    cols = info.shape[-1]
    low_is_safe = importance is not None or role_of(info.name) in (Role.OUTPUT, Role.EMBEDDING)
    found = []
    for kind in KINDS:
        too_low = kind.bits_per_weight < 3.1 and not low_is_safe
        if cols % kind.block_size or not can_quantize(kind) or too_low:
            continue
        if needs_importance(kind) and importance is None:
            continue
        if kind.bits_per_weight >= _NARROW * bits and kind.bits_per_weight < info.type.bits_per_weight:
            found.append(kind)
    return found


def measure_errors(
    file: GGUFFile, info: TensorInfo, importance: Floats | None, kinds: Sequence[TensorType]
) -> Errors:
    """Quantizes a sample of the tensor's rows to every type; 0 for the type that it has."""
    rows, weights = _sample(file, info, importance)
    scale = weights if weights is not None else np.float32(1)
    energy = float((rows.astype(np.float64) ** 2 * scale).sum())

    def error(kind: TensorType) -> float:
        lost = 0.0
        for part, weight in _by_weights(rows, weights):
            decoded = dequantize(quantize(part, kind, weight, threads=1), kind, part.shape)
            square = (decoded.astype(np.float64) - part) ** 2
            lost += float((square if weight is None else square * weight).sum())
        return lost / energy if energy else 0.0

    with ThreadPoolExecutor(cpus_usable()) as pool:
        found = dict(zip(kinds, pool.map(error, kinds), strict=True))
    return Errors(info, importance, {**found, info.type: 0.0})


def _sample(file: GGUFFile, info: TensorInfo, importance: Floats | None) -> tuple[Floats, Floats | None]:
    """Rows spread evenly over the tensor, (n, cols), and the importance of each one's columns, or None."""
    cols, n_rows = info.shape[-1], prod(info.shape[:-1])
    n = min(n_rows, max(16, SAMPLE // cols))
    picked = (np.arange(n) * n_rows // n).astype(np.int64)
    width = info.type.row_bytes(cols)
    data = file.data(info.name).reshape(n_rows, width)[picked]
    file.release(info.name)
    rows = dequantize(np.ascontiguousarray(data).reshape(-1), info.type, (n, cols))
    if importance is None:
        return rows, None
    return rows, importance[picked // (n_rows // len(importance))]


def _by_weights(rows: Floats, weights: Floats | None) -> Iterator[tuple[Floats, Floats | None]]:
    """Neighbouring rows that share their weights: those of one expert."""
    if weights is None:
        yield rows, None
        return
    changes = np.flatnonzero((weights[1:] != weights[:-1]).any(axis=1)) + 1
    edges = [0, *changes.tolist(), len(rows)]
    for start, stop in pairwise(edges):
        yield rows[start:stop], weights[start]


def groups(infos: Sequence[TensorInfo], n_layers: int) -> list[list[TensorInfo]]:
    """Tensors to probe together: each by itself, or, in a large model, those of one role in nearby layers."""
    single = sum(info.n_elements for info in infos) <= _UNTIL_SINGLE
    found: dict[tuple[str, int], list[TensorInfo]] = {}
    for info in infos:
        layer = layer_of(info.name)
        place = layer if single or layer < 0 else layer * _LAYER_GROUPS // max(n_layers, 1)
        found.setdefault((info.name.split(".", 2)[-1] if layer >= 0 else info.name, place), []).append(info)
    return list(found.values())


def probe_kind(errors: Errors, bits: float) -> TensorType | None:
    """The largest type of at most `bits` per weight, where the costs shall be right; else the smallest.

    None when no type loses enough to be measured: they are all as good.
    """
    lossy = [kind for kind, error in errors.of.items() if error > _MEASURABLE]
    kinds = sorted(lossy, key=lambda kind: (kind.bits_per_weight, -errors.of[kind]))
    below = [kind for kind in kinds if kind.bits_per_weight <= bits]
    return below[-1] if below else next(iter(kinds), None)


def measure_cost(
    engine: Engine, base: Recorded, file: GGUFFile, group: Sequence[Errors], bits: float
) -> dict[str, float]:
    """By tensor: the divergence (nats) per unit of error, the same for all tensors of the group."""
    blocks: dict[str, Blocks] = {}
    total = 0.0
    for errors in group:
        kind = probe_kind(errors, bits)
        if kind is not None:
            blocks[errors.info.name] = kind, _quantized(file, errors, kind)
            total += errors.of[kind]
    found = 0.0
    if blocks:
        with engine.replaced(blocks):
            found = max(divergence_from(base, engine).mean_kld.value, 0.0) / total
    return {errors.info.name: found for errors in group}


def _quantized(file: GGUFFile, errors: Errors, kind: TensorType) -> npt.NDArray[np.uint8]:
    """The whole tensor's bytes in a type."""
    info = errors.info
    values = dequantize(file.data(info.name), info.type, info.shape)
    file.release(info.name)
    matrices = values.reshape(-1, *info.shape[-2:])
    importance = errors.importance
    weights = [None] * len(matrices) if importance is None else list(importance)
    parts = [quantize(matrix, kind, weight) for matrix, weight in zip(matrices, weights, strict=True)]
    return np.concatenate(parts).reshape(-1)


def candidates(errors: Errors, cost: float) -> list[Candidate]:
    """What the tensor can become, and at what predicted divergence; staying as it is costs nothing."""
    n_rows, cols = prod(errors.info.shape[:-1]), errors.info.shape[-1]
    return [Candidate(kind, n_rows * kind.row_bytes(cols), cost * error) for kind, error in errors.of.items()]
