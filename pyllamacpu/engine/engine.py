"""The engine: a loaded model, its plan and thread pool, and the one call that runs a step."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.pages import PAGE, PageCache, Sequence
from pyllamacpu.errors import ContextError, ModelError, OptionError, TokenizerError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.graph.recorder import CompiledPlan, InputSquares, Recorder
from pyllamacpu.model.config import ModelConfig
from pyllamacpu.model.registry import Model, load
from pyllamacpu.model.weight_override import Blocks, override_weights
from pyllamacpu.native import check, cpus_usable, ffi, lib, pointer, raise_kept

Wanted = Literal["last", "all", "none"]
Floats = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]

DEFAULT_BATCH = 512  # tokens of a step at most
LANES = 16
ALIGNMENT = 64  # bytes, of rows that C writes


@dataclass
class Entry:
    """The part of a batch that belongs to one sequence: its next tokens, and which of them want logits."""

    sequence: Sequence
    tokens: Seq[int]
    logits: Wanted = "last"


class Engine:
    """A model ready to run. Not thread-safe: one step at a time (`step` holds a lock, so calls queue)."""

    def __init__(
        self,
        file: GGUFFile,
        *,
        n_ctx: int = 0,
        n_batch: int = DEFAULT_BATCH,
        n_threads: int | None = None,
        type_k: str = "f16",
        type_v: str = "f16",
        rope_freq_base: float | None = None,
        rope_freq_scale: float | None = None,
        on_load: Callable[[int, int], None] | None = None,
        input_squares: InputSquares | None = None,
    ) -> None:
        """n_ctx: positions of a sequence at most, 0: as trained. n_batch: tokens of a step at most.
        n_threads: None or 0: as many as this process may use. `on_load(done, total)`: bytes of weights
        packed. `input_squares` is filled with an array for each weight, to which every step adds the squares
        of the weight's input (of the tokens that want outputs, behind the last layer's attention).

        Raises GGUFError, ModelError, OptionError; ContextError when the context cannot fit in memory.
        """
        self.file = file
        self.config = _overridden(
            ModelConfig.from_metadata(file.metadata, file.tensors), rope_freq_base, rope_freq_scale
        )
        self.n_ctx = n_ctx or self.config.n_ctx_train
        self.n_threads = n_threads or cpus_usable()
        self.n_batch = min(n_batch, self.n_ctx)
        _check_options(self.n_ctx, n_batch, self.n_threads)
        if (
            self.config.layer_heads(0) % self.config.layer_kv_heads(0)
            or self.config.head_dim > lib.PL_MAX_HEAD_DIM
        ):
            raise ModelError(f"{file.paths[0]}: heads of {self.config.head_dim} cannot be run")
        self.cache = PageCache(self.config, type_k, type_v)
        check_memory(self.n_ctx, self.cache.page_bytes)
        self._pool = ffi.gc(
            pointer(lib.pl_pool_new(self.n_threads), f"{self.n_threads} threads"), lib.pl_pool_free
        )
        self.model = load(file, self.config, self._pool, on_load)
        file.release_all()  # packed: its pages may go; rows of the embedding come back as they are looked up
        self.n_vocab = self.model.weights.matrix("output.weight").rows
        self._stride = -(-self.n_vocab // LANES) * LANES
        self.plan, self._plan = self._planned(self.model, input_squares)
        self._lock = threading.RLock()
        self._closed = False

    @classmethod
    def open(cls, path: str | os.PathLike[str], **options: Any) -> Engine:
        """The engine of the model file at `path` (any part of a split one); options as above."""
        return cls(GGUFFile.open(path), **options)

    @property
    def dim(self) -> int:
        return self.config.dim

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed weights."""
        return self.model.weights.n_bytes

    @property
    def scratch_bytes(self) -> int:
        """Bytes of buffers that do not depend on the context in use."""
        return int(lib.pl_plan_bytes(self._plan))

    def sequence(self) -> Sequence:
        return Sequence(self.cache)

    def eval(
        self,
        sequence: Sequence,
        tokens: Seq[int],
        *,
        logits: Wanted = "last",
        on_progress: Progress | None = None,
    ) -> Floats:
        """Appends `tokens` to `sequence`, `n_batch` at a time.

        Returns new logits: (1, n_vocab) of the last token, (n_tokens, n_vocab) or (0, n_vocab).
        `on_progress(done, total)` follows each step. Raises ContextError, TokenizerError, OptionError; after
        a KeyboardInterrupt the sequence ends before the step that was interrupted.
        """
        total = len(tokens)
        if total == 0:
            raise OptionError("there are no tokens to evaluate")
        result = self.logits_buffer({"last": 1, "all": total, "none": 0}[logits])
        for start in range(0, total, self.n_batch):
            chunk = tokens[start : start + self.n_batch]
            final = start + len(chunk) == total
            if logits == "all":
                self._run([Entry(sequence, chunk, "all")], result[start : start + len(chunk)])
            else:
                self._run([Entry(sequence, chunk, "last" if final and logits == "last" else "none")], result)
            if on_progress:
                on_progress(start + len(chunk), total)
        return result[:, : self.n_vocab]

    @property
    def pool(self) -> Any:
        """The C thread pool, for other work between steps."""
        return self._pool

    def logits_buffer(self, n_rows: int) -> Floats:
        """Room for `n_rows` rows of logits, for `step` to fill again and again."""
        return aligned_rows(n_rows, self._stride)

    def step(self, entries: Seq[Entry], buffer: Floats | None = None) -> Floats:
        """One step over many sequences (each at most once). Returns (n_outputs, n_vocab) in the entries'
        order: new, or the first rows of `buffer` (from `logits_buffer`), which must have room for them.
        """
        n_outputs = sum(
            {"last": min(1, len(e.tokens)), "all": len(e.tokens), "none": 0}[e.logits] for e in entries
        )
        result = self.logits_buffer(n_outputs) if buffer is None else buffer[:n_outputs]
        check_rows(result, n_outputs, self._stride)
        self._run(entries, result)
        return result[:, : self.n_vocab]

    def hidden(self, tokens: Seq[int]) -> Floats:
        """States after the final norm for a fresh sequence: (n_tokens, dim)."""
        width = -(-self.dim // 32) * 32
        result = aligned_rows(len(tokens), width)
        sequence = self.sequence()
        try:
            for start in range(0, len(tokens), self.n_batch):
                chunk = tokens[start : start + self.n_batch]
                self._run([Entry(sequence, chunk, "all")], None, result[start : start + len(chunk)])
        finally:
            sequence.close()
        return result[:, : self.dim]

    def read(self, entries: Seq[Entry]) -> None:
        """A step that computes all rows that `entries` ask for, but no logits: for `input_squares`."""
        self._run(entries, None)

    def profile(self, run: Callable[[], object]) -> dict[str, float]:
        """Seconds spent in each kind of op while `run()` steps this engine."""
        seconds = np.zeros(len(self.plan), np.float64)
        lib.pl_plan_profile(self._plan, ffi.cast("double *", seconds.ctypes.data))
        try:
            run()
        finally:
            lib.pl_plan_profile(self._plan, ffi.NULL)
        result: dict[str, float] = {}
        for name, spent in zip(self.plan.names, seconds.tolist(), strict=True):
            result[name] = result.get(name, 0.0) + spent
        return result

    @contextmanager
    def replaced(self, blocks: Mapping[str, Blocks]) -> Iterator[None]:
        """Runs with other weights while the block lasts: by a matrix's name, a type and its bytes.

        Raises ModelError when there is no such matrix, or the bytes do not fit it.
        """
        with self._lock:
            kept = self.model, self.plan, self._plan
            model = replace(self.model, weights=override_weights(self.model.weights, blocks, self._pool))
            self.model, (self.plan, self._plan) = model, self._planned(model)
        try:
            yield
        finally:
            with self._lock:
                self.model, self.plan, self._plan = kept

    def close(self) -> None:
        """Frees weights, threads and the file; sequences become useless."""
        with self._lock:
            if not self._closed:
                self._closed = True
                ffi.release(self._plan)
                ffi.release(self._pool)
                self.plan.keep.clear()
                del self.model
                self.file.close()

    def _planned(self, model: Model, input_squares: InputSquares | None = None) -> tuple[CompiledPlan, Any]:
        """The plan of a model with this one's config, and its native form."""
        recorder = Recorder(self.config)
        model.record(recorder)
        plan = recorder.compile(input_squares)
        return plan, _native_plan(plan, self._pool, self.cache, self.n_batch, self.n_ctx)

    def _run(self, entries: Seq[Entry], logits: Floats | None, hidden: Floats | None = None) -> None:
        with self._lock:
            if self._closed:
                raise OptionError("the model is closed")
            try:
                batch = _Batch(entries, self.n_vocab, self.n_batch, self.n_ctx)
                batch.point(logits, hidden)
                code = lib.pl_plan_run(self._plan, batch.native, lib.pl_poll_signals)
                if code == lib.PL_EINTERRUPTED:
                    raise_kept()
                check(code, "a step of the model")
            except BaseException:
                for entry in entries:
                    entry.sequence.trim()
                raise
            for entry in entries:
                entry.sequence.tokens.extend(entry.tokens)


class _Batch:
    """The C form of a batch, and the arrays that it points to."""

    def __init__(self, entries: Seq[Entry], n_vocab: int, n_batch: int, n_ctx: int) -> None:
        counts = [len(entry.tokens) for entry in entries]
        n_tokens = sum(counts)
        if not 0 < n_tokens <= n_batch:
            raise OptionError(f"a step takes 1 to {n_batch} tokens, not {n_tokens}")
        if len({id(entry.sequence) for entry in entries}) < len(entries) or min(counts) == 0:
            raise OptionError("each sequence stands in a batch once, with at least one token")
        self.tokens = np.empty((4, n_tokens), np.int32)  # tokens, positions, sequences, outputs
        self.n_outputs = at = 0
        for i, (entry, count) in enumerate(zip(entries, counts, strict=True)):
            start = len(entry.sequence)
            if start + count > n_ctx:
                raise ContextError(f"the context is full: {start} + {count} tokens are more than {n_ctx}")
            self.tokens[0, at : at + count] = check_ids(entry.tokens, n_vocab)
            self.tokens[1, at : at + count] = range(start, start + count)
            self.tokens[2, at : at + count] = i
            wanted = {"last": 1, "all": count, "none": 0}[entry.logits]
            self.tokens[3, self.n_outputs : self.n_outputs + wanted] = range(at + count - wanted, at + count)
            self.n_outputs += wanted
            at += count
        self.tables = ffi.new(
            "uintptr_t *[]", [e.sequence.prepare(n) for e, n in zip(entries, counts, strict=True)]
        )
        self.native = ffi.new("pl_batch *")
        self.native.n_tokens, self.native.n_outputs = n_tokens, self.n_outputs
        self.native.n_sequences = len(entries)
        rows = [ffi.cast("const int32_t *", row.ctypes.data) for row in self.tokens]
        self.native.tokens, self.native.positions, self.native.sequences, self.native.outputs = rows
        self.native.pages = ffi.cast("const uintptr_t *const *", self.tables)

    def point(self, logits: Floats | None, hidden: Floats | None) -> None:
        """Where outputs go."""
        if logits is not None and self.n_outputs:
            self.native.logits = ffi.cast("float *", logits.ctypes.data)
        if hidden is not None:
            self.native.hidden = ffi.cast("float *", hidden.ctypes.data)


def aligned_rows(n_rows: int, width: int) -> Floats:
    """(n_rows, width) float32 whose first element is 64-byte aligned, as the C side asks of outputs."""
    room = np.empty(n_rows * width + ALIGNMENT // 4, np.float32)
    skip = -room.ctypes.data % ALIGNMENT // 4
    return room[skip : skip + n_rows * width].reshape(n_rows, width)


def check_rows(rows: Floats, n_rows: int, width: int) -> None:
    """Raises OptionError unless C may write `n_rows` rows of `width` floats to `rows`."""
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


def check_ids(tokens: Seq[int], n_vocab: int) -> npt.NDArray[np.int64]:
    """The ids as an array; TokenizerError for one outside the vocabulary."""
    ids = np.asarray(tokens, dtype=np.int64)
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= n_vocab):
        bad = int(ids[(ids < 0) | (ids >= n_vocab)][0])
        raise TokenizerError(f"token id {bad} is outside the vocabulary of {n_vocab} (0 to {n_vocab - 1})")
    return ids


def check_memory(n_ctx: int, page_bytes: int) -> None:
    """A context whose KV cache is larger than the machine's memory is refused before anything is loaded."""
    needed = -(-n_ctx // PAGE) * page_bytes
    memory = total_memory()
    if memory and needed > memory:
        fits = memory // page_bytes * PAGE
        raise ContextError(
            f"a context of {n_ctx} needs {needed / 1e9:.1f} GB for keys and values, and this "
            f"machine has {memory / 1e9:.1f} GB; "
            f"ask for at most {fits} (-c), or a smaller cache type (-ctk q8_0 -ctv q8_0)"
        )


def total_memory() -> int:
    """Bytes of physical memory, 0 where it cannot be told."""
    if sys.platform == "win32":
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def scratch_bytes(
    file: GGUFFile,
    config: ModelConfig,
    n_ctx: int,
    *,
    n_batch: int = DEFAULT_BATCH,
    n_threads: int | None = None,
    type_k: str = "f16",
    type_v: str = "f16",
) -> int:
    """Bytes of an engine's buffers beside weights and KV pages, without loading it. Raises ModelError when
    its architecture cannot be run.
    """
    recorder = Recorder(config)
    load(file, config, None).record(recorder)
    plan, cache = recorder.compile(), PageCache(config, type_k, type_v)
    threads, tokens = n_threads or cpus_usable(), min(n_batch, n_ctx)
    return int(lib.pl_plan_measure(cache.handle, *plan.arguments(), tokens, n_ctx, threads))


def _check_options(n_ctx: int, n_batch: int, n_threads: int) -> None:
    if n_ctx < 1:
        raise OptionError(f"n_ctx is {n_ctx}: must be 0 (as trained) or positive")
    if not 1 <= n_batch <= 1 << 16:
        raise OptionError(f"n_batch is {n_batch}: must be from 1 to {1 << 16}")
    if not 1 <= n_threads <= lib.PL_MAX_THREADS:
        raise OptionError(f"n_threads is {n_threads}: must be from 1 to {lib.PL_MAX_THREADS}")


def _overridden(config: ModelConfig, base: float | None, scale: float | None) -> ModelConfig:
    """rope_freq_base and rope_freq_scale as llama.cpp has them: 0 or None keep the model's own."""
    if base:
        config = replace(config, rope_theta=float(base))
    if scale:
        kind = config.rope_scaling.kind if config.rope_scaling.kind != "none" else "linear"
        config = replace(
            config, rope_scaling=replace(config.rope_scaling, kind=kind, factor=1.0 / float(scale))
        )
    return config


def _native_plan(plan: CompiledPlan, pool: Any, cache: PageCache, n_batch: int, n_ctx: int) -> Any:
    handle = lib.pl_plan_new(pool, cache.handle, *plan.arguments(), n_batch, n_ctx)
    return ffi.gc(pointer(handle, "the plan"), lib.pl_plan_free)
