"""What `quantize` is given: models, and what to say of anything else."""

from __future__ import annotations

from pathlib import Path

from pyllamacpu.errors import GGUFError, ModelError, OptionError
from pyllamacpu.files import read_start
from pyllamacpu.gguf.file_kinds import IMATRIX, MODEL, TOWER, VOCABULARY, kind_name
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.values import MAGIC
from pyllamacpu.quantize.imatrix import is_imatrix

_CHECKPOINTS = (".safetensors", ".bin", ".pth", ".pt")
_KINDS = {
    IMATRIX: "is an importance matrix, not a model: give it with --imatrix, and the model as the input",
    "adapter": "is a LoRA adapter, not a model: adapters are small and stay as they are (`convert --outtype "
    "q8_0` makes a smaller one of a PEFT adapter)",
    VOCABULARY: "holds a vocabulary and no tensors: there is nothing to quantize",
}


def check_path(path: Path) -> None:
    """Raises OptionError for a folder or a checkpoint's file: these are converted first."""
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        hint = (
            f"name the file, such as {files[0]}"
            if files
            else f"a checkpoint becomes a GGUF file with `pyllamacpu convert {path} --outtype TYPE`"
        )
        raise OptionError(f"{path} is a folder, not a GGUF file; {hint}")
    if path.is_file() and read_start(path, len(MAGIC)) != MAGIC:
        if path.suffix in _CHECKPOINTS:
            raise OptionError(
                f"{path} is a checkpoint's file, not GGUF; convert its folder: "
                f"`pyllamacpu convert {path.parent} --outtype TYPE`"
            )
        if is_imatrix(path):
            raise OptionError(f"{path} {_KINDS[IMATRIX]}")


def check_kind(file: GGUFFile) -> None:
    """Raises ModelError for a GGUF file that holds something other than a model or a vision tower."""
    metadata = file.metadata
    kind = IMATRIX if "imatrix.chunk_count" in metadata else kind_name(
        metadata.get("general.type"), bool(file.tensors)
    )  # fmt: skip
    if kind not in (MODEL, TOWER):
        said = _KINDS.get(kind, f"says that it is a {kind!r}, not a model")
        raise ModelError(f"{file.paths[0]}: {said}")


def check_measurable(file: GGUFFile, allow_requantize: bool) -> None:
    """Raises for a model that cannot be measured, or whose tensors may not be changed: before the work."""
    from pyllamacpu.model.config import ModelConfig
    from pyllamacpu.model.registry import architecture

    if not allow_requantize:
        done = next((info for info in file.tensors.values() if info.type.block_size > 1), None)
        if done is not None:
            raise OptionError(
                f"{file.paths[0]}: tensor {done.name!r} is {done.type.name} already; quantize from "
                "F32, F16 or BF16, or say --allow-requantize, which costs quality"
            )
    try:
        config = ModelConfig.from_metadata(file.metadata, file.tensors)
    except GGUFError as error:
        raise ModelError(f"{file.paths[0]}: {error}") from error
    architecture(config, file.paths[0])
