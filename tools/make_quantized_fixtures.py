"""Make tests/fixtures/checkpoints/<name>: tiny quantized checkpoints and the weights they stand for.

    PYTHONPATH=... python tools/make_quantized_fixtures.py [NAME ...]

Needs torch, safetensors, and of each quantization's own library what packs and unpacks: auto-gptq 0.7.1,
autoawq 0.2.9, bitsandbytes 0.50.2, compressed-tensors 0.20.0 (unpacked wheels on the path suffice; their
package files need not import as a whole). Each library quantizes or packs random weights; the expected plain
weight is what the library itself computes from the packed one in float32. Where it would round (to bfloat16,
float16), it is given its scales as float32, with values that the stored type holds exactly.

<name>/model.safetensors, config.json, and expected.json: for each weight its shape, the SHA-256 of its
float32 bytes, and its first values.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.machinery
import importlib.util
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "checkpoints"
Tensors = dict[str, torch.Tensor]


def write(name: str, tensors: Tensors, quantization: dict[str, Any], expected: Tensors) -> None:
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors")
    config = {"model_type": "llama", "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    facts = {"made_by": f"tools/make_quantized_fixtures.py, {VERSIONS}", "weights": {}}
    for key, value in expected.items():
        values = value.detach().float().contiguous().numpy()
        facts["weights"][key] = {
            "shape": list(values.shape),
            "sha256": hashlib.sha256(values.tobytes()).hexdigest(),
            "first": [float(x) for x in values.reshape(-1)[:8]],
        }
    (folder / "expected.json").write_text(json.dumps(facts, indent=1) + "\n")


def load_source(package: str, relative: str) -> types.ModuleType:
    """One file of an installed package, without running the package's own __init__ files."""
    spec = importlib.machinery.PathFinder.find_spec(package.partition(".")[0])
    assert spec is not None and spec.submodule_search_locations is not None, f"{package} is not on the path"
    root = Path(spec.submodule_search_locations[0])
    parts = package.split(".")
    for depth in range(1, len(parts) + 1):
        stub = types.ModuleType(".".join(parts[:depth]))
        stub.__path__ = [str(root.joinpath(*parts[1:depth]))]
        sys.modules.setdefault(stub.__name__, stub)
    file = root.joinpath(*parts[1:], relative + ".py")
    loaded = importlib.util.spec_from_file_location(f"{package}.{relative}", file)
    assert loaded is not None and loaded.loader is not None
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    return module


