"""Symbolic tensors, and the ops over them that a recorder notes."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pyllamacpu.graph.op_kinds import Field, OpKind
from pyllamacpu.native import lib


class Adder(Protocol):
    """What a tensor asks of the recorder (recorder.py) that made it."""

    def add(self, a: Tensor, b: Tensor) -> Tensor: ...


@dataclass(eq=False)
class Tensor:
    """Rows of `width` elements: one for each token of the batch, or for each output, `times` over."""

    recorder: weakref.ref[Adder]  # a cycle would keep the weights alive until the garbage collector runs
    width: int
    rows: int = lib.PL_ROWS_TOKENS
    times: int = 1
    kind: int = lib.PL_BUFFER_FLOATS

    def __add__(self, other: Tensor) -> Tensor:
        recorder = self.recorder()
        assert recorder is not None
        return recorder.add(self, other)

    def like(self, kind: int) -> Tensor:
        """One of the same shape, in a buffer of another kind."""
        return Tensor(self.recorder, self.width, self.rows, self.times, kind)


@dataclass(eq=False)
class Op:
    """values: by the field's name, a Tensor (or PL_LOGITS, PL_HIDDEN: the batch's own arrays), weights, or a
    number; a list where the field is an array.
    """

    kind: OpKind
    rows: int  # lib.PL_ROWS_…
    values: dict[str, Any] = field(default_factory=dict)
    times: int = 1

    @property
    def name(self) -> str:
        return self.kind.name

    def copy(self) -> Op:
        """One that passes may change."""
        values = {name: list(v) if isinstance(v, list) else v for name, v in self.values.items()}
        return replace(self, values=values)

    def each(self, field: Field) -> list[Any]:
        """The field's elements that are given."""
        value = self.values.get(field.name)
        whole = field.type == lib.PL_FIELD_MATRICES  # one element, which is a list
        items = value if isinstance(value, list) and not whole else [value]
        return [item for item in items if item is not None]

    def _tensors(self, fields: Iterator[Field]) -> list[Tensor]:
        return [item for field in fields for item in self.each(field) if isinstance(item, Tensor)]

    @property
    def reads(self) -> list[Tensor]:
        return self._tensors(field for field in self.kind.fields if field.is_read)

    @property
    def writes(self) -> list[Tensor]:
        return self._tensors(field for field in self.kind.fields if field.is_written)

    @property
    def label(self) -> str:
        """What a profile calls it: the kind, and for products the tensors without their layer."""
        matrices = self.values.get("matrix") or (self.values.get("matrices") or [])[:1]
        short = [matrix.name.removesuffix(".weight").split(".")[-1] for matrix in matrices if matrix]
        return f"{self.name} {'+'.join(short)}" if short else self.name
