"""Plans: what is refused and why, batches that do not fit, the text of a plan, and its costs.

Covers graph/passes.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plan_harness import BatchArrays, Plan, compiled, matrix, pool, vector

from pyllamacpu.engine.engine import Engine
from pyllamacpu.errors import NativeError
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.graph.compiled import CompiledPlan
from pyllamacpu.graph.native_plan import NativePlan, Workload, measured_bytes
from pyllamacpu.graph.op_kinds import KINDS
from pyllamacpu.graph.ops import Op, Tensor
from pyllamacpu.graph.recorder import Recorder
from pyllamacpu.model.kv_space import KVSpace
from pyllamacpu.native import ffi, lib

LOGITS = Path(__file__).parent / "fixtures" / "logits"
SPACE = KVSpace("causal", 2, 2, 8, 8)


def native(plan: CompiledPlan, spaces: list[Any] | None = None) -> NativePlan:
    return NativePlan(plan, pool(1), spaces or [], 16, 64)


def with_ops(change: Callable[[list[Op]], None]) -> CompiledPlan:
    """x -> rms_norm -> product -> hidden, changed."""

    def record(plan: Recorder, x: Tensor) -> Tensor:
        return plan.linear(plan.rms_norm(x, vector(np.ones(32, np.float32)), 1e-5), matrix(np.eye(32, 32)))

    ops = compiled(record, [32]).ops
    change(ops)
    return CompiledPlan(ops)


def values(i: int, **changes: Any) -> Callable[[list[Op]], None]:
    return lambda ops: ops[i].values.update(changes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (values(1, weight=vector(np.ones(31, np.float32))), r"op 1 \(rms_norm\): the weight is not as wide"),
        (values(1, eps=float("nan")), r"op 1 \(rms_norm\): eps: not a finite number"),
        (values(1, eps=-1.0), r"op 1 \(rms_norm\): eps is negative"),
        (values(1, x=99), r"op 1 \(rms_norm\): x: there is no buffer 99"),
        (values(1, out=lib.PL_HIDDEN), r"op 2 \(matmul m\) reads what no op before it has written"),
        (values(2, matrix=[None], bias=[None]), r"op 2 \(matmul.*\): there is no matrix"),
        (values(2, matrix=[matrix(np.eye(32, 33))]), r"op 2 .*: a matrix has other columns than its input"),
        (values(2, matrix=[matrix(np.eye(64, 32))]), r"op 2 .*: out is not wide enough"),
        (values(2, matrix=[matrix(np.eye(32), TensorType.Q8_0)]), r"op 2 .*: a quantized matrix needs 8-bit"),
        (values(2, gated=1), r"op 2 .*: a gated product has two quantized matrices"),
        (values(2, bias=[vector(np.ones(16, np.float32))]), r"op 2 .*: a bias is not as long"),
        (values(3, out=lib.PL_LOGITS), r"op 3 .*: out: the batch's logits have rows of logits"),
        (lambda ops: setattr(ops[1], "times", 2), r"op 1 .*: .* has 1 rows for each token, not 2"),
        (lambda ops: setattr(ops[3], "rows", 7), r"op 3 \(select\): the op does not work on these rows"),
    ],
)  # fmt: skip
def test_an_error_names_the_op_and_the_reason(change: Callable[[list[Op]], None], says: str) -> None:
    with pytest.raises(NativeError, match=says):
        native(with_ops(change))


def test_spaces_and_layers_must_exist() -> None:
    def record(plan: Recorder, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return plan.attention(plan.rope_store(q, k, v, None, SPACE, layer=0), SPACE, layer=0, scale=1.0)

    plan = compiled(record, [32, 16, 16], [SPACE])
    handle = ffi.gc(lib.pl_cache_new(2, 2, 8, 8, 0, 0), lib.pl_cache_free)
    native(plan, [handle])
    with pytest.raises(NativeError, match=r"rope_store\): there is no such KV space"):
        native(plan)
    with pytest.raises(NativeError, match="there is no such KV space"):
        measured_bytes(plan, [], 16, 64, 1)
    for fields, says in (
        ({"layer": 2}, "no such layer"),
        ({"n_heads": 3}, "not a multiple"),
        ({"window": -1}, "window"),
        ({"causal": 0, "chunk": 8}, "causal"),
    ):
        ops = [op.copy() for op in plan.ops]
        next(op for op in ops if op.name == "attention").values.update(fields)
        with pytest.raises(NativeError, match=says):
            native(CompiledPlan(ops), [handle])


def test_sums_are_as_many_as_columns() -> None:
    """A sum more or less would be written outside the array."""

    def record(plan: Recorder, x: Tensor, n: int) -> Tensor:
        plan.op("squares", x=x, sums=np.zeros(n))
        return plan.op("copy", x=x)

    native(compiled(lambda plan, x: record(plan, x, 32), [32]))
    for n in (31, 33):
        with pytest.raises(NativeError, match=r"op 1 \(squares\): there is not a sum for each column"):
            native(compiled(lambda plan, x, n=n: record(plan, x, n), [32]))  # type: ignore[misc]


def test_sums_of_segments_are_as_many_as_their_columns() -> None:
    def record(plan: Recorder, x: Tensor, n_sums: int, n_counts: int) -> Tensor:
        _, _, ends = plan.segments(plan.top_k(x, 1)[0], 3)
        plan.op("segment_squares", x=x, ends=ends, sums=np.zeros(n_sums), counts=np.zeros(n_counts))
        return plan.op("copy", x=x)

    native(compiled(lambda plan, x: record(plan, x, 96, 3), [32]))
    for n in ((95, 3), (97, 3), (96, 2), (32, 1)):
        with pytest.raises(
            NativeError, match=r"op 3 \(segment_squares\): there is not a count for each segment"
        ):
            native(compiled(lambda plan, x, n=n: record(plan, x, *n), [32]))  # type: ignore[misc]


def test_an_op_that_does_not_exist() -> None:
    recorder = Recorder()
    with pytest.raises(NativeError, match="no op square_root"):
        recorder.op("square_root", x=None)
    with pytest.raises(NativeError, match="no op add with the fields c"):
        recorder.op("add", a=None, c=None)


def test_every_op_of_c_is_described() -> None:
    assert {"embed", "matmul", "attention", "segment_matmul"} <= set(KINDS)
    for kind in KINDS.values():
        offsets = [field.offset for field in kind.fields]
        assert offsets == sorted(offsets) and offsets[0] >= 12 and kind.fields
        assert max(offsets) < lib.pl_op_bytes()
    assert [kind.name for kind in KINDS.values() if kind.may_quantize] == [
        "rms_norm", "layer_norm", "silu_mul", "gelu",
    ]  # fmt: skip


def test_a_recorder_compiles_again_and_the_same() -> None:
    engine = Engine.open(LOGITS / "mixed_q4_k_m.gguf", n_ctx=64)
    recorder = Recorder(engine.model.kv_spaces)
    engine.model.record(recorder)
    n = len(recorder.ops)
    first, second = recorder.compile(), recorder.compile({})
    third = recorder.compile()
    assert len(recorder.ops) == n and str(first) == str(third) == str(engine.plan)
    assert len(second) > len(first)
    assert [bytes(first.record(i)) for i in range(len(first))] == [
        bytes(third.record(i)) for i in range(len(third))
    ]
    engine.close()


def test_the_text_of_a_plan() -> None:
    engine = Engine.open(LOGITS / "mixed_q4_k_m.gguf", n_ctx=64)
    lines = str(engine.plan).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("embed " in line and "token_embd.weight" in line for line in lines)
    assert any("attention" in line and "layer 0" in line for line in lines)
    assert any("→ logits" in line for line in lines)
    assert sum(line[0].isdigit() for line in lines) == len(engine.plan)
    engine.close()


def test_costs_of_ops() -> None:
    plan = Plan(lambda p, x: p.linear(p.op("gelu", x=x, tanh=1), matrix(np.eye(48, 32))), [32])
    names = plan.compiled.names
    cost = [plan.native.cost(i, Workload(2, 3, 10, 2, 2))[:3] for i in range(len(names))]
    assert cost[names.index("embed")] == (6 * 32 * 4, 0, 0)
    assert cost[names.index("gelu")] == (0, 0, 6 * 32 * 8)
    assert cost[names.index("matmul m")] == (48 * 32 * 4, 0, 2 * 48 * 32 * 6)
    with pytest.raises(NativeError):
        plan.native.cost(len(names), Workload(1, 1, 0, 1, 1))


# Batches


def attending() -> Plan:
    def record(plan: Recorder, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return plan.attention(plan.rope_store(q, k, v, None, SPACE, layer=0), SPACE, layer=0, scale=1.0)

    return Plan(record, [32, 16, 16], spaces=[SPACE], max_tokens=16, n_ctx=100)


def batch(plan: Plan, **given: Any) -> BatchArrays:
    """Of 5 tokens of 2 sequences."""
    usual = {"positions": [40, 41, 42, 0, 1], "sequences": [0, 0, 0, 1, 1], "outputs": [0, 4]}
    made = BatchArrays(5, **(usual | given))
    made.embed(np.zeros((5, 64), np.float32))
    made.pages(plan.pages, {})
    return made


def spoilt(name: str, value: Any) -> Callable[[BatchArrays], None]:
    return lambda made: setattr(made.native, name, value)


def put(name: str, i: int, value: int) -> Callable[[BatchArrays], None]:
    return lambda made: getattr(made, name).__setitem__(i, value)


@pytest.mark.parametrize(
    "spoil",
    [
        spoilt("n_tokens", 0), spoilt("n_tokens", 17), spoilt("n_outputs", -1), spoilt("n_outputs", 6),
        spoilt("first_op", -1), spoilt("first_op", 1000), spoilt("end_op", -1), spoilt("end_op", 1000),
        spoilt("n_logits", 3), spoilt("n_logits", -1), spoilt("n_sequences", 1), spoilt("n_sequences", 3),
        spoilt("tokens", ffi.NULL), spoilt("positions", ffi.NULL), spoilt("sequences", ffi.NULL),
        spoilt("outputs", ffi.NULL), spoilt("pages", ffi.NULL), spoilt("embeddings", ffi.NULL),
        spoilt("embedding_stride", 63), spoilt("n_embeddings", 4),
        put("tokens", 0, -6), put("tokens", 0, 1), put("tokens", 0, -(2**31)),
        put("positions", 1, 40), put("positions", 2, 44), put("positions", 0, -1), put("positions", 4, 100),
        put("sequences", 1, 1), put("sequences", 4, 2), put("sequences", 0, -1),
        put("outputs", 1, 5), put("outputs", 0, -1),
    ],
)  # fmt: skip
def test_a_batch_that_does_not_fit_is_refused(spoil: Callable[[BatchArrays], None]) -> None:
    plan = attending()
    made = batch(plan)
    plan.native.run(made.native)
    spoil(made)
    with pytest.raises(NativeError, match="invalid argument"):
        plan.native.run(made.native)


def test_tokens_of_a_sequence_must_stand_together() -> None:
    plan = attending()
    with pytest.raises(NativeError, match="invalid argument"):
        plan.native.run(batch(plan, positions=[0, 1, 0, 2, 3], sequences=[0, 0, 1, 0, 0]).native)


def test_pages_that_are_read_must_be_there() -> None:
    plan = attending()
    made = batch(plan)
    table = plan.pages[0].tables[0]
    for page in (0, 1):
        kept, table[page] = table[page], 0
        with pytest.raises(NativeError, match="invalid argument"):
            plan.native.run(made.native)
        table[page] = kept
    made.tables[0][1] = ffi.NULL
    with pytest.raises(NativeError, match="invalid argument"):
        plan.native.run(made.native)


def test_outputs_must_be_aligned() -> None:
    plan = attending()
    made = batch(plan)
    room = np.zeros(200, np.float32)
    aligned = room.ctypes.data + -room.ctypes.data % 64
    made.native.hidden = ffi.cast("float *", aligned)
    plan.native.run(made.native)
    made.native.hidden = ffi.cast("float *", aligned + 4)
    with pytest.raises(NativeError, match="invalid argument"):
        plan.native.run(made.native)


def test_a_chunked_space_may_give_up_earlier_pages() -> None:
    def record(plan: Recorder, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = plan.rope_store(q, k, v, None, SPACE, layer=0)
        return plan.attention(q, SPACE, layer=0, scale=1.0, chunk=64)

    plan = Plan(record, [32, 16, 16], spaces=[SPACE])
    x = np.random.default_rng(0).standard_normal((101, 64)).astype(np.float32)
    parts = x[:, :32], x[:, 32:48], x[:, 48:]
    whole = plan.run(*parts)
    plan.pages[0].tables[0][:2] = 0  # positions 0 to 63
    plan.pages[0].table = lambda sequence, n: ffi.cast(  # type: ignore[method-assign]
        "uintptr_t *", plan.pages[0].tables[0].ctypes.data
    )
    last = plan.run(*(part[100:] for part in parts), positions=[100])
    assert np.array_equal(last, whole[100:])
    with pytest.raises(NativeError, match="invalid argument"):
        plan.run(*(part[63:64] for part in parts), positions=[63])


# Rows that ops find in their own inputs


def far_rows(plan: Recorder, x: Tensor) -> Tensor:
    """Ints: the place of each row's largest value, 9 where only 3 rows are there, and one segment."""
    ids = plan.ints(1, x)
    plan.op("top_k", x=x, k=1, ids=ids, values=Tensor(x.recorder, 1))
    return ids


