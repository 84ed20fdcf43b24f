"""Metadata that should be a text and is an array or a number: every reader says so, or does without.

Covers gguf/metadata.py (text_of, architecture_of) and who reads by them.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_model import write_model

from pyllamacpu import Llama
from pyllamacpu.cli.main import cli
from pyllamacpu.errors import PyllamacpuError
from pyllamacpu.gguf.metadata import architecture_of, text_of
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.writer import GGUFWriter
from pyllamacpu.safety import PromptGuard

KEYS = (
    "general.architecture",
    "general.type",
    "adapter.type",
    "clip.projector_type",
    "tokenizer.ggml.model",
    "tokenizer.ggml.pre",
    "tokenizer.chat_template",
)
VALUES = (np.int32([1, 2]), np.float32([0.5, 1]), ["a", "b"], 7, True, -0.5)


def retyped(source: Path, target: Path, key: str, value: Any) -> Path:
    """The model at `source` with another value of `key`."""
    with GGUFFile.open(source) as file, GGUFWriter(target) as writer:
        writer.copy_metadata(file.metadata, skip=(key,))
        writer.add(key, value)
        for name, info in file.tensors.items():
            writer.add_tensor(name, info.shape, info.type)
        for name in file.tensors:
            writer.write(name, file.data(name))
    return target


def open_model(path: Path, plain: Path) -> None:
    with Llama(path, verbose=False) as model:
        model("a", max_tokens=1)
        model.create_chat_completion([{"role": "user", "content": "a"}], max_tokens=1)


def open_adapter(path: Path, plain: Path) -> None:
    Llama(plain, lora_path=path, verbose=False).close()


def open_tower(path: Path, plain: Path) -> None:
    Llama(plain, mmproj=path, verbose=False).close()


def open_guard(path: Path, plain: Path) -> None:
    PromptGuard(path).close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("plain") / "plain.gguf")


@pytest.mark.parametrize("value", VALUES, ids=repr)
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("opened", [open_model, open_adapter, open_tower, open_guard])
def test_values_of_other_types_are_refused_or_ignored(
    opened: Callable[[Path, Path], None], key: str, value: Any, plain: Path, tmp_path: Path
) -> None:
    path = retyped(plain, tmp_path / "retyped.gguf", key, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            opened(path, plain)
        except PyllamacpuError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
        else:
            assert opened is open_model and key != "general.architecture"


@pytest.mark.parametrize("key", [*KEYS, "general.name", "general.file_type"])
@pytest.mark.parametrize("command", ["show", "quantize", "bench", "convert"])
@pytest.mark.parametrize("value", [np.int32([1, 2]), [[1, 2], [3]]], ids=repr)
def test_commands_end_with_a_line(command: str, key: str, value: Any, plain: Path, tmp_path: Path) -> None:
    path = retyped(plain, tmp_path / "retyped.gguf", key, value)
    more = {
        "show": [],
        "quantize": [str(tmp_path / "q.gguf"), "Q8_0"],
        "convert": ["-o", str(tmp_path / "{name}.gguf")],
    }
    bench = ["bench", "-m", str(path), "-r", "1", "--no-limits", "--image"]
    args = bench if command == "bench" else [command, str(path), *more[command]]
    result = CliRunner().invoke(cli, args, standalone_mode=False)
    assert result.exception is None or isinstance(result.exception, PyllamacpuError), result.exception


def test_texts_are_texts() -> None:
    assert text_of({"a": "b"}, "a") == "b" and text_of({}, "a") is None
    assert all(text_of({"a": value}, "a") is None for value in VALUES)
    assert architecture_of({"general.architecture": "llama"}) == "llama"
