"""Recording a model's layers as the flat list of ops that C executes.

Model code calls a `Recorder` as if it computed: `x = x + plan.linear(plan.rms_norm(x, w, eps), matrix)`. Each
call notes an op over symbolic tensors; `Recorder.compile` then
  1. folds an addition into the product that made one of its sides (a residual),
  2. gathers neighbouring products of one input (q, k, v; gate, up) into one op: one barrier instead of three,
  3. folds silu(gate) * up into the op that makes both, where their matrices are of one type,
  4. adds the 8-bit copies that quantized matrices read, made by the op that makes the input where it can,
  5. gives tensors numbered buffers, reused as soon as their last reader has run.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import NativeError
from pyllamacpu.model.config import ModelConfig
from pyllamacpu.model.weights import Matrix, Table, Vector
from pyllamacpu.native import ffi, lib

Q8_BLOCK = 32
GROUP = 3  # products in one op
QUANTIZING = (lib.PL_OP_RMS_NORM, lib.PL_OP_SILU_MUL)  # ops that can leave an 8-bit copy of their result


@dataclass(eq=False)
class Tensor:
    """(n_tokens, width) float32, or (n_outputs, width) once rows were selected."""

    recorder: weakref.ref[Recorder]  # a cycle would keep the weights alive until the garbage collector runs
    width: int
    outputs: bool

    def __add__(self, other: Tensor) -> Tensor:
        recorder = self.recorder()
        assert recorder is not None
        return recorder.add(self, other)


@dataclass(eq=False)
class Op:
    kind: int
    dst: list[Tensor | int]  # PL_LOGITS, PL_HIDDEN stand for the batch's own arrays
    src: list[Tensor | None]
    fields: dict[str, Any] = field(default_factory=dict)
    matrices: list[Matrix] = field(default_factory=list)
    vectors: list[Vector | None] = field(default_factory=list)
    table: Table | None = None
    outputs: bool = False
    q8: Tensor | None = None  # the tensor whose 8-bit copy this op makes (or, a product, reads)
    sums: npt.NDArray[np.float64] | None = None  # (width,) where squares are added up

    def copy(self) -> Op:
        """One that passes may change."""
        return replace(
            self,
            dst=list(self.dst),
            src=list(self.src),
            fields=dict(self.fields),
            matrices=list(self.matrices),
            vectors=list(self.vectors),
        )


class Recorder:
    """Notes the ops of one model. `config` gives the heads' shape."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.ops: list[Op] = []

    def embed(self, table: Table) -> Tensor:
        """The tokens' rows of `table`."""
        return self._op(lib.PL_OP_EMBED, [], table.cols, outputs=False, table=table)

    def rope_table(self, frequencies: Vector, magnitude: float) -> Tensor:
        """Cosines and sines of each position times `frequencies` (rope_dim / 2,), times `magnitude`."""
        fields = {"rope_dim": 2 * frequencies.size, "floats": [magnitude, 0.0]}
        return self._op(
            lib.PL_OP_ROPE_TABLE,
            [],
            2 * frequencies.size,
            outputs=False,
            fields=fields,
            vectors=[frequencies],
        )

    def rms_norm(self, x: Tensor, weight: Vector, eps: float) -> Tensor:
        fields = {"floats": [eps, 0.0], "head_dim": weight.size}
        return self._op(lib.PL_OP_RMS_NORM, [x], x.width, fields=fields, vectors=[weight])

    def linear(self, x: Tensor, matrix: Matrix, bias: Vector | None = None) -> Tensor:
        """x (…, cols) times `matrix` (rows, cols) transposed, plus `bias`: (…, rows)."""
        return self._op(lib.PL_OP_MATMUL, [x], matrix.rows, matrices=[matrix], vectors=[bias])

    def rope_store(
        self, q: Tensor, k: Tensor, v: Tensor, rope: Tensor, *, layer: int, neox: bool = False
    ) -> Tensor:
        """Rotates q and k; keeps k and v in the cache. Returns q, rotated in place."""
        fields = self._heads(layer) | {"rope_dim": rope.width, "rope_neox": int(neox)}
        self.ops.append(Op(lib.PL_OP_ROPE_STORE, [q], [q, k, v, rope], fields))
        return q

    def attention(self, q: Tensor, *, layer: int, scale: float, window: int = 0) -> Tensor:
        """softmax(scale * q k^T) v over the positions up to each token's own, `window` of them at most (0:
        all).
        """
        fields = self._heads(layer) | {"floats": [scale, 0.0], "window": window}
        width = self.config.layer_heads(layer) * self.config.value_dim
        return self._op(lib.PL_OP_ATTENTION, [q], width, fields=fields)

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        return self._op(lib.PL_OP_SILU_MUL, [gate, up], gate.width)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self._op(lib.PL_OP_ADD, [a, b], a.width)

    def select(self, x: Tensor) -> Tensor:
        """The rows that the batch wants outputs of."""
        return self._op(lib.PL_OP_SELECT, [x], x.width, selected=True)

    def output_hidden(self, x: Tensor) -> None:
        self.ops.append(Op(lib.PL_OP_SELECT, [lib.PL_HIDDEN], [x], outputs=x.outputs))

    def output_logits(self, x: Tensor, matrix: Matrix) -> None:
        op = Op(lib.PL_OP_MATMUL, [lib.PL_LOGITS], [x], outputs=x.outputs)
        op.matrices, op.vectors = [matrix], [None]
        self.ops.append(op)

    def _heads(self, layer: int) -> dict[str, Any]:
        c = self.config
        return {
            "layer": layer,
            "n_heads": c.layer_heads(layer),
            "kv_heads": c.layer_kv_heads(layer),
            "head_dim": c.head_dim,
            "v_dim": c.value_dim,
        }

    def _op(
        self,
        kind: int,
        src: list[Tensor],
        width: int,
        outputs: bool | None = None,
        selected: bool = False,
        **parts: Any,
    ) -> Tensor:
        rows = src[0].outputs if outputs is None else outputs
        result = Tensor(weakref.ref(self), width, rows or selected)
        self.ops.append(Op(kind, [result], list(src), outputs=rows, **parts))
        return result

    def compile(self, sums: InputSquares | None = None) -> CompiledPlan:
        """The plan. With `sums`, it also adds up the squares of every product's input in them."""
        ops = _gated(_grouped(_with_residuals([op.copy() for op in self.ops])))
        if sums is not None:
            ops = _with_squares(ops, sums)
        return CompiledPlan(_with_buffers(_with_q8(ops)))