def random_groups(n_out: int, n_groups: int, bits: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales that float16 holds, zero points from 1 on (the format stores one less): (n_out, n_groups)."""
    scales = (torch.rand(n_out, n_groups) * 0.02 + 0.001).half().float()
    if symmetric:
        return scales, torch.full((n_out, n_groups), 1 << (bits - 1))
    return scales, torch.randint(1, 1 << bits, (n_out, n_groups))


def gptq_layer(
    bits: int, group: int, symmetric: bool, act_order: bool, n_out: int = 64, n_in: int = 128
) -> tuple[Tensors, torch.Tensor]:
    """A layer packed by AutoGPTQ, and what its forward pass makes of the identity."""
    for name in ("tqdm",):
        sys.modules.setdefault(name, types.ModuleType(name))
    source = load_source("auto_gptq.nn_modules.qlinear", "qlinear_cuda")
    size = n_in if group == -1 else group
    n_groups = n_in // size
    scales, zeros = random_groups(n_out, n_groups, bits, symmetric)
    g_idx = torch.arange(n_in) // size
    if act_order:
        g_idx = g_idx[torch.randperm(n_in)]
    codes = torch.randint(0, 1 << bits, (n_out, n_in))
    linear = torch.nn.Linear(n_in, n_out, bias=True, dtype=torch.float32)
    linear.weight.data = (codes - zeros[:, g_idx]) * scales[:, g_idx]
    layer = source.QuantLinear(bits, group, n_in, n_out, True, weight_dtype=torch.float32)
    layer.pack(linear, scales, zeros.clone().float(), g_idx.int())
    plain = dequantized_gptq(layer, n_in)
    assert torch.equal(plain, linear.weight.data), "AutoGPTQ reads something else than it was given"
    tensors = {
        "qweight": layer.qweight,
        "qzeros": layer.qzeros,
        "scales": layer.scales.half(),
        "g_idx": layer.g_idx.int(),
        "bias": layer.bias.half(),
    }
    return tensors, plain


def dequantized_gptq(layer: Any, n_in: int) -> torch.Tensor:
    bias, layer.bias = layer.bias, None
    plain = layer(torch.eye(n_in)).T.contiguous()
    layer.bias = bias
    return plain


def make_gptq() -> None:
    cases = {
        "gptq_4bit": (4, 32, True, False),
        "gptq_4bit_act_order": (4, 32, False, True),
        "gptq_8bit": (8, 64, False, False),
        "gptq_8bit_one_group": (8, -1, True, False),
        "gptq_3bit": (3, 32, False, True),
        "gptq_2bit": (2, 32, False, False),
    }
    for name, (bits, group, symmetric, act_order) in cases.items():
        torch.manual_seed(len(name))
        parts, plain = gptq_layer(bits, group, symmetric, act_order)
        tensors = {f"model.layers.0.mlp.up_proj.{key}": value for key, value in parts.items()}
        tensors["lm_head.weight"] = torch.randn(8, 16).half()
        quantization = {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": group,
            "desc_act": act_order,
            "sym": symmetric,
        }
        expected = {
            "model.layers.0.mlp.up_proj.weight": plain,
            "model.layers.0.mlp.up_proj.bias": tensors["model.layers.0.mlp.up_proj.bias"],
            "lm_head.weight": tensors["lm_head.weight"],
        }
        write(name, tensors, quantization, expected)
        if name == "gptq_4bit_act_order":  # the same, with the zero points themselves
            shifted = tensors["model.layers.0.mlp.up_proj.qzeros"]
            fields = sum((((shifted >> 4 * i & 15) + 1) & 15).long() << 4 * i for i in range(8))
            tensors["model.layers.0.mlp.up_proj.qzeros"] = (
                fields.to(torch.int64).bitwise_and(0xFFFFFFFF).to(torch.uint32).view(torch.int32)
            )
            write("gptq_v2", tensors, quantization | {"checkpoint_format": "gptq_v2"}, expected)


def make_awq() -> None:
    torch.manual_seed(11)
    packing = load_source("awq.utils", "packing_utils")
    n_out, n_in, group = 64, 128, 32
    codes = torch.randint(0, 16, (n_in, n_out), dtype=torch.int32)
    zeros = torch.randint(0, 16, (n_in // group, n_out), dtype=torch.int32)
    scales = (torch.rand(n_in // group, n_out) * 0.02).half()

    def packed(values: torch.Tensor) -> torch.Tensor:
        """Eight outputs per word, in the order that AutoAWQ's own table gives."""
        parts = values.reshape(values.shape[0], -1, 8)[:, :, packing.AWQ_ORDER].long()
        words = sum(parts[:, :, i] << 4 * i for i in range(8))
        return words.to(torch.uint32).view(torch.int32)

    name = "model.layers.0.self_attn.q_proj"
    tensors = {
        f"{name}.qweight": packed(codes),
        f"{name}.qzeros": packed(zeros),
        f"{name}.scales": scales,
        "model.norm.weight": torch.randn(16).half(),
    }
    plain = packing.dequantize_gemm(
        tensors[f"{name}.qweight"], tensors[f"{name}.qzeros"], scales.float(), 4, group
    ).T
    quantization = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group,
        "version": "gemm",
        "zero_point": True,
    }
    expected = {f"{name}.weight": plain, "model.norm.weight": tensors["model.norm.weight"]}
    write("awq", tensors, quantization, expected)


