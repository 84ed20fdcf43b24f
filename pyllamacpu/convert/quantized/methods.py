"""Quantized checkpoints: which method, and plain weights from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pyllamacpu.convert.formats.json_file import read_json
from pyllamacpu.convert.quantized import awq, bitsandbytes, compressed_tensors, gptq, scaled
from pyllamacpu.convert.quantized.packing import Config, Tensors
from pyllamacpu.errors import CheckpointError


def _modelopt(tensors: Tensors, config: Config, where: Path) -> Tensors:
    """NVIDIA's ModelOpt: FP8 with a scale per tensor, named as in the other FP8 formats."""
    algorithm = config.get("quant_algo")
    if algorithm != "FP8":
        raise CheckpointError(where, f"modelopt's quant_algo {algorithm!r} cannot be read; 'FP8' can")
    return scaled.plain_weights(tensors, {}, where)


METHODS: dict[str, Callable[[Tensors, Config, Path], Tensors]] = {
    "gptq": gptq.plain_weights,
    "awq": awq.plain_weights,
    "fbgemm_fp8": scaled.plain_weights,
    "fp8": scaled.plain_weights,
    "compressed-tensors": compressed_tensors.plain_weights,
    "bitsandbytes": bitsandbytes.plain_weights,
    "modelopt": _modelopt,
}
# Older checkpoints keep that in a file of their own.
_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
_SIGNS = (
    ".qweight",
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_inv",
    ".SCB",
    ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4",
)


def undo_quantization(tensors: Tensors, config: Mapping[str, Any], folder: Path) -> tuple[Tensors, str]:
    """The tensors with plain weights in place of quantized ones, and the method's name ("" for none).

    Raises CheckpointError for a method that is not in METHODS, and for tensors that look quantized where
    nothing says how.
    """
    quant_config, said_in = _quant_config(config, folder)
    method = _method(quant_config)
    if not method:
        return _check_plain(tensors, folder)
    undo = METHODS.get(method)
    if undo is None:
        raise CheckpointError(
            said_in, f"quantization method {method!r} cannot be read; these can: {', '.join(METHODS)}"
        )
    return undo(tensors, quant_config, said_in), method


def _quant_config(config: Mapping[str, Any], folder: Path) -> tuple[Mapping[str, Any], Path]:
    inner = config.get("text_config")
    for key in ("quantization_config", "compression_config"):
        quant_config = config.get(key) or (inner.get(key) if isinstance(inner, Mapping) else None)
        if isinstance(quant_config, Mapping) and quant_config:
            default = "compressed-tensors" if key == "compression_config" else ""
            return {"quant_method": default} | dict(quant_config), folder / "config.json"
        if quant_config:
            raise CheckpointError(folder / "config.json", f"{key} is not a JSON object")
    for name, method in _FILES.items():
        if (folder / name).is_file():
            said = read_json(folder / name)
            nested = said.get("quantization")  # ModelOpt's own file
            return {"quant_method": method} | (nested if isinstance(nested, dict) else said), folder / name
    return {}, folder


def _method(quant_config: Mapping[str, Any]) -> str:
    """The method's name, also where only its settings are given."""
    method = str(quant_config.get("quant_method") or "").lower()
    if not method and (quant_config.get("load_in_4bit") or quant_config.get("load_in_8bit")):
        return "bitsandbytes"
    if not method and "config_groups" in quant_config:
        return "compressed-tensors"
    if not method and quant_config:
        return str(quant_config.get("quant_algo") or "without a name")
    return {"fbgemm-fp8": "fbgemm_fp8", "compressed_tensors": "compressed-tensors"}.get(method, method)


def _check_plain(tensors: Tensors, folder: Path) -> tuple[Tensors, str]:
    if any("quant_state.bitsandbytes__" in name for name in tensors):  # these say themselves what they are
        return bitsandbytes.plain_weights(tensors, {}, folder), "bitsandbytes"
    for name, tensor in tensors.items():
        if name.endswith(_SIGNS):
            raise CheckpointError(
                tensor.source, "looks quantized, but config.json has no quantization_config that says how"
            )
    return tensors, ""
