"""Llama 4's vision tower in a checkpoint: its config, its tensors' names, and the keys of an mmproj file.

Sources: vision_config of transformers' Llama4Config, vision_args of Meta's params.json; names and keys are
those that llama.cpp writes (model/vision_llama4.py reads them).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyllamacpu.convert.models.fields import Fields, words
from pyllamacpu.errors import CheckpointError
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.weights.lazy_tensor import LazyTensor, from_array

_HF = words(
    """
    hidden_size num_hidden_layers num_attention_heads num_channels intermediate_size vision_output_dim
    image_size patch_size norm_eps pixel_shuffle_ratio projector_input_dim projector_output_dim rope_theta
    rope_parameters hidden_act multi_modal_projector_bias vision_feature_select_strategy
    """
)
_HF_HARMLESS = words("projector_dropout vision_feature_layer rope_scaling")
_META = words("image_size patch_size dim n_layers n_heads mlp_ratio output_dim pixel_shuffle_ratio")

_HF_NAMES = {
    "v.class_embd": "vision_model.class_embedding",
    "v.patch_embd.weight": "vision_model.patch_embedding.linear.weight",
    "v.position_embd.weight": "vision_model.positional_embedding_vlm",
    "mm.model.mlp.1.weight": "vision_model.vision_adapter.mlp.fc1.weight",
    "mm.model.mlp.2.weight": "vision_model.vision_adapter.mlp.fc2.weight",
    "mm.model.fc.weight": "multi_modal_projector.linear_1.weight",
}
_HF_PARTS = {"v.pre_ln": "vision_model.layernorm_pre", "v.post_ln": "vision_model.layernorm_post"}
_HF_LAYER = {
    "ln1": "input_layernorm",
    "ln2": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
_ENCODER, _ADAPTER = "vision_embeddings.vision_encoder", "vision_embeddings.vision_adapter.mlp"
_META_NAMES = {
    "v.class_embd": f"{_ENCODER}.class_embedding",
    "v.patch_embd.weight": f"{_ENCODER}.conv1._linear.weight",
    "v.position_embd.weight": f"{_ENCODER}.positional_embedding_vlm",
    "mm.model.mlp.1.weight": f"{_ADAPTER}.c_fc.weight",
    "mm.model.mlp.2.weight": f"{_ADAPTER}.c_proj.weight",
    "mm.model.fc.weight": "vision_projection.weight",
}
_META_PARTS = {"v.pre_ln": f"{_ENCODER}.ln_pre", "v.post_ln": f"{_ENCODER}.ln_post"}
_META_LAYER = {
    "ln1": "ln_1",
    "ln2": "ln_2",
    "attn_q": "attn.wq",
    "attn_k": "attn.wk",
    "attn_v": "attn.wv",
    "attn_out": "attn.wo",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


@dataclass(frozen=True)
class VisionShape:
    """Sizes in elements, of images in pixels."""

    layout: str
    width: int
    n_layers: int
    n_heads: int
    image_size: int
    patch_size: int
    shuffle: int
    norm_eps: float
    rope_theta: float

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size


def read_vision(path: Path, config: Mapping[str, Any], layout: str) -> VisionShape | None:
    """The tower that a config states; None: it states none. Raises CheckpointError."""
    key = "vision_args" if layout == "meta" else "vision_config"
    stated = config.get(key)
    if not isinstance(stated, dict):
        return None
    fields = Fields(path, stated, f"{key}.")
    shape = _read_meta(fields) if layout == "meta" else _read_hf(fields)
    if shape.image_size % shape.patch_size or shape.grid % shape.shuffle:
        raise fields.error("image_size", shape.image_size, "must be whole groups of patches")
    if shape.width % (4 * shape.n_heads):
        size = "dim" if layout == "meta" else "hidden_size"
        raise fields.error(size, shape.width, f"must be a multiple of 4 for each of {shape.n_heads} heads")
    return shape


def _read_hf(config: Fields) -> VisionShape:
    from pyllamacpu.convert.models.config import HARMLESS

    config.only(_HF, HARMLESS | _HF_HARMLESS, ignorable=False)
    if config.flag("multi_modal_projector_bias"):
        raise config.error("multi_modal_projector_bias", True, "only false can be stated in a GGUF file")
    if config.get("hidden_act", "gelu") != "gelu":
        raise config.error("hidden_act", config.get("hidden_act"), "only gelu can be stated in a GGUF file")
    if config.whole("num_channels", 3) != 3:
        raise config.error("num_channels", config.get("num_channels"), "must be 3")
    rope = config.get("rope_parameters", {})
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise config.error("rope_parameters", rope, "only the default kind can be stated in a GGUF file")
    theta = config.real("rope_theta", 10000.0)
    return VisionShape(
        "hf",
        width=config.whole("hidden_size", 768, low=1),
        n_layers=config.whole("num_hidden_layers", 34, low=1),
        n_heads=config.whole("num_attention_heads", 16, low=1),
        image_size=_side(config, "image_size", 448),
        patch_size=_side(config, "patch_size", 14),
        shuffle=_shuffle(config),
        norm_eps=1e-5,  # of its layers, whatever norm_eps says: no code reads that
        rope_theta=Fields(config.path, rope).real("rope_theta", theta),
    )


def _read_meta(args: Fields) -> VisionShape:
    args.only(_META, ignorable=False)
    return VisionShape(
        "meta",
        width=args.whole("dim", low=1),
        n_layers=args.whole("n_layers", low=1),
        n_heads=args.whole("n_heads", low=1),
        image_size=_side(args, "image_size"),
        patch_size=_side(args, "patch_size"),
        shuffle=_shuffle(args),
        norm_eps=1e-5,
        rope_theta=10000.0,
    )


def _side(fields: Fields, key: str, default: int | None = None) -> int:
    """One number, or two equal ones as a list or as height and width."""
    value = fields.get(key)
    if isinstance(value, dict):
        value = [value.get("height"), value.get("width")]
    if isinstance(value, list):
        if len(value) != 2 or value[0] != value[1]:
            raise fields.error(key, value, "only squares can be stated in a GGUF file")
        fields = Fields(fields.path, {key: value[0]}, fields.prefix)
    return fields.whole(key, default, low=1)


def _shuffle(fields: Fields) -> int:
    ratio = fields.real("pixel_shuffle_ratio", 0.5)
    if not 0 < ratio <= 1 or abs(round(1 / ratio) * ratio - 1) > 1e-6:
        raise fields.error("pixel_shuffle_ratio", ratio, "must be 1 divided by a whole number")
    return round(1 / ratio)


# ---- tensors ----


def map_vision(path: Path, shape: VisionShape, found: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tower's tensors by the names of an mmproj file; `found` by the checkpoint's, without its prefixes.

    Raises CheckpointError for what is missing, misshapen or not understood.
    """
    meta = shape.layout == "meta"
    known = _META_NAMES if meta else _HF_NAMES
    old = known["v.position_embd.weight"].removesuffix("_vlm")
    if meta and old in found and known["v.position_embd.weight"] not in found:
        found = {**found, known["v.position_embd.weight"]: _interpolated(path, shape, found[old])}
    result: dict[str, LazyTensor] = {}
    for name, source in _sources(shape):
        tensor = found.get(source)
        if tensor is None:
            raise CheckpointError(path, f"the tensor {source} is missing; the checkpoint is incomplete")
        if not tensor.is_float or tensor.dtype.startswith("F8"):
            raise CheckpointError(path, f"the tensor {source} holds {tensor.dtype}: it is quantized")
        result[name] = tensor
    _check_shapes(path, shape, result)
    left = {name for name in found if name.startswith(("vision_", "multi_modal_projector."))}
    if left := left - {source for _, source in _sources(shape)} - {old}:
        raise CheckpointError(path, f"has tensors that are not understood: {', '.join(sorted(left)[:4])}")
    return result


