"""Quantized checkpoints become the plain weights that their own libraries compute, bit for bit.

Covers convert/quantized/awq.py, convert/quantized/bitsandbytes.py, convert/quantized/compressed_tensors.py,
convert/quantized/gptq.py, convert/quantized/methods.py, convert/quantized/packing.py,
convert/quantized/scaled.py.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_build import bf16_bits, write_safetensors
from conftest import FIXTURES
from quantized_build import packed

from pyllamacpu.convert.checkpoint import Checkpoint, open_checkpoint
from pyllamacpu.convert.formats.safetensors import read_safetensors
from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights import tensor_cache

HERE = FIXTURES / "checkpoints"
CASES = sorted(path.parent.name for path in HERE.glob("*/expected.json"))
rng = np.random.default_rng(8)


def test_all_fixtures_are_here() -> None:
    assert len(CASES) >= 23 and {name.partition("_")[0] for name in CASES} == {"gptq", "awq", "bnb", "ct"}


@pytest.mark.parametrize("case", CASES)
def test_weights_are_exact(case: str) -> None:
    checkpoint = open_checkpoint(HERE / case)
    expected = json.loads((HERE / case / "expected.json").read_text())["weights"]
    assert checkpoint.tensors.keys() == expected.keys() and checkpoint.quantization
    for name, facts in expected.items():
        tensor = checkpoint.tensors[name]
        assert list(tensor.shape) == facts["shape"]
        whole = tensor.read()
        assert whole.dtype == np.float32 and whole.reshape(-1)[:8].tolist() == facts["first"]
        assert hashlib.sha256(whole.tobytes()).hexdigest() == facts["sha256"]


@pytest.mark.parametrize("case", CASES)
def test_any_rows(case: str) -> None:
    for tensor in open_checkpoint(HERE / case).tensors.values():
        whole = tensor.read()
        for _ in range(20):
            start, stop = sorted(rng.integers(0, tensor.n_rows + 1, 2).tolist())
            assert np.array_equal(tensor.read(start, stop), whole[start:stop])
        rows = [tensor.read(i, i + 1) for i in reversed(range(tensor.n_rows))]
        assert np.array_equal(np.concatenate(rows[::-1]), whole)


def copy(case: str, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The stored tensors of a fixture and their types, to be written again with something wrong."""
    folder.mkdir(exist_ok=True)
    shutil.copy(HERE / case / "config.json", folder)
    stored = read_safetensors(HERE / case / "model.safetensors")[0]
    arrays = {name: tensor.raw().reshape(tensor.shape) for name, tensor in stored.items()}
    return arrays, {name: tensor.dtype for name, tensor in stored.items()}


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def read_all(checkpoint: Checkpoint) -> None:
    for tensor in checkpoint.tensors.values():
        tensor.read()


@pytest.mark.parametrize("case", CASES)
def test_missing_and_misshapen_parts(case: str, tmp_path: Path) -> None:
    arrays, kinds = copy(case, tmp_path)
    path = tmp_path / "model.safetensors"
    optional = ("norm", "lm_head", "bias", "g_idx", "input_scale", "weight_format")
    for name in arrays:
        if any(word in name for word in optional):
            continue
        write_safetensors(path, {key: value for key, value in arrays.items() if key != name}, kinds)
        with pytest.raises(CheckpointError):
            read_all(open_checkpoint(tmp_path))
        if case == "ct_fp8_tensor" and name.endswith(".weight"):
            continue  # one scale fits any shape
        longer = np.concatenate([np.atleast_1d(arrays[name])] * 2)
        write_safetensors(path, arrays | {name: longer}, kinds)
        with pytest.raises(CheckpointError):
            read_all(open_checkpoint(tmp_path))
    tensor_cache.release_all()


@pytest.mark.parametrize("method", ["hqq", "quanto", "aqlm", "torchao", "mxfp4", "eetq", "auto-round", ""])
def test_unknown_methods_are_named(method: str, tmp_path: Path) -> None:
    arrays, kinds = copy("gptq_4bit", tmp_path)
    write_safetensors(tmp_path / "model.safetensors", arrays, kinds)
    change_config(tmp_path, quant_method=method)
    with pytest.raises(CheckpointError, match=repr(method) if method else "without a name"):
        open_checkpoint(tmp_path)


