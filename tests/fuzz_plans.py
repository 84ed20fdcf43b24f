"""Random damage to the records of plans: every one is refused with a reason, or runs without harm.

`python tests/fuzz_plans.py ITERATIONS SEED` prints how many were refused and how many ran.
"""

from __future__ import annotations

import random
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from plan_harness import BatchArrays, Pages, compiled, matrix, pool, vector

from pyllamacpu.engine.batch import aligned_rows
from pyllamacpu.errors import NativeError
from pyllamacpu.gguf import GGUFFile, GGUFWriter
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.graph.compiled import CompiledPlan
from pyllamacpu.graph.native_plan import NativePlan
from pyllamacpu.graph.op_kinds import KINDS
from pyllamacpu.graph.ops import Tensor
from pyllamacpu.graph.recorder import Recorder
from pyllamacpu.model.expert_memory import ExpertMemory
from pyllamacpu.model.kv_space import KVSpace
from pyllamacpu.model.weights import Experts, Matrix, Table
from pyllamacpu.native import ffi, lib

SPACES = (KVSpace("a", 2, 2, 8, 12), KVSpace("b", 1, 1, 16, 16))
WIDTHS = (32, 16, 24)
DIM = sum(WIDTHS)
N_CTX = 64
SCALES_OF = np.array([[0.5, 0.0], [0.0, -2.0]] * 8, np.float32)  # of adapters
SCALES = ffi.cast("const float *", SCALES_OF.ctypes.data)
NUMBERS = (-(2**31), -3, -2, -1, 0, 1, 2, 3, 7, 8, 16, 31, 32, 64, 1000, 2**24, 2**31 - 1)


def weights(rows: int, cols: int, kind: TensorType = TensorType.F32) -> Any:
    values = np.random.default_rng(rows * cols).standard_normal((rows, cols)).astype(np.float32)
    return matrix(values, kind)


def stored(n: int, rows: int, cols: int) -> Experts:
    """In a file, with memory for all of them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "experts.gguf"
        with GGUFWriter(path, "llama4") as writer:
            writer.add_array("e", np.ones((n, rows, cols), np.float32))
        with GGUFFile.open(path) as file:
            memory = ExpertMemory(file, 1 << 24)
            info = file.tensors["e"]
            handles = [memory.add(info, i, n, rows, cols) for i in range(n)]
    memory.start()
    return Experts("e", tuple(Matrix("e", rows, cols, TensorType.F32, h) for h in handles), memory)


def everything(plan: Recorder, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A plan in which each op stands at least once."""
    a, b = SPACES
    rope = plan.rope_table(vector(np.ones(4)), 1.0)
    q = plan.rope_store(q, k, v, rope, a, layer=1)
    x = plan.linear(plan.attention(q, a, layer=1, scale=0.3, window=20), weights(32, 48))
    angles = plan.op("position_rows", table=vector(np.ones(64 * 8)), width=8)  # of 64 positions
    plan.op("rope", x=x, rope=angles, n_heads=4)
    x = plan.op("self_attention", q=x, k=k, v=k, n_heads=4, kv_heads=2, scale=0.2, width=32)
    x = plan.op(
        "disentangled_attention",
        q=x,
        k=x,
        v=x,
        n_heads=2,
        positions=[weights(8, 16)] * 4,
        n_positions=8,
        buckets=vector(np.arange(2 * N_CTX - 1) % 8),
        scale=0.2,
        wanted=0,
    )
    y = plan.rope_store(plan.op("scale", x=x, factor=2.0), k, plan.op("copy", x=k), None, b, layer=0)
    x = plan.add(x, plan.attention(y, b, layer=0, scale=0.3, causal=False))
    x = plan.rms_norm(x, vector(np.ones(32)), 1e-5)
    gate, up = (plan.linear(x, weights(64, 32, TensorType.Q8_0)) for _ in range(2))
    h = plan.silu_mul(plan.silu_mul(gate, up), plan.linear(x, weights(64, 32)))  # in a product, and apart
    h = plan.linear(h, weights(32, 64, TensorType.Q4_0))
    h = plan.op("layer_norm", x=h, weight=vector(np.ones(32)), bias=vector(np.ones(32)), eps=1e-5)
    h = plan.op("l2_norm", x=plan.op("gelu", x=h, tanh=1), size=8, mean=1, eps=1e-5)
    h = plan.op("scale_by_position", x=h, span=4.0, slope=0.1)
    ids, factors = plan.ints(2, h), Tensor(h.recorder, 2)
    plan.op("top_k", x=h, k=2, ids=ids, values=factors)
    order, place, ends = plan.segments(ids, 3)
    y = plan.gather_rows(h, order, 2, factors)
    y = plan.segment_linear(y, ends, [weights(32, 32, TensorType.Q8_0)] * 3)
    experts = stored(3, 32, 32)
    y = plan.segment_linear(y, ends, experts, plan.request_experts(ends, experts)[0])
    plan.expect_experts(ends, [experts])
    plan.op("squares", x=h, sums=np.zeros(32))
    plan.op("segment_squares", x=y, ends=ends, sums=np.zeros(96), counts=np.zeros(3))
    h = plan.scatter_rows(y, place, factors, h)
    adapted(plan, h)
    h = of_images(plan, plan.op("softmax", x=plan.op("sigmoid", x=h)))
    h = plan.select(h)
    plan.output_logits(h, weights(48, 32))
    return h


