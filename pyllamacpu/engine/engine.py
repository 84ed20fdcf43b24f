"""The engine: a loaded model, its plan and thread pool, and the one call that runs a step."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pyllamacpu.engine.adapters import LoadedAdapters
from pyllamacpu.engine.batch import (
    Batch,
    Entry,
    Floats,
    Wanted,
    aligned_rows,
    check_rows,
    n_wanted,
)
from pyllamacpu.engine.image_keys import ImageKeyCache
from pyllamacpu.engine.images import ImageCache
from pyllamacpu.engine.key_rounding import learn_rounding
from pyllamacpu.engine.memory import check_adapters, check_memory, holds, holds_no_more
from pyllamacpu.engine.pages import KEPT_BEHIND, KVCache, Sequence
from pyllamacpu.engine.precision import check_precision, kv_types_of
from pyllamacpu.engine.step_plans import StepPlans, recorded, step_plans
from pyllamacpu.engine.token_ids import check_tokens
from pyllamacpu.errors import ModelError, OptionError
from pyllamacpu.forks import fork_safe_lock
from pyllamacpu.gguf.overrides import Overrides
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.graph.compiled import CompiledPlan
from pyllamacpu.graph.native_plan import NativePlan, Workload, measured_bytes
from pyllamacpu.graph.passes import InputSquares
from pyllamacpu.model.config import ModelConfig
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.model.expert_memory import ExpertMemory, reads_checked
from pyllamacpu.model.kv_space import KVSpace
from pyllamacpu.model.lora import AdapterScales, load_adapter
from pyllamacpu.model.pack_cache import open_pack_cache
from pyllamacpu.model.registry import Model, architecture, load
from pyllamacpu.model.weight_override import Blocks, override_weights
from pyllamacpu.native import ffi, lib, thread_pool
from pyllamacpu.topology import threads_usable
from pyllamacpu.units import exact

__all__ = ["DEFAULT_BATCH", "Engine", "Entry", "Outputs", "Wanted", "scratch_bytes"]

Progress = Callable[[int, int], None]

DEFAULT_BATCH = 512  # tokens of a step at most
_RELEASE_AFTER = 64  # tokens whose rows of the embedding were looked up in the file: each may map 64 KiB


@dataclass(frozen=True)
class Outputs:
    """Of a step, in the entries' order. logits: (n, n_vocab); hidden: (n, dim) after the final norm."""

    logits: Floats
    hidden: Floats


