"""Small plans, recorded by a test and run on rows of numpy arrays: ops that no model uses, and wrong ones.

Inputs come in as embeddings in place of tokens, and the result goes out as hidden states. Several inputs lie
side by side in a row, and are taken apart by products with ones and zeros, which are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.batch import aligned_rows
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.graph.adapters import GraphAdapters
from pyllamacpu.graph.compiled import CompiledPlan
from pyllamacpu.graph.native_plan import NativePlan
from pyllamacpu.graph.ops import Tensor
from pyllamacpu.graph.recorder import Recorder
from pyllamacpu.model.kv_space import KVSpace
from pyllamacpu.model.panel_file import Panels
from pyllamacpu.model.weights import Matrix, Table, Vector, padded_vector
from pyllamacpu.native import ffi, lib, pointer, thread_pool
from pyllamacpu.topology import CpuGroup
from pyllamacpu.weights.blocks import quantize

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Record = Callable[..., Tensor]


def random(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_same_bits(a: Floats, b: Floats) -> None:
    assert a.shape == b.shape
    assert np.array_equal(a.view(np.uint32), b.view(np.uint32))


def pool(n_threads: int = 2) -> Any:
    """All of whose threads run, however few CPUs there are."""
    return thread_pool(n_threads, [CpuGroup(n_threads)])


def matrix(values: Floats, kind: TensorType = TensorType.F32, name: str = "m", int16: bool = False) -> Matrix:
    """`values` (rows, cols), packed in the type; int16: to be multiplied in 16 bits."""
    rows, cols = values.shape
    data = np.ascontiguousarray(values, np.float32)
    raw = data.view(np.uint8).reshape(-1) if kind == TensorType.F32 else quantize(data, kind).reshape(-1)
    panels = Panels(name, kind, rows, cols, int16)
    handle = lib.pl_matrix_new(pool(1), ffi.NULL, panels.kind, ffi.from_buffer(raw), 0, rows, cols)
    return Matrix(name, rows, cols, kind, ffi.gc(pointer(handle, name), lib.pl_matrix_free), int16)


def vector(values: Floats, name: str = "v") -> Vector:
    return padded_vector(name, np.asarray(values, np.float32))


class Pages:
    """Pages of a KV space for `n_sequences` sequences, made when a position is asked for."""

    def __init__(self, space: KVSpace, kind: TensorType = TensorType.F32) -> None:
        handle = lib.pl_cache_new(
            space.n_layers, space.kv_heads, space.k_dim, space.v_dim, int(kind), int(kind)
        )
        self.handle = ffi.gc(pointer(handle, "pages"), lib.pl_cache_free)
        self.tables: dict[int, npt.NDArray[np.uintp]] = {}

    def table(self, sequence: int, n_positions: int) -> Any:
        """The address table of a sequence with room for so many positions."""
        table = self.tables.setdefault(sequence, np.zeros(256, np.uintp))
        for page in range(-(-n_positions // lib.PL_PAGE_POSITIONS)):
            if table[page] == 0:
                table[page] = lib.pl_page_new(self.handle)
        return ffi.cast("uintptr_t *", table.ctypes.data)


class Plan:
    """A plan of `record(recorder, x, ...)`, one tensor for each of `widths`, and its KV spaces' pages."""

    def __init__(
        self,
        record: Record,
        widths: Sequence[int],
        *,
        spaces: Sequence[KVSpace] = (),
        n_threads: int = 2,
        max_tokens: int = 1024,
        n_ctx: int = 4096,
        kv_type: TensorType = TensorType.F32,
        adapters: GraphAdapters | None = None,
    ) -> None:
        self.widths = tuple(widths)
        self.pages = [Pages(space, kv_type) for space in spaces]
        self.compiled = compiled(record, widths, spaces, adapters)
        handles = [pages.handle for pages in self.pages]
        self.native = NativePlan(self.compiled, pool(n_threads), handles, max_tokens, n_ctx)
        self.width = next(
            op.values["x"].width for op in self.compiled.ops if op.values.get("out") == lib.PL_HIDDEN
        )

    def run(
        self,
        *inputs: Floats,
        positions: Sequence[int] | None = None,
        sequences: Sequence[int] | None = None,
        lengths: dict[int, Sequence[int]] | None = None,
        outputs: Sequence[int] | None = None,
        scales: Floats | None = None,
    ) -> Floats:
        """The result's rows for `outputs` (all). lengths: by space, of each sequence. scales: of
        adapters, (n_sequences, n_adapters).
        """
        rows = np.ascontiguousarray(np.concatenate(inputs, axis=1), np.float32)
        batch = BatchArrays(len(rows), positions, sequences, outputs)
        batch.embed(rows)
        batch.pages(self.pages, lengths or {})
        if scales is not None:
            batch.native.adapter_scales = ffi.cast("const float *", scales.ctypes.data)
            batch.native.n_adapters = scales.shape[1]
        hidden = aligned_rows(len(batch.outputs), self.native.hidden_stride)
        hidden[:] = np.nan
        batch.native.hidden = ffi.cast("float *", hidden.ctypes.data)
        self.native.run(batch.native)
        return hidden[:, : self.width].copy()


