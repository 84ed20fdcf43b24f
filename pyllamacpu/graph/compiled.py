"""The C form of a plan: ops as records, tensors as numbered buffers; and its text."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyllamacpu.errors import NativeError
from pyllamacpu.graph.op_kinds import Field
from pyllamacpu.graph.ops import Op, Tensor
from pyllamacpu.model.weights import Matrix, Table, Vector
from pyllamacpu.native import ffi, lib

TEXT_WIDTH = 80


@dataclass(frozen=True)
class Buffers:
    """shapes: (kind, width, times) of each buffer. number: by id(tensor)."""

    shapes: list[tuple[int, int, int]]
    number: dict[int, int]


def place(ops: list[Op]) -> Buffers:
    """Numbers for tensors; a number is free again after the last op that uses its tensor."""
    last: dict[int, int] = {}
    for i, op in enumerate(ops):
        last.update({id(tensor): i for tensor in (*op.reads, *op.writes)})
    ending: dict[int, list[int]] = {}
    for tensor_id, i in last.items():
        ending.setdefault(i, []).append(tensor_id)
    buffers = Buffers([], {})
    free: list[int] = []
    for i, op in enumerate(ops):
        for tensor in op.writes:
            if id(tensor) not in buffers.number:
                buffers.number[id(tensor)] = _number_for(tensor, buffers, free)
        if any(id(tensor) not in buffers.number for tensor in op.reads):
            raise NativeError(f"op {i} ({op.label}) reads what no op before it has written")
        free += [buffers.number[tensor_id] for tensor_id in ending.get(i, [])]
    return buffers


def _number_for(tensor: Tensor, buffers: Buffers, free: list[int]) -> int:
    shape = (tensor.kind, tensor.width, tensor.times)
    for number in free:
        if buffers.shapes[number] == shape:
            free.remove(number)
            return number
    buffers.shapes.append(shape)
    return len(buffers.shapes) - 1


class CompiledPlan:
    """The records of a plan's ops, its buffers, and references to all that the records point to."""

    def __init__(self, ops: list[Op]) -> None:
        self.ops = ops
        self.names = [op.label for op in ops]
        self.buffers = place(ops)
        self._size = int(lib.pl_op_bytes())
        self._records = ffi.new("char[]", max(1, len(ops)) * self._size)
        self._shapes = ffi.new("pl_buffer[]", [list(shape) for shape in self.buffers.shapes] or 1)
        self._lists: list[Any] = []  # arrays that records point to
        for i, op in enumerate(ops):
            self._fill(self._records + i * self._size, op)

    def __len__(self) -> int:
        return len(self.names)

    def arguments(self) -> tuple[Any, ...]:
        """ops, n_ops, buffers, n_buffers: as pl_plan_new and pl_plan_measure take them."""
        records = ffi.cast("pl_op *", self._records)
        return records, len(self), self._shapes, len(self.buffers.shapes)

    def record(self, i: int) -> Any:
        """The bytes of op i, writable."""
        return ffi.buffer(self._records + i * self._size, self._size)

    def release(self) -> None:
        """Lets go of the weights; the plan can be neither run nor shown after it."""
        self.ops = []
        self._lists = []

    @property
    def logits_matrix(self) -> Matrix | None:
        """The matrix that gives the logits."""
        for op in self.ops:
            if op.name == "matmul" and op.values["out"][0] == lib.PL_LOGITS:
                matrix: Matrix = op.values["matrix"][0]
                return matrix
        return None

    def _fill(self, at: Any, op: Op) -> None:
        head = ffi.cast("pl_op_head *", at)
        head.kind, head.rows, head.times = op.kind.number, op.rows, op.times
        for field in op.kind.fields:
            value = op.values.get(field.name)
            items = value if isinstance(value, list) and field.type != lib.PL_FIELD_MATRICES else [value]
            for i in range(field.n):
                _WRITERS.get(field.type, _write_buffer)(
                    self, at + field.offset, i, items[i] if i < len(items) else None
                )

    def __str__(self) -> str:
        lines = [_shape_line(i, shape) for i, shape in enumerate(self.buffers.shapes)]
        lines += [line for i, op in enumerate(self.ops) for line in _op_lines(i, op, self.buffers)]
        return "\n".join(lines)


# ---- records ----


def _write_buffer(plan: CompiledPlan, at: Any, i: int, value: Any) -> None:
    number = plan.buffers.number[id(value)] if isinstance(value, Tensor) else value
    ffi.cast("int32_t *", at)[i] = lib.PL_NONE if number is None else number


def _write_int(plan: CompiledPlan, at: Any, i: int, value: Any) -> None:
    ffi.cast("int32_t *", at)[i] = value or 0


def _write_float(plan: CompiledPlan, at: Any, i: int, value: Any) -> None:
    ffi.cast("float *", at)[i] = value or 0.0