def test_nothing_says_how(tmp_path: Path) -> None:
    for case in CASES:
        arrays, kinds = copy(case, tmp_path)
        write_safetensors(tmp_path / "model.safetensors", arrays, kinds)
        (tmp_path / "config.json").unlink()
        if case.startswith("bnb"):  # the tensors say it themselves
            assert open_checkpoint(tmp_path).quantization == "bitsandbytes"
            continue
        with pytest.raises(CheckpointError, match="looks quantized"):
            open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("gptq_4bit", {"checkpoint_format": "marlin"}),
        ("gptq_4bit", {"bits": 8}),
        ("awq", {"version": "gemv"}),
        ("awq", {"bits": 8}),
        ("awq", {"group_size": 64}),
        ("ct_int4_group", {"format": "marlin-24"}),
        ("ct_int4_group", {"sparsity_config": {"format": "sparse-24-bitmask"}}),
        ("ct_int4_group", {"transform_config": {"config_groups": {"u": {}}}}),
        ("ct_int4_group", {"config_groups": {"g": {"weights": {"num_bits": 8}}}}),
        ("ct_int4_group", {"config_groups": {}}),
        ("ct_int4_group", {"config_groups": [1]}),
    ],
)
def test_formats_that_cannot_be_read(case: str, changes: dict[str, Any], tmp_path: Path) -> None:
    arrays, kinds = copy(case, tmp_path)
    write_safetensors(tmp_path / "model.safetensors", arrays, kinds)
    change_config(tmp_path, **changes)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)


def test_gptq_settings_in_a_file_of_their_own(tmp_path: Path) -> None:
    arrays, kinds = copy("gptq_4bit", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "quantize_config.json").write_text(
        json.dumps(
            {key: value for key, value in config.pop("quantization_config").items() if key != "quant_method"}
        )
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    del arrays["model.layers.0.mlp.up_proj.g_idx"]  # groups of 32 in order
    write_safetensors(tmp_path / "model.safetensors", arrays, kinds)
    found = open_checkpoint(tmp_path).tensors["model.layers.0.mlp.up_proj.weight"].read()
    same = open_checkpoint(HERE / "gptq_4bit").tensors["model.layers.0.mlp.up_proj.weight"].read()
    assert np.array_equal(found, same)


@pytest.mark.parametrize("group", [-1, 4, 1 << 30])
def test_gptq_groups_outside(group: int, tmp_path: Path) -> None:
    arrays, kinds = copy("gptq_4bit", tmp_path)
    arrays["model.layers.0.mlp.up_proj.g_idx"] = arrays["model.layers.0.mlp.up_proj.g_idx"].copy()
    arrays["model.layers.0.mlp.up_proj.g_idx"][7] = group
    write_safetensors(tmp_path / "model.safetensors", arrays, kinds)
    with pytest.raises(CheckpointError, match="groups"):
        read_all(open_checkpoint(tmp_path))


@pytest.mark.parametrize("stored", [np.nan, 1e30, -1.0])
def test_gptq_groups_in_floats(stored: float, tmp_path: Path) -> None:
    """Also for zero points that only the weights tell the format of."""
    arrays, kinds = copy("gptq_4bit", tmp_path)
    name = "model.layers.0.mlp.up_proj"
    arrays[f"{name}.qzeros"] = arrays[f"{name}.qzeros"] ^ 1
    groups = arrays[f"{name}.g_idx"].astype(np.float32)
    arrays[f"{name}.g_idx"], kinds[f"{name}.g_idx"] = groups, "F32"
    write_safetensors(tmp_path / "model.safetensors", arrays, kinds)
    read_all(open_checkpoint(tmp_path))
    groups[7] = stored
    write_safetensors(tmp_path / "model.safetensors", arrays, kinds)
    with pytest.raises(CheckpointError, match="groups"):
        read_all(open_checkpoint(tmp_path))


def test_gptq_without_rows(tmp_path: Path) -> None:
    arrays, kinds = copy("gptq_4bit", tmp_path)
    name = "model.layers.0.mlp.up_proj"
    arrays[f"{name}.qzeros"] = arrays[f"{name}.qzeros"] ^ 1
    arrays[f"{name}.qweight"] = arrays[f"{name}.qweight"][:0]
    del arrays[f"{name}.g_idx"]
    write_safetensors(tmp_path / "model.safetensors", arrays, kinds)
    with pytest.raises(CheckpointError, match="not a matrix"):
        read_all(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"shape": [-1, 3], "blocksize": 64}', '{"shape": 3}', "\xff"]
)
def test_bitsandbytes_state_that_is_none(text: str, tmp_path: Path) -> None:
    arrays, kinds = copy("bnb_nf4", tmp_path)
    arrays["a.weight.quant_state.bitsandbytes__nf4"] = np.frombuffer(text.encode("latin-1"), np.uint8)
    write_safetensors(tmp_path / "model.safetensors", arrays, kinds)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)