def four_bits(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """The library's generic implementation. Its CPU kernel errs where rows are not whole blocks (0.50.2):
    it begins a new block with each row, unlike the quantization and the CUDA kernel.
    """
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
    from bitsandbytes.functional import dequantize_blockwise

    factors = state.absmax
    if state.nested:
        factors = dequantize_blockwise(state.absmax, state.state2) + state.offset
    return _dequantize_4bit_compute(
        packed.reshape(-1), factors, state.code, state.blocksize, state.shape, torch.float32
    )


def make_bitsandbytes() -> None:
    import bitsandbytes as bnb

    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            torch.manual_seed(12)
            tensors: Tensors = {}
            expected: Tensors = {}
            for name, shape in (("a", (48, 80)), ("b", (64, 320)), ("c", (7, 33))):
                weight = torch.randn(shape) * 0.1
                packed, state = bnb.functional.quantize_4bit(
                    weight, blocksize=64, compress_statistics=nested, quant_type=kind
                )
                tensors[f"{name}.weight"] = packed
                tensors |= {
                    f"{name}.weight.{key}": value for key, value in state.as_dict(packed=True).items()
                }
                expected[f"{name}.weight"] = four_bits(packed, state)
            tensors["norm.weight"] = expected["norm.weight"] = torch.randn(5)
            quantization = {
                "quant_method": "bitsandbytes",
                "load_in_4bit": True,
                "bnb_4bit_quant_type": kind,
                "bnb_4bit_use_double_quant": nested,
            }
            write(f"bnb_{kind}{'_nested' if nested else ''}", tensors, quantization, expected)
    torch.manual_seed(13)
    weight = torch.randn(24, 40).half()
    codes, largest, _ = bnb.functional.int8_vectorwise_quant(weight)
    plain = torch.ops.bitsandbytes.int8_vectorwise_dequant(codes, largest)
    tensors = {
        "a.weight": codes,
        "a.SCB": largest,
        "a.weight_format": torch.tensor(0, dtype=torch.uint8),
        "norm.weight": torch.randn(5),
    }
    expected = {"a.weight": plain, "norm.weight": tensors["norm.weight"]}
    write("bnb_int8", tensors, {"quant_method": "bitsandbytes", "load_in_8bit": True}, expected)


def compressed_scheme(**weights: Any) -> Any:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights))


def compressed_layer(
    form: str, weights: dict[str, Any], shape: tuple[int, int], scale_shape: tuple[int, ...]
) -> tuple[Tensors, torch.Tensor]:
    """A layer compressed by the library from random weights, and what it decompresses to in float32."""
    from compressed_tensors.compressors import BaseCompressor

    scheme = compressed_scheme(**weights)
    compressor = BaseCompressor.get_value_from_registry(form)
    state: Tensors = {
        "weight": torch.randn(shape) * 0.05,
        "weight_scale": (torch.rand(scale_shape) * 0.01 + 0.002).bfloat16().float(),
    }
    if not weights.get("symmetric", True):
        bits = weights["num_bits"]
        low, high = -(1 << (bits - 1)), 1 << (bits - 1)
        state["weight_zero_point"] = torch.randint(low, high, scale_shape, dtype=torch.int8)
    if form.startswith("nvfp4"):
        state["weight_scale"] = (torch.rand(scale_shape) * 100 + 10).to(torch.float8_e4m3fn).float()
        state["weight_global_scale"] = torch.tensor([2048.0])
    packed = compressor.compress(state, scheme)
    if form.startswith("nvfp4"):
        plain = small_floats(packed, scheme)
    else:
        plain = compressor.decompress(packed, scheme)["weight"]
    assert plain.dtype == torch.float32, plain.dtype
    if not form.startswith("nvfp4"):
        packed["weight_scale"] = packed["weight_scale"].bfloat16()
    return packed, plain