class Engine:
    """A model ready to run. Steps run one at a time: a lock makes those of several threads wait."""

    _n_looked_up = 0  # tokens, since the file's pages were released

    def __init__(
        self,
        file: GGUFFile,
        *,
        n_ctx: int = 0,
        n_batch: int = DEFAULT_BATCH,
        n_threads: int | None = None,
        type_k: str | None = None,
        type_v: str | None = None,
        precision: str = "fast",
        rope_freq_base: float | None = None,
        rope_freq_scale: float | None = None,
        on_load: Callable[[int, int], None] | None = None,
        input_squares: InputSquares | None = None,
        expert_memory: int | None = None,
        pack_cache: str | os.PathLike[str] | None = None,
    ) -> None:
        """n_ctx: positions of a sequence at most, 0: as trained. n_batch: tokens of a step at most.
        n_threads: None or 0: as many as this process may use. precision: of the activations that quantized
        weights are multiplied with: "fast", 8 bits with a residual where one value of 32 dominates, or
        "exact", which always has the residual. type_k, type_v: None is f32 with "exact", else f16.
        `on_load(done, total)`: bytes of weights packed. `input_squares` is filled with sums for each weight,
        to which every step adds the squares of the weight's input (of the tokens that want outputs, behind
        the last layer's attention). expert_memory: bytes for experts at most, which then stay in the file and
        are read when a step needs them; None: all of them are loaded. pack_cache: a folder in which packed
        weights are kept, which the next load maps.

        Raises GGUFError, ModelError, OptionError; ContextError when the context cannot fit in memory.
        """
        self.file = file
        self.config = _overridden(
            ModelConfig.from_metadata(file.metadata, file.tensors), rope_freq_base, rope_freq_scale
        )
        self.n_ctx = n_ctx or self.config.n_ctx_train
        self.n_threads = n_threads or threads_usable()
        self.n_batch, self.precision = min(n_batch, self.n_ctx), precision
        _check_options(self.n_ctx, n_batch, self.n_threads, expert_memory, precision)
        spaces = architecture(self.config, file.paths[0]).kv_spaces(self.config)
        _check_spaces(file, spaces, self.config)
        self.cache = KVCache(spaces, *kv_types_of(precision, type_k, type_v))
        check_memory(file, self.config, self.n_ctx, self.cache, self.n_batch, expert_memory)
        self._pool = thread_pool(self.n_threads)
        self.expert_memory = None if expert_memory is None else ExpertMemory(file, expert_memory)
        self.pack_cache = open_pack_cache(pack_cache)
        self.model = load(file, self.config, self._pool, on_load, self.expert_memory, self.pack_cache)
        self._learn_rounding()
        file.check_intact()
        file.release_all()  # packed: its pages may go; rows of the embedding come back as they are looked up
        self.images = self.cache.images = ImageCache()
        self.adapters = LoadedAdapters()
        self.default_adapters: AdapterScales = ()  # what new sequences use
        self._plain: StepPlans | None = None  # of steps in which nobody uses an adapter, if there are any
        self._plans = self._planned(self.model, input_squares)
        self.image_keys = _image_keys(self.cache, self.images, self.n_outputs)
        self.n_vocab = min(self.n_outputs, self.config.n_tokens or self.n_outputs)  # other rows are padding
        self._no_hidden = np.empty((0, self.dim), np.float32)
        self._lock = fork_safe_lock()
        self._closed = self._profiling = False
        holds(self)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, kv_overrides: Overrides | None = None, **options: Any
    ) -> Engine:
        """The engine of the model at `path` (any part of it); options as above and of `GGUFFile.open`."""
        return cls(GGUFFile.open(path, kv_overrides), **options)

    @property
    def dim(self) -> int:
        return self.config.dim

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed weights, adapters included; of experts in the file, the memory for some of them."""
        return self.model.weights.n_bytes + sum(adapter.n_bytes for adapter in self.adapters)

    @property
    def held_bytes(self) -> int:
        """Bytes of weights, and of keys and values in use."""
        return 0 if self._closed else self.weight_bytes + self.cache.bytes_in_use

    @property
    def scratch_bytes(self) -> int:
        """Bytes of buffers that do not depend on the context in use."""
        plain = self._plain.n_bytes if self._plain else 0
        return self._plans.n_bytes + plain + self.cache.rounding_bytes

    @property
    def plan(self) -> CompiledPlan:
        """Of all layers."""
        return self._plans.whole.plan

    @property
    def _native(self) -> NativePlan:
        return self._plans.whole

    @property
    def n_outputs(self) -> int:
        """Rows of the output matrix, those without a token included."""
        output = self.plan.logits_matrix
        return 0 if output is None else output.rows

    @property
    def n_embeddings(self) -> int:
        """Ids with a row in the embedding; those from n_vocab on are for images, or of no use."""
        return self.model.weights.table("token_embd.weight").rows

    def check_tokens(self, tokens: Iterable[int]) -> list[int]:
        """Ids of the vocabulary, as ints. Raises TokenizerError for any other."""
        return check_tokens(tokens, self.n_vocab, self.images.image_token)

    def embedding(self, token: int) -> Floats:
        """A token's row of the embedding: (1, dim)."""
        table = self.model.weights.table("token_embd.weight")
        n = table.type.row_bytes(table.cols)
        row = dequantize(table.data[token * n : (token + 1) * n], table.type, (1, table.cols))
        return np.ascontiguousarray(row, np.float32)

    def sequence(self) -> Sequence:
        return Sequence(self.cache, self.default_adapters)

    def load_adapters(self, files: Iterable[tuple[str | os.PathLike[str], float]]) -> None:
        """Loads LoRA adapters beside the model, behind those in `adapters`. New sequences use them at the
        scales given; others may be told by `Sequence.adapters`.

        Raises AdapterError when one cannot be applied to this model, or has no room in memory, GGUFError when
        it is damaged, and OptionError for a scale that is none; then nothing has changed.
        """
        with self._lock:
            arch, weights, files = self.config.arch, self.model.weights, list(files)
            check_adapters(path for path, _ in files)
            more = [(load_adapter(path, arch, weights, self._pool), scale) for path, scale in files]
            adapters = self.adapters.extended(adapter for adapter, _ in more)
            scales = [(len(self.adapters) + i, scale) for i, (_, scale) in enumerate(more)]
            chosen = (*self.default_adapters, *adapters.scales(scales))
            if adapters:
                plain = self._plain or self._plans
                self._plans = self._planned(self.model, adapters=adapters)
                self._plain = plain
            self.adapters, self.default_adapters = adapters, chosen

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

    def exclusive(self) -> AbstractContextManager[object]:
        """For `with`: no step runs meanwhile, so that the thread pool may be used for other work."""
        return self._lock

    def logits_buffer(self, n_rows: int) -> Floats:
        """Room for `n_rows` rows of logits, for `step` to fill again and again."""
        return aligned_rows(n_rows, self._native.logits_stride)

    def step(self, entries: Seq[Entry], buffer: Floats | None = None, *, poll_signals: bool = True) -> Floats:
        """The logits of `outputs`."""
        return self.outputs(entries, buffer, poll_signals=poll_signals).logits

    def outputs(
        self, entries: Seq[Entry], buffer: Floats | None = None, *, poll_signals: bool = True
    ) -> Outputs:
        """One step over many sequences, each at most once.

        Logits are new, or the first rows of `buffer` (from `logits_buffer`), which must have room for them.
        Rows that want only their hidden state cost no product with the output matrix. Without `poll_signals`
        a step never asks for the interpreter's lock, as a thread that is not the main one has no use for it;
        Ctrl-C then ends a step only at its end. Raises ContextError, TokenizerError, OptionError.
        """
        counts = [len(entry.tokens) for entry in entries]
        n_logits = sum(n_wanted(entry.logits, n) for entry, n in zip(entries, counts, strict=True))
        stride = self._native.logits_stride
        logits = self.logits_buffer(n_logits) if buffer is None else check_rows(buffer, n_logits, stride)
        hidden = self._run(entries, logits, poll_signals)
        return Outputs(logits[:, : self.n_vocab], hidden)

    def hidden(self, tokens: Seq[int]) -> Floats:
        """States after the final norm for a fresh sequence: (n_tokens, dim)."""
        parts = []
        sequence = self.sequence()
        try:
            for start in range(0, len(tokens), self.n_batch):
                entry = Entry(sequence, tokens[start : start + self.n_batch], "none", "all")
                parts.append(self.outputs([entry]).hidden)
        finally:
            sequence.close()
        return np.concatenate(parts) if parts else np.empty((0, self.dim), np.float32)

    def read(self, entries: Seq[Entry]) -> None:
        """A step that computes all rows that `entries` ask for, but no logits: for `input_squares`."""
        self._run(entries, None)

    def op_cost(self, op: int, work: Workload) -> tuple[float, float, float, tuple[float, ...]]:
        """Bytes read, int8 and float operations of op number `op` in a step, at least; then those on int8 by
        the width of their codes, 4 to 8 bits and 16.
        """
        return self._native.cost(op, work)

    def profile(self, run: Callable[[], object]) -> dict[str, float]:
        """Seconds spent in each kind of op while `run()` steps this engine."""
        seconds = np.zeros(len(self.plan), np.float64)
        self._native.profile(seconds)
        self._profiling = True
        try:
            run()
        finally:
            self._native.profile(None)
            self._profiling = False
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
            kept = self.model, self._plans, self._plain
            model = replace(self.model, weights=override_weights(self.model.weights, blocks, self._pool))
            self.model, self._plans, self._plain = model, self._planned(model), None
        try:
            yield
        finally:
            with self._lock:
                self.model, self._plans, self._plain = kept

    def close(self) -> None:
        """Frees weights, threads and the file; sequences become useless."""
        with self._lock:
            if not self._closed:
                self._closed = True
                holds_no_more(self)
                for plans in (self._plans, self._plain):
                    if plans is not None:
                        plans.release()
                ffi.release(self._pool)
                del self.model
                self.expert_memory = None
                self.file.close()

    def _learn_rounding(self) -> None:
        with reads_checked(self.expert_memory):
            exact = self.precision == "exact"
            learn_rounding(self.cache, self.model, self.file.metadata, self._pool, exact)

    def _planned(
        self, model: Model, sums: InputSquares | None = None, adapters: LoadedAdapters | None = None
    ) -> StepPlans:
        """The plans of a model with this one's config, with those adapters or the loaded ones."""
        changes = (adapters or self.adapters).of_weights(model.weights)
        sizes = (self.n_batch, self.n_ctx)
        return step_plans(
            model, self._pool, self.cache.handles, *sizes, sums, changes, self.precision == "exact"
        )

    @property
    def image_plan(self) -> NativePlan | None:
        """What makes keys and values of an image's states, where layers attend to images."""
        return self._plans.image

    def _run(self, entries: Seq[Entry], logits: Floats | None, poll_signals: bool = True) -> Floats:
        """Fills `logits`; returns the hidden states that are wanted."""
        with self._lock, reads_checked(self.expert_memory):
            if self._closed:
                raise OptionError("the model is closed")
            try:
                keys, of_images = self.image_keys, self.image_plan
                segments = keys.segments(entries, of_images, self.adapters) if keys and of_images else None
                rows = self.images.with_rows(entries)
                batch = Batch(rows, self.n_vocab, self.dim, self.n_batch, self.n_ctx, self.adapters, segments)
                n_hidden = batch.n_outputs if batch.hidden_rows else 0
                hidden = aligned_rows(n_hidden, self._native.hidden_stride) if n_hidden else self._no_hidden
                batch.point(logits, hidden if n_hidden else None)
                plain = self._plain if batch.native.adapter_scales == ffi.NULL else None
                plan = (plain or self._plans).of_step(batch.sees_images or self._profiling)
                plan.run(batch.native, poll_signals)
                self.file.check_intact()  # rows of the embedding come from the file
                self._release_file(sum(len(entry.tokens) for entry in entries))
            except BaseException:
                for entry in entries:
                    entry.sequence.trim()
                raise
            for entry in entries:
                entry.sequence.tokens.extend(entry.tokens)
                entry.sequence.drop_past_chunks(KEPT_BEHIND)
        if not n_hidden:
            return hidden
        found = hidden[batch.hidden_rows] if batch.hidden_rows != list(range(n_hidden)) else hidden
        return found[:, : self.dim]

    def _release_file(self, n_tokens: int) -> None:
        """Lets go of the file's pages that steps have looked up, now and then."""
        self._n_looked_up += n_tokens
        if self._n_looked_up >= _RELEASE_AFTER:
            self._n_looked_up = 0
            self.file.release_all()


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
    plan = described_plan(file, config)
    cache = KVCache(architecture(config, file.paths[0]).kv_spaces(config), type_k, type_v)
    measured = measured_bytes(plan, cache.handles, min(n_batch, n_ctx), n_ctx, n_threads or threads_usable())
    return measured + cache.rounding_bytes


