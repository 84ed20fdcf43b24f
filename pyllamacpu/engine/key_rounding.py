"""What queries and keys of a model are like, by which keys of 4 bits are rounded (csrc/exec/kv_rounding.c).

Once, when a model is opened with such a cache, a text of this package (key_rounding.txt) is read in a cache
of its own that also keeps queries and keys as they are before rope turns them. Moments of the queries and
means of the keys are then averaged over the positions that a text may have. Beside it, a few tokens are read
that stand alone, for the key at position 0: most queries attend to it, and it is much the same whatever
stands there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.batch import Batch, Entry
from pyllamacpu.engine.pages import PAGE, KVCache
from pyllamacpu.engine.pages import Sequence as KVSequence
from pyllamacpu.errors import OptionError, TokenizerError
from pyllamacpu.graph.native_plan import NativePlan
from pyllamacpu.graph.ops import Op, Tensor
from pyllamacpu.graph.recorder import Recorder
from pyllamacpu.model.kv_space import KVSpace
from pyllamacpu.model.registry import Model
from pyllamacpu.native import check, ffi, lib
from pyllamacpu.text.load import load_tokenizer

Floats = npt.NDArray[np.floating[Any]]
Complexes = npt.NDArray[np.complex128]

N_TOKENS = 8 * PAGE  # of the text
_N_FIRST = 9  # tokens that stand alone, where a model does not always begin with the same
_TEXT = Path(__file__).with_suffix(".txt")
_SHIFTED = 0.5  # of the mean of values: all of it leaves more of an error where there are few directions
_LEAST_SPREAD = 1e-3  # of a pair, to the mean of all
_GOLDEN = 0.6180339887498949  # multiples of it, less whole numbers, are spread evenly and without a pattern
_FIRST_POSITION, _LAST_POSITION, _N_POSITIONS = 16, 2048, 256  # of those that moments are averaged over


def learn_rounding(cache: KVCache, model: Model, metadata: Mapping[str, Any], pool: Any, exact: bool) -> None:
    """Gives a cache of 4-bit keys or values what they are rounded by: the same for the same model, build and
    CPU tier. Does nothing for caches of other types. metadata: the file's, for its tokenizer.
    """
    if not cache.rounding_bytes:
        return
    observer = _Observer([cache.spaces[i] for i in cache.token_spaces])
    (model.record_without_images or model.record)(observer)
    n_vocab = model.config.n_tokens or model.weights.table("token_embd.weight").rows
    texts = _token_lists(metadata, n_vocab, min(N_TOKENS, model.config.n_ctx_train))
    n_tokens = sum(map(len, texts))
    seen = KVCache(observer.spaces, "f16", "f16")
    plan = NativePlan(observer.compile(), pool, seen.handles, n_tokens, len(texts[0]), exact)
    sequences = [KVSequence(seen) for _ in texts]
    try:
        entries = [Entry(*of, "none") for of in zip(sequences, texts, strict=True)]
        batch = Batch(entries, n_vocab, model.config.dim, n_tokens, len(texts[0]))
        plan.run(batch.native, False)
        for entry in entries:
            entry.sequence.tokens.extend(entry.tokens)
        cache.rounding = _shape_all(cache, observer, sequences, model.config.n_ctx_train)
    finally:
        for sequence in sequences:
            sequence.close()
        plan.release()
        plan.plan.release()


def _token_lists(metadata: Mapping[str, Any], n_vocab: int, n_tokens: int) -> list[list[int]]:
    """The text, as a model reads it, then what may stand first, each alone. Where there is no tokenizer, or
    none that is of use, ids spread over the vocabulary take the text's place.
    """
    spread = [int(i * _GOLDEN % 1 * n_vocab) for i in range(1, n_tokens + 1)]
    first = spread[:_N_FIRST]
    try:
        tokenizer = load_tokenizer(metadata)
        ids = [] if tokenizer is None else tokenizer.encode(_TEXT.read_bytes(), add_special=True)
        if ids and tokenizer is not None and tokenizer.add_bos and ids[0] < n_vocab:
            first = ids[:1]
    except (TokenizerError, OptionError):  # whoever reads texts with it will say so
        ids = []
    text = [token for token in ids if token < n_vocab][:n_tokens]
    return [text + spread[len(text) :], *([token] for token in first)]


class _Observer(Recorder):
    """Notes a model's layers so that queries and keys are also kept as they are before rope turns them."""

    def __init__(self, spaces: Sequence[KVSpace]) -> None:
        super().__init__(spaces)
        self.ropes: dict[tuple[KVSpace, int], Op | None] = {}  # by space and layer: what makes its table

    def rope_store(
        self, q: Tensor, k: Tensor, v: Tensor, rope: Tensor | None, space: KVSpace, *, layer: int
    ) -> Tensor:
        for x, what, dim in (
            (q, "queries", space.k_dim),
            (k, "keys", space.k_dim),
            (v, "values", space.v_dim),
        ):
            kept = observed(space, what, x.width // dim, dim)
            if kept not in self.spaces:
                self.spaces += (kept,)
            self.store(x, x, kept, layer=layer)
        made = [op for op in self.ops if rope in op.writes]
        self.ropes[space, layer] = made[0] if made else None
        return super().rope_store(q, k, v, rope, space, layer=layer)


def observed(space: KVSpace, what: str, n_heads: int, dim: int) -> KVSpace:
    """Where an observer keeps the queries, keys or values of a space."""
    return KVSpace(f"{what} of {space.name}", space.n_layers, n_heads, dim, dim)


def _shape_all(cache: KVCache, observer: _Observer, sequences: Sequence[KVSequence], n_ctx: int) -> bytes:
    """Gives the cache the statistics of every head; returns a digest of them. sequences: the text, and tokens
    that stand alone.
    """
    digest = hashlib.sha256()
    kept = {space.name: i for i, space in enumerate(observer.spaces)}
    averages: dict[tuple[int, Op | None], Turns] = {}
    for (space, layer), rope in observer.ropes.items():
        if (space.k_dim, rope) not in averages:
            averages[space.k_dim, rope] = Turns.below(n_ctx, space.k_dim, rope)
        turns = averages[space.k_dim, rope]
        seen = {what: kept[f"{what} of {space.name}"] for what in ("queries", "keys", "values")}
        # Without the text's first token, which is unlike all others.
        q, k, v = (_rows(sequences[0], at, layer)[:, 1:] for at in seen.values())
        first_k, first_v = (
            np.median([_rows(sequence, seen[what], layer)[:, 0] for sequence in sequences[1:]], axis=0)
            for what in ("keys", "values")
        )
        handle = cache.handles[cache.spaces.index(space)]
        if lib.pl_cache_rounding_bytes(handle):
            found = key_statistics(q, k, turns)
            first_k = first_k * np.repeat(turns.magnitudes, 2)
            for head, of_head in enumerate(zip(*found, first_k, strict=True)):
                digest.update(_shape_head(handle, layer, head, *of_head))
        if lib.pl_cache_shift_bytes(handle):
            for head, (mean, first) in enumerate(zip(_SHIFTED * v.mean(1), first_v, strict=True)):
                digest.update(_shift_head(handle, layer, head, mean, first))
    return digest.digest()


def _shape_head(
    handle: Any, layer: int, head: int, moment: Floats, mean: Floats, spread: Floats, first: Floats
) -> bytes:
    """Gives the cache the statistics of one head; returns what it was given, nothing of a head whose queries
    are not known.
    """
    # An error of a key costs as much as queries are large, and grows with the keys. Half way to keys whose
    # dims are all as large lost least.
    stretch = (spread + _LEAST_SPREAD * spread.mean() + np.finfo(np.float32).tiny) ** -0.25
    stretch = np.repeat(stretch / np.exp(np.log(stretch).mean()), 2)
    values = {
        "stretch": stretch,
        "moment": moment / stretch / stretch[:, None],
        "mean": mean * stretch,
        "first": first * stretch,
    }
    arrays = {name: np.ascontiguousarray(x, np.float32) for name, x in values.items()}
    statistics = ffi.new("pl_key_statistics *", {k: ffi.from_buffer("float *", x) for k, x in arrays.items()})
    code = lib.pl_cache_shape_keys(handle, layer, head, statistics)
    if code == lib.PL_EUNSUPPORTED:
        return b""
    check(code, "the rounding of keys")
    return b"".join(x.tobytes() for x in arrays.values())


def _shift_head(handle: Any, layer: int, head: int, mean: Floats, first: Floats) -> bytes:
    """Gives the cache what the values of a head are less; returns what it was given."""
    arrays = [np.ascontiguousarray(x, np.float32) for x in (mean, first)]
    pointers = (ffi.from_buffer("float *", x) for x in arrays)
    code = lib.pl_cache_shift_values(handle, layer, head, *pointers)
    if code == lib.PL_EUNSUPPORTED:
        return b""
    check(code, "the shift of values")
    return b"".join(x.tobytes() for x in arrays)


def _rows(sequence: KVSequence, space: int, layer: int) -> Floats:
    """(heads, tokens, dim): what an observer kept."""
    cache, shape = sequence.cache, sequence.cache.spaces[space]
    pages = []
    for page in sequence.page_addresses(space):
        tiles = np.frombuffer(cache.bytes_of(page, space), np.float16)
        tiles = tiles.reshape(shape.n_layers, shape.kv_heads, 2, -1, PAGE)[layer, :, 0]
        pages.append(tiles[:, : shape.k_dim])
    rows: Floats = np.concatenate(pages, axis=2).transpose(0, 2, 1)[:, : len(sequence.tokens)]
    return rows.astype(np.float64)


@dataclass(frozen=True, eq=False)
class Turns:
    """What rope makes of pairs of dims: magnitudes, and the averages of e^(i f p) over positions p, of each
    pair's frequency f (times its magnitude), and of sums and differences of any two.
    """

    magnitudes: Floats
    each: Complexes
    sums: Complexes
    differences: Complexes

    @classmethod
    def below(cls, n_ctx: int, dim: int, rope: Op | None) -> Turns:
        """Over positions of the first 2048 below n_ctx, as many in each octave. rope: the op that makes its
        table.
        """
        frequencies, magnitudes = np.zeros(dim // 2), np.ones(dim // 2)
        if rope is not None:
            vector = rope.values["frequencies"]
            frequencies[: vector.size] = vector.values[: vector.size]
            magnitudes[: vector.size] = rope.values["magnitude"]
        last = min(_LAST_POSITION, n_ctx)
        positions = np.geomspace(min(_FIRST_POSITION, last), last, _N_POSITIONS)

        def average(radians: Floats) -> Complexes:
            total = np.zeros(radians.shape, np.complex128)
            for position in positions:
                total += np.exp(1j * position * radians)
            return total / len(positions)

        sums, differences = (average(frequencies[:, None] + s * frequencies) for s in (1, -1))
        pairs = magnitudes[:, None] * magnitudes
        return cls(magnitudes, magnitudes * average(frequencies), pairs * sums, pairs * differences)


def key_statistics(q: Floats, k: Floats, turns: Turns) -> tuple[Floats, Floats, Floats]:
    """q (heads, tokens, dim) and k (kv_heads, tokens, dim) before rope -> what they are with it, on average
    over positions: moments of queries (kv_heads, dim, dim), means of keys (kv_heads, dim), and of each pair
    of their dims the mean square of both about the mean (kv_heads, dim // 2).
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
    squares = np.square(k).mean(1).reshape(mean.shape).sum(-1) * np.square(turns.magnitudes)
    means = np.stack([z.real, z.imag], -1).reshape(kv_heads, dim)
    return turned.reshape(moments.shape), means, (squares - np.square(np.abs(z))) / 2
