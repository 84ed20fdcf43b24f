"""A step's batch: entries of many sequences, which rows of them are wanted, and its C form."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.token_ids import check_tokens
from pyllamacpu.errors import ContextError, OptionError
from pyllamacpu.native import ffi

if TYPE_CHECKING:  # an encoder's batches have neither
    from pyllamacpu.engine.adapters import LoadedAdapters
    from pyllamacpu.engine.pages import Sequence

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


@dataclass(frozen=True)
class Segment:
    """Tokens of an entry, one after another, that see the same images: those whose keys these are; None: they
    see none.
    """

    n_tokens: int
    keys: Any = None


def n_wanted(wanted: Wanted, n_tokens: int) -> int:
    if wanted == "last":
        return min(1, n_tokens)
    return n_tokens if wanted == "all" else 0


class Batch:
    """The C form of a batch, and the arrays that it points to.

    Outputs are ordered: first the rows that want logits, then those that want only their hidden state.
    `hidden_rows`: where the rows of hidden states are among the outputs, in the entries' order.
    """

    def __init__(
        self,
        entries: Seq[Entry],
        n_vocab: int,
        dim: int,
        n_batch: int,
        n_ctx: int,
        adapters: LoadedAdapters | None = None,
        segments: Seq[Seq[Segment]] | None = None,
    ) -> None:
        """segments: of each entry, for models that attend to images. In C's batch each is a sequence of its
        own, with the entry's pages.
        """
        counts = [len(entry.tokens) for entry in entries]
        n_tokens = sum(counts)
        if not 0 < n_tokens <= n_batch:
            raise OptionError(f"a step takes 1 to {n_batch} tokens, not {n_tokens}")
        if len({id(entry.sequence) for entry in entries}) < len(entries) or min(counts) == 0:
            raise OptionError("each sequence stands in a batch once, with at least one token")
        self.embeddings = _embeddings(entries, dim)
        ids: list[int] = []
        positions: list[int] = []
        first = 0
        for entry, count in zip(entries, counts, strict=True):
            start = len(entry.sequence)
            if start + count > n_ctx:
                raise ContextError(f"the context is full: {start} + {count} tokens are more than {n_ctx}")
            ids += _token_rows(entry, n_vocab, first)
            positions += range(start, start + count)
            first += 0 if entry.embeddings is None else len(entry.embeddings)
        whole = [[Segment(count)] for count in counts]
        parts = [(i, part) for i, of_entry in enumerate(segments or whole) for part in of_entry]
        sequences = [label for label, (_, part) in enumerate(parts) for _ in range(part.n_tokens)]
        outputs, self.n_logits, self.hidden_rows = _outputs(entries, counts)
        self.n_outputs = len(outputs)
        self._ints = ffi.new("int32_t[]", ids + positions + sequences + outputs)
        self.native = ffi.new("pl_batch *")
        self.native.n_tokens, self.native.n_sequences = n_tokens, len(parts)
        self.native.n_outputs, self.native.n_logits = self.n_outputs, self.n_logits
        self.native.tokens, self.native.positions = self._ints, self._ints + n_tokens
        self.native.sequences, self.native.outputs = self._ints + 2 * n_tokens, self._ints + 3 * n_tokens
        if self.embeddings is not None:
            self.native.embeddings = _floats(self.embeddings)
            self.native.n_embeddings, self.native.embedding_stride = self.embeddings.shape
        used = [entries[i].sequence.adapters for i, _ in parts]
        self._scales = None if adapters is None else adapters.rows(used)
        if self._scales is not None:
            self.native.adapter_scales, self.native.n_adapters = _floats(self._scales), self._scales.shape[1]
        tables = [e.sequence.prepare(n) for e, n in zip(entries, counts, strict=True)]
        by_space = zip(*tables, strict=True)
        self._spaces = [ffi.new("uintptr_t *[]", [space[i] for i, _ in parts]) for space in by_space]
        keys = [part.keys for _, part in parts]
        self.sees_images = any(k is not None for k in keys)
        self._lengths = None if segments is None else self._point_to_images(keys)
        self._pages = ffi.new("uintptr_t **[]", self._spaces)
        self.native.pages = ffi.cast("const uintptr_t *const *const *", self._pages)

    def _point_to_images(self, keys: Seq[Any]) -> Any:
        """The last space holds those of images, whose pages and numbers of positions are given."""
        self._spaces.append(ffi.new("uintptr_t *[]", [ffi.NULL if k is None else k.table for k in keys]))
        lengths = ffi.new("int32_t[]", [0 if k is None else k.n for k in keys])
        of_spaces = ffi.new("int32_t *[]", len(self._spaces))
        of_spaces[len(self._spaces) - 1] = lengths
        self.native.lengths = ffi.cast("const int32_t *const *", of_spaces)
        return lengths, of_spaces

    def point(self, logits: Floats | None, hidden: Floats | None) -> None:
        """Where outputs go: (n_logits, …), and (n_outputs, …)."""
        if logits is not None and self.n_logits:
            self.native.logits = _floats(logits)
        if hidden is not None and self.n_outputs:
            self.native.hidden = _floats(hidden)


def _floats(values: Floats) -> Any:
    return ffi.from_buffer("float *", values)


def _address(values: Floats) -> int:
    return int(ffi.cast("uintptr_t", ffi.from_buffer(values))) if values.size else 0


def _embeddings(entries: Seq[Entry], dim: int) -> Floats | None:
    """Those of all entries, one after another."""
    parts = [entry.embeddings for entry in entries if entry.embeddings is not None]
    if not parts:
        return None
    if any(part.ndim != 2 or part.shape[1] != dim for part in parts):
        raise OptionError(f"embeddings must be arrays of (n, dim), dim being {dim}")
    return np.ascontiguousarray(np.concatenate(parts), np.float32)


def _token_rows(entry: Entry, n_vocab: int, first: int) -> list[int]:
    """The entry's ids; those of embeddings count from the batch's first one."""
    if entry.embeddings is None:
        images = entry.sequence.cache.images
        return check_tokens(entry.tokens, n_vocab, None if images is None else images.image_token)
    if min(entry.tokens) < -len(entry.embeddings):
        raise OptionError(f"token {min(entry.tokens)} stands for none of {len(entry.embeddings)} embeddings")
    check_tokens([token for token in entry.tokens if token >= 0], n_vocab)
    return [token - first if token < 0 else token for token in entry.tokens]


def _outputs(entries: Seq[Entry], counts: Seq[int]) -> tuple[list[int], int, list[int]]:
    """The outputs' token rows, how many of them (the first) want logits, and where hidden states are."""
    rows: list[int] = []
    only_hidden: list[int] = []
    of_hidden: list[int] = []
    end = 0
    for entry, count in zip(entries, counts, strict=True):
        end += count
        logits = n_wanted(entry.logits, count)
        rows += range(end - logits, end)
        if entry.hidden != "none":
            hidden = n_wanted(entry.hidden, count)
            of_hidden += range(end - hidden, end)
            only_hidden += range(end - hidden, end - logits)  # empty, where logits are wanted of as many
    place = {row: i for i, row in enumerate(rows + only_hidden)} if of_hidden else {}
    return rows + only_hidden, len(rows), [place[row] for row in of_hidden]


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
    if not fits or _address(rows) % ALIGNMENT:
        raise OptionError(
            f"a buffer for outputs must be writable, contiguous and {ALIGNMENT}-byte aligned, with rows of "
            f"{width} floats; this one has shape {rows.shape} and strides {rows.strides}: make it with "
            "logits_buffer"
        )
    return rows[:n_rows]
