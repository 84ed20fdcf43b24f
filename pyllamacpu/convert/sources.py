"""Which kind of source is to be converted, and its conversion."""

from __future__ import annotations

from pathlib import Path

from pyllamacpu.convert.checkpoint_source import plan_checkpoint
from pyllamacpu.convert.classifier import classifies, plan_classifier
from pyllamacpu.convert.conversion import Conversion, ConvertOptions
from pyllamacpu.convert.gguf_source import plan_gguf
from pyllamacpu.convert.lora import is_adapter, plan_adapter
from pyllamacpu.errors import CheckpointError, OptionError
from pyllamacpu.files import read_problem
from pyllamacpu.gguf.values import MAGIC


def plan_conversion(source: Path, options: ConvertOptions) -> Conversion:
    """Reads everything but the weights. Raises CheckpointError, GGUFError or OptionError for what cannot be
    done, and for files that cannot be read.
    """
    try:
        return _plan(source, options)
    except OSError as error:
        path = error.filename if isinstance(error.filename, str) else source
        raise CheckpointError(path, read_problem(error, "cannot be read: ")) from error


def _plan(source: Path, options: ConvertOptions) -> Conversion:
    if not source.exists():
        raise CheckpointError(source, "no such file or folder")
    if source.is_file() and _is_gguf(source):
        return plan_gguf(source, options)
    if options.adapters:
        raise OptionError("--lora merges into a GGUF file: convert the checkpoint first, then merge")
    if is_adapter(source):
        return plan_adapter(source, options)
    if classifies(source):
        return plan_classifier(source, options)
    return plan_checkpoint(source, options)


def _is_gguf(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC
