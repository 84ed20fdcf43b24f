"""Ops that a dense Llama does not use, against numpy (csrc/exec/ops_*.c).

Each is also run on other threads and with other rows beside: the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from plan_harness import Doubles, Floats, Plan, Record, assert_same_bits, matrix, random, vector

from pyllamacpu.gguf.types import TensorType
from pyllamacpu.graph.ops import Tensor
from pyllamacpu.graph.recorder import Recorder
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.model.kv_space import KVSpace
from pyllamacpu.native import lib
from pyllamacpu.weights.blocks import quantize


def checked(record: Record, *inputs: Floats, expected: Doubles, tolerance: float = 2e-6) -> None:
    """Close to `expected`, and the same bits on 1 and 3 threads, and row by row."""
    plan = Plan(record, [x.shape[1] for x in inputs])
    found = plan.run(*inputs)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    for n_threads in (1, 3):
        assert_same_bits(Plan(record, plan.widths, n_threads=n_threads).run(*inputs), found)
    for i in range(len(found)):
        assert_same_bits(plan.run(*(x[i : i + 1] for x in inputs), positions=[i]), found[i : i + 1])


# Norms and elements


@pytest.mark.parametrize("width", [40, 64, 300])
@pytest.mark.parametrize("with_bias", [False, True])
def test_layer_norm(width: int, with_bias: bool) -> None:
    x, weight, bias = 3 + random(1, 7, width), random(2, width), random(3, width)
    a = x.astype(np.float64)
    normed = (a - a.mean(1, keepdims=True)) / np.sqrt(a.var(1, keepdims=True) + 1e-5)
    expected = normed * weight + (bias if with_bias else 0)

    def record(plan: Recorder, t: Tensor) -> Tensor:
        bias_given = vector(bias) if with_bias else None
        return plan.op("layer_norm", x=t, weight=vector(weight), bias=bias_given, eps=1e-5)

    checked(record, x, expected=expected)


@pytest.mark.parametrize("mean", [0, 1])
def test_l2_norm_of_each_head(mean: int) -> None:
    x = random(4, 5, 96)
    a = x.astype(np.float64).reshape(5, 4, 24)
    length = (a * a).mean(2, keepdims=True) if mean else (a * a).sum(2, keepdims=True)
    expected = (a / np.sqrt(length + 1e-6)).reshape(5, 96)
    checked(lambda plan, t: plan.op("l2_norm", x=t, size=24, mean=mean, eps=1e-6), x, expected=expected)


@pytest.mark.parametrize("tanh", [0, 1])
@pytest.mark.parametrize("width", [40, 700])
def test_gelu(tanh: int, width: int) -> None:
    x = 3 * random(5, 6, width)
    a = x.astype(np.float64)
    if tanh:
        expected = 0.5 * a * (1 + np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
    else:
        expected = 0.5 * a * (1 + np.vectorize(math.erf)(a / math.sqrt(2)))
    checked(lambda plan, t: plan.op("gelu", x=t, tanh=tanh), x, expected=expected)


def test_rows_of_positions_and_rotation_by_them() -> None:
    x, angles = random(17, 6, 48), random(18, 4096, 4)  # positions of a plan
    table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)

    def record(plan: Recorder, t: Tensor) -> Tensor:
        turned = plan.op("copy", x=t)
        plan.op(
            "rope",
            x=turned,
            rope=plan.op("position_rows", table=vector(table.reshape(-1)), width=8),
            n_heads=3,
        )
        return turned

    pairs = x.astype(np.float64).reshape(6, 3, 16)[..., :8].reshape(6, 3, 4, 2)
    c, s = (part.astype(np.float64)[:6, None] for part in (table[:, :4], table[:, 4:]))
    expected = x.astype(np.float64).reshape(6, 3, 16).copy()
    turned = np.stack([pairs[..., 0] * c - pairs[..., 1] * s, pairs[..., 0] * s + pairs[..., 1] * c], axis=-1)
    expected[..., :8] = turned.reshape(6, 3, 8)
    checked(record, x, expected=expected.reshape(6, 48))


def test_sigmoid() -> None:
    x = 9 * random(16, 4, 300)
    checked(lambda plan, t: plan.op("sigmoid", x=t), x, expected=1 / (1 + np.exp(-x.astype(np.float64))))


def test_softmax() -> None:
    x = np.concatenate([9 * random(17, 5, 37), np.full((1, 37), 3e38, np.float32)])
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    checked(lambda plan, t: plan.op("softmax", x=t), x, expected=e / e.sum(1, keepdims=True))


def test_scales() -> None:
    x = random(6, 9, 48)
    checked(
        lambda plan, t: plan.op("scale", x=t, factor=-0.37),
        x,
        expected=x.astype(np.float64) * np.float32(-0.37),
    )
    factors = 1 + 0.1 * np.log(np.floor((np.arange(9) + 1) / 4) + 1)
    checked(
        lambda plan, t: plan.op("scale_by_position", x=t, span=4.0, slope=0.1),
        x,
        expected=x.astype(np.float64) * factors[:, None],
    )


@pytest.mark.parametrize("op", ["layer_norm", "gelu"])
def test_ops_leave_the_8_bit_copy_that_a_product_reads(op: str) -> None:
    """As if it were made from their output by an op of its own."""
    x, weights = random(7, 40, 288), matrix(random(8, 48, 288), TensorType.Q8_0)
    fields = {"weight": vector(random(9, 288)), "eps": 1e-5} if op == "layer_norm" else {"tanh": 1}

    def fused(plan: Recorder, t: Tensor) -> Tensor:
        return plan.linear(plan.op(op, x=t, **fields), weights)

    def apart(plan: Recorder, t: Tensor) -> Tensor:
        return plan.linear(plan.op("scale", x=plan.op(op, x=t, **fields), factor=1.0), weights)

    one, two = Plan(fused, [288]), Plan(apart, [288])
    assert "quantize" not in one.compiled.names and "quantize" in two.compiled.names
    assert_same_bits(one.run(x), two.run(x))


# Rows in another order, and products of segments


def experts(kind: TensorType, n_experts: int, k: int, dim: int, rows: int) -> tuple[Record, list[Floats]]:
    """y = sum over the k largest router logits of logit * expert(x), experts as segments."""
    weights = [random(20 + i, rows, dim) for i in range(n_experts)]
    matrices = [matrix(w, kind, f"expert{i}") for i, w in enumerate(weights)]

    def record(plan: Recorder, x: Tensor, router: Tensor) -> Tensor:
        ids = plan.ints(k, x)
        values = Tensor(x.recorder, k)
        plan.op("top_k", x=router, k=k, ids=ids, values=values)
        order, place, ends = plan.segments(ids, n_experts)
        y = plan.segment_linear(plan.gather_rows(x, order, k), ends, matrices)
        return plan.scatter_rows(y, place, factors=values)

    return record, weights


@pytest.mark.parametrize("k", [1, 3])
def test_experts_as_segments(k: int) -> None:
    n_experts, dim = 6, 64
    x, router = random(10, 50, dim), random(11, 50, n_experts)
    router[:, 2] = -9  # one that gets no rows
    router[7] = 1.0  # ties: the lower ids
    record, weights = experts(TensorType.F32, n_experts, k, dim, 40)
    expected = np.zeros((50, 40))
    for t in range(50):
        for e in np.argsort(-router[t], kind="stable")[:k]:
            expected[t] += router[t, e] * (weights[e].astype(np.float64) @ x[t])
    checked(record, x, router, expected=expected, tolerance=1e-4)


@pytest.mark.parametrize("kind", [TensorType.Q4_K, TensorType.Q8_0, TensorType.Q4_1])
@pytest.mark.parametrize("n_tokens", [1, 5, 300])
def test_segments_are_products_bit_for_bit(kind: TensorType, n_tokens: int) -> None:
    """Of each expert, as a plain product of all rows gives them, outliers (residual blocks) included."""
    n_experts, k, dim, rows = 4, 2, 512, 96
    x, router = random(12, n_tokens, dim), random(13, n_tokens, n_experts)
    x[:, ::37] *= 40
    record, weights = experts(kind, n_experts, k, dim, rows)
    plain = [Plan(lambda plan, t, w=w: plan.linear(t, matrix(w, kind)), [dim]).run(x) for w in weights]
    expected = np.zeros((n_tokens, rows), np.float32)
    for t in range(n_tokens):
        for e in np.argsort(-router[t], kind="stable")[:k]:
            expected[t] += plain[e][t] * router[t, e]
    for n_threads in (1, 3):
        assert_same_bits(Plan(record, [dim, n_experts], n_threads=n_threads).run(x, router), expected)


def test_scaled_inputs_and_rows_of_no_segment() -> None:
    """Factors on the way in, and ids beyond the segments, whose rows keep the residual's bits."""
    x, router = random(14, 20, 32), random(15, 20, 5)
    weights = [random(30 + i, 32, 32) for i in range(3)]
    matrices = [matrix(w) for w in weights]

    def record(plan: Recorder, t: Tensor, r: Tensor) -> Tensor:
        ids, values = plan.ints(1, t), Tensor(t.recorder, 1)
        plan.op("top_k", x=r, k=1, ids=ids, values=values)
        order, place, ends = plan.segments(ids, 3)  # ids 3 and 4 are none of them
        y = plan.segment_linear(plan.gather_rows(t, order, 1, factors=values), ends, matrices)
        return plan.scatter_rows(y, place, residual=t)

    best = router.argmax(1)
    assert {3, 4} & set(best.tolist()) and set(best.tolist()) & {0, 1, 2}
    expected = x.astype(np.float64)
    for t, e in enumerate(best):
        if e < 3:
            expected[t] += weights[e].astype(np.float64) @ (x[t] * router[t, e])
    checked(record, x, router, expected=expected, tolerance=1e-5)
    found = Plan(record, [32, 5]).run(x, router)
    assert_same_bits(found[best >= 3], x[best >= 3])


