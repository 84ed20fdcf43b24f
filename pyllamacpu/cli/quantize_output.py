"""Writing a quantized file, or only showing what would be written: lines, a bar, sizes."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyllamacpu.progress import byte_bar, is_terminal, one_line

if TYPE_CHECKING:
    from pyllamacpu.gguf.types import TensorType
    from pyllamacpu.quantize.plan import QuantizePlan

MIB = 1 << 20


def show_plan(plan: QuantizePlan) -> None:
    for index in range(len(plan.tensors)):
        click.echo(_line(plan, index))
    _sizes(plan)
    if plan.without_importance:
        click.echo(
            f"warning: {len(plan.without_importance)} tensors need an importance matrix: without --imatrix "
            "this will be refused",
            err=True,
        )


def _sizes(plan: QuantizePlan) -> None:
    before = 8 * plan.source_bytes / plan.n_elements
    click.echo(f"model size = {plan.source_bytes / MIB:10.2f} MiB ({before:.2f} BPW)")
    click.echo(f"quant size = {plan.n_bytes / MIB:10.2f} MiB ({plan.bits_per_weight:.2f} BPW)")
    if plan.n_fallbacks:
        click.echo(
            f"warning: {plan.n_fallbacks} of {len(plan.tensors)} tensors fell back to another type", err=True
        )


def write_plan(
    plan: QuantizePlan,
    out: Path,
    threads: int | None,
    lines: bool,
    protected: Sequence[Path] = (),
    force: bool = False,
) -> None:
    """Writes the output, showing progress; `lines`: one per tensor."""
    from pyllamacpu.quantize.driver import quantized_output, run

    terminal = is_terminal(sys.stderr)
    began = time.monotonic()
    with byte_bar(plan.n_bytes) if terminal else contextlib.nullcontext() as bar:
        for progress in run(plan, out, threads, protected, force):
            if progress.ended and lines:
                click.echo(_line(plan, progress.index))
            if bar:
                bar(progress.done, progress.tensor.name)
    _sizes(plan)
    paths = quantized_output(plan, out).paths
    more = f" and {len(paths) - 1} more parts" if len(paths) > 1 else ""
    click.echo(f"written to {paths[0]}{more} in {time.monotonic() - began:.1f} s")


def _line(plan: QuantizePlan, index: int) -> str:
    """What becomes of one tensor."""
    tensor = plan.tensors[index]
    dims = ", ".join(f"{n:5}" for n in reversed(tensor.source.shape))
    head = f"[{index + 1:4}/{len(plan.tensors):4}] {one_line(tensor.name):36} - [{dims}]"
    size = f"type = {_name(tensor.source.type):>6}, size = {tensor.source.n_bytes / MIB:9.3f} MiB"
    becomes = f" -> {tensor.n_bytes / MIB:9.3f} MiB ({_name(tensor.kind)})" if tensor.changed else ""
    return f"{head}, {size}{becomes}"


def _name(kind: TensorType) -> str:
    return kind.name.lower()
