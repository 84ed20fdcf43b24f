"""An encoder with a classifier, ready to run: whole sequences in, the logits of its labels out.

There are no KV pages: a sequence is read in one step, and its logits do not depend on what else is in it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.batch import aligned_rows
from pyllamacpu.engine.token_ids import check_tokens
from pyllamacpu.errors import ContextError, ModelError, OptionError
from pyllamacpu.forks import fork_safe_lock
from pyllamacpu.gguf.metadata import architecture_of
from pyllamacpu.gguf.overrides import Overrides
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.graph.native_plan import NativePlan
from pyllamacpu.graph.recorder import Recorder
from pyllamacpu.model.architectures import DEBERTA
from pyllamacpu.model.config import ModelConfig, check_is_model
from pyllamacpu.model.pack_cache import open_pack_cache
from pyllamacpu.model.registry import load
from pyllamacpu.native import ffi, lib, thread_pool
from pyllamacpu.topology import threads_usable

DEFAULT_TOKENS = 1024  # of a step at most, unless a sequence may be longer
FIRST_TOKENS = 64  # that buffers have room for at first


class Encoder:
    """Closed by `close`. Threads may share it: steps queue."""

    def __init__(
        self,
        file: GGUFFile,
        *,
        n_threads: int | None = None,
        n_batch: int = DEFAULT_TOKENS,
        pack_cache: str | os.PathLike[str] | None = None,
    ) -> None:
        """n_threads: None or 0: as many as this process may use. n_batch: tokens of a step at most; as many
        as the longest sequence has, at the least. pack_cache: see `Engine`. Raises GGUFError,
        ModelError, OptionError.
        """
        check_is_model(file.metadata)
        arch = architecture_of(file.metadata)
        if arch != DEBERTA:
            raise ModelError(
                f"{file.paths[0]}: a {arch} model does not classify texts; take a Prompt Guard model, "
                "converted by `pyllamacpu convert`"
            )
        self.file = file
        self.config = ModelConfig.from_metadata(file.metadata, file.tensors)
        if n_threads is not None and not hasattr(n_threads, "__index__"):
            raise OptionError(f"n_threads={n_threads!r:.80}: give a whole number")
        self.n_threads = n_threads or threads_usable()
        if not isinstance(self.n_threads, int) or not 1 <= self.n_threads <= lib.PL_MAX_THREADS:
            raise OptionError(f"n_threads is {n_threads!r:.40}: must be from 1 to {lib.PL_MAX_THREADS}")
        self.n_batch = max(n_batch, self.n_ctx)
        self._pool = thread_pool(self.n_threads)
        self._model = load(file, self.config, self._pool, pack_cache=open_pack_cache(pack_cache))
        recorder = Recorder(())
        self._model.record(recorder)
        self._plan = recorder.compile()
        self._native = self._of_size(min(FIRST_TOKENS, self.n_batch))
        file.check_intact()
        self._lock = fork_safe_lock()
        self._closed = False

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, kv_overrides: Overrides | None = None, **options: Any
    ) -> Encoder:
        """The encoder of the model file at `path`; options as above."""
        return cls(GGUFFile.open(path, kv_overrides), **options)

    @property
    def n_ctx(self) -> int:
        """Tokens of a sequence at most."""
        return self.config.n_ctx_train

    @property
    def labels(self) -> tuple[str, ...]:
        assert self.config.deberta is not None
        return self.config.deberta.labels

    def _of_size(self, n_tokens: int) -> NativePlan:
        """With buffers for so many tokens. Those for `n_batch` would be spread over as many huge pages as
        there are buffers, each of them cleared for a short text.
        """
        return NativePlan(self._plan, self._pool, (), n_tokens, self.n_ctx)

    def logits(self, sequences: Seq[Seq[int]]) -> npt.NDArray[np.float32]:
        """(n, n_labels): of each sequence of token ids. As many at a time as a step takes.

        Raises ContextError for a sequence that is too long, OptionError for an empty one, TokenizerError for
        ids that there are not, ModelError when a logit is not a finite number.
        """
        checked = [self._checked(ids) for ids in sequences]
        result = np.empty((len(checked), len(self.labels)), np.float32)
        start = 0
        while start < len(checked):
            stop, n_tokens = start, 0
            while stop < len(checked) and n_tokens + len(checked[stop]) <= self.n_batch:
                n_tokens += len(checked[stop])
                stop += 1
            result[start:stop] = self._step(checked[start:stop])
            start = stop
        if not np.isfinite(result).all():
            raise ModelError(
                f"{self.file.paths[0]}: the model's output is NaN or infinite, which says nothing of a text: "
                "its weights are damaged, or too large"
            )
        return result

    def _checked(self, ids: Seq[int]) -> list[int]:
        checked = check_tokens(ids, self.config.vocab_size)
        if not checked:
            raise OptionError("there are no tokens to classify")
        if len(checked) > self.n_ctx:
            raise ContextError(f"{len(checked)} tokens are more than the model's window of {self.n_ctx}")
        return checked

    def _step(self, sequences: Seq[list[int]]) -> npt.NDArray[np.float32]:
        lengths = [len(ids) for ids in sequences]
        tokens = [token for ids in sequences for token in ids]
        positions = [i for n in lengths for i in range(n)]
        numbers = [i for i, n in enumerate(lengths) for _ in range(n)]
        firsts = [sum(lengths[:i]) for i in range(len(lengths))]
        n = len(tokens)
        ints = ffi.new("int32_t[]", tokens + positions + numbers + firsts)
        logits = aligned_rows(len(sequences), self._native.logits_stride)
        batch = ffi.new("pl_batch *")
        batch.n_tokens, batch.n_sequences = n, len(sequences)
        batch.n_outputs = batch.n_logits = len(sequences)
        batch.tokens, batch.positions = ints, ints + n
        batch.sequences, batch.outputs = ints + 2 * n, ints + 3 * n
        batch.logits = ffi.from_buffer("float *", logits)
        with self._lock:
            if self._closed:
                raise OptionError("the model is closed")
            if n > self._native.max_tokens:
                small, self._native = self._native, self._of_size(self.n_batch)
                small.release()
            self._native.run(batch, threading.current_thread() is threading.main_thread())
            self.file.check_intact()  # rows of the embedding come from the file
        return logits[:, : len(self.labels)]

    def close(self) -> None:
        """Frees weights, threads and the file."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._native.release()
                ffi.release(self._pool)
                self._plan.release()
                del self._model
                self.file.close()