def of_images(plan: Recorder, h: Tensor) -> Tensor:
    """What towers do, and layers that attend to images."""
    rows = plan.op("position_rows", table=vector(np.ones(8 * N_CTX, np.float32)), width=8, rows=h.rows)
    plan.op("rope", x=h, rope=rows, n_heads=2)
    left, right, one = (plan.op("columns", x=h, first=n, width=w) for n, w in ((0, 8), (5, 8), (3, 1)))
    mixed = plan.op("interleave", x=[left, right], width=16)
    x = plan.op("scale_rows", x=plan.op("concatenate", x=[mixed, left, right], width=32), factors=one)
    tiles = {"n_tiles": 1, "tile_rows": 1, "tile_tokens": 1, "padding_weight": 1, "tile_weight": 3}
    heads = {"n_heads": 4, "kv_heads": 2, "scale": 0.2}
    x = plan.op("tile_attention", q=x, k=mixed, v=mixed, width=32, **heads, **tiles)
    plan.store(mixed, plan.op("copy", x=mixed), SPACES[1], layer=0)
    return plan.add(h, plan.op("mask_rows", x=x, space=1))


def adapted(plan: Recorder, h: Tensor) -> None:
    """Adds to h what two adapters make of it; the second has no part in the first product."""
    table = Table("a", 48, 16, TensorType.F32, np.zeros(48 * 64, np.uint8))
    looked_up = plan.op("adapter_embed", table=table, adapter=1, factor=0.5, width=16)
    plan.op("adapter_up", x=looked_up, n_adapters=2, matrices=[None, weights(32, 16)], out=h)
    between = plan.op(
        "adapter_down",
        x=h,
        n_adapters=2,
        matrices=[weights(8, 32), None, weights(8, 32), weights(20, 32)],
        factors=vector(np.ones(4)),
        width=64,
    )
    outs = [Tensor(h.recorder, 32, h.rows, h.times) for _ in range(2)]
    up = [weights(32, 8), None, weights(32, 8), weights(32, 20)]
    matrices = [weights(32, 32), weights(32, 32)]
    adapters = {"low_rank": between, "n_adapters": 2, "up": up}
    plan.op("matmul", x=h, matrix=matrices, bias=[None, None], out=outs, **adapters)
    ids = plan.ints(2, h)
    plan.op("top_k", x=h, k=2, ids=ids, values=Tensor(h.recorder, 2))
    order, _, ends = plan.segments(ids, 3)
    rows, experts = plan.gather_rows(h, order, 2), {"adapter": 1, "ends": ends, "order": order}
    downs, ups = [weights(8, 32)] * 3, [weights(32, 8)] * 3
    between = Tensor(h.recorder, 8, rows.rows, 2)
    plan.op("adapter_experts_down", x=rows, matrices=downs, factor=0.5, out=between, **experts)
    plan.op("adapter_experts_up", x=between, matrices=ups, out=rows, **experts)


