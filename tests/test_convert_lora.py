"""PEFT adapters: names, the order of rows, and that base plus adapter is what merging gives.

Covers convert/lora.py, convert/lora_config.py, convert/lora_experts.py, convert/lora_pairs.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_build import write_safetensors
from convert_models import BY_NAME, DIM, FFN, VOCAB, Arrays, weights, write_checkpoint
from lora_cases import BY_CASE, write_case
from mllama_models import save_hf
from test_convert_llama4 import values
from test_convert_models import convert
from torch_build import write_torch

from pyllamacpu.convert.checkpoint import open_checkpoint
from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.errors import CheckpointError, OptionError
from pyllamacpu.gguf import GGUFFile

RANK = 4
MIXTRAL = Path(__file__).parent / "fixtures" / "mixtral" / "tiny"
PREFIX = "base_model.model.model.layers.{}.{}.lora_{}.weight"
VISION = "base_model.model.vision_model.transformer.layers.0.self_attn.q_proj."
TWICE = "model.layers.0.self_attn.q_proj.lora_A.weight"
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
        ({"alpha_pattern": {"(a+)+$": 4}}, {}, "too complex"),
        ({"alpha_pattern": {"(.|.)*X": 4}}, {}, "too complex"),
        ({"alpha_pattern": {".*.*.*.*X": 4}}, {}, "too complex"),
        ({"alpha_pattern": {"q_proj": "4"}}, {}, r"alpha_pattern.*must be a number"),
        ({"alpha_pattern": {"q(": 4}}, {}, "not a regular expression"),
        ({"lora_bias": True}, {}, r"lora_bias.*merge_and_unload"),
        ({"init_lora_weights": "pissa"}, {}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "pissa_niter_16"}, {}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, {}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "corda"}, {}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, {}, r"quantized base.*merge_and_unload"),
        ({"init_lora_weights": "brand_new"}, {}, "not known"),
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
        ({}, {VISION + "lora_A.weight": (RANK, DIM)}, r"has no vision_model.*merge_and_unload"),
        ({}, {PREFIX.format(0, "self_attn.q_proj", "A"): (0, DIM)}, r"shape \(0, 64\).*rank 1 or more"),
        ({}, {PREFIX.format(0, "self_attn.q_proj", "B"): (1, DIM, RANK)}, "are matrices"),
        ({}, {TWICE: (RANK, DIM)}, rf"and {TWICE} are of the same weight"),
        ({}, {TWICE.replace(".weight", ".default.weight"): (RANK, DIM)}, "holds 2 adapters"),
        ({}, {TWICE.replace("lora_A.weight", "lora_a"): (DIM, RANK)}, "are of the same weight"),
        ({"r": 16}, {}, r"state rank 16 for model\.layers\.0.* have rank 4"),
        ({"r": 0}, {}, "r is 0: must be a whole number from 1"),
        ({"rank_pattern": {"layers.1.mlp.down_proj": 7}}, {}, r"rank 7 for model\.layers\.1\.mlp\.down_proj"),
        ({"rank_pattern": {"down_proj": "4"}}, {}, r"rank_pattern\.down_proj.*must be a whole number"),
        ({"rank_pattern": [4]}, {}, "rank_pattern.*must be an object"),
        ({"lora_alpha": 1e30}, {}, "damaged"),
        ({"lora_alpha": -1e-30}, {}, "damaged"),
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


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal"])
def test_beginnings_that_leave_the_base_alone(tmp_path: Path, base: Path, init: Any) -> None:
    folder = write_adapter(tmp_path / "lora", adapter_tensors(), init_lora_weights=init)
    assert plan_conversion(folder, ConvertOptions(outfile=str(tmp_path / "x.gguf"), base=base))


def test_a_beginning_may_be_said_to_be_right(tmp_path: Path, base: Path) -> None:
    folder = write_adapter(tmp_path / "lora", adapter_tensors(), init_lora_weights="pissa")
    options = ConvertOptions(
        outfile=str(tmp_path / "x.gguf"), base=base, ignored_config=frozenset(["init_lora_weights"])
    )
    assert plan_conversion(folder, options)


def products(path: Path) -> dict[str, Any]:
    """What a reader adds to each weight: alpha / rank times B A."""
    with GGUFFile.open(path) as file:
        names = {name.rsplit(".", 1)[0] for name in file.tensors}
        found = {}
        for name in names:
            a, b = values(file, f"{name}.lora_a"), values(file, f"{name}.lora_b")
            found[name] = file.metadata["adapter.lora.alpha"] / a.shape[-2] * b @ a
        return found


EXPERT = "base_model.model.model.layers.{}.block_sparse_moe.experts.{}.{}.lora_{}.weight"
EXPERT_RANKS = {"layers.0.+experts.0.w.": 3, "layers.0.+experts.5.w.": 8, "layers.2.+experts.1.w.": 2}
MIXTRAL_SIZES = {"w1": ("gate", 96, 64), "w2": ("down", 64, 96), "w3": ("up", 96, 64)}


def expert_tensors() -> Arrays:
    """Of a part of the experts of layers 0 and 2, each of its own rank."""
    rng, found = np.random.default_rng(4), {}
    for layer, expert, rank in ((0, 0, 3), (0, 5, 8), (2, 1, 2)):
        for part, (_, n_out, n_in) in MIXTRAL_SIZES.items():
            for side, shape in (("A", (rank, n_in)), ("B", (n_out, rank))):
                values = rng.standard_normal(shape).astype(np.float32)
                found[EXPERT.format(layer, expert, part, side)] = values
    return found


@pytest.mark.parametrize("stabilised", [False, True])
def test_adapters_of_single_experts(tmp_path: Path, stabilised: bool) -> None:
    """The file has one pair for all experts of a layer: alpha / rank is still that of each."""
    tensors, patterns = expert_tensors(), {"experts.5.w2": 3}
    more = {"alpha_pattern": patterns, "rank_pattern": EXPERT_RANKS}
    folder = write_adapter(tmp_path / "lora", tensors, use_rslora=stabilised, **more)
    found = products(convert(folder, "f32", base=MIXTRAL))
    assert found.keys() == {
        f"blk.{layer}.ffn_{ours}_exps.weight" for layer in (0, 2) for ours, _, _ in MIXTRAL_SIZES.values()
    }
    for layer in (0, 2):
        for part, (ours, n_out, n_in) in MIXTRAL_SIZES.items():
            for expert in range(6):
                wanted = np.zeros((n_out, n_in), np.float32)
                if (name := EXPERT.format(layer, expert, part, "A")) in tensors:
                    a, b = tensors[name], tensors[EXPERT.format(layer, expert, part, "B")]
                    alpha = 3 if (expert, part) == (5, "w2") else 8
                    wanted = alpha / (len(a) ** 0.5 if stabilised else len(a)) * b @ a
                assert np.abs(found[f"blk.{layer}.ffn_{ours}_exps.weight"][expert] - wanted).max() < 1e-4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({EXPERT.format(0, 6, "w1", "A"): (3, 64), EXPERT.format(0, 6, "w1", "B"): (96, 3)}, "6 experts"),
        ({EXPERT.format(0, 1, "w1", "A"): (3, 64)}, "only one of A and B"),
        ({EXPERT.format(0, 0, "w1", "A"): (3, 65)}, "do not fit"),
        ({EXPERT.format(0, 0, "w1", "A"): (4, 64)}, "do not fit"),
        ({EXPERT.format(1, 0, "w1", "A"): (4, 9), EXPERT.format(1, 0, "w1", "B"): (9, 4)}, "do not fit"),
        ({EXPERT.format(7, 0, "w1", "A"): (4, 64), EXPERT.format(7, 0, "w1", "B"): (96, 4)}, "no layers.7"),
    ],
)
def test_adapters_of_experts_that_do_not_fit(
    tmp_path: Path, change: dict[str, tuple[int, ...]], says: str
) -> None:
    tensors = expert_tensors() | {name: np.ones(shape, np.float32) for name, shape in change.items()}
    folder = write_adapter(tmp_path / "lora", tensors)
    with pytest.raises(CheckpointError, match=says):
        plan_conversion(folder, ConvertOptions(outfile=str(tmp_path / "x.gguf"), base=MIXTRAL))


PATTERNS = {"v_proj": 3, "layers.0.self_attn.q_proj": 20, r"model\.layers\.1\.mlp\..*": 5, "proj": 0}
OURS = {"self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.down_proj": "ffn_down"}


@pytest.mark.parametrize("stabilised", [False, True])
def test_alpha_and_rank_of_single_modules(tmp_path: Path, base: Path, stabilised: bool) -> None:
    """PEFT: the first expression that ends the module's name counts, the rank is the module's own."""
    tensors = adapter_tensors()
    rng = np.random.default_rng(3)
    for part, shape in (("A", (7, FFN)), ("B", (DIM, 7))):
        tensors[PREFIX.format(1, "mlp.down_proj", part)] = rng.standard_normal(shape).astype(np.float32)
    config = {
        "alpha_pattern": PATTERNS,
        "rank_pattern": {"layers.1.mlp.down_proj": 7},
        "use_rslora": stabilised,
    }
    found = products(convert(write_adapter(tmp_path / "lora", tensors, **config), "f32", base=base))
    assert len(found) == 2 * len(TARGETS)
    for layer in range(2):
        for target, ours in OURS.items():
            a, b = (tensors[PREFIX.format(layer, target, part)] for part in "AB")
            alpha = 3 if "v_proj" in target else 5 if (layer, target) == (1, "mlp.down_proj") else 8
            scale = alpha / (len(a) ** 0.5 if stabilised else len(a))
            assert np.abs(found[f"blk.{layer}.{ours}.weight"] - scale * b @ a).max() < 1e-4
    sizes = []
    for layer in range(2):
        a, b = (tensors[PREFIX.format(layer, "self_attn.q_proj", part)] for part in "AB")
        sizes.append(np.linalg.norm(found[f"blk.{layer}.attn_q.weight"]) / np.linalg.norm(b @ a))
    assert sizes[0] / sizes[1] == pytest.approx(20 / 8, rel=1e-4)


def test_alpha_zero_changes_nothing(tmp_path: Path, base: Path) -> None:
    """Readers take alpha 0 for a scale of one."""
    folder = write_adapter(tmp_path / "lora", adapter_tensors(), lora_alpha=0)
    assert not any(product.any() for product in products(convert(folder, "f32", base=base)).values())


def with_base_layers(tmp_path: Path, **change: Any) -> Path:
    """As PEFT saves an adapter that has embed_tokens and lm_head among its targets."""
    rng = np.random.default_rng(1)
    tensors = adapter_tensors()
    for name, shape in (("lm_head.lora_A.weight", (RANK, DIM)), ("lm_head.lora_B.weight", (VOCAB, RANK))):
        tensors[f"base_model.model.{name}"] = rng.standard_normal(shape).astype(np.float32)
    whole = weights(BY_NAME["biases"])
    tensors["base_model.model.lm_head.base_layer.weight"] = whole["lm_head.weight"]
    tensors["base_model.model.model.embed_tokens.base_layer.weight"] = whole["model.embed_tokens.weight"]
    return write_adapter(tmp_path / "lora", tensors | change)


def test_copies_of_the_base_are_left_out(tmp_path: Path, base: Path) -> None:
    folder = with_base_layers(tmp_path)
    conversion = plan_conversion(folder, ConvertOptions(outfile=str(tmp_path / "x.gguf"), base=base))
    assert not conversion.notes
    conversion.run()
    with GGUFFile.open(tmp_path / "x.gguf") as file:
        assert "output.weight.lora_a" in file.tensors and "token_embd.weight" not in file.tensors
    (base / "model.safetensors").unlink()  # the config alone cannot tell
    conversion = plan_conversion(folder, ConvertOptions(outfile=str(tmp_path / "y.gguf"), base=base))
    assert any("warning" in note and "copies" in note for note in conversion.notes)


@pytest.mark.parametrize(
    ("rows", "says"), [(VOCAB, "merge the adapter into its base"), (VOCAB + 8, "vocabulary was resized")]
)
def test_copies_that_are_none(tmp_path: Path, base: Path, rows: int, says: str) -> None:
    changed = {"base_model.model.lm_head.base_layer.weight": np.ones((rows, DIM), np.float32)}
    folder = with_base_layers(tmp_path, **changed)
    with pytest.raises(CheckpointError, match=says):
        plan_conversion(folder, ConvertOptions(outfile=str(tmp_path / "x.gguf"), base=base))


def test_copies_that_are_twice(tmp_path: Path, base: Path) -> None:
    again = {"lm_head.weight": weights(BY_NAME["biases"])["lm_head.weight"]}
    folder = with_base_layers(tmp_path, **again)
    with pytest.raises(CheckpointError, match="are of the same weight"):
        plan_conversion(folder, ConvertOptions(outfile=str(tmp_path / "x.gguf"), base=base))


def test_copies_of_an_embedding_with_rows_of_images(tmp_path: Path) -> None:
    """That of Llama 3.2 Vision has 8 rows more than there are tokens to answer with."""
    save_hf(tmp_path / "base")
    name = "language_model.model.embed_tokens"
    copy = open_checkpoint(tmp_path / "base").tensors[f"{name}.weight"]
    n_rows, dim = copy.shape
    tensors = {
        f"base_model.model.{name}.lora_embedding_A": np.ones((RANK, n_rows), np.float32),
        f"base_model.model.{name}.lora_embedding_B": np.ones((dim, RANK), np.float32),
        f"base_model.model.{name}.base_layer.weight": copy.read(0, n_rows),
    }
    path = convert(write_adapter(tmp_path / "lora", tensors), "f32", base=tmp_path / "base")
    with GGUFFile.open(path) as file:
        shapes = {name: info.shape for name, info in file.tensors.items()}
    assert shapes == {
        "token_embd.weight.lora_a": (n_rows, RANK),
        "token_embd.weight.lora_b": (dim, RANK),
    }


def test_an_embedding_that_stays_tied_to_the_output(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", BY_NAME["tied"])
    case, options = BY_CASE["tied"], ConvertOptions(outfile=str(tmp_path / "x.gguf"), base=base)
    assert plan_conversion(write_case(tmp_path / "looked up", case), options)
    folder = write_case(tmp_path / "both", replace(case, more={"ensure_weight_tying": True}))
    with pytest.raises(CheckpointError, match=r"ensure_weight_tying is true: .*merge_and_unload"):
        plan_conversion(folder, options)
    untied = write_checkpoint(tmp_path / "untied", BY_NAME["biases"])
    folder = write_adapter(tmp_path / "lora", adapter_tensors(), ensure_weight_tying=True)
    assert plan_conversion(folder, replace(options, base=untied))


def test_a_stated_rank_may_be_ignored(tmp_path: Path, base: Path) -> None:
    folder = write_adapter(tmp_path / "lora", adapter_tensors(), r=16)
    options = ConvertOptions(outfile=str(tmp_path / "x.gguf"), base=base, ignored_config=frozenset(["r"]))
    plan_conversion(folder, options).run()
    with GGUFFile.open(tmp_path / "x.gguf") as file:
        assert file.metadata["adapter.lora.alpha"] == 8


def test_a_merged_model_with_a_config_left_behind(tmp_path: Path, base: Path) -> None:
    (base / "adapter_config.json").write_text(json.dumps(CONFIG))
    conversion = plan_conversion(base, ConvertOptions(outfile=str(tmp_path / "x.gguf")))
    assert any("adapter_config.json" in note for note in conversion.notes)
    assert "output.weight" in {tensor.name for tensor in conversion.output.tensors}


def test_an_adapter_of_mlx(tmp_path: Path, base: Path) -> None:
    """y = x W + scale (x a) b, with a (in, rank) and b (rank, out)."""
    tensors = adapter_tensors()
    folder = tmp_path / "lora"
    folder.mkdir()
    facts: dict[str, Any] = {"fine_tune_type": "lora", "model": str(base), "num_layers": 2}
    facts["lora_parameters"] = {"rank": RANK, "scale": 20.0, "dropout": 0.0}
    (folder / "adapter_config.json").write_text(json.dumps(facts))
    renamed = {}
    for name, array in tensors.items():
        module, part = name.removeprefix("base_model.model.").removesuffix(".weight").rsplit("_", 1)
        renamed[f"{module}_{part.lower()}"] = np.ascontiguousarray(array.T)
    write_safetensors(folder / "adapters.safetensors", renamed)
    found = products(convert(folder, "f32"))
    peft = write_adapter(tmp_path / "peft", tensors, lora_alpha=20.0 * RANK)
    wanted = products(convert(peft, "f32", base=base))
    assert found.keys() == wanted.keys()
    for name, product in found.items():
        assert np.abs(product - wanted[name]).max() < 1e-4
    (folder / "adapter_config.json").write_text(json.dumps(facts | {"fine_tune_type": "dora"}))
    with pytest.raises(CheckpointError, match=r"mlx_lm\.fuse"):
        plan_conversion(folder, ConvertOptions(outfile=str(tmp_path / "x.gguf")))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mmproj": True}, "is a LoRA adapter, for which --mmproj has no meaning"),
        ({"drop_extra_tokens": True}, "--drop-extra-tokens has no meaning"),
        ({"vocab_only": True}, "--vocab-only has no meaning"),
        (
            {"ignored_config": frozenset(["r", "odd"])},
            "--ignore-config odd: .*adapter_config.json and .*config.json",
        ),
    ],
)
def test_options_that_would_do_nothing(
    tmp_path: Path, base: Path, options: dict[str, Any], says: str
) -> None:
    adapter = write_adapter(tmp_path / "lora", adapter_tensors("gqa"))
    with pytest.raises(OptionError, match=says):
        plan_conversion(adapter, ConvertOptions(outfile=str(tmp_path / "x.gguf"), base=base, **options))
