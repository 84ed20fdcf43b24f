"""Adapters as ops of a plan, against numpy: graph/adapters.py and csrc/exec/ops_adapters.c."""

from __future__ import annotations

import numpy as np
import pytest
from plan_harness import Floats, Plan, assert_same_bits, matrix, random, vector

from pyllamacpu.errors import NativeError
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.graph.adapters import GraphAdapters, check_all_changed, with_adapters
from pyllamacpu.graph.ops import Op, Tensor
from pyllamacpu.graph.passes import with_groups
from pyllamacpu.graph.recorder import Recorder
from pyllamacpu.model.lora import LowRankPair
from pyllamacpu.model.weights import Table

LENGTHS = (5, 1, 130, 3, 2)
SEQUENCES = np.repeat(range(len(LENGTHS)), LENGTHS)
SCALES = np.array([[0.5, 0], [0, 0], [-2, 1], [1, 0.25], [0, 3]], np.float32)  # of two adapters
MIXED = {
    "positions": np.concatenate([np.arange(n) for n in LENGTHS]).tolist(),
    "sequences": SEQUENCES.tolist(),
}
WIDTH, RANKS = 300, (5, 40)
SAME = matrix(np.eye(WIDTH, dtype=np.float32))  # the product with it is its input


def low_rank(
    seed: int, rank: int, rows: int = WIDTH, kind: TensorType = TensorType.F32
) -> tuple[Floats, Floats, LowRankPair]:
    a, b = random(seed, rank, WIDTH) / 16, random(seed + 1, rows, rank)
    a, b = (x.astype(np.float16).astype(np.float32) for x in (a, b))
    return a, b, LowRankPair(matrix(a, kind), matrix(b, kind), 0.5)


@pytest.mark.parametrize("kind", [TensorType.F32, TensorType.F16])
def test_down_and_up(kind: TensorType) -> None:
    """x + the sum over adapters of scale * factor * B A x; the second leaves the first product as it is."""
    first, second, third = (low_rank(s, r, kind=kind) for s, r in zip((1, 3, 5), (*RANKS, 16), strict=True))
    x = random(9, len(SEQUENCES), WIDTH)

    def record(plan: Recorder, t: Tensor) -> Tensor:
        down = [first[2].a, None, second[2].a, third[2].a]
        between = plan.op(
            "adapter_down", x=t, n_adapters=2, matrices=down, factors=vector([0.5] * 4), width=80
        )
        up = [first[2].b, None, second[2].b, third[2].b]
        one, two = Tensor(t.recorder, WIDTH), Tensor(t.recorder, WIDTH)
        adapters = {"low_rank": between, "n_adapters": 2, "up": up}
        plan.op("matmul", x=t, matrix=[SAME, SAME], bias=[None, None], out=[one, two], **adapters)
        return plan.add(one, plan.op("scale", x=two, factor=16.0))

    def changed(rows: Floats, used: tuple[tuple[int, tuple[Floats, Floats, LowRankPair]], ...]) -> Floats:
        total = rows.astype(np.float64)
        for adapter, (a, b, _) in used:
            scale = SCALES[SEQUENCES, adapter].astype(np.float64)[:, None] * 0.5
            total = total + scale * (rows.astype(np.float64) @ a.T @ b.T)
        return total

    expected = changed(x, ((0, first),)) + 16 * changed(x, ((0, second), (1, third)))
    plan = Plan(record, [WIDTH])
    found = plan.run(x, **MIXED, scales=SCALES)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-4 * np.abs(expected).max())
    plain = plan.run(x, **MIXED)
    assert_same_bits(plain, x + 16 * x)  # nobody uses any
    assert_same_bits(found[SEQUENCES == 1], plain[SEQUENCES == 1])
    for n_threads in (1, 3):
        assert_same_bits(Plan(record, [WIDTH], n_threads=n_threads).run(x, **MIXED, scales=SCALES), found)
    for i in (0, 4, 5, 6, 40, 135, 140):  # row by row
        row = plan.run(x[i : i + 1], scales=SCALES[SEQUENCES[i]][None])
        assert_same_bits(row, found[i : i + 1])


