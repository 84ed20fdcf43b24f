"""From a checkpoint's tensors of Llama 3.2's vision tower to those of a GGUF file, and Meta's names.

Names are those of ollama's files. Gates are stored as what they multiply by: their tanh, and 1 - tanh for the
positions of patches in a tile. Meta's tables of tiles, (rows, columns, …), become Hugging Face's: a row for
each aspect ratio.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.convert.models.mllama_vision import VisionShape
from pyllamacpu.convert.models.shape import ModelShape
from pyllamacpu.model.mllama_vision import TILES, aspect_ratios
from pyllamacpu.weights.lazy_ops import concatenate, reshape, slice_rows, take_rows
from pyllamacpu.weights.lazy_tensor import LazyTensor, from_array

Tensors = dict[str, LazyTensor]
Take = Callable[[str, tuple[int, ...]], LazyTensor]
"""The tensor of a name, which must have a shape."""

TOWER = ("vision_model.", "multi_modal_projector.")
_CHANNELS = 3
_POSITIONS = "vision_model.gated_positional_embedding"
_BLOCK = r"vision_encoder\.(global_)?transformer\.resblocks\.(\d+)\."
_BLOCK_TO = r"vision_model.\1transformer.layers.\2."
_TILES = r"vision_encoder\.(pre|post)_tile_pos_embed\."
_TILES_TO = r"vision_model.\1_tile_positional_embedding."
_META = {
    r"vision_projection\.": "multi_modal_projector.",
    r"vision_encoder\.conv1\._linear\.": "vision_model.patch_embedding.",
    r"vision_encoder\.positional_embedding$": f"{_POSITIONS}.embedding",
    r"vision_encoder\.gated_positional_embedding$": f"{_POSITIONS}.tile_embedding.weight",
    r"vision_encoder\.gated_positional_embedding_gate$": f"{_POSITIONS}.gate",
    _TILES + r"embedding": _TILES_TO + "embedding.weight",
    _TILES: _TILES_TO,
    r"vision_encoder\.ln_(pre|post)\.": r"vision_model.layernorm_\1.",
    _BLOCK + r"attn\.w([qkvo])\.": _BLOCK_TO + r"self_attn.\3_proj.",
    _BLOCK + r"mlp\.c_fc\.": _BLOCK_TO + "mlp.fc1.",
    _BLOCK + r"mlp\.c_proj\.": _BLOCK_TO + "mlp.fc2.",
    _BLOCK + r"ln_1\.": _BLOCK_TO + "input_layernorm.",
    _BLOCK + r"ln_2\.": _BLOCK_TO + "post_attention_layernorm.",
    _BLOCK: _BLOCK_TO,
    r"vision_encoder\.": "vision_model.",
}
"""After `vision_model.`; the first that fits counts."""
_META_TOWER = [(re.compile(r"vision_model\." + pattern), name) for pattern, name in _META.items()]
_TABLES = re.compile(r".*(tile_embedding|tile_positional_embedding\.embedding)\.weight")
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


def with_common_names(found: Mapping[str, LazyTensor]) -> Tensors:
    """Meta's tensors under Hugging Face's names for the tower, with one embedding, and tables by aspect
    ratio.
    """
    result: Tensors = {}
    for name, tensor in found.items():
        pattern, new = next(((p, n) for p, n in _META_TOWER if p.match(name)), (None, ""))
        common = pattern.sub(new, name, count=1) if pattern else name
        if pattern and common.startswith("vision_model.patch_embedding."):
            side = isqrt(tensor.shape[-1] // _CHANNELS)
            tensor = reshape(tensor, (tensor.n_rows, _CHANNELS, side, side))
        result[common] = _by_aspect_ratio(tensor) if pattern and _TABLES.fullmatch(common) else tensor
    extra = result.pop("learnable_embedding.weight", None)
    if extra is not None and "tok_embeddings.weight" in result:
        result["tok_embeddings.weight"] = concatenate([result["tok_embeddings.weight"], extra])
    return result


def _by_aspect_ratio(table: LazyTensor) -> LazyTensor:
    """(rows, columns, …) of the embeddings of tiles -> (1 + aspect ratios, tiles * …), a ratio's tiles from
    the first on; what follows them, and the first row, are zeros: of tiles that are not there. One that is
    not of 4 x 4 tiles stays as it is: whoever takes it refuses its shape.
    """
    if table.shape[:2] != (TILES, TILES):
        return table
    ratios = aspect_ratios(TILES)
    order = np.full((1 + len(ratios), TILES), TILES**2, np.int64)
    for number, (rows, columns) in enumerate(ratios, start=1):
        places = np.arange(rows)[:, None] * TILES + np.arange(columns)
        order[number, : rows * columns] = places.reshape(-1)
    tiles = reshape(table, (TILES**2, -1))
    stored = partial(_zeros_like, tiles)
    none = replace(slice_rows(tiles, 0, 1), stored=stored, flat=None)
    return reshape(take_rows(concatenate([tiles, none]), order.reshape(-1)), (len(order), -1))


def _zeros_like(tensor: LazyTensor, start: int, stop: int) -> npt.NDArray[Any]:
    return np.zeros_like(tensor.raw(start, stop))


def complete_vision(vision: VisionShape, found: Mapping[str, LazyTensor]) -> VisionShape:
    """Sizes that Meta's params.json leaves to the tensors, where these are there."""
    layers = {kind: set[str]() for kind in ("transformer", "global_transformer")}
    for name in found:
        if match := re.match(r"vision_model\.(\w*transformer)\.layers\.(\d+)\.", name):
            layers[match[1]].add(match[2])
    token = found.get("vision_model.class_embedding")
    up = found.get("vision_model.transformer.layers.0.mlp.fc1.weight")
    return replace(
        vision,
        n_layers=len(layers["transformer"]),
        n_global_layers=len(layers["global_transformer"]),
        dim=vision.dim if token is None else token.n_elements,
        ffn_dim=vision.ffn_dim if up is None else up.n_rows,
    )