def compiled(
    record: Record,
    widths: Sequence[int],
    spaces: Sequence[KVSpace] = (),
    adapters: GraphAdapters | None = None,
) -> CompiledPlan:
    recorder = Recorder(spaces)
    dim = sum(widths)
    table = Table("none", 1, dim, TensorType.F32, np.zeros(4 * dim, np.uint8))
    x, parts, at = recorder.embed(table), [], 0
    for width in widths:
        part = np.zeros((width, dim), np.float32)
        part[np.arange(width), at + np.arange(width)] = 1
        parts.append(x if len(widths) == 1 else recorder.linear(x, matrix(part, name=f"part{at}")))
        at += width
    recorder.output_hidden(record(recorder, *parts))
    return recorder.compile(adapters=adapters)


class BatchArrays:
    """A pl_batch and its arrays, which tests may also spoil."""

    def __init__(
        self,
        n_tokens: int,
        positions: Sequence[int] | None = None,
        sequences: Sequence[int] | None = None,
        outputs: Sequence[int] | None = None,
    ) -> None:
        self.native = ffi.new("pl_batch *")
        self.tokens = -1 - np.arange(n_tokens, dtype=np.int32)
        self.positions = np.array(range(n_tokens) if positions is None else positions, np.int32)
        self.sequences = np.array([0] * n_tokens if sequences is None else sequences, np.int32)
        self.outputs = np.array(range(n_tokens) if outputs is None else outputs, np.int32)
        self.native.n_tokens, self.native.n_outputs = n_tokens, len(self.outputs)
        self.native.n_sequences = len(set(self.sequences.tolist()))
        for name in ("tokens", "positions", "sequences", "outputs"):
            setattr(self.native, name, ffi.cast("const int32_t *", getattr(self, name).ctypes.data))

    def embed(self, rows: Floats) -> None:
        self.rows = rows
        self.native.embeddings = ffi.cast("const float *", rows.ctypes.data)
        self.native.n_embeddings, self.native.embedding_stride = rows.shape

    def pages(self, spaces: Sequence[Pages], lengths: dict[int, Sequence[int]]) -> None:
        n = self.native.n_sequences
        self.tables, self.lengths = [], []
        for i, space in enumerate(spaces):
            ends = [int(self.positions[self.sequences == s].max()) + 1 for s in range(n)]
            room = [max(a, b) for a, b in zip(ends, lengths.get(i, ends), strict=True)]
            self.tables.append(ffi.new("uintptr_t *[]", [space.table(s, room[s]) for s in range(n)]))
            self.lengths.append(ffi.new("int32_t[]", list(lengths[i])) if i in lengths else ffi.NULL)
        self._spaces = ffi.new("uintptr_t **[]", self.tables)
        self._lengths = ffi.new("const int32_t *[]", self.lengths)
        self.native.pages = ffi.cast("const uintptr_t *const *const *", self._spaces)
        if lengths:
            self.native.lengths = self._lengths
