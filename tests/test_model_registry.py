"""The registry: modules by architecture, and what a model enumerates (model/registry.py, model/llama.py)."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import pyllamacpu
from pyllamacpu.errors import ModelError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.model.config import ModelConfig
from pyllamacpu.model.registry import MODULES, architecture, load
from pyllamacpu.model.weights import Matrix, Vector

LOGITS = Path(__file__).parent / "fixtures" / "logits"
PACKAGE = Path(pyllamacpu.__file__).parent


def config_of(file: GGUFFile) -> ModelConfig:
    return ModelConfig.from_metadata(file.metadata, file.tensors)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_defines_an_architecture(name: str) -> None:
    with GGUFFile.open(LOGITS / "gqa4.gguf") as file:
        found = architecture(replace(config_of(file), arch=name), "x.gguf")
    assert all(callable(getattr(found, part)) for part in ("unsupported", "kv_spaces", "tensors", "record"))


def test_an_architecture_is_imported_when_a_model_needs_it() -> None:
    code = "import sys, pyllamacpu.model.registry as r; assert not set(r.MODULES.values()) & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_cannot_be_run_names_the_file_and_the_reason() -> None:
    with GGUFFile.open(LOGITS / "gqa4.gguf") as file:
        config = config_of(file)
    for change, says in (
        ({"arch": "llama4"}, r"x\.gguf: llama4 models cannot be run yet; llama models can"),
        ({"n_experts": 4}, r"x\.gguf: llama with 4 experts models cannot be run yet"),
        ({"n_heads": (4, 8)}, "different numbers of heads"),
    ):
        with pytest.raises(ModelError, match=says):
            architecture(replace(config, **change), "x.gguf")


@pytest.mark.parametrize("name", ["gqa4", "bf16_biases", "mixed_q4_k_m"])
def test_the_enumeration_is_the_files_tensors(name: str) -> None:
    """Each once, with its shape; a tied output is the embedding again."""
    with GGUFFile.open(LOGITS / f"{name}.gguf") as file:
        model = load(file, config_of(file), None)
        assert {weight.name for weight in model.weights.values()} == set(file.tensors)
        for weight in model.weights.values():
            shape = (weight.size,) if isinstance(weight, Vector) else (weight.rows, weight.cols)
            assert shape == tuple(file.tensors[weight.name].shape)
        assert model.weights.n_bytes == 0 and len(model.kv_spaces) == 1
        block = model.weights.under("blk.0.")
        assert isinstance(block["attn_q.weight"], Matrix) and "attn_q.weight" in list(block)
        with pytest.raises(TypeError, match=r"blk\.0\.attn_q\.weight is a Matrix, not a Vector"):
            block.vector("attn_q.weight")


@pytest.mark.parametrize("room", ["engine", "graph", "bench", "quantize", "cli"])
def test_only_the_registry_imports_an_architecture(room: str) -> None:
    modules = set(MODULES.values())
    for path in (PACKAGE / room).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = {node.module} if isinstance(node, ast.ImportFrom) else set()
            names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            assert not names & modules, path
