"""Ops that a dense Llama does not use, against numpy (csrc/exec/ops_*.c, attention.c, self_attention.c).

Each is also run on other threads and with other rows beside: the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from plan_harness import Floats, Plan, Record, matrix, vector

from pyllamacpu.gguf.types import TensorType
from pyllamacpu.graph.ops import Tensor
from pyllamacpu.graph.recorder import Recorder
from pyllamacpu.model.kv_space import KVSpace

Doubles = npt.NDArray[np.float64]


def random(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_same_bits(a: Floats, b: Floats) -> None:
    assert a.shape == b.shape
    assert np.array_equal(a.view(np.uint32), b.view(np.uint32))


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


# Attention


def attention(q: Doubles, k: Doubles, v: Doubles, seen: npt.NDArray[np.bool_], scale: float) -> Doubles:
    """q (n, heads, d), k (m, kv, d), v (m, kv, e), seen (n, m) -> (n, heads * e)."""
    heads, groups = q.shape[1], q.shape[1] // k.shape[1]
    out = np.zeros((len(q), heads, v.shape[2]))
    for h in range(heads):
        scores = np.where(seen, scale * q[:, h] @ k[:, h // groups].T, -np.inf)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        out[:, h] = weights / weights.sum(1, keepdims=True) @ v[:, h // groups]
    return out.reshape(len(q), -1)


HEADS, KV, K_DIM, V_DIM = 4, 2, 16, 24
WIDTHS = (HEADS * K_DIM, KV * K_DIM, KV * V_DIM)


def qkv(seed: int, n: int) -> tuple[Floats, Floats, Floats]:
    q, k, v = (random(seed + i, n, width) for i, width in enumerate(WIDTHS))
    return q, k, v


def headed(q: Floats, k: Floats, v: Floats) -> tuple[Doubles, Doubles, Doubles]:
    n, m = len(q), len(k)
    return (
        q.astype(np.float64).reshape(n, HEADS, K_DIM),
        k.astype(np.float64).reshape(m, KV, K_DIM),
        v.astype(np.float64).reshape(m, KV, V_DIM),
    )


def over_pages(space: KVSpace, **kind: int | bool) -> Record:
    def record(plan: Recorder, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = plan.rope_store(q, k, v, None, space, layer=1)
        return plan.attention(q, space, layer=1, scale=0.25, **kind)  # type: ignore[arg-type]

    return record


SPACE = KVSpace("a", 2, KV, K_DIM, V_DIM)


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ({}, lambda p: 0),
        ({"window": 50}, lambda p: max(0, p - 49)),
        ({"chunk": 64}, lambda p: p - p % 64),
        ({"chunk": 600, "window": 1000}, lambda p: max(p - p % 600, p - 999)),
    ],
    ids=["all", "window", "chunk", "both"],
)
def test_causal_attention_and_its_cuts(kind: dict[str, int], first: object) -> None:
    n = 1300
    q, k, v = qkv(40, n)
    keys = np.arange(n)
    seen = (keys <= keys[:, None]) & (keys >= np.array([first(p) for p in range(n)])[:, None])  # type: ignore[operator]
    expected = attention(*headed(q, k, v), seen, 0.25)
    whole = Plan(over_pages(SPACE, **kind), WIDTHS, spaces=[SPACE], max_tokens=n).run(q, k, v)
    np.testing.assert_allclose(whole, expected, rtol=1e-4, atol=2e-5)
    for step, n_threads in ((97, 3), (1000, 1)):
        plan = Plan(over_pages(SPACE, **kind), WIDTHS, spaces=[SPACE], n_threads=n_threads)
        cut = [slice(i, min(i + step, n)) for i in range(0, n - 3, step)]
        cut[-1] = slice(cut[-1].start, n - 2)
        cut += [slice(n - 2, n - 1), slice(n - 1, n)]  # single tokens: splits side by side
        parts = [plan.run(q[s], k[s], v[s], positions=range(s.start, s.stop)) for s in cut]
        assert_same_bits(np.concatenate(parts), whole)


def rounded(x: Floats) -> Doubles:
    """Blocks of 32 as Q4_0 has them."""
    blocks = x.reshape(-1, 32)
    tops = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    codes = np.clip(np.floor(blocks / tops * -8 + 8.5), 0, 15) - 8
    return np.asarray(codes * tops / -8, np.float64).reshape(x.shape)


@pytest.mark.parametrize("dim", [64, 96])
def test_keys_with_outliers_keep_their_meaning_in_four_bits(dim: int) -> None:
    """One large element would take the precision of its block, so heads are turned before they are rounded:
    keys, values and queries alike.
    """
    space, n = KVSpace("a", 2, KV, dim, dim), 200
    q, k, v = random(70, n, HEADS * dim), random(71, n, KV * dim), random(72, n, KV * dim)
    k[:, ::dim] += 15
    v[:, 5::dim] -= 15
    heads = [x.astype(np.float64).reshape(n, -1, dim) for x in (q, k, v)]
    seen = np.tri(n, dtype=np.bool_)
    exact = attention(*heads, seen, 0.25)  # type: ignore[call-arg]
    plain = attention(heads[0], rounded(k).reshape(n, -1, dim), rounded(v).reshape(n, -1, dim), seen, 0.25)
    plan = Plan(over_pages(space), [x.shape[1] for x in (q, k, v)], spaces=[space], kv_type=TensorType.Q4_0)
    found = plan.run(q, k, v)
    assert np.abs(found - exact).mean() < 0.5 * np.abs(plain - exact).mean()


def test_attention_that_is_not_causal() -> None:
    """All of a sequence's tokens see each other, whatever other sequences do."""
    lengths = (70, 1, 520)
    q, k, v = qkv(50, sum(lengths))
    sequences = np.repeat([0, 1, 2], lengths)
    positions = np.concatenate([np.arange(n) for n in lengths])
    expected = attention(*headed(q, k, v), sequences == sequences[:, None], 0.25)
    for n_threads in (1, 3):
        plan = Plan(over_pages(SPACE, causal=False), WIDTHS, spaces=[SPACE], n_threads=n_threads)
        found = plan.run(q, k, v, positions=positions.tolist(), sequences=sequences.tolist())
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
        alone = Plan(over_pages(SPACE, causal=False), WIDTHS, spaces=[SPACE])
        rows = sequences == 2
        assert_same_bits(alone.run(q[rows], k[rows], v[rows]), found[rows])