def far_gather(plan: Recorder, x: Tensor) -> Tensor:
    return plan.gather_rows(x, far_rows(plan, x), 1)


def far_scatter(plan: Recorder, x: Tensor) -> Tensor:
    return plan.scatter_rows(x, far_rows(plan, x))


def far_segments(plan: Recorder, x: Tensor) -> Tensor:
    return plan.segment_linear(x, far_rows(plan, x), [matrix(np.eye(32, 32))])


def far_squares(plan: Recorder, x: Tensor) -> Tensor:
    plan.op("segment_squares", x=x, ends=far_rows(plan, x), sums=np.zeros(32), counts=np.zeros(1))
    return x


def adapted_experts(plan: Recorder, x: Tensor, ends: Tensor | None, order: Tensor | None) -> Tensor:
    own_order, _, own_ends = plan.segments(far_rows(plan, plan.op("columns", x=x, first=0, width=1)), 1)
    out = Tensor(x.recorder, 16, x.rows)
    plan.op(
        "adapter_experts_down", x=x, adapter=0, matrices=[matrix(np.ones((16, 32), np.float32))],
        factor=1.0, ends=ends or own_ends, order=order or own_order, out=out,
    )  # fmt: skip
    return plan.op("columns", x=out, first=0, width=16)


def far_adapter_ends(plan: Recorder, x: Tensor) -> Tensor:
    return adapted_experts(plan, x, far_rows(plan, x), None)