def _sources(shape: VisionShape) -> Iterator[tuple[str, str]]:
    """(the file's name, the checkpoint's) of each tensor."""
    meta = shape.layout == "meta"
    yield from (_META_NAMES if meta else _HF_NAMES).items()
    for name, source in (_META_PARTS if meta else _HF_PARTS).items():
        yield from ((f"{name}.{end}", f"{source}.{end}") for end in ("weight", "bias"))
    layers = f"{_ENCODER}.transformer.resblocks" if meta else "vision_model.model.layers"
    for i in range(shape.n_layers):
        for name, source in (_META_LAYER if meta else _HF_LAYER).items():
            for end in ("weight", "bias"):
                yield f"v.blk.{i}.{name}.{end}", f"{layers}.{i}.{source}.{end}"


def _check_shapes(path: Path, s: VisionShape, tensors: Mapping[str, LazyTensor]) -> None:
    ffn = tensors["v.blk.0.ffn_up.weight"].n_rows
    hidden, out = (tensors[f"mm.model.mlp.{i}.weight"].n_rows for i in (1, 2))
    sizes: dict[str, tuple[int, ...]] = {
        "v.class_embd": (s.width,),
        "v.patch_embd.weight": (s.width, 3 * s.patch_size**2),
        "v.position_embd.weight": (s.grid**2 + 1, s.width),
        "mm.model.mlp.1.weight": (hidden, s.width * s.shuffle**2),
        "mm.model.mlp.2.weight": (out, hidden),
        "mm.model.fc.weight": (tensors["mm.model.fc.weight"].n_rows, out),
        "ffn_up.weight": (ffn, s.width),
        "ffn_up.bias": (ffn,),
        "ffn_down.weight": (s.width, ffn),
        **{f"{name}.weight": (s.width, s.width) for name in ("attn_q", "attn_k", "attn_v", "attn_out")},
    }
    for name, tensor in tensors.items():
        end = name.split(".", 3)[3] if name.startswith("v.blk.") else name
        expected = sizes.get(end, (s.width,))
        if tensor.shape != expected:
            raise CheckpointError(
                path, f"{tensor.source} has shape {tensor.shape}, the config says {expected}; one is wrong"
            )


