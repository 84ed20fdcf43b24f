"""A step's batch: entries of many sequences, which rows of them are wanted, and its C form."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.pages import Sequence
from pyllamacpu.engine.token_ids import check_tokens
from pyllamacpu.errors import ContextError, OptionError
from pyllamacpu.native import ffi

Wanted = Literal["last", "all", "none"]
Floats = npt.NDArray[np.float32]

ALIGNMENT = 64  # bytes, of rows that C writes


@dataclass
class Entry:
    """The part of a batch that belongs to one sequence: its next tokens, which of them want logits, and which
    the hidden state after the final norm.

    embeddings: (n, dim) rows that stand in the place of the tokens below 0: token -1 is the first of them, -2
    the second, and so on.
    """

    sequence: Sequence
    tokens: Seq[int]
    logits: Wanted = "last"
    hidden: Wanted = "none"
    embeddings: Floats | None = None


def n_wanted(wanted: Wanted, n_tokens: int) -> int:
    return {"last": min(1, n_tokens), "all": n_tokens, "none": 0}[wanted]


class Batch:
    """The C form of a batch, and the arrays that it points to.

    Outputs are ordered: first the rows that want logits, then those that want only their hidden state.
    `hidden_rows`: where the rows of hidden states are among the outputs, in the entries' order.
    """

    def __init__(self, entries: Seq[Entry], n_vocab: int, dim: int, n_batch: int, n_ctx: int) -> None:
        counts = [len(entry.tokens) for entry in entries]
        n_tokens = sum(counts)
        if not 0 < n_tokens <= n_batch:
            raise OptionError(f"a step takes 1 to {n_batch} tokens, not {n_tokens}")
        if len({id(entry.sequence) for entry in entries}) < len(entries) or min(counts) == 0:
            raise OptionError("each sequence stands in a batch once, with at least one token")
        self.tokens = np.empty((3, n_tokens), np.int32)  # tokens, positions, sequences
        self.embeddings = _embeddings(entries, dim)
        at, first = 0, 0
        for i, (entry, count) in enumerate(zip(entries, counts, strict=True)):
            start = len(entry.sequence)
            if start + count > n_ctx:
                raise ContextError(f"the context is full: {start} + {count} tokens are more than {n_ctx}")
            self.tokens[0, at : at + count] = _token_rows(entry, n_vocab, first)
            self.tokens[1, at : at + count] = range(start, start + count)
            self.tokens[2, at : at + count] = i
            first += 0 if entry.embeddings is None else len(entry.embeddings)
            at += count
        self.outputs, self.n_logits, self.hidden_rows = _outputs(entries, counts)
        self.native = ffi.new("pl_batch *")
        self.native.n_tokens, self.native.n_sequences = n_tokens, len(entries)
        self.native.n_outputs, self.native.n_logits = len(self.outputs), self.n_logits
        self.native.tokens, self.native.positions, self.native.sequences = map(_ints, self.tokens)
        self.native.outputs = _ints(self.outputs)
        if self.embeddings is not None:
            self.native.embeddings = _floats(self.embeddings)
            self.native.n_embeddings, self.native.embedding_stride = self.embeddings.shape
        tables = [e.sequence.prepare(n) for e, n in zip(entries, counts, strict=True)]
        self._spaces = [ffi.new("uintptr_t *[]", space) for space in zip(*tables, strict=True)]
        self._pages = ffi.new("uintptr_t **[]", self._spaces)
        self.native.pages = ffi.cast("const uintptr_t *const *const *", self._pages)

    def point(self, logits: Floats | None, hidden: Floats | None) -> None:
        """Where outputs go: (n_logits, …), and (n_outputs, …)."""
        if logits is not None and self.n_logits:
            self.native.logits = _floats(logits)
        if hidden is not None and len(self.outputs):
            self.native.hidden = _floats(hidden)


def _ints(values: npt.NDArray[np.int32]) -> Any:
    return ffi.cast("const int32_t *", values.ctypes.data)


def _floats(values: Floats) -> Any:
    return ffi.cast("float *", values.ctypes.data)


def _embeddings(entries: Seq[Entry], dim: int) -> Floats | None:
    """Those of all entries, one after another."""
    parts = [entry.embeddings for entry in entries if entry.embeddings is not None]
    if not parts:
        return None
    if any(part.ndim != 2 or part.shape[1] != dim for part in parts):
        raise OptionError(f"embeddings must be arrays of (n, dim), dim being {dim}")
    return np.ascontiguousarray(np.concatenate(parts), np.float32)


def _token_rows(entry: Entry, n_vocab: int, first: int) -> Seq[int] | npt.NDArray[np.int64]:
    """The entry's ids; those of embeddings count from the batch's first one."""
    if entry.embeddings is None:
        return check_tokens(entry.tokens, n_vocab)
    ids = np.asarray(entry.tokens, dtype=np.int64)
    if int((-ids).max()) > len(entry.embeddings):
        raise OptionError(f"token {int(ids.min())} stands for none of {len(entry.embeddings)} embeddings")
    check_tokens(ids[ids >= 0], n_vocab)
    return np.where(ids < 0, ids - first, ids)


def _outputs(entries: Seq[Entry], counts: Seq[int]) -> tuple[npt.NDArray[np.int32], int, list[int]]:
    """The outputs' token rows, how many of them (the first) want logits, and where hidden states are."""
    rows: list[int] = []
    only_hidden: list[int] = []
    of_hidden: list[int] = []
    at = 0
    for entry, count in zip(entries, counts, strict=True):
        end = at + count
        rows += range(end - n_wanted(entry.logits, count), end)
        of_hidden += range(end - n_wanted(entry.hidden, count), end)
        only_hidden += range(
            end - n_wanted(entry.hidden, count), end - n_wanted(entry.logits, count)
        )  # empty, where logits are wanted of as many
        at = end
    place = {row: i for i, row in enumerate(rows + only_hidden)} if of_hidden else {}
    return np.array(rows + only_hidden, np.int32), len(rows), [place[row] for row in of_hidden]


def aligned_rows(n_rows: int, width: int) -> Floats:
    """(n_rows, width) float32 whose first element is 64-byte aligned, as the C side asks of outputs."""
    room = np.empty(n_rows * width + ALIGNMENT // 4, np.float32)
    skip = -room.ctypes.data % ALIGNMENT // 4
    return room[skip : skip + n_rows * width].reshape(n_rows, width)


def check_rows(rows: Floats, n_rows: int, width: int) -> Floats:
    """The first `n_rows` of `rows`. Raises OptionError unless C may write rows of `width` floats there."""
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float32 or rows.ndim != 2:
        raise OptionError("a buffer for outputs must be a float32 array of two dimensions")
    if len(rows) < n_rows:
        raise OptionError(f"{n_rows} rows of outputs do not fit in a buffer of {len(rows)}")
    fits = rows.shape[1] == width and rows.flags.c_contiguous and rows.flags.writeable
    if not fits or rows.ctypes.data % ALIGNMENT:
        raise OptionError(
            f"a buffer for outputs must be writable, contiguous and {ALIGNMENT}-byte aligned, with rows of "
            f"{width} floats; this one has shape {rows.shape} and strides {rows.strides}: make it with "
            "logits_buffer"
        )
    return rows[:n_rows]
