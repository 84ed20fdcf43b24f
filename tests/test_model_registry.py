"""The registry: modules by architecture, and what a model enumerates (model/registry.py, model/llama.py)."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pyllamacpu
from pyllamacpu.engine.engine import Engine, scratch_bytes
from pyllamacpu.errors import ModelError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.gguf.writer import GGUFWriter
from pyllamacpu.model.architectures import MODULES
from pyllamacpu.model.config import ModelConfig
from pyllamacpu.model.mllama_layers import MllamaLayers
from pyllamacpu.model.registry import architecture, load
from pyllamacpu.model.weights import Matrix, Vector

LOGITS = Path(__file__).parent / "fixtures" / "logits"
PACKAGE = Path(pyllamacpu.__file__).parent


def config_of(file: GGUFFile) -> ModelConfig:
    return ModelConfig.from_metadata(file.metadata, file.tensors)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_defines_an_architecture(name: str) -> None:
    with GGUFFile.open(LOGITS / "gqa4.gguf") as file:
        config = replace(config_of(file), arch=name, mllama=MllamaLayers((1,)))
        if name == "deberta-v2":
            config = replace(config, kv_heads=config.n_heads)
        found = architecture(config, "x.gguf")
    assert all(callable(getattr(found, part)) for part in ("unsupported", "kv_spaces", "tensors", "record"))


def test_an_architecture_is_imported_when_a_model_needs_it() -> None:
    code = (
        "import sys, pyllamacpu.model.registry; from pyllamacpu.model.architectures import MODULES; "
        "assert not set(MODULES.values()) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_cannot_be_run_names_the_file_and_the_reason() -> None:
    with GGUFFile.open(LOGITS / "gqa4.gguf") as file:
        config = config_of(file)
    for change, says in (
        (
            {"arch": "other"},
            r"x\.gguf: other models cannot be run yet; llama, llama4, mllama, deberta-v2 models can",
        ),
        ({"n_heads": (4, 8)}, r"x\.gguf: layers with different numbers of heads"),
        ({"n_heads": 4, "kv_heads": 3}, "4 heads cannot share 3 heads"),
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


# A new architecture: its module, and its line in the registry

DIM, HEADS, FFN, VOCAB, LAYERS = 32, 4, 80, 50, 2


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, DIM)}
    for i in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            shapes[f"blk.{i}.{norm}.weight"] = shapes[f"blk.{i}.{norm}.bias"] = (DIM,)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{i}.{name}.weight"] = (DIM, DIM)
        shapes[f"blk.{i}.ffn_up.weight"], shapes[f"blk.{i}.ffn_down.weight"] = (FFN, DIM), (DIM, FFN)
    return {name: rng.standard_normal(shape).astype(np.float32) / 4 for name, shape in shapes.items()}


def written(path: Path) -> Path:
    with GGUFWriter(path, "tiny") as writer:
        for key, value in {
            "block_count": LAYERS, "embedding_length": DIM, "feed_forward_length": FFN, "context_length": 256,
            "attention.head_count": HEADS, "vocab_size": VOCAB,
        }.items():  # fmt: skip
            writer.add(f"tiny.{key}", value)
        writer.add("tiny.attention.layer_norm_rms_epsilon", 1e-5)
        for name, values in arrays().items():
            writer.add_array(name, values)
    return path


def in_numpy(tokens: list[int], chunk: int) -> np.ndarray:
    """Logits of each token."""
    w = {name: values.astype(np.float64) for name, values in arrays().items()}

    def normed(x: np.ndarray, name: str) -> np.ndarray:
        scaled = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + np.float32(1e-5))
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    x, at = w["token_embd.weight"][tokens], np.arange(len(tokens))
    causal = at <= at[:, None]
    chunked = causal & (at // chunk == at[:, None] // chunk)
    for i in range(LAYERS):
        h = normed(x, f"blk.{i}.attn_norm")
        q, k, v = (
            (h @ w[f"blk.{i}.attn_{p}.weight"].T).reshape(-1, HEADS, DIM // HEADS).swapaxes(0, 1)
            for p in "qkv"
        )
        scores = np.where(causal if i else chunked, q @ k.swapaxes(1, 2) / np.sqrt(DIM // HEADS), -np.inf)
        p = np.exp(scores - scores.max(2, keepdims=True))
        a = (p / p.sum(2, keepdims=True) @ v).swapaxes(0, 1).reshape(-1, DIM)
        x = x + a @ w[f"blk.{i}.attn_output.weight"].T
        h = normed(x, f"blk.{i}.ffn_norm") @ w[f"blk.{i}.ffn_up.weight"].T
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + h @ w[f"blk.{i}.ffn_down.weight"].T
    return x @ w["token_embd.weight"].T


def test_a_new_architecture_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded, counted, run, replaced and shown, by what its module says."""
    monkeypatch.setitem(MODULES, "tiny", "tiny_architecture")
    path, tokens = written(tmp_path / "tiny.gguf"), [7, 1, 49, 3, 3, 20] * 15
    engine = Engine.open(path, n_ctx=128, n_batch=37, type_k="f32", type_v="f32")
    found = engine.eval(engine.sequence(), tokens, logits="all")
    np.testing.assert_allclose(found, in_numpy(tokens, 32), rtol=1e-3, atol=1e-4)
    assert "layer_norm" in engine.plan.names and "chunk 32" in str(engine.plan)
    assert engine.weight_bytes >= sum(a.nbytes for name, a in arrays().items() if "norm" not in name)
    up = arrays()["blk.1.ffn_up.weight"]
    with engine.replaced({"blk.1.ffn_up.weight": (TensorType.F32, (2 * up).view(np.uint8).reshape(-1))}):
        assert not np.array_equal(engine.eval(engine.sequence(), tokens, logits="all"), found)
    assert np.array_equal(engine.eval(engine.sequence(), tokens, logits="all"), found)
    stated = scratch_bytes(engine.file, engine.config, 128, n_batch=37, type_k="f32", type_v="f32")
    assert stated == engine.scratch_bytes
    engine.close()
