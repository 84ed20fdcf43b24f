"""The ops that C can run, as its table describes them (csrc/exec/ops.def): names, and the fields of each."""

from __future__ import annotations

from dataclasses import dataclass

from pyllamacpu.native import ffi, lib

READS = (
    lib.PL_FIELD_IN,
    lib.PL_FIELD_INOUT,
    lib.PL_FIELD_ROWS,
    lib.PL_FIELD_Q8_IN,
    lib.PL_FIELD_Q8_INOUT,
    lib.PL_FIELD_INTS_IN,
)
WRITES = (
    lib.PL_FIELD_OUT,
    lib.PL_FIELD_INOUT,
    lib.PL_FIELD_RESULT,
    lib.PL_FIELD_Q8_OUT,
    lib.PL_FIELD_Q8_INOUT,
    lib.PL_FIELD_INTS_OUT,
)
# Int buffers of other rows are both: whoever made them first has written them.
BOTH = (lib.PL_FIELD_INTS,)


@dataclass(frozen=True)
class Field:
    name: str
    type: int  # lib.PL_FIELD_…
    n: int  # elements; more than one: the value is a list, and may be shorter
    optional: bool
    offset: int  # bytes, in the op's record

    @property
    def is_read(self) -> bool:
        return self.type in READS or self.type in BOTH

    @property
    def is_written(self) -> bool:
        return self.type in WRITES or self.type in BOTH


@dataclass(frozen=True)
class OpKind:
    name: str
    number: int
    rows: int  # those of the batch that it works on: lib.PL_ROWS_…
    fields: tuple[Field, ...]

    def field(self, name: str) -> Field | None:
        return next((field for field in self.fields if field.name == name), None)

    @property
    def may_quantize(self) -> bool:
        """Whether it can leave an 8-bit copy of its `out`, in `q8`."""
        field = self.field("q8")
        return field is not None and field.type == lib.PL_FIELD_Q8_OUT and field.optional


def _fields(number: int) -> tuple[Field, ...]:
    count = ffi.new("int *")
    found = lib.pl_op_fields(number, count)
    return tuple(
        Field(ffi.string(f.name).decode(), f.type, f.n, bool(f.optional), f.offset)
        for f in found[0 : count[0]]
    )


def _kinds() -> dict[str, OpKind]:
    kinds: dict[str, OpKind] = {}
    while (name := lib.pl_op_name(len(kinds))) != ffi.NULL:
        number, text = len(kinds), ffi.string(name).decode()
        kinds[text] = OpKind(text, number, lib.pl_op_rows_allowed(number), _fields(number))
    return kinds


KINDS = _kinds()
"""By name."""