# layouts that the libraries of the fixtures no longer write, packed here value by value


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_packed_integers_of_all_widths(bits: int, dense: bool, tmp_path: Path) -> None:
    """compressed-tensors before it packed across words, and since; with groups in any order."""
    n_out, n_in, n_groups = 22, 480, 5
    codes = rng.integers(0, 1 << bits, (n_out, n_in))
    zeros = rng.integers(0, 1 << bits, (n_out, n_groups))
    scale = rng.random((n_out, n_groups)).astype(np.float32)
    g_idx = rng.permutation(np.arange(n_in) // (n_in // n_groups)).astype(np.int32)
    tensors = {
        "q.weight_packed": packed(codes, bits, dense),
        "q.weight_shape": np.array([n_out, n_in]),
        "q.weight_scale": scale,
        "q.weight_zero_point": np.ascontiguousarray(packed(zeros.T, bits, dense).T),
        "q.weight_g_idx": g_idx,
    }
    facts = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"g": {"weights": {"num_bits": bits, "symmetric": False}}},
    }
    expected = ((codes - zeros[:, g_idx]).astype(np.float32)) * scale[:, g_idx]
    found = fp8(tmp_path, facts, tensors, {}).tensors
    assert found.keys() == {"q.weight"} and np.array_equal(found["q.weight"].read(), expected)
    assert np.array_equal(found["q.weight"].read(5, 9), expected[5:9])
    tensors["q.weight_g_idx"] = np.full(n_in, -1, np.int32)  # never set
    expected = ((codes - np.repeat(zeros, 96, 1)).astype(np.float32)) * np.repeat(scale, 96, 1)
    assert np.array_equal(fp8(tmp_path, facts, tensors, {}).tensors["q.weight"].read(), expected)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