# ---- the five passes ----


def _readers(ops: list[Op], tensor: Tensor) -> list[Op]:
    return [op for op in ops if any(t is tensor for t in op.src)]


def _maker(ops: list[Op], tensor: Tensor) -> Op:
    return next(op for op in ops if any(t is tensor for t in op.dst))


def _with_residuals(ops: list[Op]) -> list[Op]:
    """x + linear(h): the product starts from x, and the addition is gone."""
    counts: dict[int, int] = {}
    for op in ops:
        for tensor in op.src:
            counts[id(tensor)] = counts.get(id(tensor), 0) + 1
    result: list[Op] = []
    for op in ops:
        last = result[-1] if result else None
        if op.kind == lib.PL_OP_ADD and last and last.kind == lib.PL_OP_MATMUL and len(last.src) == 1:
            made = last.dst[0]
            others = [t for t in op.src if t is not made]
            if len(others) == 1 and counts.get(id(made)) == 1:
                last.src = [last.src[0], others[0]]
                last.dst = list(op.dst)
                continue
        result.append(op)
    return result


def _grouped(ops: list[Op]) -> list[Op]:
    result: list[Op] = []
    for op in ops:
        last = result[-1] if result else None
        if (
            op.kind == lib.PL_OP_MATMUL
            and last is not None
            and last.kind == lib.PL_OP_MATMUL
            and len(op.src) == len(last.src) == 1
            and op.src[0] is last.src[0]
            and len(last.matrices) < GROUP
            and op.matrices[0].quantized == last.matrices[0].quantized
            and not any(isinstance(d, int) for d in (*op.dst, *last.dst))
        ):
            last.dst += op.dst
            last.matrices += op.matrices
            last.vectors += op.vectors
        else:
            result.append(op)
    return result


