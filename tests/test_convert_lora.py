"""PEFT adapters: names, the order of rows, and that base plus adapter is what merging gives.

Covers convert/lora.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_build import write_safetensors
from convert_models import BY_NAME, DIM, VOCAB, Arrays, weights, write_checkpoint
from test_convert_layouts import values
from test_convert_models import convert
from torch_build import write_torch

from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.errors import CheckpointError
from pyllamacpu.gguf import GGUFFile

RANK = 4
PREFIX = "base_model.model.model.layers.{}.{}.lora_{}.weight"
TARGETS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": RANK,
    "lora_alpha": 8,
    "lora_dropout": 0.05,
    "target_modules": list(TARGETS),
    "bias": "none",
    "use_dora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "base_model_name_or_path": "somewhere/else",
}


def adapter_tensors(name: str = "biases") -> Arrays:
    rng = np.random.default_rng(9)
    found = {}
    for layer in range(2):
        for target in TARGETS:
            n_out, n_in = weights(BY_NAME[name])[f"model.layers.{layer}.{target}.weight"].shape
            for part, shape in (("A", (RANK, n_in)), ("B", (n_out, RANK))):
                found[PREFIX.format(layer, target, part)] = (
                    rng.standard_normal(shape).astype(np.float32) * 0.3
                )
    return found


def write_adapter(folder: Path, tensors: Arrays, **config: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", BY_NAME["biases"])


def test_base_plus_adapter_is_the_merged_model(tmp_path: Path, base: Path) -> None:
    tensors = adapter_tensors()
    path = convert(write_adapter(tmp_path / "lora", tensors), "f32", base=base)
    merged = dict(weights(BY_NAME["biases"]))
    for layer in range(2):
        for target in TARGETS:
            a, b = (tensors[PREFIX.format(layer, target, part)] for part in "AB")
            merged[f"model.layers.{layer}.{target}.weight"] += 8 / RANK * b @ a
    write_safetensors(base / "model.safetensors", merged)
    with GGUFFile.open(path) as adapter, GGUFFile.open(convert(base, "f32")) as wanted:
        with GGUFFile.open(convert(write_checkpoint(tmp_path / "plain", BY_NAME["biases"]), "f32")) as plain:
            names = {name.rsplit(".", 1)[0] for name in adapter.tensors}
            assert len(names) == 2 * len(TARGETS) == len(adapter.tensors) // 2
            scale = adapter.metadata["adapter.lora.alpha"] / RANK
            for name in names:
                a, b = values(adapter, f"{name}.lora_a"), values(adapter, f"{name}.lora_b")
                sum_ = values(plain, name) + scale * b @ a
                assert np.abs(sum_ - values(wanted, name)).max() < 1e-5, name
        keys = ("general.type", "adapter.type", "general.architecture")
        assert [adapter.metadata[key] for key in keys] == ["adapter", "lora", "llama"]


def test_embedding_and_output(tmp_path: Path, base: Path) -> None:
    """PEFT names an embedding's parts otherwise, and looks rows up in A."""
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((RANK, VOCAB), (DIM, RANK)))
    head = {"A": rng.standard_normal((RANK, DIM)), "B": rng.standard_normal((VOCAB, RANK))}
    tensors = {
        "base_model.model.model.embed_tokens.lora_embedding_A": a,
        "base_model.model.model.embed_tokens.lora_embedding_B": b,
        **{f"base_model.model.lm_head.lora_{k}.weight": v.astype(np.float32) for k, v in head.items()},
    }
    with GGUFFile.open(convert(write_adapter(tmp_path / "lora", tensors), "f32", base=base)) as file:
        assert np.array_equal(values(file, "token_embd.weight.lora_a"), a.T)
        assert np.array_equal(values(file, "token_embd.weight.lora_b"), b)
        assert np.array_equal(
            values(file, "output.weight.lora_a"), tensors["base_model.model.lm_head.lora_A.weight"]
        )


def test_torch_file_rank_stabilised_and_config_beside(tmp_path: Path, base: Path) -> None:
    folder = write_adapter(
        tmp_path / "lora", adapter_tensors(), use_rslora=True, base_model_name_or_path=str(base)
    )
    (folder / "adapter_model.safetensors").unlink()
    write_torch(folder / "adapter_model.bin", adapter_tensors())
    with GGUFFile.open(convert(folder, "auto")) as file:
        assert file.metadata["adapter.lora.alpha"] == pytest.approx(8 * RANK**0.5)
        assert {info.type.name for info in file.tensors.values()} == {"F32"}


def test_rows_that_are_no_blocks_become_f16(tmp_path: Path, base: Path) -> None:
    with GGUFFile.open(
        convert(write_adapter(tmp_path / "lora", adapter_tensors()), "q8_0", base=base)
    ) as file:
        kinds = {name.rsplit(".", 1)[1]: info.type.name for name, info in file.tensors.items()}
    assert kinds == {"lora_a": "Q8_0", "lora_b": "F16"}


@pytest.mark.parametrize(
    ("config", "change", "says"),
    [
        ({"use_dora": True}, {}, "use_dora"),
        ({"bias": "all"}, {}, "bias"),
        ({"alpha_pattern": {"q_proj": 4}}, {}, "alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save"),
        ({"peft_type": "IA3"}, {}, "IA3"),
        ({}, {"base_model.model.lm_head.weight": (VOCAB, DIM)}, "merge the adapter"),
        (
            {},
            {"base_model.model.model.layers.0.mlp.gate_proj.lora_A.weight": (RANK, DIM)},
            "only one of A and B",
        ),
        ({}, {PREFIX.format(0, "self_attn.q_proj", "A"): (RANK, DIM + 1)}, "do not fit"),
        ({}, {PREFIX.format(7, "self_attn.q_proj", "A"): (RANK, DIM)}, "has no layers.7"),
    ],
)
def test_what_an_adapter_cannot_say(
    tmp_path: Path, base: Path, config: dict[str, Any], change: dict[str, tuple[int, ...]], says: str
) -> None:
    tensors = adapter_tensors() | {name: np.ones(shape, np.float32) for name, shape in change.items()}
    folder = write_adapter(tmp_path / "lora", tensors, **config)
    with pytest.raises(CheckpointError, match=says):
        plan_conversion(folder, ConvertOptions(outfile=str(tmp_path / "x.gguf"), base=base))


def test_a_base_that_is_not_here(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "lora", adapter_tensors())
    with pytest.raises(CheckpointError, match="--base"):
        plan_conversion(folder, ConvertOptions(outfile=str(tmp_path / "x.gguf")))
