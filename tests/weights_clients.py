"""The clients of the weight pipeline, each with a source of its own kind, so that one test serves all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from checkpoint_build import write_safetensors
from convert_models import BY_NAME, weights, write_checkpoint
from quantize_model import arrays, write_model

from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.quantize.driver import quantized_output
from pyllamacpu.quantize.file_types import parse_file_type
from pyllamacpu.quantize.plan import Settings, make_plan
from pyllamacpu.weights.output import ModelOutput, SplitLimits

Change = Callable[[np.ndarray], object]
N_PARTS = 3


@dataclass(frozen=True)
class Client:
    """`write_source(folder, change)`: a model with one matrix changed, called `spoiled` in the source, of
    several files where outputs keep those. `plan(source, out, file_type)`: its conversion into several parts.
    """

    name: str
    spoiled: str
    write_source: Callable[[Path, Change | None], Path]
    plan: Callable[[Path, Path, str], ModelOutput]


def _write_checkpoint(folder: Path, change: Change | None) -> Path:
    source = write_checkpoint(folder / "model", BY_NAME["gqa"])
    if change:
        tensors = dict(weights(BY_NAME["gqa"]))
        change(tensors["model.layers.1.mlp.down_proj.weight"])
        write_safetensors(source / "model.safetensors", tensors)
    return source


def _write_gguf(folder: Path, change: Change | None) -> Path:
    tensors = arrays()
    if change:
        change(tensors["blk.1.ffn_down.weight"])
    (folder / "model").mkdir()
    return write_model(folder / "model" / "in.gguf", tensors, n_parts=N_PARTS)


def _convert(source: Path, out: Path, kind: str) -> ModelOutput:
    options = ConvertOptions(str(out), "f32" if kind == "COPY" else kind, limits=SplitLimits(max_tensors=8))
    return plan_conversion(source, options).output


def _convert_gguf(source: Path, out: Path, kind: str) -> ModelOutput:
    options = ConvertOptions(str(out), "auto" if kind == "COPY" else kind, limits=SplitLimits(max_tensors=15))
    return plan_conversion(source, options).output


def _quantize(source: Path, out: Path, kind: str) -> ModelOutput:
    plan = make_plan(GGUFFile.open(source), Settings(parse_file_type(kind), keep_split=True))
    return quantized_output(plan, out)


CLIENTS = (
    Client("checkpoint", "layers.1.mlp.down_proj.weight", _write_checkpoint, _convert),
    Client("gguf", "blk.1.ffn_down.weight", _write_gguf, _convert_gguf),
    Client("quantize", "blk.1.ffn_down.weight", _write_gguf, _quantize),
)