def _gated(ops: list[Op]) -> list[Op]:
    """silu(gate) * up, right behind the product that makes both: their rows never go to memory."""
    result: list[Op] = []
    for op in ops:
        last = result[-1] if result else None
        if (
            op.kind == lib.PL_OP_SILU_MUL
            and last is not None
            and last.kind == lib.PL_OP_MATMUL
            and len(last.matrices) == len(last.dst) == 2
            and all(made is read for made, read in zip(last.dst, op.src, strict=True))
            and all(len(_readers(ops, t)) == 1 for t in op.src if t is not None)
            and last.matrices[0].quantized
            and last.matrices[0].type == last.matrices[1].type
        ):
            last.dst = list(op.dst)
            last.fields["gated"] = 1
        else:
            result.append(op)
    return result


InputSquares = dict[str, npt.NDArray[np.float64]]
"""By a weight's name, of each column of its input: the squares added up over all tokens. (cols,)"""


def _with_squares(ops: list[Op], sums: InputSquares) -> list[Op]:
    """Before the first product that reads a tensor, its squares are added up; all products share the
    sums.
    """
    result: list[Op] = []
    of_tensor: dict[int, npt.NDArray[np.float64]] = {}
    for op in ops:
        x = op.src[0] if op.kind == lib.PL_OP_MATMUL else None
        if x is not None:
            if id(x) not in of_tensor:
                of_tensor[id(x)] = np.zeros(x.width, np.float64)
                result.append(
                    Op(
                        lib.PL_OP_SQUARES,
                        [],
                        [x],
                        {"width": x.width},
                        outputs=x.outputs,
                        sums=of_tensor[id(x)],
                    )
                )
            sums.update({matrix.name: of_tensor[id(x)] for matrix in op.matrices})
        result.append(op)
    return result


def _with_q8(ops: list[Op]) -> list[Op]:
    result: list[Op] = []
    for op in ops:
        if op.kind == lib.PL_OP_MATMUL and op.matrices[0].quantized:
            x = op.src[0]
            assert x is not None
            if x.width % Q8_BLOCK:
                raise NativeError(
                    f"{op.matrices[0].name}: quantized rows of {x.width} are no multiple of {Q8_BLOCK}"
                )
            op.q8 = x
            maker = _maker(ops, x)
            if maker.kind in QUANTIZING:
                maker.q8 = x
            elif not any(o.kind == lib.PL_OP_QUANTIZE and o.q8 is x for o in result):
                result.append(Op(lib.PL_OP_QUANTIZE, [], [x], outputs=x.outputs, q8=x))
            if not any(o.kind == lib.PL_OP_GATHER and o.q8 is x for o in result):
                result.append(Op(lib.PL_OP_GATHER, [], [], outputs=x.outputs, q8=x))
        result.append(op)
    return result


@dataclass(frozen=True)
class Buffers:
    ops: list[Op]
    widths: list[int]
    q8_widths: list[int]
    number: dict[int, int]  # id(tensor) -> buffer
    q8_number: dict[int, int]


def _with_buffers(ops: list[Op]) -> Buffers:
    """Numbers for tensors; a number is free again after the last op that uses its tensor."""
    last: dict[tuple[str, int], int] = {}
    for i, op in enumerate(ops):
        for tensor in (*op.src, *op.dst):
            if isinstance(tensor, Tensor):
                last["f", id(tensor)] = i
        if op.q8 is not None:
            last["q", id(op.q8)] = i
    numbers: dict[str, dict[int, int]] = {"f": {}, "q": {}}
    widths: dict[str, list[int]] = {"f": [], "q": []}
    free: dict[str, list[int]] = {"f": [], "q": []}

    def give(kind: str, tensor: Tensor, width: int) -> None:
        if id(tensor) in numbers[kind]:
            return
        for number in free[kind]:
            if widths[kind][number] == width:
                free[kind].remove(number)
                break
        else:
            number = len(widths[kind])
            widths[kind].append(width)
        numbers[kind][id(tensor)] = number

    for i, op in enumerate(ops):
        for made in op.dst:
            if isinstance(made, Tensor):
                give("f", made, made.width)
        if op.q8 is not None:
            give("q", op.q8, op.q8.width)
        ending = [key for key, at in last.items() if at == i]
        for kind, key in ending:
            free[kind].append(numbers[kind][key])
            del last[kind, key]
    return Buffers(ops, widths["f"], widths["q"], numbers["f"], numbers["q"])


class CompiledPlan:
    """The C form of a plan: an array of pl_op, the widths of its buffers, and references to all that it
    points to.
    """

    def __init__(self, buffers: Buffers) -> None:
        self.names = [_op_name(op) for op in buffers.ops]
        self.widths = buffers.widths
        self.q8_widths = buffers.q8_widths
        self.ops = ffi.new("pl_op[]", len(buffers.ops))
        self.keep = buffers.ops  # matrices, vectors and tables must outlive the C plan
        self._arrays = ffi.new("int32_t[]", self.widths), ffi.new("int32_t[]", self.q8_widths or [0])
        for target, op in zip(self.ops, buffers.ops, strict=True):
            _fill(target, op, buffers)

    def __len__(self) -> int:
        return len(self.names)

    def arguments(self) -> tuple[Any, ...]:
        """ops, n_ops, widths, n_buffers, q8_widths, n_q8: as pl_plan_new and pl_plan_measure take them."""
        widths, q8_widths = self._arrays
        return self.ops, len(self), widths, len(self.widths), q8_widths, len(self.q8_widths)


def _fill(target: Any, op: Op, buffers: Buffers) -> None:
    target.kind = op.kind
    target.outputs = int(op.outputs)
    for i in range(3):
        made = op.dst[i] if i < len(op.dst) else lib.PL_NONE
        target.dst[i] = buffers.number[id(made)] if isinstance(made, Tensor) else made
    for i in range(4):
        read = op.src[i] if i < len(op.src) else None
        target.src[i] = lib.PL_NONE if read is None else buffers.number[id(read)]
    target.q8 = lib.PL_NONE if op.q8 is None else buffers.q8_number[id(op.q8)]
    for name, value in op.fields.items():
        setattr(target, name, value)
    for i, matrix in enumerate(op.matrices):
        target.matrix[i] = matrix.handle
    for i, vector in enumerate(op.vectors):
        if vector is not None:
            target.vector[i] = ffi.cast("const float *", vector.values.ctypes.data)
    if op.sums is not None:
        target.sums = ffi.cast("double *", op.sums.ctypes.data)
    if op.table is not None:
        target.table = ffi.cast("const uint8_t *", op.table.data.ctypes.data)
        target.table_type = int(op.table.type)
        target.table_rows = op.table.rows
        target.table_row_bytes = op.table.type.row_bytes(op.table.cols)


_NAMES = {
    lib.PL_OP_EMBED: "embed",
    lib.PL_OP_ROPE_TABLE: "rope_table",
    lib.PL_OP_RMS_NORM: "rms_norm",
    lib.PL_OP_QUANTIZE: "quantize",
    lib.PL_OP_MATMUL: "matmul",
    lib.PL_OP_ROPE_STORE: "rope_store",
    lib.PL_OP_ATTENTION: "attention",
    lib.PL_OP_SILU_MUL: "silu_mul",
    lib.PL_OP_ADD: "add",
    lib.PL_OP_SELECT: "select",
    lib.PL_OP_SQUARES: "squares",
    lib.PL_OP_GATHER: "gather",
}


def _op_name(op: Op) -> str:
    """What a profile calls it: the kind, and for products the tensors without their layer."""
    if not op.matrices:
        return _NAMES[op.kind]
    short = [m.name.removesuffix(".weight").split(".")[-1] for m in op.matrices]
    return f"matmul {'+'.join(short)}"
