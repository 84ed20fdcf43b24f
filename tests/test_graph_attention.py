"""Attention of all kinds, against numpy: over pages and other spaces, and among the tokens of a batch.

Covers csrc/exec/attention.c, self_attention.c, disentangled_attention.c, tile_attention.c. Each
is also run on other threads, and most with the tokens in other batches: the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from plan_harness import Doubles, Floats, Plan, Record, assert_same_bits, matrix, random, vector

from pyllamacpu.gguf.types import TensorType
from pyllamacpu.graph.ops import Tensor
from pyllamacpu.graph.recorder import Recorder
from pyllamacpu.model.kv_space import KVSpace


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


def over_pages(space: KVSpace, **kind: Any) -> Record:
    def record(plan: Recorder, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = plan.rope_store(q, k, v, None, space, layer=1)
        return plan.attention(q, space, layer=1, scale=0.25, **kind)

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
def test_causal_attention_and_its_cuts(kind: dict[str, int], first: Callable[[int], int]) -> None:
    n = 1300
    q, k, v = qkv(40, n)
    keys = np.arange(n)
    seen = (keys <= keys[:, None]) & (keys >= np.array([first(p) for p in range(n)])[:, None])
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
    q_heads, k_heads, v_heads = (x.astype(np.float64).reshape(n, -1, dim) for x in (q, k, v))
    seen = np.tri(n, dtype=np.bool_)
    exact = attention(q_heads, k_heads, v_heads, seen, 0.25)
    plain = attention(q_heads, rounded(k).reshape(n, -1, dim), rounded(v).reshape(n, -1, dim), seen, 0.25)
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


@pytest.mark.parametrize(("int16", "wanted"), [(False, False), (True, False), (False, True), (True, True)])
def test_disentangled_attention(int16: bool, wanted: bool) -> None:
    """Sequences of several lengths in one batch, and each alone; heads that are no whole registers."""
    lengths, heads, dim, v_dim, n_positions = (1, 130, 60, 64), 3, 32 if int16 else 10, 6, 14
    random_of = np.random.default_rng(4).standard_normal
    q, k = (random_of((sum(lengths), heads * dim)).astype(np.float32) for _ in range(2))
    v = random_of((sum(lengths), heads * v_dim)).astype(np.float32)
    table = random_of((2 * heads, n_positions, dim)).astype(np.float32)
    buckets = np.random.default_rng(5).integers(0, n_positions, 2 * 256 - 1).astype(np.float32)
    sequences = np.repeat(range(4), lengths)
    places = np.concatenate([np.arange(n) for n in lengths]).tolist()

    def record(plan: Recorder, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        fields = {"n_heads": heads, "n_positions": n_positions, "scale": 0.2, "buckets": vector(buckets)}
        fields["wanted"] = int(wanted)
        positions = [matrix(part, int16=int16) for part in table]
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
            tolerance = {"rtol": 2e-3, "atol": 2e-3} if int16 else {"rtol": 1e-4, "atol": 2e-5}
            np.testing.assert_allclose(found[rows], expected, **tolerance)
            assert_same_bits(plan.run(q[rows], k[rows], v[rows]), found[rows])


def test_near_distances_have_buckets_of_their_own() -> None:
    """As DeBERTa's do: long runs of buckets that follow each other, then some that distances share."""
    n, heads, dim, n_positions = 300, 2, 16, 128
    distances = np.arange(-400, 401)
    buckets = np.where(np.abs(distances) < 40, distances, np.sign(distances) * (40 + np.abs(distances) // 40))
    buckets = (buckets + n_positions // 2).astype(np.float32)
    q, k, v = (random(90 + i, n, heads * dim) for i in range(3))
    table = np.stack([random(95 + i, n_positions, dim) for i in range(2 * heads)])

    def record(plan: Recorder, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        fields = {"n_heads": heads, "n_positions": n_positions, "scale": 0.3, "buckets": vector(buckets)}
        fields["wanted"] = 0
        positions = [matrix(part) for part in table]
        return plan.op(
            "disentangled_attention", q=a, k=b, v=c, positions=positions, width=heads * dim, **fields
        )

    found = Plan(record, [heads * dim] * 3, n_ctx=400).run(q, k, v)
    expected = disentangled(*(x.reshape(n, heads, dim) for x in (q, k, v)), table, buckets, 0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


def tiles_reference(qkv: list[Floats], n_heads: int, n_tiles: int, tile_rows: int, tokens: int) -> Doubles:
    """Meta's mask: pairs of padding and padding do not see each other; all rows are computed."""
    n = len(qkv[0])
    q, k, v = (x.astype(np.float64).reshape(n, n_heads, -1).transpose(1, 0, 2) for x in qkv)
    padding = (np.arange(n) // tile_rows >= n_tiles) | (np.arange(n) % tile_rows >= tokens)
    scores = np.where(padding[:, None] & padding[None], -np.inf, 0.3 * q @ k.transpose(0, 2, 1))
    weights = np.exp(scores - scores.max(2, keepdims=True))
    out = weights @ v / weights.sum(2, keepdims=True)
    return out.transpose(1, 0, 2).reshape(n, -1)


@pytest.mark.parametrize(
    ("n_tiles", "tokens", "n_heads"), [(1, 203, 2), (2, 203, 2), (3, 203, 2), (2, 801, 1)]
)
def test_attention_among_tiles_with_and_without_equal_padding(
    n_tiles: int, tokens: int, n_heads: int
) -> None:
    """The last are more queries than one work item has."""
    padding, most, dim = 5, 3, 12
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
            rows = {"n_threads": n_threads, "max_tokens": 2560}
            plan = Plan(lambda p, *x, f=fields: record(p, *x, f), [n_heads * dim] * 3, **rows)
            found.append(plan.run(*inputs))
        np.testing.assert_allclose(found[0], wanted, rtol=2e-5, atol=2e-6)
        assert_same_bits(*found)
