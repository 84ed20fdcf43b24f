"""Recording a model's layers as the flat list of ops that C executes.

Model code calls a `Recorder` as if it computed: `x = x + plan.linear(plan.rms_norm(x, w, eps), matrix)`. Each
call notes an op over symbolic tensors; `Recorder.compile` runs the passes (passes.py) and gives the C form
(compiled.py). An op of csrc/exec/ops.def needs no method here: `plan.op("gelu", x=x, tanh=1)` records it; the
methods are those with something to add.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, TypeAlias

from pyllamacpu.errors import NativeError
from pyllamacpu.graph.adapters import GraphAdapters
from pyllamacpu.graph.compiled import CompiledPlan
from pyllamacpu.graph.op_kinds import KINDS
from pyllamacpu.graph.ops import Op, Tensor
from pyllamacpu.graph.passes import InputSquares, optimized
from pyllamacpu.model.kv_space import KVSpace
from pyllamacpu.model.weights import Experts, Matrix, Table, Vector
from pyllamacpu.native import lib

ExpertQueue: TypeAlias = tuple[Tensor, int]
"""Segments in the order in which their matrices come from the file, and which product's of several."""


class Recorder:
    """Notes the ops of one model, which keeps keys and values in `spaces`."""

    def __init__(self, spaces: Sequence[KVSpace] = ()) -> None:
        self.spaces = tuple(spaces)
        self.ops: list[Op] = []

    # ---- any op ----

    def op(
        self, name: str, *, width: int = 0, times: int = 0, rows: int | None = None, **values: Any
    ) -> Tensor:
        """Notes an op with these fields, and returns its `out`, which is made here if it is not given.

        Rows, times and width of the output are those of the first tensor among `values`, unless given.
        Raises NativeError for an op or a field that does not exist.
        """
        kind = KINDS.get(name)
        wrong = [field for field in values if kind is None or kind.field(field) is None]
        if kind is None or wrong:
            raise NativeError(f"there is no op {name} with the fields {', '.join(wrong) or 'given'}")
        first = next((v for v in values.values() if isinstance(v, Tensor)), None)
        if rows is None:
            rows = first.rows if first is not None else lib.PL_ROWS_TOKENS
        times = times or (first.times if first is not None else 1)
        out = values.get("out")
        if out is None:
            out = Tensor(weakref.ref(self), width or (first.width if first is not None else 0), rows, times)
            if kind.field("out") is not None:
                values["out"] = out
        self.ops.append(Op(kind, rows, values, times))
        return out[0] if isinstance(out, list) else out

    def ints(self, width: int, like: Tensor, times: int = 0) -> Tensor:
        """A buffer of int32 with the rows of `like`, for an op to fill."""
        return Tensor(like.recorder, width, like.rows, times or like.times, lib.PL_BUFFER_INTS)

    # ---- rows of the batch ----

    def embed(self, table: Table) -> Tensor:
        """The tokens' rows of `table`."""
        return self.op("embed", table=table, width=table.cols)

    def rope_table(self, frequencies: Vector, magnitude: float) -> Tensor:
        """Cosines and sines of each position times `frequencies` (rope_dim / 2,), times `magnitude`."""
        return self.op("rope_table", frequencies=frequencies, magnitude=magnitude, width=2 * frequencies.size)

    def select(self, x: Tensor) -> Tensor:
        """The rows that the batch wants outputs of."""
        return self.op("select", x=x, rows=lib.PL_ROWS_OUTPUTS)

    def output_hidden(self, x: Tensor) -> None:
        """x are the hidden states of the batch's outputs."""
        name = "select" if x.rows == lib.PL_ROWS_TOKENS else "copy"
        self.op(name, x=x, out=lib.PL_HIDDEN, rows=lib.PL_ROWS_OUTPUTS)

    def output_logits(self, x: Tensor, matrix: Matrix) -> None:
        """x times `matrix` transposed are the batch's logits."""
        if x.rows == lib.PL_ROWS_TOKENS:
            x = self.select(x)
        self.op("matmul", x=x, matrix=[matrix], bias=[None], out=[lib.PL_LOGITS], rows=lib.PL_ROWS_LOGITS)

    # ---- elements ----

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self.op("add", a=a, b=b)

    def rms_norm(self, x: Tensor, weight: Vector, eps: float) -> Tensor:
        return self.op("rms_norm", x=x, weight=weight, eps=eps)

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.op("silu_mul", gate=gate, up=up)

    # ---- products ----

    def linear(self, x: Tensor, matrix: Matrix, bias: Vector | None = None) -> Tensor:
        """x (…, cols) times `matrix` (rows, cols) transposed, plus `bias`: (…, rows)."""
        out = Tensor(x.recorder, matrix.rows, x.rows, x.times)
        return self.op("matmul", x=x, matrix=[matrix], bias=[bias], out=[out])

    def top_k(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k largest of each row, largest first and equal ones by place: where they are, and they."""
        ids, values = self.ints(k, x), Tensor(x.recorder, k, x.rows, x.times)
        self.op("top_k", x=x, k=k, ids=ids, values=values)
        return ids, values

    def segments(self, ids: Tensor, n_segments: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of ids (…, k), which say to which segments (experts) a row goes: order, place and ends,
        as csrc/exec/ops_segments.c has them.
        """
        k = ids.width
        order, place = self.ints(1, ids, ids.times * k), self.ints(k, ids)
        ends = self.ints(n_segments, ids)
        self.op("segment_rows", ids=ids, k=k, n_segments=n_segments, order=order, place=place, ends=ends)
        return order, place, ends

    def gather_rows(self, x: Tensor, order: Tensor, k: int, factors: Tensor | None = None) -> Tensor:
        """Row order[j] // k of x for each j, times factors[order[j] // k][order[j] % k]."""
        return self.op("gather_rows", x=x, order=order, k=k, factors=factors, times=order.times)

    def request_experts(self, ends: Tensor, *products: Experts) -> list[ExpertQueue | None]:
        """Has those of the experts that stay in the file read, if their segments have rows, in the order of
        the products that are going to use them; what lies between this and those runs meanwhile. For each
        product what `segment_linear` takes.
        """
        stored = [experts for experts in products if experts.memory is not None]
        if not stored:
            return [None] * len(products)
        matrices = [matrix for experts in stored for matrix in experts]
        queue = self.ints(len(matrices), ends)
        self.op("request_experts", ends=ends, matrices=matrices, queue=queue)
        return [(queue, stored.index(e)) if e in stored else None for e in products]

    def expect_experts(self, ends: Tensor, products: Sequence[Experts], if_most: bool = False) -> None:
        """Reads ahead those of the experts that stay in the file and whose segments have rows: the next
        request may ask for them. `if_most`: if most segments have rows; else while guesses come true.
        """
        matrices = [matrix for experts in products if experts.memory is not None for matrix in experts]
        if matrices:
            self.op("expect_experts", ends=ends, matrices=matrices, if_most=int(if_most))

    def segment_linear(
        self, x: Tensor, ends: Tensor, matrices: Sequence[Matrix], queue: ExpertQueue | None = None
    ) -> Tensor:
        """Each segment's rows of x times its matrix, transposed; the matrices are of one shape and type."""
        order, product = queue or (None, 0)
        return self.op(
            "segment_matmul",
            x=x,
            ends=ends,
            matrices=list(matrices),
            width=matrices[0].rows,
            queue=order,
            product=product,
        )

    def scatter_rows(
        self, x: Tensor, place: Tensor, factors: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """(residual +) the sum of x[place[:, s]], times factors[:, s], in the order of s."""
        return self.op(
            "scatter_rows",
            x=x,
            place=place,
            factors=factors,
            residual=residual,
            k=place.width,
            times=place.times,
        )

    # ---- attention ----

    def rope_store(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rope: Tensor | None,
        space: KVSpace,
        *,
        layer: int,
    ) -> Tensor:
        """Rotates q and k; keeps k and v in `layer` of the space. Returns q, rotated in place."""
        fields = {"space": self.spaces.index(space), "layer": layer, "n_heads": q.width // space.k_dim}
        self.op("rope_store", q=q, k=k, v=v, rope=rope, **fields)
        return q

    def store(self, k: Tensor, v: Tensor, space: KVSpace, *, layer: int) -> None:
        """Keeps k and v in `layer` of the space, as they are."""
        self.op("rope_store", q=None, k=k, v=v, space=self.spaces.index(space), layer=layer, n_heads=0)

    def attention(
        self,
        q: Tensor,
        space: KVSpace,
        *,
        layer: int,
        scale: float,
        window: int = 0,
        chunk: int = 0,
        causal: bool = True,
    ) -> Tensor:
        """softmax(scale * q k^T) v over the keys of the space.

        causal: those up to each token's own position, `window` of them at most, or from a multiple of `chunk`
        on (0: all). Otherwise all that the sequence has in the space.
        """
        n_heads = q.width // space.k_dim
        fields = {
            "space": self.spaces.index(space),
            "layer": layer,
            "n_heads": n_heads,
            "causal": int(causal),
        }
        width = n_heads * space.v_dim
        return self.op("attention", q=q, window=window, chunk=chunk, scale=scale, width=width, **fields)

    # ---- the plan ----

    def compile(
        self, sums: InputSquares | None = None, adapters: GraphAdapters | None = None
    ) -> CompiledPlan:
        """The plan. With `sums`, it also adds up the squares of every product's input in them; with
        `adapters`, products also give what these change of them.
        """
        return CompiledPlan(optimized([op.copy() for op in self.ops], sums, adapters))
