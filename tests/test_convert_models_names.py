"""What a checkpoint holds beside what its config announces: wrappers, biases, heads, lost tensors.

Covers convert/models/names.py, convert/models/plain_names.py, convert/models/leftovers.py,
convert/formats/shards.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_build import bf16_bits, write_index, write_safetensors
from convert_models import BY_NAME, DIM, VOCAB, Arrays, Model, weights
from test_convert_models import convert, expected, worst_gap
from torch_build import (
    PROTOCOL,
    STOP,
    dictionary,
    number,
    storage,
    strides_of,
    tensor,
    write_torch,
    write_zip,
)

from pyllamacpu.convert.conversion import Conversion, ConvertOptions
from pyllamacpu.convert.models.plain_names import plain_name
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.errors import CheckpointError
from pyllamacpu.gguf import GGUFFile

GQA = BY_NAME["gqa"]


def write(folder: Path, tensors: Arrays, model: Model = GQA, torch: bool = False, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model.full_config() | config))
    if torch:
        write_torch(folder / "pytorch_model.bin", tensors)
    else:
        write_safetensors(folder / "model.safetensors", tensors)
    return folder


def plan(source: Path, **options: Any) -> Conversion:
    return plan_conversion(source, ConvertOptions(outfile=str(source.parent / "x.gguf"), **options))


# tie_word_embeddings


@pytest.mark.parametrize("outtype", ["f32", "f16"])
def test_a_head_that_differs_is_kept_whatever_the_config_says(tmp_path: Path, outtype: str) -> None:
    source = write(tmp_path / "m", weights(GQA), tie_word_embeddings=True)
    assert any("tie_word_embeddings" in note for note in plan(source).notes)
    assert worst_gap(convert(source, outtype), "gqa") <= (2e-4 if outtype == "f32" else 2e-3)


def test_a_head_that_differs_in_its_last_element_only(tmp_path: Path) -> None:
    tensors = weights(BY_NAME["tied"])
    head = tensors["model.embed_tokens.weight"].copy()
    head[-1, -1] += 1
    source = write(tmp_path / "m", tensors | {"lm_head.weight": head}, BY_NAME["tied"])
    with GGUFFile.open(convert(source, "f32")) as file:
        assert np.array_equal(file.data("output.weight").view(np.float32).reshape(VOCAB, DIM), head)


def test_an_equal_head_is_tied(tmp_path: Path) -> None:
    tensors = weights(BY_NAME["tied"])
    same = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    source = write(tmp_path / "m", tensors | same, BY_NAME["tied"])
    with GGUFFile.open(convert(source, "f32")) as file:
        assert "output.weight" not in file.tensors
    assert worst_gap(tmp_path / "m-f32.gguf", "tied") <= 2e-4


def test_a_bare_model_with_a_head_keeps_it(tmp_path: Path) -> None:
    source = write(tmp_path / "m", weights(GQA), architectures=["LlamaModel"])
    assert worst_gap(convert(source, "f32"), "gqa") <= 2e-4


def test_no_head_and_not_tied(tmp_path: Path) -> None:
    source = write(tmp_path / "m", {k: v for k, v in weights(GQA).items() if k != "lm_head.weight"})
    with pytest.raises(CheckpointError, match=r"no output matrix.*tie_word_embeddings") as caught:
        plan(source)
    assert "incomplete" not in str(caught.value)


# biases


@pytest.mark.parametrize("torch", [False, True])
def test_zero_biases_are_left_out(tmp_path: Path, torch: bool) -> None:
    """As the first GPTQ and AWQ Llamas have them, of all linear layers."""
    tensors = weights(GQA)
    for name, array in weights(GQA).items():
        if "_proj" in name:
            tensors[name.replace("weight", "bias")] = np.zeros(array.shape[0], np.float16)  # type: ignore[assignment]
    source = write(tmp_path / "m", tensors, torch=torch)
    assert any("14 biases are all zero" in note for note in plan(source).notes)
    assert worst_gap(convert(source, "f32"), "gqa") <= 2e-4


def test_biases_that_are_not_zero_are_refused(tmp_path: Path) -> None:
    bias = np.zeros(DIM, np.float32)
    bias[-1] = 1e-3
    source = write(tmp_path / "m", weights(GQA) | {"model.layers.1.self_attn.q_proj.bias": bias})
    with pytest.raises(CheckpointError, match=r"not zero.*q_proj\.bias.*attention_bias"):
        plan(source)


def test_biases_of_q_k_and_v_only(tmp_path: Path) -> None:
    """As Llama files made of Qwen models have them."""
    tensors = {k: v for k, v in weights(BY_NAME["biases"]).items() if not k.endswith("o_proj.bias")}
    source = write(tmp_path / "m", tensors, BY_NAME["biases"])
    assert any("no layer has: self_attn.o_proj.bias" in note for note in plan(source).notes)
    with GGUFFile.open(convert(source, "f32")) as file:
        assert "blk.0.attn_q.bias" in file.tensors and "blk.0.attn_output.bias" not in file.tensors
    del tensors["model.layers.1.self_attn.q_proj.bias"]
    with pytest.raises(CheckpointError, match=r"q_proj\.bias is missing"):
        plan(write(tmp_path / "n", tensors, BY_NAME["biases"]))


@pytest.mark.parametrize("name", ["layers.bias", "layers..bias", "model.layers.0.bias", ".bias"])
def test_biases_of_nothing_are_refused(tmp_path: Path, name: str) -> None:
    tensors = {**weights(BY_NAME["biases"]), name: np.ones(3, np.float32)}
    with pytest.raises(CheckpointError, match="not understood"):
        plan(write(tmp_path / "m", tensors, BY_NAME["biases"]))


def test_code_that_a_model_brings_along_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "m", weights(GQA), auto_map={"AutoModelForCausalLM": "own.OwnLlama"})
    assert any("own.OwnLlama" in note for note in plan(source).notes)


# wrappers


@pytest.mark.parametrize(
    "name",
    [
        "_orig_mod.model.layers.0.mlp.up_proj.weight",
        "module.model.layers.0.mlp.up_proj.weight",
        "module._orig_mod.model.layers.0.mlp.up_proj.weight",
        "base_model.model.model.layers.0.mlp.up_proj.weight",
        "_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module.mlp.up_proj.weight",
        "model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight",
        "model._orig_mod.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.mlp.up_proj.weight",
        "model.layers.0._orig_mod.mlp.up_proj._orig_mod.weight",
        "_forward_module.module.model.layers.0.mlp.up_proj.weight",
        "_fpw_module.model.layers.0._fpw_module.mlp.up_proj.weight",
        "model.language_model.layers.0.mlp.up_proj.weight",
    ],
)
def test_names_without_wrappers(name: str) -> None:
    assert plain_name(name) == "layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("torch", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"_fsdp_wrapped_module.{name.replace('.mlp.', '._checkpoint_wrapped_module.mlp.')}",
    ],
)
def test_wrapped_checkpoints(tmp_path: Path, torch: bool, wrap: Any) -> None:
    source = write(tmp_path / "m", {wrap(name): a for name, a in weights(GQA).items()}, torch=torch)
    assert worst_gap(convert(source, "f32"), "gqa") <= 2e-4


@pytest.mark.parametrize("path", [["model"], ["state_dict"], ["state", "model"], ["app", "model"]])
def test_a_training_state(tmp_path: Path, path: list[str]) -> None:
    """What training programs save: the model deeper in, beside an optimizer, numbers, and loose tensors."""
    source = write(tmp_path / "m", {}, torch=False)
    (source / "model.safetensors").unlink()
    arrays = {f"module.{name}": array for name, array in weights(GQA).items()}
    inner = {
        name: tensor(storage("FloatStorage", str(i), array.size), 0, array.shape, strides_of(array.shape))
        for i, (name, array) in enumerate(arrays.items())
    }
    raw = {str(i): array.tobytes() for i, array in enumerate(arrays.values())}
    loose = tensor(storage("FloatStorage", "loose", 3), 0, (3,), (1,))
    pickled = dictionary(inner)
    for key in reversed(path):
        other = {"rng_state": loose, "optimizer": dictionary({"step": number(3)}), "epoch": number(2)}
        pickled = dictionary({**other, key: pickled})
    raw["loose"] = np.zeros(3, np.float32).tobytes()
    write_zip(source / "pytorch_model.bin", PROTOCOL + pickled + STOP, raw)
    assert worst_gap(convert(source, "f32"), "gqa") <= 2e-4


def test_an_adapter_that_is_not_merged(tmp_path: Path) -> None:
    tensors = {f"base_model.model.{name}": array for name, array in weights(GQA).items()}
    whole = tensors.pop("base_model.model.model.layers.0.self_attn.q_proj.weight")
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors |= {f"{module}.base_layer.weight": whole, f"{module}.lora_A.default.weight": whole[:2]}
    with pytest.raises(CheckpointError, match=r"not merged.*merge_and_unload"):
        plan(write(tmp_path / "m", tensors))


@pytest.mark.parametrize("dtype", [np.uint32, np.int8, np.uint8])
def test_quantized_tensors_that_nothing_explains(tmp_path: Path, dtype: Any) -> None:
    tensors = weights(GQA)
    tensors["model.layers.0.mlp.up_proj.weight"] = np.ones((96, 8), dtype)  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match="it is quantized, and nothing says how") as caught:
        plan(write(tmp_path / "m", tensors))
    assert "one of them is wrong" not in str(caught.value)


# index files


def sharded(folder: Path, where: dict[str, str], **config: Any) -> Path:
    """Two shards, and an index that says something else."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(GQA.full_config() | config))
    names = list(weights(GQA))
    for i, part in enumerate((names[::2], names[1::2]), 1):
        write_safetensors(
            folder / f"model-{i:05}-of-00002.safetensors", {name: weights(GQA)[name] for name in part}
        )
    write_index(folder / "model.safetensors.index.json", where)
    return folder