def test_attention_over_another_space() -> None:
    """One plan fills a space of its own length; another one's tokens attend to it, or to nothing."""
    other = KVSpace("images", 3, KV, K_DIM, V_DIM, "image")
    n_keys, lengths = 600, [600, 0, 33]
    _, k, v = qkv(60, n_keys)

    def fill(plan: Recorder, q: Tensor, kk: Tensor, vv: Tensor) -> Tensor:
        return plan.rope_store(q, kk, vv, None, other, layer=2)

    def read(plan: Recorder, q: Tensor, kk: Tensor, vv: Tensor) -> Tensor:
        q = plan.rope_store(q, kk, vv, None, SPACE, layer=0)
        causal = plan.attention(q, SPACE, layer=0, scale=0.25)
        return causal + plan.attention(q, other, layer=2, scale=0.25, causal=False)

    writer = Plan(fill, WIDTHS, spaces=[other])
    reader = Plan(read, WIDTHS, spaces=[SPACE, other])
    reader.pages[1] = writer.pages[0]
    filled = (0, 0, 2)  # by which sequence of the reader's
    for s in (0, 2):
        n = lengths[s]
        tables = writer.pages[0].tables
        tables[0] = tables[s] if s in tables else np.zeros(256, np.uintp)
        writer.run(np.zeros((n, WIDTHS[0]), np.float32), k[:n], v[:n])
        tables[10 + s] = tables.pop(0)
    writer.pages[0].tables = {s: writer.pages[0].tables[10 + by] for s, by in enumerate(filled)}
    q, own_k, own_v = qkv(70, 9)
    sequences, positions = [0, 0, 0, 1, 2, 2, 2, 2, 2], [0, 1, 2, 0, 0, 1, 2, 3, 4]
    found = reader.run(q, own_k, own_v, positions=positions, sequences=sequences, lengths={1: lengths})
    s, p = np.array(sequences), np.array(positions)
    expected = attention(*headed(q, own_k, own_v), (s == s[:, None]) & (p <= p[:, None]), 0.25)
    for i, sequence in enumerate(sequences):
        n = lengths[sequence]
        if n:
            expected[i] += attention(*headed(q[i : i + 1], k[:n], v[:n]), np.ones((1, n), bool), 0.25)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


def test_self_attention_needs_no_cache() -> None:
    """Encoders: sequences of several lengths in one batch, and each alone."""
    lengths = (1, 600, 33, 64)
    q, k, v = qkv(80, sum(lengths))
    sequences = np.repeat(range(4), lengths)
    positions = np.concatenate([np.arange(n) for n in lengths]).tolist()
    expected = attention(*headed(q, k, v), sequences == sequences[:, None], 0.25)

    def record(plan: Recorder, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        fields = {"n_heads": HEADS, "kv_heads": KV, "scale": 0.25}
        return plan.op("self_attention", q=a, k=b, v=c, width=HEADS * V_DIM, **fields)

    whole = None
    for n_threads in (1, 3):
        plan = Plan(record, WIDTHS, n_threads=n_threads)
        found = plan.run(q, k, v, positions=positions, sequences=sequences.tolist())
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)
        whole = found if whole is None else whole
        assert_same_bits(found, whole)
        for s in range(4):
            rows = sequences == s
            assert_same_bits(plan.run(q[rows], k[rows], v[rows]), found[rows])