def outputs_of(x: Floats, rows: Sequence[int]) -> Floats:
    return Plan(lambda plan, t: plan.op("scale", x=t, factor=1.0), [x.shape[1]]).run(x, outputs=rows)


def test_outputs_come_in_any_order() -> None:
    x = random(90, 6, 32)
    assert_same_bits(outputs_of(x, [4, 0, 5]), x[[4, 0, 5]])


# Columns and whole rows


def test_columns_taken_apart_and_put_together() -> None:
    a, b, c = random(1, 6, 20), random(2, 6, 20), random(3, 6, 7)
    checked(lambda plan, x: plan.op("columns", x=x, first=3, width=11), a, expected=a[:, 3:14])
    side_by_side = np.concatenate([a, c, b], axis=1)
    checked(
        lambda plan, x, y, z: plan.op("concatenate", x=[x, z, y], width=47), a, b, c, expected=side_by_side
    )
    mixed = np.stack([a, b], axis=2).reshape(6, 40)
    checked(lambda plan, x, y: plan.op("interleave", x=[x, y], width=40), a, b, expected=mixed)


def test_rows_scaled_by_a_factor_each() -> None:
    x, factors = random(1, 6, 20), random(2, 6, 1)
    checked(lambda plan, a, f: plan.op("scale_rows", x=a, factors=f), x, factors, expected=x * factors)