def kv_bytes(
    file: GGUFFile,
    config: ModelConfig,
    n_ctx: int,
    *,
    n_batch: int = DEFAULT_BATCH,
    type_k: str = "f16",
    type_v: str = "f16",
) -> int:
    """Bytes of keys and values of one sequence of `n_ctx` tokens, at most. Raises ModelError when the
    architecture cannot be run.
    """
    spaces = architecture(config, file.paths[0]).kv_spaces(config)
    return KVCache(spaces, type_k, type_v).context_bytes(n_ctx, min(n_batch, n_ctx))


def described_plan(file: GGUFFile, config: ModelConfig) -> CompiledPlan:
    """The plan of a file whose weights are not loaded: to be measured or shown. Raises ModelError when its
    architecture cannot be run.
    """
    return recorded(load(file, config, None))


def _check_spaces(file: GGUFFile, spaces: Seq[KVSpace], config: ModelConfig) -> None:
    """Raises ModelError for models that keep no keys and values, or too wide ones."""
    if not spaces:
        raise ModelError(
            f"{file.paths[0]}: a {config.arch} model classifies texts and writes none; ask it with "
            "`pyllamacpu prompt-guard`, or pyllamacpu.safety.PromptGuard"
        )
    if widest := [s for s in spaces if max(s.k_dim, s.v_dim) > lib.PL_MAX_HEAD_DIM]:
        dims = max(widest[0].k_dim, widest[0].v_dim)
        raise ModelError(
            f"{file.paths[0]}: heads of {dims} cannot be run; {lib.PL_MAX_HEAD_DIM} is the limit"
        )