def small_floats(packed: Tensors, scheme: Any) -> torch.Tensor:
    """The library's own steps for 4-bit floats, which it takes in bfloat16, in float32."""
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    codes = packed["weight_packed"]
    return dequantize(
        unpack_fp4_from_uint8(codes, codes.shape[0], 2 * codes.shape[1]).float(),
        packed["weight_scale"].float(),
        args=scheme.weights,
        global_scale=packed["weight_global_scale"],
        dtype=torch.float32,
    )


def make_compressed() -> None:
    cases: dict[str, tuple[str, dict[str, Any], tuple[int, int], tuple[int, ...]]] = {}
    integer, real = {"type": "int"}, {"type": "float", "num_bits": 8}
    group = {"strategy": "group", "group_size": 32}
    cases["ct_int4_group"] = ("pack-quantized", integer | group | {"num_bits": 4}, (48, 96), (48, 3))
    asymmetric = integer | group | {"num_bits": 4, "symmetric": False}
    cases["ct_int4_asymmetric"] = ("pack-quantized", asymmetric, (44, 96), (44, 3))
    channel = {"strategy": "channel"}
    cases["ct_int8_packed"] = ("pack-quantized", integer | channel | {"num_bits": 8}, (48, 50), (48, 1))
    three = integer | group | {"num_bits": 3, "symmetric": False}
    cases["ct_int3_asymmetric"] = ("pack-quantized", three, (48, 96), (48, 3))
    cases["ct_int8_channel"] = ("int-quantized", integer | channel | {"num_bits": 8}, (48, 50), (48, 1))
    eight = integer | group | {"num_bits": 8, "symmetric": False}
    cases["ct_int8_group"] = ("int-quantized", eight, (48, 96), (48, 3))
    cases["ct_fp8_tensor"] = ("float-quantized", real | {"strategy": "tensor"}, (48, 50), (1,))
    cases["ct_fp8_channel"] = ("float-quantized", real | channel, (48, 50), (48, 1))
    blocks = real | {"strategy": "block", "block_structure": [32, 16]}
    cases["ct_fp8_block"] = ("float-quantized", blocks, (80, 40), (3, 3))
    small = {"type": "float", "num_bits": 4, "strategy": "tensor_group", "group_size": 16}
    cases["ct_nvfp4"] = ("nvfp4-pack-quantized", small, (48, 96), (48, 6))
    for name, (form, weights, shape, scale_shape) in cases.items():
        torch.manual_seed(len(name))
        packed, plain = compressed_layer(form, weights, shape, scale_shape)
        tensors = {f"model.layers.0.mlp.down_proj.{key}": value for key, value in packed.items()}
        tensors["model.layers.0.mlp.down_proj.input_scale"] = torch.ones(1)
        tensors["model.norm.weight"] = torch.randn(6).bfloat16()
        quantization = {
            "quant_method": "compressed-tensors",
            "format": form,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            "ignore": ["lm_head"],
        }
        expected = {
            "model.layers.0.mlp.down_proj.weight": plain,
            "model.norm.weight": tensors["model.norm.weight"],
        }
        write(name, tensors, quantization, expected)


MAKERS: dict[str, Callable[[], None]] = {
    "gptq": make_gptq,
    "awq": make_awq,
    "bitsandbytes": make_bitsandbytes,
    "compressed": make_compressed,
}


VERSIONS = f"torch {torch.__version__}, " + ", ".join(
    f"{name} {number}"
    for name, number in (
        ("auto-gptq", "0.7.1"),
        ("autoawq", "0.2.9"),
        ("bitsandbytes", "0.50.2"),
        ("compressed-tensors", "0.20.0"),
    )
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the quantized checkpoint fixtures of the tests.")
    parser.add_argument("names", nargs="*", choices=[[], *MAKERS], help="which ones (all)")
    for name in parser.parse_args().names or list(MAKERS):
        MAKERS[name]()


if __name__ == "__main__":
    main()