def far_adapter_order(plan: Recorder, x: Tensor) -> Tensor:
    return adapted_experts(plan, x, None, far_rows(plan, x))


def half_a_tile(plan: Recorder, x: Tensor) -> Tensor:
    tiles = {"n_tiles": 1, "tile_rows": 2, "tile_tokens": 2, "padding_weight": 1, "tile_weight": 1}
    return plan.op(
        "tile_attention", q=x, k=plan.op("copy", x=x), v=plan.op("copy", x=x), width=32,
        n_heads=2, kv_heads=2, scale=1.0, **tiles,
    )  # fmt: skip


@pytest.mark.parametrize(
    "record",
    [
        far_gather, far_scatter, far_segments, far_squares, far_adapter_ends, far_adapter_order, half_a_tile,
    ],
)  # fmt: skip
def test_rows_that_are_not_there_end_the_run_with_an_error(record: Callable[..., Tensor]) -> None:
    plan = Plan(record, [32], n_ctx=64, max_tokens=3)
    x = np.zeros((3, 32), np.float32)
    x[:, 9] = 1
    with pytest.raises(NativeError, match="invalid argument"):
        plan.run(x, scales=np.ones((1, 1), np.float32))
    if record is half_a_tile:
        x = x[:2]
    else:
        x[:, 9], x[:, 0] = 0, 1
    assert np.isfinite(plan.run(x, scales=np.ones((1, 1), np.float32))).all()


# Hostile plans


FUZZ = """
import random, sys
sys.path[:0] = [{tests!r}]
import fuzz_plans
print(fuzz_plans.fuzz(int(sys.argv[1]), int(sys.argv[2])))
"""


def test_mutated_plans_are_refused_or_run() -> None:
    """In a process of its own: a wild read or write would end it."""
    code = FUZZ.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", code, "3000", "1"], capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr
    refused, run = map(int, done.stdout.split())
    assert refused > 500 and run > 100