def batch_for(pages: list[Pages], native: NativePlan, rng: random.Random) -> tuple[BatchArrays, Any]:
    n = rng.choice((1, 3, 16))
    split = rng.randrange(1, n + 1)
    sequences = [0] * split + [1] * (n - split)
    start = rng.choice((0, 33))
    positions = [start + i for i in range(split)] + list(range(n - split))
    made = BatchArrays(n, positions, sequences, [n - 1, 0][: min(2, n)])
    made.embed(np.random.default_rng(n).standard_normal((n, DIM)).astype(np.float32))
    made.pages(pages, {})
    made.native.n_logits = rng.choice((0, 1))
    if rng.random() < 0.7:
        made.native.adapter_scales, made.native.n_adapters = SCALES, 2
    outputs = aligned_rows(4, max(16, native.logits_stride)), aligned_rows(4, max(16, native.hidden_stride))
    made.native.logits, made.native.hidden = (ffi.cast("float *", rows.ctypes.data) for rows in outputs)
    return made, outputs


def damage(plan: CompiledPlan, shapes: Any, rng: random.Random) -> None:
    """Changes numbers of an op or of a buffer; pointers only to NULL or to fewer elements."""
    if rng.random() < 0.15:
        shape = shapes[rng.randrange(len(plan.buffers.shapes))]
        name = rng.choice(("kind", "width", "times"))
        setattr(shape, name, rng.choice((*NUMBERS, getattr(shape, name) + rng.choice((-1, 1, 32)))) % 2**31)
        return
    i = rng.randrange(len(plan))
    record = ffi.from_buffer(plan.record(i))
    head = ffi.cast("pl_op_head *", record)
    if rng.random() < 0.1:
        setattr(head, rng.choice(("rows", "times")), rng.choice(NUMBERS))
        return
    field = rng.choice(plan.ops[i].kind.fields)
    at, j = record + field.offset, rng.randrange(field.n)
    if field.type == lib.PL_FIELD_MATRIX:
        ffi.cast("void **", at)[j] = ffi.NULL
    elif field.type in (lib.PL_FIELD_VECTOR, lib.PL_FIELD_MATRICES):
        sized = ffi.cast("pl_vector *" if field.type == lib.PL_FIELD_VECTOR else "pl_matrices *", at)[j]
        sized.n = rng.choice((0, 1, -1, max(0, sized.n - 1)))
    elif field.type == lib.PL_FIELD_TABLE:
        ffi.cast("pl_table *", at).type = rng.choice((0, 1, 2, 77, -1))
    elif field.type == lib.PL_FIELD_SUMS:
        ffi.cast("pl_sums *", at).n = rng.choice((0, -1, 31))
    elif field.type == lib.PL_FIELD_FLOAT:
        ffi.cast("float *", at)[j] = rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf"), 0.5))
    else:
        low = -4 if field.type >= lib.PL_FIELD_IN else None
        some = rng.randrange(-4, len(plan.buffers.shapes) + 2) if low is not None else rng.choice(NUMBERS)
        ffi.cast("int32_t *", at)[j] = some


def fuzz(iterations: int, seed: int) -> str:
    """ "refused run": how many plans were, of `iterations`."""
    rng = random.Random(seed)
    plan = compiled(everything, WIDTHS, SPACES)
    missing = {*KINDS} - {op.name for op in plan.ops}
    assert not missing, missing
    threads, pages = pool(2), [Pages(space) for space in SPACES]
    records = bytes(ffi.buffer(plan.arguments()[0], len(plan) * lib.pl_op_bytes()))
    shapes = plan.arguments()[2]
    refused = ran = 0
    for _ in range(iterations):
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            damage(plan, shapes, rng)
        try:
            native = NativePlan(plan, threads, [p.handle for p in pages], 16, N_CTX)
        except NativeError as error:
            refused += 1
            assert str(error).startswith(("op ", "the plan")), error
        else:
            ran += 1
            made, outputs = batch_for(pages, native, rng)
            with suppress(NativeError):  # rows that are not there, or pages
                native.run(made.native)
            assert len(outputs) == 2
        ffi.buffer(plan.arguments()[0], len(records))[:] = records
        for i, shape in enumerate(plan.buffers.shapes):
            shapes[i].kind, shapes[i].width, shapes[i].times = shape
    return f"{refused} {ran}"


if __name__ == "__main__":
    print(fuzz(int(sys.argv[1]), int(sys.argv[2])))
