"""Writing a quantized file, or only showing what would be written: lines, a bar, sizes."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyllamacpu.cli.output import is_terminal

if TYPE_CHECKING:
    from pyllamacpu.gguf.types import TensorType
    from pyllamacpu.quantize.driver import Progress
    from pyllamacpu.quantize.plan import Plan, Step

MIB = 1 << 20


def show_plan(plan: Plan) -> None:
    for index, step in enumerate(plan.steps):
        click.echo(_line(plan, index, step))
    _sizes(plan)
    if plan.without_importance:
        click.echo(
            f"warning: {len(plan.without_importance)} tensors need an importance matrix: without --imatrix "
            "this will be refused",
            err=True,
        )


def _sizes(plan: Plan) -> None:
    before = 8 * plan.source_bytes / plan.n_elements
    click.echo(f"model size = {plan.source_bytes / MIB:10.2f} MiB ({before:.2f} BPW)")
    click.echo(f"quant size = {plan.n_bytes / MIB:10.2f} MiB ({plan.bits_per_weight:.2f} BPW)")
    if plan.n_fallbacks:
        click.echo(
            f"warning: {plan.n_fallbacks} of {len(plan.steps)} tensors fell back to another type", err=True
        )


def write_plan(plan: Plan, out: Path, threads: int | None, verbose: bool, lines: bool | None = None) -> None:
    """Writes the output, showing progress; `lines`: one per tensor, without it where there is no terminal."""
    from pyllamacpu.quantize.driver import output_paths, run

    terminal = is_terminal(sys.stderr)
    began = time.monotonic()
    with _bar(plan) if terminal else contextlib.nullcontext() as bar:
        for progress in run(plan, out, threads):
            if progress.ended and ((verbose or not terminal) if lines is None else lines):
                click.echo(_line(plan, progress.index, progress.step))
            if bar:
                bar(progress)
    _sizes(plan)
    paths = output_paths(plan, out)
    more = f" and {len(paths) - 1} more parts" if len(paths) > 1 else ""
    click.echo(f"written to {paths[0]}{more} in {time.monotonic() - began:.1f} s")


@contextlib.contextmanager
def _bar(plan: Plan) -> Iterator[Callable[[Progress], None]]:
    """A bar with the rate and the time left, on stderr."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=plan.source_bytes)

        def show(progress: Progress) -> None:
            bar.update(task, description=escape(progress.step.name), completed=progress.done)

        yield show


def _line(plan: Plan, index: int, step: Step) -> str:
    """What becomes of one tensor."""
    dims = ", ".join(f"{n:5}" for n in reversed(step.source.shape))
    head = f"[{index + 1:4}/{len(plan.steps):4}] {step.name:36} - [{dims}]"
    size = f"type = {_name(step.source.type):>6}, size = {step.source.n_bytes / MIB:9.3f} MiB"
    becomes = f" -> {step.n_bytes / MIB:9.3f} MiB ({_name(step.kind)})" if step.changed else ""
    return f"{head}, {size}{becomes}"


def _name(kind: TensorType) -> str:
    return kind.name.lower()
