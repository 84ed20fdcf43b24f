"""Sampling the rows of a step in one C call: a row has its own sampler, and does not depend on the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import OptionError
from pyllamacpu.native import check, ffi, lib
from pyllamacpu.sampling.sampler import FloatRow, Sampler, TokenLogprobs, sampling_error

Mask = npt.NDArray[Any]
"""The tokens that are allowed: 32-bit words, bit id % 32 of word id / 32."""


class _Rows:
    """Addresses of rows of a matrix (n, at least n_vocab) of float32, or of arrays that stand in for some."""

    def __init__(self, logits: npt.NDArray[np.float32], rows: Sequence[int], n_vocab: int) -> None:
        n, width = logits.shape if logits.ndim == 2 else (0, 0)
        if logits.dtype != np.float32 or width < n_vocab or (n and width > 1 and logits.strides[1] != 4):
            raise OptionError(
                f"logits: {logits.dtype} of shape {logits.shape}; expected rows of {n_vocab} float32"
            )
        if rows and not 0 <= min(rows) <= max(rows) < n:
            raise OptionError(f"rows: {min(rows)} to {max(rows)}; allowed: 0 to {n - 1}")
        base, stride = logits.ctypes.data, logits.strides[0]
        self.addresses = [base + row * stride for row in rows]
        self.keep: list[Any] = []

    def put(self, i: int, row: FloatRow) -> None:
        self.keep.append(row)
        self.addresses[i] = row.ctypes.data

    def pointers(self) -> Any:
        self.keep.append(addresses := ffi.new("uintptr_t[]", self.addresses))
        return ffi.cast("const float *const *", addresses)


def _mask_pointers(masks: Sequence[Mask | None], samplers: Sequence[Sampler], keep: list[Any]) -> Any:
    addresses = ffi.new("uintptr_t[]", len(masks))
    for i, (mask, sampler) in enumerate(zip(masks, samplers, strict=True)):
        if mask is None:
            continue
        words = np.ascontiguousarray(mask)
        if words.dtype.kind not in "iu" or words.itemsize != 4 or words.size * 32 < sampler.n_tokens:
            raise OptionError(
                f"masks: {words.dtype} of shape {words.shape}; expected 32-bit words, a bit for each of "
                f"{sampler.n_tokens} tokens"
            )
        keep.append(words)
        addresses[i] = words.ctypes.data
    keep.append(addresses)
    return ffi.cast("const uint32_t *const *", addresses)


def sample_rows(
    pool: Any,
    samplers: Sequence[Sampler],
    logits: npt.NDArray[np.float32],
    rows: Sequence[int],
    masks: Sequence[Mask | None] | None = None,
) -> list[int | Exception]:
    """For each sampler the next token of its row, as `Sampler.sample` gives it for that row, or its error.

    pool: the C thread pool (`Engine.pool`, which no step may be using), or None for this thread only. logits:
    (n, at least n_vocab) float32; rows: the row of each sampler. masks: for each row None, or the tokens that
    are allowed: for the others a logit counts as -inf (after the processors). An error is a NativeError, or
    what a processor raised, and concerns only its row. OptionError for arguments that do not fit.
    """
    return prepare_rows(samplers, logits, rows, masks)(pool)


def prepare_rows(
    samplers: Sequence[Sampler],
    logits: npt.NDArray[np.float32],
    rows: Sequence[int],
    masks: Sequence[Mask | None] | None = None,
) -> Callable[[Any], list[int | Exception]]:
    """`sample_rows` but for the pool, which the result takes: processors, which are others' code, have run
    then, and the samplers' states change in that call only.
    """
    n = len(samplers)
    if len(rows) != n or (masks is not None and len(masks) != n):
        raise OptionError(f"{n} samplers need as many rows and masks")
    if len(set(map(id, samplers))) < n:
        raise OptionError("samplers: one stands in two rows; each sequence has its own")
    found = _Rows(logits, rows, max((s.n_vocab for s in samplers), default=1))
    errors = _process(samplers, logits, rows, found)
    pointers = ffi.NULL if masks is None else _mask_pointers(masks, samplers, found.keep)
    states = ffi.new("pl_sampler *[]", [sampler.handle for sampler in samplers])

    def sample(pool: Any) -> list[int | Exception]:
        tokens = ffi.new("int32_t[]", n)
        code = lib.pl_sample_rows(pool or ffi.NULL, states, found.pointers(), pointers, n, tokens)
        check(code, f"sampling {n} rows")
        results: list[int | Exception] = [t if t >= 0 else sampling_error(t) for t in ffi.unpack(tokens, n)]
        for i, error in errors.items():
            results[i] = error
        return results

    return sample


def _process(
    samplers: Sequence[Sampler], logits: npt.NDArray[np.float32], rows: Sequence[int], found: _Rows
) -> dict[int, Exception]:
    """Puts processed rows in place where samplers have processors -> what those raised, by their row.

    A row that fails is all NaN, which is refused before its sampler's random numbers move.
    """
    errors: dict[int, Exception] = {}
    for i, sampler in enumerate(samplers):
        if not sampler.processors:
            continue
        try:
            found.put(i, sampler.processed(logits[rows[i], : sampler.n_vocab]))
        except Exception as error:
            errors[i] = error
            found.put(i, np.full(sampler.n_vocab, np.nan, np.float32))
    return errors


def top_logprobs_rows(
    pool: Any,
    logits: npt.NDArray[np.float32],
    rows: Sequence[int],
    tokens: Sequence[int],
    counts: Sequence[int],
    n_tokens: int | None = None,
) -> list[TokenLogprobs | Exception]:
    """`top_logprobs` of many rows in one C call: for each its token's value and the counts[i] best.

    logits: (n, at least n_tokens) float32, of which the first `n_tokens` (None: all) of a row count.
    """
    n_rows, size = len(rows), logits.shape[-1] if n_tokens is None else n_tokens
    if len(tokens) != n_rows or len(counts) != n_rows:
        raise OptionError(f"{n_rows} rows need as many tokens and counts")
    if min(counts, default=0) < 0:
        raise OptionError(f"logprobs: n {min(counts)}; allowed: at least 0")
    counts = [min(n, size) for n in counts]
    found, stride = _Rows(logits, rows, size), max(1, max(counts, default=1))
    ids, values = ffi.new("int32_t[]", n_rows * stride), ffi.new("float[]", n_rows * stride)
    own, sizes = ffi.new("float[]", n_rows), ffi.new("int32_t[]", n_rows)
    code = lib.pl_top_logprobs_rows(
        pool or ffi.NULL,
        found.pointers(),
        n_rows,
        size,
        list(tokens),
        counts,
        stride,
        ids,
        values,
        own,
        sizes,
    )
    check(code, f"log-probabilities of {n_rows} rows")
    results: list[TokenLogprobs | Exception] = []
    for i, (token, n) in enumerate(zip(tokens, ffi.unpack(sizes, n_rows), strict=True)):
        best = range(i * stride, i * stride + max(n, 0))
        top = tuple((ids[at], values[at]) for at in best)
        results.append(TokenLogprobs(token, own[i], top) if n >= 0 else sampling_error(n, "logprobs"))
    return results