def _interpolated(path: Path, shape: VisionShape, table: LazyTensor) -> LazyTensor:
    """Meta's older table (class token first) as its code reads it: each place gets the mean of the four
    values around its upper left corner, those outside being zero.
    """
    if len(table.shape) != 2 or table.n_rows != shape.grid**2 + 1:
        raise CheckpointError(path, f"positional_embedding has shape {table.shape}, which does not fit")
    values = table.read().astype(np.float32)
    grid = np.zeros((shape.grid + 1, shape.grid + 1, values.shape[1]), np.float32)
    grid[1:, 1:] = values[1:].reshape(shape.grid, shape.grid, -1)
    mean = (grid[:-1, :-1] + grid[:-1, 1:] + grid[1:, :-1] + grid[1:, 1:]) / np.float32(4)
    rows = np.concatenate([mean.reshape(shape.grid**2, -1), values[:1]])
    return from_array(rows, table.source)


def vision_keys(shape: VisionShape, tensors: Mapping[str, LazyTensor]) -> list[KeyValue]:
    """The metadata of an mmproj file but for general.*."""
    whole, real = ValueType.UINT32, ValueType.FLOAT32
    vision = [
        KeyValue("projection_dim", tensors["mm.model.fc.weight"].n_rows, whole),
        KeyValue("image_size", shape.image_size, whole),
        KeyValue("patch_size", shape.patch_size, whole),
        KeyValue("embedding_length", shape.width, whole),
        KeyValue("feed_forward_length", tensors["v.blk.0.ffn_up.weight"].n_rows, whole),
        KeyValue("block_count", shape.n_layers, whole),
        KeyValue("attention.head_count", shape.n_heads, whole),
        KeyValue("attention.layer_norm_epsilon", shape.norm_eps, real),
        KeyValue("image_mean", [0.5, 0.5, 0.5], real),
        KeyValue("image_std", [0.5, 0.5, 0.5], real),
        KeyValue("projector.scale_factor", shape.shuffle, whole),
    ]
    if shape.rope_theta != 10000.0:  # llama.cpp has that built in
        vision.append(KeyValue("rope.freq_base", shape.rope_theta, real))
    return [
        KeyValue("clip.has_vision_encoder", True, ValueType.BOOL),
        KeyValue("clip.projector_type", "llama4"),
        KeyValue("clip.use_gelu", True, ValueType.BOOL),
        *(KeyValue(f"clip.vision.{name}", value, kind) for name, value, kind in vision),
    ]
