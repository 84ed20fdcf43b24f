"""Error and speed of quantizing to every type, beside another library that has ggml_quantize_chunk.

    python benchmarks/quantize.py --peer .../libggml-base.so
    python benchmarks/quantize.py --peer .../libggml-base.so --model model-f16.gguf --tensor output.weight

One thread each. Errors are ours divided by the peer's: of the weighted squares that the type's search makes
small, and of the squares weighted by the importance alone (or not at all); below 1 is better than the peer.
Speed: medians of the CPU time of runs in turn.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyllamacpu.bench.formats import markdown_table
from pyllamacpu.errors import PyllamacpuError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.types import TensorType, parse_type
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.quantize.costs import cost_weights
from pyllamacpu.weights.blocks import can_quantize, needs_importance, quantize

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


class Peer:
    """ggml_quantize_chunk of a shared library."""

    def __init__(self, path: Path) -> None:
        self._call = ctypes.CDLL(str(path)).ggml_quantize_chunk
        self._call.restype = ctypes.c_size_t
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._call.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]

    def quantize(self, array: Floats, kind: TensorType, importance: Floats | None) -> Bytes:
        out = np.zeros((len(array), kind.row_bytes(array.shape[1])), np.uint8)
        weights = None if importance is None else importance.ctypes.data
        self._call(kind, array.ctypes.data, out.ctypes.data, 0, *array.shape, weights)
        return out


@dataclass(frozen=True)
class Row:
    """One type: weighted and plain error (ours / the peer's), ns per element of both."""

    kind: TensorType
    importance: bool
    weighted: float
    plain: float
    ours_ns: float
    peer_ns: float

    def cells(self) -> list[str]:
        return [
            self.kind.name + (" + importance" if self.importance else ""),
            f"{self.weighted:.4f}",
            f"{self.plain:.4f}",
            f"{self.ours_ns:.2f}",
            f"{self.peer_ns:.2f}",
            f"{self.peer_ns / self.ours_ns:.1f}",
        ]


def squared_error(array: Floats, packed: Bytes, kind: TensorType, weights: npt.NDArray[np.float64]) -> float:
    """sum(weights * (array - dequantized)^2)"""
    found = dequantize(packed, kind, array.shape).astype(np.float64)
    return float((weights * (array - found) ** 2).sum())


def ratio(ours: float, peers: float) -> float:
    return ours / peers if peers else (1.0 if ours == 0 else np.inf)


def median_times(runs: int, *functions: Callable[[], object]) -> list[float]:
    """CPU seconds of each on this thread, run in turn."""
    taken: list[list[float]] = [[] for _ in functions]
    for _ in range(runs):
        for times, function in zip(taken, functions, strict=True):
            start = time.thread_time()
            function()
            times.append(time.thread_time() - start)
    return [statistics.median(times) for times in taken]


def measure(array: Floats, kind: TensorType, importance: Floats | None, peer: Peer, runs: int) -> Row:
    ours, theirs = quantize(array, kind, importance, threads=1), peer.quantize(array, kind, importance)
    plain = np.ones(array.shape) if importance is None else np.broadcast_to(importance, array.shape)
    errors = [
        ratio(squared_error(array, ours, kind, weights), squared_error(array, theirs, kind, weights))
        for weights in (cost_weights(array, kind, importance), plain)
    ]
    times = median_times(
        runs,
        lambda: quantize(array, kind, importance, threads=1),
        lambda: peer.quantize(array, kind, importance),
    )
    return Row(kind, importance is not None, *errors, *(1e9 * t / array.size for t in times))


def random_matrix(rows: int, cols: int) -> Floats:
    """Heavy tails, columns of unequal size: (rows, cols)."""
    rng = np.random.default_rng(1)
    x = rng.standard_t(5, (rows, cols)) * np.exp(0.3 * rng.standard_normal(cols))
    return (0.02 * x).astype(np.float32)


def model_matrix(path: Path, name: str, rows: int) -> Floats:
    """The first rows of a tensor, at most 2-D."""
    with GGUFFile.open(path) as file:
        info = file.tensors[name]
        cols = info.shape[-1]
        rows = min(rows, info.n_elements // cols)
        return dequantize(file.data(name)[: rows * info.type.row_bytes(cols)], info.type, (rows, cols))


def wanted(names: str) -> Iterator[TensorType]:
    for kind in map(parse_type, names.split(",")) if names else TensorType:
        if can_quantize(kind) and kind is not TensorType.F32:
            yield kind


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, required=True, help="shared library with ggml_quantize_chunk")
    parser.add_argument(
        "--model", type=Path, help="GGUF file to take a tensor from (default: random weights)"
    )
    parser.add_argument("--tensor", default="blk.0.ffn_down.weight")
    parser.add_argument("--types", default="", help="comma separated (default: all)")
    parser.add_argument("--shape", default="64x2048", help="rows x columns of the random matrix")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    rows, cols = map(int, args.shape.split("x"))
    array = model_matrix(args.model, args.tensor, rows) if args.model else random_matrix(rows, cols)
    importance = np.random.default_rng(2).lognormal(size=array.shape[1]).astype(np.float32)
    peer = Peer(args.peer)
    table = []
    for kind in wanted(args.types):
        if array.shape[1] % kind.block_size:
            continue
        if not needs_importance(kind):
            table.append(measure(array, kind, None, peer, args.runs).cells())
        table.append(measure(array, kind, importance, peer, args.runs).cells())
    print(markdown_table(["type", "weighted error", "plain error", "ns", "peer's ns", "speed"], table))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PyllamacpuError as error:
        sys.exit(f"error: {error}")
