"""Quantizing a file: a plan carried out by the pipeline of weights/."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path

from pyllamacpu.files import InputFiles
from pyllamacpu.quantize.plan import PlannedTensor, QuantizePlan, check_importance
from pyllamacpu.weights.gguf_tensors import gguf_tensor
from pyllamacpu.weights.output import ModelOutput, Progress, part_paths
from pyllamacpu.weights.stream import OutputTensor


def run(
    plan: QuantizePlan,
    out: Path,
    n_threads: int | None = None,
    protected: Sequence[Path] = (),
    force: bool = False,
) -> Generator[Progress, None, None]:
    """Writes the plan's file or files, whole or not at all; they appear when the iterator ends. Progress
    comes in the order of `plan.tensors`. What is `protected` is not written to, as the source is not;
    `force`: files that are no models are replaced.

    Raises OptionError when importance is missing, OutputError when the output cannot be written or is the
    source, CheckpointError for weights that are NaN or infinite. Closing the iterator early leaves nothing
    behind.
    """
    check_importance(plan)
    return quantized_output(plan, out, protected, force).write(n_threads)


def quantized_output(
    plan: QuantizePlan, out: Path, protected: Sequence[Path] = (), force: bool = False
) -> ModelOutput:
    """The files that will be there: `out`, or its parts."""
    split = plan.settings.keep_split
    parts: list[list[OutputTensor]] = [[] for _ in range(plan.n_parts)]
    for tensor in plan.tensors:
        parts[tensor.source.part if split else 0].append(_output_tensor(plan, tensor))
    paths = part_paths(out, plan.n_parts, always_numbered=split)
    return ModelOutput(paths, plan.metadata(), parts, InputFiles(plan.file.paths), protected, force)


def _output_tensor(plan: QuantizePlan, tensor: PlannedTensor) -> OutputTensor:
    importance = partial(plan.importance, tensor) if tensor.changed else None
    rows = gguf_tensor(plan.file, tensor.source)
    return OutputTensor(tensor.name, rows, tensor.kind, tensor.source.shape, importance)