def test_rows_of_sequences_without_keys_become_zero() -> None:
    space = KVSpace("images", 1, 1, 16, 16, "image")
    plan = Plan(lambda plan, x: plan.op("mask_rows", x=x, space=0), [20], spaces=[space])
    x = random(1, 5, 20)
    positions, sequences = [0, 1, 7, 8, 9], [0, 0, 1, 1, 1]
    found = plan.run(x, positions=positions, sequences=sequences, lengths={0: [3, 0]})
    assert_same_bits(found, np.concatenate([x[:2], np.zeros((3, 20), np.float32)]))


@pytest.mark.parametrize("kind", [TensorType.F16, TensorType.Q8_0, TensorType.Q4_K])
def test_products_in_16_bits(kind: TensorType) -> None:
    """Near those in float32 of the same weights; the same bits for each row alone and on other threads."""
    x, values = random(70, 201, 768), random(71, 328, 768)
    weights = matrix(values, kind, int16=True)
    assert not weights.quantized and weights.n_bytes == 21 * 768 // 32 * (64 + 1024)
    raw = np.frombuffer(quantize(values, kind).tobytes(), np.uint8)
    expected = x.astype(np.float64) @ dequantize(raw, kind, values.shape).astype(np.float64).T
    found = Plan(lambda plan, t: plan.linear(t, weights), [768]).run(x)
    assert np.abs(found - expected).max() < 2e-4 * np.abs(expected).max()
    for n_threads in (1, 3):
        plan = Plan(lambda plan, t: plan.linear(t, weights), [768], n_threads=n_threads)
        assert_same_bits(plan.run(x[:70]), found[:70])
        assert_same_bits(plan.run(x[9:10]), found[9:10])


def test_types_of_files_are_not_those_of_panels() -> None:
    """A file that names such a number has a type that is not known."""
    assert lib.pl_panel_bytes(lib.PL_INT16_WEIGHTS + TensorType.F16, 48) == 0
    assert lib.pl_panel_bytes(lib.PL_INT16_WEIGHTS + TensorType.F16, 64) == 2 * (64 + 1024)
    assert lib.pl_type_block_bytes(lib.PL_INT16_WEIGHTS + TensorType.F16) < 0
