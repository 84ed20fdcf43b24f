"""Quantized checkpoints: which method, and plain weights from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pyllamacpu.convert.formats.json_file import read_json
from pyllamacpu.convert.models.plain_names import is_useless
from pyllamacpu.convert.quantized import awq, bitsandbytes, compressed_tensors, gptq, gptq_zeros, mlx, scaled
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
    "mlx": mlx.plain_weights,
}
# Older checkpoints keep that in a file of their own.
_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
_AT_RUN_TIME = ("bitnet",)  # methods that quantize plain weights as they are used: a part of the model
_SIGNS = (
    ".qweight",
    ".qzeros",
    ".scales",
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_inv",
    ".SCB",
    ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4",
)


class Undone(NamedTuple):
    """Plain weights, the method that they were quantized with ("" for none), and what to say about it."""

    tensors: Tensors
    method: str = ""
    notes: tuple[str, ...] = ()


def undo_quantization(tensors: Tensors, config: Mapping[str, Any], folder: Path) -> Undone:
    """The tensors with plain weights in place of quantized ones.

    Which tensors are quantized the data tells: a config that was left behind beside plain weights changes
    nothing. Raises CheckpointError for a method that is not in METHODS, and for tensors that look quantized
    where nothing says how.
    """
    quant_config, said_in = _quant_config(config, folder)
    method = "mlx" if mlx.is_mlx(tensors) else _method(quant_config)
    if not method:
        return _without_config(tensors, folder)
    if _are_plain(tensors) and method not in _AT_RUN_TIME:
        said = f"{said_in.name} names a quantization ({method}), but the weights are plain"
        return Undone(tensors, notes=(said,))
    undo = METHODS.get(method)
    if undo is None:
        raise CheckpointError(
            said_in, f"quantization method {method!r} cannot be read; these can: {', '.join(METHODS)}"
        )
    if method == "gptq":
        quant_config, notes = _gptq_format(tensors, quant_config, said_in)
        undone = _undone(tensors, undo(tensors, quant_config, said_in), method)
        return undone._replace(notes=(*undone.notes, *notes))
    return _undone(tensors, undo(tensors, quant_config, said_in), method)


def _gptq_format(tensors: Tensors, config: Config, where: Path) -> tuple[Config, tuple[str, ...]]:
    """The settings with the format that the zero points are in, and what to say if it is another one."""
    stated = gptq.stated_format(config, where)
    stored = gptq_zeros.stored_format(tensors, stated, config, where)
    said = f"{where.name} says that the format is {stated}, but the zero points are {stored}'s: they count"
    return {**config, "checkpoint_format": stored}, (said,) if stored != stated else ()


def _undone(tensors: Tensors, plain: Tensors, method: str) -> Undone:
    if all(plain.get(name) is tensor for name, tensor in tensors.items()):
        return Undone(plain)
    return Undone(plain, method, (f"the weights are quantized ({method}); their plain values are converted",))


def _are_plain(tensors: Tensors) -> bool:
    """Whether all tensors are floats of 16 bits or more, and none belongs to a quantized one."""
    return all(
        tensor.dtype in ("F64", "F32", "F16", "BF16") or is_useless(name) for name, tensor in tensors.items()
    ) and not any(name.endswith(_SIGNS) for name in tensors)


def _quant_config(config: Mapping[str, Any], folder: Path) -> tuple[Mapping[str, Any], Path]:
    inner = config.get("text_config")
    for key in ("quantization_config", "compression_config", "quantization"):
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


def _without_config(tensors: Tensors, folder: Path) -> Undone:
    """bitsandbytes' tensors say themselves what they are. Raises CheckpointError for others."""
    if any("quant_state.bitsandbytes__" in name or name.endswith(".SCB") for name in tensors):
        return _undone(tensors, bitsandbytes.plain_weights(tensors, {}, folder), "bitsandbytes")
    for name, tensor in tensors.items():
        if name.endswith(_SIGNS):
            raise CheckpointError(
                tensor.source,
                "looks quantized, but neither config.json (quantization_config) nor a file of "
                f"its own ({', '.join(_FILES)}) says which method and settings; get that file again",
            )
    return Undone(tensors)