@pytest.mark.parametrize("file", ["model-00001-of-00002.safetensors", "model-00007-of-00009.safetensors"])
def test_an_index_that_names_the_wrong_shard(tmp_path: Path, file: str) -> None:
    source = sharded(tmp_path / "m", dict.fromkeys(weights(GQA), file))
    assert any("places" in note and "wrongly" in note for note in plan(source).notes)
    assert worst_gap(convert(source, "f32"), "gqa") <= 2e-4


@pytest.mark.parametrize("file", ["model-00001-of-00002.safetensors", "model-00003-of-00003.safetensors"])
def test_an_index_that_names_a_tensor_nobody_needs(tmp_path: Path, file: str) -> None:
    where = dict.fromkeys(weights(GQA), "model-00001-of-00002.safetensors")
    where["model.layers.0.self_attn.rotary_emb.inv_freq"] = file
    assert worst_gap(convert(sharded(tmp_path / "m", where), "f32"), "gqa") <= 2e-4
    where["model.layers.0.self_attn.q_norm.weight"] = file
    with pytest.raises(CheckpointError, match="q_norm"):
        plan(sharded(tmp_path / "n", where))


def test_a_tied_head_in_the_index_only(tmp_path: Path) -> None:
    source = write(tmp_path / "m", weights(BY_NAME["tied"]), BY_NAME["tied"])
    (source / "model.safetensors").rename(source / "model-00001-of-00001.safetensors")
    names = [*weights(BY_NAME["tied"]), "lm_head.weight"]
    write_index(
        source / "model.safetensors.index.json", dict.fromkeys(names, "model-00001-of-00001.safetensors")
    )
    assert worst_gap(convert(source, "f32"), "tied") <= 2e-4


# configs that were left behind


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "hqq", "compressed-tensors", "fp8"])
def test_plain_weights_beside_a_leftover_config(tmp_path: Path, method: str) -> None:
    model = GQA.full_config() | {"quantization_config": {"quant_method": method, "bits": 4}}
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model))
    halves: Any = {name: bf16_bits(array) for name, array in weights(GQA).items()}
    write_safetensors(folder / "model.safetensors", halves, dict.fromkeys(halves, "BF16"))
    notes = plan(folder).notes
    assert not any("are quantized" in note for note in notes)
    assert any("the weights are plain" in note for note in notes)
    with GGUFFile.open(convert(folder, "auto")) as file:
        assert file.tensors["output.weight"].type.name == "BF16"
    assert expected("gqa").size


def test_weights_that_are_quantized_as_they_are_used(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="bitnet"):
        plan(write(tmp_path / "m", weights(GQA), quantization_config={"quant_method": "bitnet"}))
