"""Quantizing a file: slabs of rows go from the mapped source through all threads to the output, in order.

Only a few slabs are in memory at a time, and the source's pages are dropped behind them, so a model larger
than memory is no different from a small one.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import GGUFError, ModelError
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.gguf.writer import GGUFWriter
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.native import cpus_usable
from pyllamacpu.quantize.plan import Plan, Step, check_importance
from pyllamacpu.weights.blocks import quantize

SLAB = 1 << 20  # elements that a thread takes at once: 4 MB as float32
_HEADER = 64 << 20  # bytes: more than any vocabulary takes, for asking whether the disk has room

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Progress:
    """One slab has been written. `index` counts tensors from 0; `ended` when it was the tensor's last slab.

    `done`: bytes of the source that are behind us, of all tensors; plan.source_bytes is the whole.
    """

    step: Step
    index: int
    done: int
    ended: bool


@dataclass(frozen=True)
class _Job:
    """Rows `start` to `stop` of a tensor, all of one matrix. `data`: the tensor's bytes."""

    step: Step
    index: int
    data: Bytes
    start: int
    stop: int
    importance: Floats | None  # (cols,)

    @property
    def row_bytes(self) -> int:
        return self.step.source.type.row_bytes(self.step.source.shape[-1])

    @property
    def rows(self) -> Bytes:
        return self.data[self.start * self.row_bytes : self.stop * self.row_bytes]


def run(plan: Plan, out: Path, n_threads: int | None = None) -> Iterator[Progress]:
    """Writes the plan's file or files, whole or not at all; they appear when the iterator ends.

    Raises OptionError when importance is missing, GGUFError when the output cannot be written or is the
    source, ModelError for weights that are NaN or infinite. Closing the iterator early leaves nothing behind.
    """
    check_importance(plan)
    paths = output_paths(plan, out)
    _check_paths(plan, paths)
    threads = n_threads or cpus_usable()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="quantize")
    done = 0
    try:
        with _Output(plan, paths) as output:
            for job, blocks in _in_order(pool, _jobs(plan), 2 * threads):
                output.write(job.step, blocks)
                del blocks
                start, stop = job.start * job.row_bytes, job.stop * job.row_bytes
                plan.file.release(job.step.source.name, start, stop)
                done += stop - start
                yield Progress(job.step, job.index, done, job.stop == job.step.n_rows)
    finally:
        pool.shutdown(cancel_futures=True)


def output_paths(plan: Plan, out: Path) -> list[Path]:
    """The files that will be there: `out`, or its parts."""
    if not plan.settings.keep_split:
        return [out]
    stem, n = str(out).removesuffix(".gguf"), plan.n_parts
    return [Path(f"{stem}-{no:05}-of-{n:05}.gguf") for no in range(1, n + 1)]


def _check_paths(plan: Plan, paths: list[Path]) -> None:
    for path in paths:
        for source in plan.file.paths:
            if path.resolve() == source.resolve() or (path.exists() and os.path.samefile(path, source)):
                raise GGUFError(path, "is the input too; give the output another name")
    try:
        free = shutil.disk_usage(paths[0].absolute().parent).free
    except OSError as error:
        raise GGUFError(paths[0], f"cannot be written: {error.strerror or error}") from error
    needed = plan.n_bytes + min(_HEADER, plan.file.n_bytes)
    if free < needed:
        raise GGUFError(
            paths[0],
            f"needs {needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB left; make room or take another",
        )


def _jobs(plan: Plan) -> Iterator[_Job]:
    """All slabs of all tensors, in the order of the output."""
    for index, step in enumerate(plan.steps):
        data = plan.file.data(step.source.name)
        importance = plan.importance(step) if step.changed else None
        per_matrix = step.source.shape[-2] if len(step.source.shape) > 1 else 1
        n_rows = max(1, SLAB // step.source.shape[-1])
        for matrix in range(step.n_rows // per_matrix):
            weights = None if importance is None else importance[matrix]
            for start in range(0, per_matrix, n_rows):
                first = matrix * per_matrix
                stop = first + min(start + n_rows, per_matrix)
                yield _Job(step, index, data, first + start, stop, weights)


def _in_order(pool: ThreadPoolExecutor, jobs: Iterator[_Job], window: int) -> Iterator[tuple[_Job, Bytes]]:
    """The blocks of each job, in order, with at most `window` jobs begun and not yet taken."""
    pending: deque[tuple[_Job, Future[Bytes]]] = deque()
    for job in jobs:
        pending.append((job, pool.submit(_blocks, job)))
        if len(pending) >= window:
            first, future = pending.popleft()
            yield first, future.result()
            del first, future
    while pending:
        first, future = pending.popleft()
        yield first, future.result()
        del first, future


def _blocks(job: _Job) -> Bytes:
    """The job's rows in their new type, (rows, row bytes) or flat uint8."""
    source, shape = job.step.source.type, (job.stop - job.start, job.step.source.shape[-1])
    if not job.step.changed and source.name.startswith("I") and not source.name.startswith("IQ"):
        return job.rows  # whole numbers
    values = job.rows.view("<f4").reshape(shape) if source == TensorType.F32 else _decoded(job, shape)
    if values is None:
        return job.rows
    if not job.step.changed:
        if not np.isfinite(values.sum(dtype=np.float64)):
            _refuse(job, values)
        return job.rows
    try:
        return quantize(values, job.step.kind, job.importance, threads=1)
    except ModelError:
        _refuse(job, values)
        raise


def _decoded(job: _Job, shape: tuple[int, int]) -> Floats | None:
    """float32 values; None for a type that is only copied and cannot be decoded."""
    try:
        return dequantize(job.rows, job.step.source.type, shape)
    except ModelError:
        if job.step.changed:
            raise
        return None


def _refuse(job: _Job, values: Floats) -> None:
    """Raises ModelError when a value is not finite."""
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = wrong[0]
        raise ModelError(
            f"tensor {job.step.source.name!r}, row {job.start + row}, column {column} is "
            f"{values[row, column]}: the weights are damaged; get the file again"
        )


class _Output:
    """The files being written: one, or as many as the source has. They get their names at the end."""

    def __init__(self, plan: Plan, paths: list[Path]) -> None:
        self._split = plan.settings.keep_split
        self._writers = [GGUFWriter(path) for path in paths]
        added = plan.added_metadata()
        self._writers[0].copy_metadata(plan.file.metadata, skip=added)
        for override in added.values():
            plain = override.kind != ValueType.ARRAY  # arrays have the type of their elements
            self._writers[0].add(override.key, override.value, override.kind if plain else None)
        if len(paths) > 1:
            for number, writer in enumerate(self._writers):
                writer.add("split.no", number, ValueType.UINT16)
                writer.add("split.count", len(paths), ValueType.UINT16)
                writer.add("split.tensors.count", len(plan.steps), ValueType.INT32)
        for step in plan.steps:
            self._of(step).add_tensor(step.name, step.source.shape, step.kind)

    def _of(self, step: Step) -> GGUFWriter:
        return self._writers[step.source.part if self._split else 0]

    def write(self, step: Step, blocks: Bytes) -> None:
        self._of(step).write(step.name, blocks)

    def __enter__(self) -> _Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        whole: list[GGUFWriter] = []
        try:
            if kind is None:
                for writer in self._writers:
                    writer.close()
                    whole.append(writer)
        except BaseException:
            for writer in whole:  # some parts without the others are no model
                writer.path.unlink(missing_ok=True)
            raise
        finally:
            for writer in self._writers:
                writer.abort()