def vision_tensors(shape: ModelShape, vision: VisionShape, take: Take) -> Iterator[tuple[str, LazyTensor]]:
    """By the file's names, in its order."""
    dim, tokens = vision.dim, vision.tile_tokens
    ratios, tiles = 1 + len(aspect_ratios(vision.max_tiles)), vision.max_tiles
    yield "v.class_embd", take("vision_model.class_embedding", (dim,))
    square = (dim, vision.channels, vision.patch_size, vision.patch_size)
    yield "v.patch_embd.weight", take("vision_model.patch_embedding.weight", square)
    yield "v.position_embd.weight", take(f"{_POSITIONS}.embedding", (tokens, dim))
    table = take(f"{_POSITIONS}.tile_embedding.weight", (ratios, tiles * tokens * dim))
    yield "v.tile_position_embd.weight", table
    gate = np.tanh(take(f"{_POSITIONS}.gate", (1,)).read())
    yield "v.position_embd.gate", from_array(np.float32(1) - gate, "v.position_embd.gate")
    yield "v.tile_position_embd.gate", from_array(gate, "v.tile_position_embd.gate")
    for place in ("pre", "post"):
        source = f"vision_model.{place}_tile_positional_embedding"
        yield (
            f"v.{place}_tile_position_embd.weight",
            take(f"{source}.embedding.weight", (ratios, tiles * dim)),
        )
        yield _tanh(f"v.{place}_tile_position_embd.gate", take(f"{source}.gate", (1,)))
    for place in ("pre", "post"):
        for end in ("weight", "bias"):
            yield f"v.{place}_ln.{end}", take(f"vision_model.layernorm_{place}.{end}", (dim,))
    for i in range(vision.n_layers):
        yield from _layer(vision, f"v.blk.{i}.", f"vision_model.transformer.layers.{i}.", take)
    for i in range(vision.n_global_layers):
        name, source = f"v.global.blk.{i}.", f"vision_model.global_transformer.layers.{i}."
        yield from _layer(vision, name, source, take)
        yield _tanh(f"{name}attn_gate", take(f"{source}gate_attn", (1,)))
        yield _tanh(f"{name}ffn_gate", take(f"{source}gate_ffn", (1,)))
    yield "mm.0.weight", take("multi_modal_projector.weight", (shape.dim, vision.output_dim))
    yield "mm.0.bias", take("multi_modal_projector.bias", (shape.dim,))


def _tanh(name: str, gate: LazyTensor) -> tuple[str, LazyTensor]:
    return name, from_array(np.tanh(gate.read()), name)


def _layer(vision: VisionShape, name: str, source: str, take: Take) -> Iterator[tuple[str, LazyTensor]]:
    dim, ffn = vision.dim, vision.ffn_dim
    for theirs, ours in _LAYER.items():
        rows, cols = {"ffn_up": (ffn, dim), "ffn_down": (dim, ffn)}.get(ours, (dim, dim))
        if theirs.endswith("layernorm"):
            yield f"{name}{ours}.weight", take(f"{source}{theirs}.weight", (dim,))
        else:
            yield f"{name}{ours}.weight", take(f"{source}{theirs}.weight", (rows, cols))
        if not theirs.startswith("self_attn"):
            yield f"{name}{ours}.bias", take(f"{source}{theirs}.bias", (rows,))