def _check_options(
    n_ctx: int, n_batch: int, n_threads: int, expert_memory: int | None, precision: str
) -> None:
    if n_ctx < 1:
        raise OptionError(f"n_ctx is {n_ctx}: must be 0 (as trained) or positive")
    if not 1 <= n_batch <= 1 << 16:
        raise OptionError(f"n_batch is {n_batch}: must be from 1 to {1 << 16}")
    if not 1 <= n_threads <= lib.PL_MAX_THREADS:
        raise OptionError(f"n_threads is {n_threads}: must be from 1 to {lib.PL_MAX_THREADS}")
    if expert_memory is not None and not 1 <= expert_memory < 1 << 62:
        raise OptionError(f"expert_memory is {expert_memory}: must be a number of bytes")
    check_precision(precision)


def _image_keys(cache: KVCache, images: ImageCache, n_outputs: int) -> ImageKeyCache | None:
    """For models whose layers attend to images: the id behind those with outputs stands for one."""
    if not any(space.kind == "image" for space in cache.spaces):
        return None
    images.image_token = n_outputs
    return ImageKeyCache(cache, images)


def _overridden(config: ModelConfig, base: float | None, scale: float | None) -> ModelConfig:
    """rope_freq_base and rope_freq_scale as llama.cpp has them: 0 or None keep the model's own.

    Raises OptionError for numbers that no rope can have.
    """
    for name, value, low, high in (
        ("rope_freq_base", base, 1e-3, 1e15),
        ("rope_freq_scale", scale, 1e-6, 1e3),
    ):
        if value and not low <= value <= high:  # NaN is not either
            raise OptionError(
                f"{name} is {value}: must be 0 (as the model has it) or from {exact(low)} to {exact(high)}"
            )
    if base:
        config = replace(config, rope_theta=float(base))
    if scale:
        kind = config.rope_scaling.kind if config.rope_scaling.kind != "none" else "linear"
        config = replace(
            config, rope_scaling=replace(config.rope_scaling, kind=kind, factor=1.0 / float(scale))
        )
    return config
