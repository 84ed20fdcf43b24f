"""What queries and keys of a model are like, by which keys of 4 bits are rounded (csrc/exec/kv_rounding.c).

Once, when a model is opened with such a cache, a few dozen tokens are read in a cache of their own that also
keeps queries and keys as they are before rope turns them. Moments of the queries and means of the keys are
then averaged over the positions that a text may have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.batch import Batch, Entry
from pyllamacpu.engine.pages import PAGE, KVCache
from pyllamacpu.engine.pages import Sequence as KVSequence
from pyllamacpu.graph.native_plan import NativePlan
from pyllamacpu.graph.ops import Op, Tensor
from pyllamacpu.graph.recorder import Recorder
from pyllamacpu.model.kv_space import KVSpace
from pyllamacpu.model.registry import Model
from pyllamacpu.native import check, ffi, lib

Floats = npt.NDArray[np.floating[Any]]
Complexes = npt.NDArray[np.complex128]

N_TOKENS = 2 * PAGE
_GOLDEN = 0.6180339887498949  # multiples of it, less whole numbers, are spread evenly and without a pattern
_FIRST_POSITION, _N_POSITIONS = 16, 256  # of those that moments are averaged over


def learn_rounding(cache: KVCache, model: Model, pool: Any, exact: bool) -> None:
    """Gives a cache with 4-bit keys what they are rounded by: the same for the same model, build and CPU
    tier. Does nothing for caches of other types.
    """
    if not cache.rounding_bytes:
        return
    observer = _Observer([cache.spaces[i] for i in cache.token_spaces])
    (model.record_without_images or model.record)(observer)
    seen = KVCache(observer.spaces, "f16", "f16")
    plan = NativePlan(observer.compile(), pool, seen.handles, N_TOKENS, N_TOKENS, exact)
    sequence = KVSequence(seen)
    try:
        n_vocab = model.config.n_tokens or model.weights.table("token_embd.weight").rows
        tokens = [int(i * _GOLDEN % 1 * n_vocab) for i in range(1, N_TOKENS + 1)]
        batch = Batch([Entry(sequence, tokens, "none")], n_vocab, model.config.dim, N_TOKENS, N_TOKENS)
        plan.run(batch.native, False)
        cache.rounding = _shape_all(cache, observer, sequence, model.config.n_ctx_train)
    finally:
        sequence.close()
        plan.release()
        plan.plan.release()


class _Observer(Recorder):
    """Notes a model's layers so that queries and keys are also kept as they are before rope turns them."""

    def __init__(self, spaces: Sequence[KVSpace]) -> None:
        super().__init__(spaces)
        self.ropes: dict[tuple[KVSpace, int], Op | None] = {}  # by space and layer: what makes its table

    def rope_store(
        self, q: Tensor, k: Tensor, v: Tensor, rope: Tensor | None, space: KVSpace, *, layer: int
    ) -> Tensor:
        for x, what in ((q, "queries"), (k, "keys")):
            kept = observed(space, what, x.width // space.k_dim)
            if kept not in self.spaces:
                self.spaces += (kept,)
            self.store(x, x, kept, layer=layer)
        made = [op for op in self.ops if rope in op.writes]
        self.ropes[space, layer] = made[0] if made else None
        return super().rope_store(q, k, v, rope, space, layer=layer)


def observed(space: KVSpace, what: str, n_heads: int) -> KVSpace:
    """Where an observer keeps the queries or keys of a space."""
    return KVSpace(f"{what} of {space.name}", space.n_layers, n_heads, space.k_dim, space.k_dim)


def _shape_all(cache: KVCache, observer: _Observer, sequence: KVSequence, n_ctx: int) -> bytes:
    """Gives the cache the statistics of every head; returns a digest of them."""
    digest = hashlib.sha256()
    kept = {space.name: i for i, space in enumerate(observer.spaces)}
    averages: dict[tuple[int, Op | None], Turns] = {}
    for (space, layer), rope in observer.ropes.items():
        if (space.k_dim, rope) not in averages:
            averages[space.k_dim, rope] = Turns.below(n_ctx, space.k_dim, rope)
        q, k = (_rows(sequence, kept[f"{what} of {space.name}"], layer) for what in ("queries", "keys"))
        moments, means = key_statistics(q, k, averages[space.k_dim, rope])
        handle = cache.handles[cache.spaces.index(space)]
        for head, (moment, mean) in enumerate(zip(moments, means, strict=True)):
            statistics = [np.ascontiguousarray(x, np.float32) for x in (moment, mean)]
            pointers = (ffi.from_buffer("float *", x) for x in statistics)
            code = lib.pl_cache_shape_keys(handle, layer, head, *pointers)
            if code != lib.PL_EUNSUPPORTED:  # nothing is known of a head without queries
                check(code, "the rounding of keys")
                digest.update(b"".join(x.tobytes() for x in statistics))
    return digest.digest()


def _rows(sequence: KVSequence, space: int, layer: int) -> Floats:
    """(heads, tokens, dim): what an observer kept, without the first token, which is unlike all others."""
    cache, shape = sequence.cache, sequence.cache.spaces[space]
    pages = []
    for page in sequence.page_addresses(space):
        tiles = np.frombuffer(cache.bytes_of(page, space), np.float16)
        tiles = tiles.reshape(shape.n_layers, shape.kv_heads, 2, -1, PAGE)[layer, :, 0]
        pages.append(tiles[:, : shape.k_dim])
    rows: Floats = np.concatenate(pages, axis=2).transpose(0, 2, 1)[:, 1:].astype(np.float64)
    return rows


@dataclass(frozen=True, eq=False)
class Turns:
    """What rope makes of pairs of dims on average: e^(i f p) over positions p, of each pair's frequency f
    (times the rope's magnitude), and of sums and differences of any two.
    """

    each: Complexes
    sums: Complexes
    differences: Complexes

    @classmethod
    def below(cls, n_ctx: int, dim: int, rope: Op | None) -> Turns:
        """Over positions below n_ctx, as many in each octave. rope: the op that makes its table."""
        frequencies, magnitudes = np.zeros(dim // 2), np.ones(dim // 2)
        if rope is not None:
            vector = rope.values["frequencies"]
            frequencies[: vector.size] = vector.values[: vector.size]
            magnitudes[: vector.size] = rope.values["magnitude"]
        positions = np.geomspace(min(_FIRST_POSITION, n_ctx), n_ctx, _N_POSITIONS)

        def average(radians: Floats) -> Complexes:
            total = np.zeros(radians.shape, np.complex128)
            for position in positions:
                total += np.exp(1j * position * radians)
            return total / len(positions)

        sums, differences = (average(frequencies[:, None] + s * frequencies) for s in (1, -1))
        pairs = magnitudes[:, None] * magnitudes
        return cls(magnitudes * average(frequencies), pairs * sums, pairs * differences)


def key_statistics(q: Floats, k: Floats, turns: Turns) -> tuple[Floats, Floats]:
    """q (heads, tokens, dim) and k (kv_heads, tokens, dim) before rope -> what they are with it, on average
    over positions: moments of queries (kv_heads, dim, dim), and means of keys (kv_heads, dim).
    """
    kv_heads, _, dim = k.shape
    rows = q.reshape(kv_heads, -1, dim)
    moments = rows.transpose(0, 2, 1) @ rows / rows.shape[1]
    # In whole numbers of a unit: in which order a library sums products must not show in names of pages.
    exponents = np.frexp(np.trace(moments, axis1=1, axis2=2))[1][:, None, None]
    moments = np.ldexp(np.rint(np.ldexp(moments, 24 - exponents)), exponents - 24)
    # A pair is a complex number z: E z z'* turns by the difference of frequencies, E z z' by the sum.
    s = moments.reshape(kv_heads, dim // 2, 2, dim // 2, 2)
    ee, eo, oe, oo = s[:, :, 0, :, 0], s[:, :, 0, :, 1], s[:, :, 1, :, 0], s[:, :, 1, :, 1]
    a = (ee + oo + 1j * (oe - eo)) * turns.differences
    b = (ee - oo + 1j * (oe + eo)) * turns.sums
    turned = np.empty_like(s)
    turned[:, :, 0, :, 0], turned[:, :, 1, :, 1] = (a + b).real / 2, (a - b).real / 2
    turned[:, :, 1, :, 0], turned[:, :, 0, :, 1] = (a + b).imag / 2, (b - a).imag / 2
    mean = k.mean(1).reshape(kv_heads, dim // 2, 2)
    z = (mean[..., 0] + 1j * mean[..., 1]) * turns.each
    return turned.reshape(moments.shape), np.stack([z.real, z.imag], -1).reshape(kv_heads, dim)
