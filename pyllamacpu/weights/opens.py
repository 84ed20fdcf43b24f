"""Whether a model file that is about to be written would open, asked before anything is written.

The file's header is written to a temporary place, with nothing where the weights will be, and opened as a
model is: by the reader, the checks of its config and tensors, and the tokenizer's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from pyllamacpu.errors import PyllamacpuError
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.gguf.writer import GGUFWriter

Declared = tuple[str, tuple[int, ...], TensorType]  # a tensor's name, shape and type


def why_it_would_not_open(keys: Sequence[KeyValue], tensors: Iterable[Declared]) -> str:
    """The reason, or "" for a file that opens; also where there is no room to find out."""
    with tempfile.TemporaryDirectory(prefix="pyllamacpu-") as folder:
        path = Path(folder) / "model.gguf"
        try:
            writer = GGUFWriter(path)
            for key in keys:
                if key.name != "general.alignment":
                    writer.add(*key)
            for tensor in tensors:
                writer.add_tensor(*tensor)
            writer.write_hollow(path)
            with GGUFFile.open(path) as file:
                _open(file)
        except OSError:
            return ""
        except PyllamacpuError as error:
            return str(error).replace(f"{path}: ", "")
    return ""


def _open(file: GGUFFile) -> None:
    """Raises PyllamacpuError where opening a model would."""
    from pyllamacpu.model.config import ModelConfig
    from pyllamacpu.model.registry import architecture
    from pyllamacpu.model.weights import check_tensors
    from pyllamacpu.text.load import load_tokenizer

    config = ModelConfig.from_metadata(file.metadata, file.tensors)
    kind = architecture(config, file.paths[0])
    check_tensors(file, kind.tensors(config, file.tensors))
    if config.deberta is None:  # whose tokenizer is the classifier's own
        load_tokenizer(file.metadata, str(file.paths[0]))