def disentangled(q: Floats, k: Floats, v: Floats, positions: Floats, buckets: Floats, scale: float) -> Floats:
    """One sequence: (n, heads, dim) each; positions (2 * heads, n_positions, dim): keys, then queries."""
    n, heads, _ = q.shape
    distance = buckets.astype(int)[np.arange(n)[:, None] - np.arange(n) + len(buckets) // 2]
    out = np.empty_like(v)
    for h in range(heads):
        to_key, to_query = positions[h][distance], positions[heads + h][distance]  # (n, n, dim)
        scores = q[:, h] @ k[:, h].T + np.einsum("id,ijd->ij", q[:, h], to_key)
        scores = (scores + np.einsum("jd,ijd->ij", k[:, h], to_query)) * scale
        weights = np.exp(scores - scores.max(1, keepdims=True))
        out[:, h] = weights / weights.sum(1, keepdims=True) @ v[:, h]
    return out.reshape(n, -1)


def test_disentangled_attention() -> None:
    """Sequences of several lengths in one batch, and each alone; heads that are no whole registers."""
    lengths, heads, dim, v_dim, n_positions = (1, 130, 60, 64), 3, 10, 6, 14
    random_of = np.random.default_rng(4).standard_normal
    q, k = (random_of((sum(lengths), heads * dim)).astype(np.float32) for _ in range(2))
    v = random_of((sum(lengths), heads * v_dim)).astype(np.float32)
    table = random_of((2 * heads, n_positions, dim)).astype(np.float32)
    buckets = np.random.default_rng(5).integers(0, n_positions, 2 * 256 - 1).astype(np.float32)
    sequences = np.repeat(range(4), lengths)
    places = np.concatenate([np.arange(n) for n in lengths]).tolist()

    def record(plan: Recorder, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        fields = {"n_heads": heads, "n_positions": n_positions, "scale": 0.2, "buckets": vector(buckets)}
        positions = [matrix(part) for part in table]
        return plan.op(
            "disentangled_attention", q=a, k=b, v=c, positions=positions, width=heads * v_dim, **fields
        )

    whole = None
    for n_threads in (1, 3):
        plan = Plan(record, (heads * dim, heads * dim, heads * v_dim), n_threads=n_threads, n_ctx=256)
        found = plan.run(q, k, v, positions=places, sequences=sequences.tolist())
        whole = found if whole is None else whole
        assert_same_bits(found, whole)
        for s in range(4):
            rows = sequences == s
            parts = [x[rows].reshape(rows.sum(), heads, -1) for x in (q, k, v)]
            expected = disentangled(*parts, table, buckets, 0.2)
            np.testing.assert_allclose(found[rows], expected, rtol=1e-4, atol=2e-5)
            assert_same_bits(plan.run(q[rows], k[rows], v[rows]), found[rows])


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


# Attention among tiles


def tiles_reference(qkv: list[Floats], n_heads: int, n_tiles: int, tile_rows: int, tokens: int) -> Doubles:
    """Meta's mask: pairs of padding and padding do not see each other; all rows are computed."""
    n = len(qkv[0])
    q, k, v = (x.astype(np.float64).reshape(n, n_heads, -1).transpose(1, 0, 2) for x in qkv)
    padding = (np.arange(n) // tile_rows >= n_tiles) | (np.arange(n) % tile_rows >= tokens)
    scores = np.where(padding[:, None] & padding[None], -np.inf, 0.3 * q @ k.transpose(0, 2, 1))
    weights = np.exp(scores - scores.max(2, keepdims=True))
    out = weights @ v / weights.sum(2, keepdims=True)
    return out.transpose(1, 0, 2).reshape(n, -1)


@pytest.mark.parametrize("n_tiles", [1, 2, 3])
def test_attention_among_tiles_with_and_without_equal_padding(n_tiles: int) -> None:
    tokens, padding, most, n_heads, dim = 203, 5, 3, 2, 12
    x = [random(i, most, tokens + padding, n_heads * dim) for i in range(3)]
    for rows in x:
        rows[:, tokens:] = rows[0, tokens]  # padding is equal
        rows[n_tiles:] = rows[-1]
    whole = [rows.reshape(-1, n_heads * dim) for rows in x]
    expected = tiles_reference(whole, n_heads, n_tiles, tokens + padding, tokens)
    shown = n_tiles + (n_tiles < most)
    few = [rows[:shown, : tokens + 1].reshape(-1, n_heads * dim) for rows in x]
    same = expected.reshape(most, tokens + padding, -1)[:shown, : tokens + 1].reshape(len(few[0]), -1)
    kinds = ((whole, tokens + padding, 1, 1, expected), (few, tokens + 1, padding, most - n_tiles or 1, same))
    for inputs, tile_rows, padding_weight, tile_weight, wanted in kinds:

        def record(plan: Recorder, q: Tensor, k: Tensor, v: Tensor, fields: dict[str, int]) -> Tensor:
            heads = {"n_heads": n_heads, "kv_heads": n_heads, "scale": 0.3}
            return plan.op("tile_attention", q=q, k=k, v=v, **heads, **fields)

        fields = {"n_tiles": n_tiles, "tile_rows": tile_rows, "tile_tokens": tokens}
        fields |= {"padding_weight": padding_weight, "tile_weight": tile_weight}
        found = []
        for n_threads in (1, 3):
            plan = Plan(lambda p, *x, f=fields: record(p, *x, f), [n_heads * dim] * 3, n_threads=n_threads)
            found.append(plan.run(*inputs))
        np.testing.assert_allclose(found[0], wanted, rtol=2e-5, atol=2e-6)
        assert_same_bits(*found)
