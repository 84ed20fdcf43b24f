"""From the ops that model code noted to those that run fastest. In order:

  1. an addition is folded into the product that made one of its sides (a residual),
  2. neighbouring products of one input (q, k, v; gate, up) become one op: one barrier instead of three,
  3. (where there are adapters) products of what they change get their A and B (adapters.py),
  4. silu(gate) * up is folded into the op that makes both, where their matrices are of one type,
  5. (on request) squares of the products' inputs are added up,
  6. 8-bit copies that quantized matrices read are made, by the op that makes the input where it can.

A pass may change the ops that it is given, and returns new ones.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import NativeError
from pyllamacpu.graph.adapters import GraphAdapters, with_adapters
from pyllamacpu.graph.op_kinds import KINDS
from pyllamacpu.graph.ops import Op, Tensor
from pyllamacpu.native import lib

Q8_BLOCK = 32
PRODUCTS = 3  # in one op


@dataclass(frozen=True)
class Squares:
    """Of each column of a weight's input: the squares added up over all tokens, or over those that came to an
    expert. sums: (1, cols), or (n_experts, cols). counts: those tokens (n_experts,), None: all.
    """

    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.float64] | None = None


InputSquares = dict[str, Squares]
"""By a weight's name."""


def optimized(
    ops: list[Op], sums: InputSquares | None = None, adapters: GraphAdapters | None = None
) -> list[Op]:
    """All passes."""
    ops = with_groups(with_residuals(ops))
    if adapters is not None:
        ops = with_adapters(ops, adapters)
    ops = with_gates(ops)
    if sums is not None:
        ops = with_squares(ops, sums)
    return with_q8(ops)


def _is_product(op: Op | None) -> bool:
    return op is not None and op.name == "matmul"


def with_residuals(ops: list[Op]) -> list[Op]:
    """x + linear(h): the product starts from x, and the addition is gone."""
    readers = Counter(id(tensor) for op in ops for tensor in op.reads)
    result: list[Op] = []
    for op in ops:
        last = result[-1] if result else None
        if op.name == "add" and last is not None and _is_product(last) and not last.values.get("residual"):
            made = last.values["out"][0]
            others = [t for t in (op.values["a"], op.values["b"]) if t is not made]
            if len(others) == 1 and readers[id(made)] == 1:
                last.values["residual"] = others[0]
                last.values["out"] = [op.values["out"]]
                continue
        result.append(op)
    return result


def with_groups(ops: list[Op]) -> list[Op]:
    """Products that read the same rows, in one op."""
    result: list[Op] = []
    for op in ops:
        last = result[-1] if result else None
        if last is not None and _is_product(op) and _is_product(last) and _may_join(last, op):
            for name in ("out", "matrix", "bias"):
                last.values[name] += op.values[name]
        else:
            result.append(op)
    return result


def _may_join(last: Op, op: Op) -> bool:
    return (
        op.values["x"] is last.values["x"]
        and op.rows == last.rows
        and len(last.values["matrix"]) < PRODUCTS
        and op.values["matrix"][0].quantized == last.values["matrix"][0].quantized
        and not op.values.get("residual")
        and not last.values.get("residual")
        and not any(isinstance(out, int) for out in (*op.values["out"], *last.values["out"]))
    )


def with_gates(ops: list[Op]) -> list[Op]:
    """silu(gate) * up, right after the product that makes both: their rows never go to memory."""
    readers = Counter(id(tensor) for op in ops for tensor in op.reads)
    result: list[Op] = []
    for op in ops:
        last = result[-1] if result else None
        if op.name == "silu_mul" and last is not None and _is_product(last):
            made, read = last.values["out"], [op.values["gate"], op.values["up"]]
            matrices = last.values["matrix"]
            if (
                len(made) == 2
                and all(a is b for a, b in zip(made, read, strict=True))
                and all(readers[id(tensor)] == 1 for tensor in read)
                and matrices[0].quantized
                and matrices[0].type == matrices[1].type
            ):
                last.values["out"] = [op.values["out"]]
                last.values["gated"] = 1
                continue
        result.append(op)
    return result


def with_squares(ops: list[Op], sums: InputSquares) -> list[Op]:
    """Before the first product that reads a tensor, its squares are added up; all products share the
    sums.
    """
    result: list[Op] = []
    of_tensor: dict[int, Squares] = {}
    for op in ops:
        if _is_product(op) or op.name == "segment_matmul":
            x = op.values["x"]
            if id(x) not in of_tensor:
                of_tensor[id(x)], adding = _squares_of(op)
                result.append(adding)
            matrices = op.values.get("matrix") or op.values["matrices"]
            sums.update({matrix.name: of_tensor[id(x)] for matrix in matrices})
        result.append(op)
    return result


def _squares_of(product: Op) -> tuple[Squares, Op]:
    """Room for the sums of a product's input, and the op that adds them up there."""
    x, matrices = product.values["x"], product.values.get("matrices")
    if matrices is None:
        squares = Squares(np.zeros((1, x.width), np.float64))
        return squares, Op(KINDS["squares"], product.rows, {"x": x, "sums": squares.sums}, product.times)
    n = len(matrices)
    squares = Squares(np.zeros((n, x.width), np.float64), np.zeros(n, np.float64))
    values = {"x": x, "ends": product.values["ends"], "sums": squares.sums, "counts": squares.counts}
    return squares, Op(KINDS["segment_squares"], product.rows, values, product.times)


def _matrix_of(op: Op) -> object:
    """A matrix of the op, if it is a product; all of one are quantized, or none is."""
    if op.kind.field("x") is None:  # a request for matrices
        return None
    return next(iter(op.values.get("matrix") or op.values.get("matrices") or []), None)


def with_q8(ops: list[Op]) -> list[Op]:
    """Quantized products read 8-bit copies; those of several rows at once, gathered residual blocks too."""
    result: list[Op] = []
    copies: dict[int, Tensor] = {}
    gathered: dict[int, tuple[int, int]] = {}  # by input: the rows whose residual blocks lie ready
    for op in ops:
        matrix = _matrix_of(op)
        if getattr(matrix, "quantized", False):
            x = op.values["x"]
            if x.width % Q8_BLOCK:
                name = getattr(matrix, "name", "")
                raise NativeError(f"{name}: quantized rows of {x.width} are not a multiple of {Q8_BLOCK}")
            if id(x) not in copies:
                copies[id(x)] = x.like(lib.PL_BUFFER_Q8)
                result += _copying(result, x, copies[id(x)])
            if _is_product(op) and gathered.get(id(x)) != (op.rows, op.times):
                gathered[id(x)] = (op.rows, op.times)
                result.append(Op(KINDS["gather_residual"], op.rows, {"q8": copies[id(x)]}, op.times))
            op.values["q8"] = copies[id(x)]
        result.append(op)
    return result


def _copying(done: list[Op], x: Tensor, q8: Tensor) -> list[Op]:
    """The op that is needed so that q8 is a copy of x: none, where x's maker can leave one."""
    maker = next(op for op in reversed(done) if any(made is x for made in op.writes))
    if maker.kind.may_quantize and maker.values.get("out") is x:
        maker.values["q8"] = q8
        return []
    return [Op(KINDS["quantize"], x.rows, {"x": x, "q8": q8}, x.times)]
