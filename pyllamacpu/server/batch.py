"""A batch: the requests of a file that have no answer yet, answered by the engine of this process."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyllamacpu.errors import OptionError
from pyllamacpu.files import check_output
from pyllamacpu.progress import OnCount
from pyllamacpu.safety.shield import ShieldOptions
from pyllamacpu.server.batch_engine import BatchEngine, batch_engine
from pyllamacpu.server.batch_file import BATCH_OUTPUT, BatchOutput, Line, read_lines
from pyllamacpu.server.errors import HTTPError
from pyllamacpu.server.images import NO_URLS, ImageAccess
from pyllamacpu.server.models import PoolOptions
from pyllamacpu.server.served_files import ServedFile


@dataclass(frozen=True)
class BatchOptions:
    """models: the first is the default. strict: unknown fields are refused."""

    models: tuple[ServedFile, ...]
    pool: PoolOptions
    strict: bool = False
    shield: ShieldOptions | None = None
    images: ImageAccess = NO_URLS
    force: bool = False  # also replace an output that is not one of a batch


@dataclass
class BatchCounts:
    """Lines of the output."""

    kept: int = 0  # of earlier runs
    kept_failed: int = 0  # of those, errors
    changed: int = 0  # of those, lines for requests that have another content now
    answered: int = 0
    blocked: int = 0  # of those, answers that the shield ended, or did not let begin
    failed: int = 0

    @property
    def written(self) -> int:
        return self.answered + self.failed


class BatchRun:
    """The lines that are left, and the output that gets a line for each."""

    def __init__(self, source: Path, output: BatchOutput, show: OnCount) -> None:
        changed: set[str] = set()
        self.total = sum(1 for _ in read_lines(source, output.finished, changed))
        self.counts = BatchCounts(output.finished.n_lines, output.finished.n_failed, len(changed))
        self._lines = read_lines(source, output.finished)
        self._output, self._show = output, show

    def next_request(self) -> Line | None:
        """The next line that is a request; those before it that are none get their errors."""
        for line in self._lines:
            if line.refusal is None:
                return line
            self.refuse(line, line.refusal)
        return None

    def refuse(self, line: Line, refusal: HTTPError) -> None:
        error = {"code": refusal.code, "message": str(refusal), "param": refusal.param}
        self._write(line.output(None, error), failed=True)

    def write_answer(self, line: Line, status: int, body: bytes) -> None:
        request_id = f"req_{uuid.uuid4().hex}"
        found = json.loads(body)
        self.counts.blocked += status == 200 and _is_blocked(found)
        response = {"status_code": status, "request_id": request_id, "body": found}
        self._write(line.output(response), failed=status != 200)

    def _write(self, line: bytes, failed: bool) -> None:
        self._output.write(line)
        if failed:
            self.counts.failed += 1
        else:
            self.counts.answered += 1
        self._show("requests", self.counts.written, self.total)


def _is_blocked(body: Mapping[str, Any]) -> bool:
    """Whether the shield reported something in an answer."""
    return any("shield" in answer for answer in (body, *(body.get("choices") or ())))


@contextmanager
def open_run(
    source: Path, target: Path, inputs: Sequence[Path], force: bool, show: OnCount
) -> Iterator[BatchRun]:
    """What has no line in `target` yet. inputs: other files that are read, which `target` must not be.
    Raises OptionError for an input that cannot be read, OutputError.
    """
    for path in (source, target):
        if str(path) == "-":
            raise OptionError("-: a batch reads its input twice and goes on after a kill: give files' names")
    if not source.is_file():
        raise OptionError(f"{source}: {'is not a regular file' if source.exists() else 'no such file'}")
    check_output(target, [source, *inputs], BATCH_OUTPUT, force, in_place=True)
    output = BatchOutput(target, force)
    try:
        yield BatchRun(source, output, show)
    finally:
        output.close()


def run_batch(
    source: Path, target: Path, inputs: Sequence[Path], options: BatchOptions, show: OnCount
) -> BatchCounts:
    """Answers what has no line in `target` yet. Raises what `open_run` raises, and loading the model."""
    with open_run(source, target, inputs, options.force, show) as run:
        if run.total:
            asyncio.run(_answer_all(run, options))
        return run.counts


async def _answer_all(run: BatchRun, options: BatchOptions) -> None:
    own = (options.models, options.pool, options.strict, options.shield, options.images)
    async with batch_engine(*own) as engine:
        await engine.load()  # a model that cannot be loaded ends the run, not every line
        n_workers = min(run.total, 2 * options.pool.parallel)  # the next prompts are ready when one ends
        workers = [asyncio.ensure_future(_work(run, engine)) for _ in range(n_workers)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


async def _work(run: BatchRun, engine: BatchEngine) -> None:
    while (line := run.next_request()) is not None:
        run.write_answer(line, *await engine.answer(line.url, line.body))