def test_gptq_zero_points_wrap(bits: int, form: str, tmp_path: Path) -> None:
    """A zero point of 0 is stored as the largest value where one is taken off."""
    n_out, n_in, n_groups = 64, 96, 3
    codes = rng.integers(0, 1 << bits, (n_out, n_in))
    zeros = rng.integers(0, 1 << bits, (n_out, n_groups))
    zeros[:, 0] = 0
    scale = rng.random((n_out, n_groups)).astype(np.float16)
    stored = (zeros - (form == "gptq")) % (1 << bits)
    tensors = {
        "q.qweight": np.ascontiguousarray(packed(codes, bits, True).T),
        "q.qzeros": packed(stored.T, bits, True),
        "q.scales": np.ascontiguousarray(scale.T),
        "q.g_idx": (np.arange(n_in) // 32).astype(np.int32),
    }
    facts = {"quant_method": "gptq", "bits": bits, "group_size": 32, "checkpoint_format": form}
    expected = (codes - np.repeat(zeros, 32, 1)).astype(np.float32) * np.repeat(scale, 32, 1).astype(
        np.float32
    )
    found = fp8(tmp_path, facts, tensors, {}).tensors["q.weight"]
    assert np.array_equal(found.read(), expected) and np.array_equal(found.read(33, 50), expected[33:50])


def test_microscaling_floats(tmp_path: Path) -> None:
    values = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    codes = rng.integers(0, 16, (6, 64))
    powers = rng.integers(100, 140, (6, 2)).astype(np.uint8)
    raw = (codes[:, 1::2] << 4 | codes[:, ::2]).astype(np.uint8)
    facts = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized", "config_groups": {}}
    found = fp8(tmp_path, facts, {"q.weight_packed": raw, "q.weight_scale": powers}, {}).tensors["q.weight"]
    plain = np.array(values + [-x for x in values])[codes]
    expected = plain * np.repeat(2.0 ** (powers.astype(int) - 127), 32, 1)
    assert np.array_equal(found.read(), expected) and np.array_equal(found.read(2, 5), expected[2:5])


@pytest.mark.parametrize("kind", ["BF16", "F32"])
def test_bitsandbytes_in_a_float_storage(kind: str, tmp_path: Path) -> None:
    """bnb_4bit_quant_storage keeps the same bytes under another type."""
    arrays, kinds = copy("bnb_nf4_nested", tmp_path)
    stored = np.uint16 if kind == "BF16" else np.float32
    for name in ("a.weight", "b.weight"):
        arrays[name] = arrays[name].reshape(-1).view(stored)[:, None]
        kinds[name] = kind
    write_safetensors(tmp_path / "model.safetensors", arrays, kinds)
    found, same = open_checkpoint(tmp_path).tensors, open_checkpoint(HERE / "bnb_nf4_nested").tensors
    for name, tensor in same.items():
        whole = tensor.read()
        assert np.array_equal(found[name].read(), whole)
        assert np.array_equal(found[name].read(1, tensor.n_rows - 1), whole[1:-1])


# FP8 with scales of every shape, against the product written out


def fp8(folder: Path, method: dict[str, Any], tensors: dict[str, Any], kinds: dict[str, str]) -> Checkpoint:
    write_safetensors(folder / "model.safetensors", tensors, kinds)
    (folder / "config.json").write_text(json.dumps({"quantization_config": method}))
    return open_checkpoint(folder)


def codes_and_values(*shape: int) -> tuple[Any, Any]:
    """Random E4M3 codes without NaN, and their values from the format's definition."""
    codes = rng.integers(0, 256, shape).astype(np.uint8)
    codes[codes & 0x7F == 0x7F] = 0
    exponent, mantissa = (codes >> 3 & 15).astype(int), (codes & 7) / 8
    size = np.where(exponent, (1 + mantissa) * 2.0 ** (exponent - 7), mantissa * 2.0**-6)
    return codes, np.where(codes & 128, -size, size).astype(np.float32)


@pytest.mark.parametrize("shape", [(), (1,), (40,), (40, 1), (1, 1)])
def test_fp8_scales_for_all_or_each_row(shape: tuple[int, ...], tmp_path: Path) -> None:
    codes, values = codes_and_values(40, 24)
    scale = rng.random(shape).astype(np.float32)
    tensors = {
        "q.weight": codes,
        "q.weight_scale": scale,
        "q.input_scale_ub": np.ones(1, np.float32),
        "norm.weight": bf16_bits(rng.standard_normal(8)),
    }
    kinds = {"q.weight": "F8_E4M3", "norm.weight": "BF16"}
    found = fp8(tmp_path, {"quant_method": "fbgemm_fp8"}, tensors, kinds)
    assert found.tensors.keys() == {"q.weight", "norm.weight"} and found.quantization == "fbgemm_fp8"
    assert found.tensors["norm.weight"].dtype == "BF16"
    expected = values * (scale[:, None] if shape == (40,) else scale)
    assert np.array_equal(found.tensors["q.weight"].read(), expected)
    assert np.array_equal(found.tensors["q.weight"].read(9, 31), expected[9:31])


@pytest.mark.parametrize("rows", [128, 200, 256, 40])
@pytest.mark.parametrize("block", [(128, 128), (32, 16)])
def test_fp8_in_blocks(rows: int, block: tuple[int, int], tmp_path: Path) -> None:
    columns = 144
    codes, values = codes_and_values(rows, columns)
    scale = rng.random((-(-rows // block[0]), -(-columns // block[1]))).astype(np.float32)
    method = {"quant_method": "fp8", "weight_block_size": list(block), "activation_scheme": "dynamic"}
    tensors = {"q.weight": codes, "q.weight_scale_inv": scale}
    found = fp8(tmp_path, method, tensors, {"q.weight": "F8_E4M3"})
    wide = np.repeat(np.repeat(scale, block[0], 0), block[1], 1)[:rows, :columns]
    assert np.array_equal(found.tensors["q.weight"].read(), values * wide)
    assert np.array_equal(
        found.tensors["q.weight"].read(rows // 3, rows - 5), (values * wide)[rows // 3 : rows - 5]
    )
    for wrong in (scale[:, :-1], np.concatenate([scale, scale]), scale[None], scale.reshape(-1)):
        with pytest.raises(CheckpointError):
            fp8(tmp_path, method, {"q.weight": codes, "q.weight_scale_inv": wrong}, {"q.weight": "F8_E4M3"})


def test_fp8_experts(tmp_path: Path) -> None:
    codes, values = codes_and_values(3, 64, 48)
    per_output = rng.random((3, 1, 48)).astype(np.float32)
    blocks = rng.random((3, 2, 3)).astype(np.float32)
    tensors = {
        "experts.gate_up_proj": codes,
        "experts.gate_up_proj_scale": per_output,
        "experts.down_proj": codes,
        "experts.down_proj_scale_inv": blocks,
    }
    kinds = {"experts.gate_up_proj": "F8_E4M3", "experts.down_proj": "F8_E4M3"}
    found = fp8(tmp_path, {"quant_method": "fp8", "weight_block_size": [32, 16]}, tensors, kinds).tensors
    assert np.array_equal(found["experts.gate_up_proj"].read(), values * per_output)
    wide = np.repeat(np.repeat(blocks, 32, 1), 16, 2)
    assert np.array_equal(found["experts.down_proj"].read(), values * wide)
    assert np.array_equal(found["experts.down_proj"].read(1, 2), (values * wide)[1:2])


@pytest.mark.parametrize("place", ["config", "text_config", "file"])
def test_modelopt(place: str, tmp_path: Path) -> None:
    codes, values = codes_and_values(8, 16)
    tensors = {
        "q.weight": codes,
        "q.weight_scale": np.array(0.25, np.float32),
        "q.input_scale": np.array(2.0, np.float32),
        "attn.k_scale": np.array(3.0, np.float32),
    }
    for algorithm in ("FP8", "NVFP4"):
        facts = {"quant_method": "modelopt", "quant_algo": algorithm}
        config: dict[str, Any] = {"model_type": "llama"}
        if place == "file":
            own = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algorithm}}
            (tmp_path / "hf_quant_config.json").write_text(json.dumps(own))
        elif place == "config":
            config["quantization_config"] = facts
        else:
            config["text_config"] = {"quantization_config": facts}
        (tmp_path / "config.json").write_text(json.dumps(config))
        write_safetensors(tmp_path / "model.safetensors", tensors, {"q.weight": "F8_E4M3"})
        if algorithm == "FP8":
            found = open_checkpoint(tmp_path)
            assert found.quantization == "modelopt" and found.tensors.keys() == {"q.weight"}
            assert np.array_equal(found.tensors["q.weight"].read(), values / 4)
        else:
            with pytest.raises(CheckpointError, match="NVFP4"):
                open_checkpoint(tmp_path)


def test_fp8_without_scale(tmp_path: Path) -> None:
    codes, _ = codes_and_values(8, 8)
    with pytest.raises(CheckpointError, match="without weight_scale"):
        fp8(tmp_path, {"quant_method": "fp8"}, {"q.weight": codes}, {"q.weight": "F8_E4M3"})
    for size in ([128], "128", [0, 3], [1.5, 2]):
        with pytest.raises(CheckpointError, match="weight_block_size"):
            fp8(tmp_path, {"quant_method": "fp8", "weight_block_size": size}, {"q.weight": codes}, {})