@pytest.mark.parametrize("changed", [(0, 1), (0,), (1,)])
def test_a_gated_product_takes_adapters_before_its_gate(changed: tuple[int, ...]) -> None:
    """silu(gate) * up stays one op, and gives what the separate ops give; rows without an adapter the bits
    of the plan without adapters, in every mix and at every number of rows and threads.
    """
    dim, rows = 320, 70 * 16 + 5  # more panels than are multiplied at once
    rng = np.random.default_rng(3)
    x = random(8, len(SEQUENCES), dim)
    weights = [matrix(random(i, rows, dim) / 16, TensorType.Q8_0, name=f"w{i}") for i in range(2)]
    biases = [vector(random(5 + i, rows)) for i in range(2)]
    pairs = {}
    for i in changed:
        a, b = (rng.standard_normal(shape).astype(np.float32) / 8 for shape in ((7, dim), (rows, 7)))
        pairs[id(weights[i])] = [LowRankPair(matrix(a), matrix(b), 0.5), None]
    adapters = GraphAdapters(2, pairs)

    def record(plan: Recorder, t: Tensor, apart: bool = False) -> Tensor:
        gate, up = (plan.linear(t, w, bias) for w, bias in zip(weights, biases, strict=True))
        if apart:  # another reader of gate keeps the op from being folded
            return plan.add(plan.silu_mul(gate, up), plan.op("scale", x=gate, factor=0.0))
        return plan.silu_mul(gate, up)

    plan = Plan(record, [dim], adapters=adapters)
    assert not any(op.name == "silu_mul" for op in plan.compiled.ops)
    found = plan.run(x, **MIXED, scales=SCALES)
    separate = Plan(lambda p, t: record(p, t, True), [dim], adapters=adapters)
    assert any(op.name == "silu_mul" for op in separate.compiled.ops)
    np.testing.assert_array_equal(found, separate.run(x, **MIXED, scales=SCALES))
    plain = Plan(record, [dim]).run(x, **MIXED)
    unused = SCALES[SEQUENCES, 0] == 0
    assert_same_bits(found[unused], plain[unused])
    assert not np.isclose(found[~unused], plain[~unused], rtol=1e-3).all(axis=1).any()
    assert_same_bits(plan.run(x, **MIXED), plain)
    for n_threads in (1, 3):
        again = Plan(record, [dim], n_threads=n_threads, adapters=adapters)
        assert_same_bits(again.run(x, **MIXED, scales=SCALES), found)
    for i in (0, 4, 5, 6, 40, 135, 140):
        assert_same_bits(plan.run(x[i : i + 1], scales=SCALES[SEQUENCES[i]][None]), found[i : i + 1])
    many = np.repeat(x[6:7], 600, axis=0)  # several blocks of rows
    assert_same_bits(plan.run(many, scales=SCALES[2:3]), np.repeat(found[6:7], 600, axis=0))


def test_rows_of_outputs_have_their_sequences_scales() -> None:
    a, b, pair = low_rank(1, 16)
    x = random(9, len(SEQUENCES), WIDTH)

    def record(plan: Recorder, t: Tensor) -> Tensor:
        t = plan.op("scale", x=plan.select(t), factor=1.0)
        between = plan.op(
            "adapter_down", x=t, n_adapters=2, matrices=[None, pair.a], factors=vector([0, 1]), width=16
        )
        out = plan.op("copy", x=t)
        plan.op("adapter_up", x=between, n_adapters=2, matrices=[None, pair.b], out=out)
        return out

    outputs = [140, 3, 5, 70, 137]
    found = Plan(record, [WIDTH]).run(x, **MIXED, outputs=outputs, scales=SCALES)
    scale = SCALES[SEQUENCES[outputs], 1][:, None]
    np.testing.assert_allclose(found, x[outputs] + scale * (x[outputs] @ a.T @ b.T), rtol=1e-4, atol=1e-3)


def test_the_pass_keeps_products_whole_and_adds_one_op_for_neighbours() -> None:
    """q, k and v stay one product; A's of both that are changed are in one op, and the B's are its own."""
    *_, pair = low_rank(1, 4, rows=32)
    recorder = Recorder()
    q, k, v = (matrix(random(i, 32, WIDTH), name=name) for i, name in enumerate("qkv"))
    x = recorder.embed(Table("t", 1, WIDTH, TensorType.F32, np.zeros(4 * WIDTH, np.uint8)))
    for weight in (q, k, v):
        recorder.linear(x, weight)
    adapters = GraphAdapters(2, {id(q): [pair, None], id(v): [pair, pair]})
    ops = recorder_ops(recorder, adapters)
    assert [op.name for op in ops] == ["embed", "adapter_down", "matmul"]
    assert ops[1].values["matrices"] == [pair.a, None, None, None, pair.a, pair.a]
    assert ops[2].values["up"] == [pair.b, None, None, None, pair.b, pair.b]


def test_every_changed_weight_is_in_some_plan_of_the_model() -> None:
    """Of several plans none has to have all."""
    *_, pair = low_rank(1, 4, rows=32)
    weights = [matrix(random(i, 32, WIDTH), name=str(i)) for i in range(3)]
    plans = []
    for weight in weights[:2]:
        recorder = Recorder()
        x = recorder.embed(Table("t", 1, WIDTH, TensorType.F32, np.zeros(4 * WIDTH, np.uint8)))
        recorder.linear(x, weight)
        plans.append(recorder)
    adapters = GraphAdapters(1, {id(weight): [pair] for weight in weights[:2]})
    changed = [recorder_ops(plan, adapters) for plan in plans]
    assert [[op.name for op in ops] for ops in changed] == [["embed", "adapter_down", "matmul"]] * 2
    check_all_changed(changed, adapters)
    for missing in ((changed[:1], adapters), (changed, GraphAdapters(1, {id(weights[2]): [pair]}))):
        with pytest.raises(NativeError, match="1 weights that adapters change"):
            check_all_changed(*missing)


def recorder_ops(recorder: Recorder, adapters: GraphAdapters) -> list[Op]:
    return with_adapters(with_groups([op.copy() for op in recorder.ops]), adapters)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"width": 16}, "not wide enough"),
        ({"factors": vector([1.0])}, "a factor for each"),
        ({"n_adapters": 3}, "a factor for each"),
    ],
)
def test_wrong_ops_are_refused(change: dict, says: str) -> None:
    *_, pair = low_rank(1, 40)
    fields = {
        "n_adapters": 2,
        "matrices": [pair.a, None],
        "factors": vector([1.0, 1.0]),
        "width": 48,
    } | change
    with pytest.raises(NativeError, match=says):
        Plan(lambda plan, t: plan.op("adapter_down", x=t, **fields), [WIDTH])
