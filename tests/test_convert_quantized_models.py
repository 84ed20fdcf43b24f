"""Whole quantized models: converted, they are what their dequantized weights convert to, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoint_build import write_safetensors
from convert_models import BY_NAME, weights
from quantized_build import METHODS
from test_convert_models import convert, expected, logits
from torch_build import write_torch

from pyllamacpu.convert.formats.safetensors import read_safetensors
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
