"""Whole quantized models: converted, they are what their dequantized weights convert to, byte for byte.

Covers convert/quantized/gptq_zeros.py, convert/quantized/mlx.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoint_build import write_safetensors
from convert_models import BY_NAME, weights
from quantized_build import GROUP, METHODS, e4m3_values, gptq, gptq_symmetric, mlx, packed
from test_convert_models import convert, expected, logits
from torch_build import write_torch

from pyllamacpu.convert.checkpoint import open_checkpoint
from pyllamacpu.convert.formats.safetensors import read_safetensors
from pyllamacpu.errors import CheckpointError
from pyllamacpu.gguf import GGUFFile


def write_pair(folder: Path, method: str) -> tuple[Path, Path]:
    """A checkpoint whose linear layers are quantized, and one of what they stand for."""
    model = BY_NAME["gqa"]
    facts, quantize = METHODS[method]
    stored, kinds, plain = {}, {}, {}
    for name, array in weights(model).items():
        module = name.removesuffix(".weight")
        if "_proj" not in name:
            stored[name] = plain[name] = array
            continue
        parts, part_kinds, plain[name] = quantize(array)
        stored |= {f"{module}.{key}": value for key, value in parts.items()}
        kinds |= {f"{module}.{key}": kind for key, kind in part_kinds.items()}
    pair = (folder / "quantized", folder / "plain")
    for path, tensors, more in ((pair[0], stored, {"quantization_config": facts}), (pair[1], plain, {})):
        path.mkdir()
        write_safetensors(path / "model.safetensors", tensors, kinds if more else {})
        (path / "config.json").write_text(json.dumps(model.full_config() | more))
    return pair


def same_tensors(first: Path, second: Path) -> None:
    with GGUFFile.open(first) as one, GGUFFile.open(second) as other:
        assert one.tensors.keys() == other.tensors.keys()
        for name, info in one.tensors.items():
            assert info.type == other.tensors[name].type and info.shape == other.tensors[name].shape
            assert np.array_equal(one.data(name), other.data(name)), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("outtype", ["f32", "q8_0"])
def test_equal_to_the_dequantized_weights(tmp_path: Path, method: str, outtype: str) -> None:
    quantized, plain = write_pair(tmp_path, method)
    first, second = convert(quantized, outtype), convert(plain, outtype)
    same_tensors(first, second)
    if outtype == "f32":  # still the model, but quantized
        gap = np.abs(logits(first, "gqa") - expected("gqa")).max() / expected("gqa").std()
        assert 1e-5 < gap < 1.5


def test_quantized_torch_file(tmp_path: Path) -> None:
    """GPTQ in a pytorch_model.bin, as its first releases were."""
    quantized, plain = write_pair(tmp_path, "gptq_act_order")
    found = read_safetensors(quantized / "model.safetensors")[0]
    arrays = {
        name: tensor.raw().view(np.float16) if tensor.dtype == "F16" else tensor.raw()
        for name, tensor in found.items()
    }
    write_torch(quantized / "pytorch_model.bin", arrays)
    (quantized / "model.safetensors").unlink()
    same_tensors(convert(quantized, "f16"), convert(plain, "f16"))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("stored_minus", [0, 1])
@pytest.mark.parametrize("sym", [True, None])
def test_symmetric_zero_points_tell_their_format(
    tmp_path: Path, bits: int, stored_minus: int, sym: bool | None
) -> None:
    """The middle code, or one less, in every place: whatever the label says."""
    weight = np.random.default_rng(bits).standard_normal((64, 64)).astype(np.float32)
    parts, _, plain = gptq_symmetric(weight, bits, stored_minus)
    for label in ("gptq", "gptq_v2"):
        facts = {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": GROUP,
            "checkpoint_format": label,
            "sym": sym,
        }
        write_safetensors(tmp_path / "model.safetensors", {f"q.{key}": value for key, value in parts.items()})
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": facts}))
        checkpoint = open_checkpoint(tmp_path)
        assert np.array_equal(checkpoint.tensors["q.weight"].read(), plain)
        assert any("zero points are" in n for n in checkpoint.notes) == (
            (label == "gptq") != bool(stored_minus)
        )


@pytest.mark.parametrize("label", ["gptq", "gptq_v2"])
def test_asymmetric_zero_points_of_the_other_format(tmp_path: Path, label: str) -> None:
    """Weights scatter around zero: that tells which of the two formats it is, and the label is refused."""
    weight = np.random.default_rng(5).standard_normal((256, 256)).astype(np.float32)
    parts, _, plain = gptq(weight)
    if label == "gptq":  # one more than what that format stores
        parts["qzeros"] = (parts["qzeros"].view(np.uint32) + np.uint32(0x11111111)).view(np.int32)
    write_safetensors(tmp_path / "model.safetensors", {f"q.{key}": value for key, value in parts.items()})
    facts = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False, "checkpoint_format": label}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": facts}))
    with pytest.raises(CheckpointError, match="set checkpoint_format"):
        open_checkpoint(tmp_path)
    right = "gptq_v2" if label == "gptq" else "gptq"
    config = json.dumps({"quantization_config": facts | {"checkpoint_format": right}})
    (tmp_path / "config.json").write_text(config)
    assert np.array_equal(open_checkpoint(tmp_path).tensors["q.weight"].read(), plain)


def test_symmetric_zero_points_that_are_neither(tmp_path: Path) -> None:
    parts, _, _ = gptq_symmetric(np.ones((64, 64), np.float32))
    parts["qzeros"] = np.zeros_like(parts["qzeros"])
    write_safetensors(tmp_path / "model.safetensors", {f"q.{key}": value for key, value in parts.items()})
    facts = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": facts}))
    with pytest.raises(CheckpointError, match="neither the middle code nor one less"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx_layers_and_embedding(tmp_path: Path, bits: int) -> None:
    """Both keys that mlx-lm writes, and one layer with settings of its own."""
    rng = np.random.default_rng(bits)
    first, own = (rng.standard_normal((24, 96)).astype(np.float32) for _ in range(2))
    facts = {"group_size": GROUP, "bits": bits, "b.c": {"group_size": GROUP, "bits": 8}, "d": False}
    stored, wanted = {}, {}
    for name, weight, n_bits in (("a", first, bits), ("b.c", own, 8)):
        parts, _, wanted[name] = mlx(weight, n_bits)
        stored |= {f"{name}.{key}": value for key, value in parts.items()}
    write_safetensors(tmp_path / "model.safetensors", stored)
    for keys in (("quantization",), ("quantization", "quantization_config")):
        (tmp_path / "config.json").write_text(json.dumps(dict.fromkeys(keys, facts)))
        found = open_checkpoint(tmp_path)
        assert found.quantization == "mlx" and found.tensors.keys() == {"a.weight", "b.c.weight"}
        for name, weight in wanted.items():
            assert np.array_equal(found.tensors[f"{name}.weight"].read(), weight)
            assert np.array_equal(found.tensors[f"{name}.weight"].read(5, 9), weight[5:9])
    (tmp_path / "config.json").write_text(json.dumps({"quantization": {"bits": bits}}))
    with pytest.raises(CheckpointError, match="group_size"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4"])
def test_small_floats_of_mlx(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(1)
    bits, size = (8 if mode == "mxfp8" else 4), (16 if mode == "nvfp4" else 32)
    codes = rng.integers(0, 1 << bits, (8, 64))
    codes[codes & 0x7F == 0x7F] = 0  # NaN of E4M3
    scales = rng.integers(100, 120, (8, 64 // size)).astype(np.uint8)
    grid = (
        e4m3_values()
        if bits == 8
        else np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    )
    factors = e4m3_values()[scales] if mode == "nvfp4" else 2.0 ** (scales.astype(int) - 127)
    write_safetensors(
        tmp_path / "model.safetensors", {"a.weight": packed(codes, bits).view(np.uint32), "a.scales": scales}
    )
    facts = {"group_size": size, "bits": bits, "mode": mode}
    (tmp_path / "config.json").write_text(json.dumps({"quantization": facts}))
    wanted = (grid[codes] * np.repeat(factors, size, 1)).astype(np.float32)
    assert np.array_equal(open_checkpoint(tmp_path).tensors["a.weight"].read(), wanted)


def test_int8_of_bitsandbytes_without_its_config(tmp_path: Path) -> None:
    quantized, plain = write_pair(tmp_path, "int8")
    config = json.loads((quantized / "config.json").read_text())
    del config["quantization_config"]
    (quantized / "config.json").write_text(json.dumps(config))
    same_tensors(convert(quantized, "f32"), convert(plain, "f32"))