def _write_matrix(plan: CompiledPlan, at: Any, i: int, value: Matrix | None) -> None:
    ffi.cast("const pl_matrix **", at)[i] = ffi.NULL if value is None else value.handle


def _write_matrices(plan: CompiledPlan, at: Any, i: int, value: list[Matrix | None] | None) -> None:
    if value is not None:
        handles = ffi.new(
            "const pl_matrix *[]", [ffi.NULL if matrix is None else matrix.handle for matrix in value]
        )
        plan._lists.append(handles)
        target = ffi.cast("pl_matrices *", at)
        target.items, target.n = handles, len(value)


def _write_vector(plan: CompiledPlan, at: Any, i: int, value: Vector | None) -> None:
    if value is not None:
        target = ffi.cast("pl_vector *", at)[i]
        target.values, target.n = ffi.cast("const float *", value.values.ctypes.data), value.size


def _write_table(plan: CompiledPlan, at: Any, i: int, value: Table | None) -> None:
    if value is not None:
        target = ffi.cast("pl_table *", at)
        target.data = ffi.cast("const uint8_t *", value.data.ctypes.data)
        target.rows, target.row_bytes = value.rows, value.type.row_bytes(value.cols)
        target.type = int(value.type)


def _write_sums(plan: CompiledPlan, at: Any, i: int, value: Any) -> None:
    if value is not None:
        target = ffi.cast("pl_sums *", at)
        target.values, target.n = ffi.cast("double *", value.ctypes.data), value.size


_WRITERS: dict[int, Callable[[CompiledPlan, Any, int, Any], None]] = {
    lib.PL_FIELD_INT: _write_int,
    lib.PL_FIELD_FLOAT: _write_float,
    lib.PL_FIELD_MATRIX: _write_matrix,
    lib.PL_FIELD_MATRICES: _write_matrices,
    lib.PL_FIELD_VECTOR: _write_vector,
    lib.PL_FIELD_TABLE: _write_table,
    lib.PL_FIELD_SUMS: _write_sums,
}

# ---- text ----

_BUFFER_LETTERS = {lib.PL_BUFFER_FLOATS: "f", lib.PL_BUFFER_Q8: "q", lib.PL_BUFFER_INTS: "i"}
_BUFFER_NAMES = {
    lib.PL_BUFFER_FLOATS: "float32",
    lib.PL_BUFFER_Q8: "8-bit blocks",
    lib.PL_BUFFER_INTS: "int32",
}
_ROWS = {lib.PL_ROWS_TOKENS: "tokens", lib.PL_ROWS_OUTPUTS: "outputs", lib.PL_ROWS_LOGITS: "logits"}
_RESULTS = {lib.PL_LOGITS: "logits", lib.PL_HIDDEN: "hidden"}


def _shape_line(number: int, shape: tuple[int, int, int]) -> str:
    kind, width, times = shape
    rows = "rows" if times == 1 else f"{times} rows"
    return f"{_BUFFER_LETTERS[kind]}{number:<4} {rows} of {width} {_BUFFER_NAMES[kind]}"


def _op_lines(number: int, op: Op, buffers: Buffers) -> list[str]:
    """`number name rows: read → written; weights and numbers`, wrapped."""

    def named(tensor: Tensor | int) -> str:
        if isinstance(tensor, int):
            return _RESULTS[tensor]
        return f"{_BUFFER_LETTERS[tensor.kind]}{buffers.number[id(tensor)]}"

    read = [named(item) for f in op.kind.fields if f.is_read for item in op.each(f)]
    written = [named(item) for f in op.kind.fields if f.is_written for item in op.each(f)]
    details = [text for f in op.kind.fields for text in _details(f, op)]
    rows = _ROWS[op.rows] + (f" x {op.times}" if op.times > 1 else "")
    flow = " ".join(part for part in (", ".join(read), "→" if written else "", ", ".join(written)) if part)
    text = f"{flow}; {', '.join(details)}" if details else flow
    head = f"{number:<5} {op.name:<17} {rows:<8} "
    return textwrap.wrap(
        text, TEXT_WIDTH, initial_indent=head, subsequent_indent=" " * 8, break_on_hyphens=False
    ) or [head.rstrip()]


def _details(field: Field, op: Op) -> list[str]:
    if field.is_read or field.is_written:
        return []
    texts = []
    for item in op.each(field):
        if isinstance(item, (Matrix, Table)):
            texts.append(f"{item.name} {item.rows}x{item.cols} {item.type.name}")
        elif isinstance(item, list):
            first = next(matrix for matrix in item if matrix is not None)  # an adapter may lack the others
            texts.append(f"{len(item)} x {first.name} {first.rows}x{first.cols} {first.type.name}")
        elif isinstance(item, Vector):
            texts.append(f"{item.name} {item.size}")
        elif isinstance(item, float):
            texts.append(f"{field.name} {item:.6g}")
        elif isinstance(item, int) and (item or field.name in ("layer", "space")):
            texts.append(f"{field.name} {item}")
    return texts
