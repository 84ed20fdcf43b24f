"""Tiny random Llama 3.2 Vision checkpoints, made from a seed: what tools/make_mllama_fixtures.py gives to
Meta's code, and tests convert. Weights are rounded to bfloat16, so that every layout holds the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from checkpoint_build import bf16_bits, write_safetensors
from torch_build import write_torch

Tensors = dict[str, npt.NDArray[np.float32]]

RATIOS = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))
TEXT: dict[str, Any] = {
    "model_type": "mllama_text_model",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 136,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "cross_attention_layers": [1, 4],
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "model_type": "mllama_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_global_layers": 2,
    "attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "norm_eps": 1e-5,
    "max_num_tiles": 4,
    "intermediate_layers_indices": [1, 2],
    "supported_aspect_ratios": [list(ratio) for ratio in RATIOS],
    "vision_output_dim": 96,
}
CONFIG: dict[str, Any] = {
    "architectures": ["MllamaForConditionalGeneration"],
    "model_type": "mllama",
    "image_token_index": 136,
    "text_config": TEXT,
    "vision_config": VISION,
}
IMAGE_TOKEN = 136
META_VISION = VISION | {
    "num_hidden_layers": 32,
    "num_global_layers": 8,
    "attention_heads": 16,
    "intermediate_layers_indices": [3, 7, 15, 23, 30],
    "vision_output_dim": 192,
}
"""A tower with the numbers of layers and heads that Meta's code has built in."""


def bfloat16(values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32)


def tensors(seed: int = 1, vision: dict[str, Any] = VISION) -> Tensors:
    """By Hugging Face's names, as released checkpoints have them. Tiles' tables hold what Meta's do: the
    embedding of a place (row, column) is the same in all aspect ratios.
    """
    rng = np.random.default_rng(seed)

    def matrix(*shape: int, gain: float = 1.2) -> npt.NDArray[np.float32]:
        return bfloat16(rng.standard_normal(shape) * gain / shape[-1] ** 0.5)

    def vector(n: int) -> npt.NDArray[np.float32]:
        return bfloat16(rng.uniform(0.5, 1.5, n))

    def small(n: int) -> npt.NDArray[np.float32]:
        return bfloat16(rng.standard_normal(n) * 0.2)

    found: Tensors = {}
    v, dim, ffn = "vision_model.", vision["hidden_size"], vision["intermediate_size"]
    n_tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
    found[f"{v}class_embedding"] = matrix(dim, gain=4)
    found[f"{v}patch_embedding.weight"] = matrix(dim, 3 * 14 * 14, gain=2).reshape(dim, 3, 14, 14)
    found[f"{v}gated_positional_embedding.embedding"] = matrix(n_tokens, dim, gain=3)
    found[f"{v}gated_positional_embedding.gate"] = np.float32([0.75])
    places = matrix(4, 4, n_tokens * dim, gain=20)
    found[f"{v}gated_positional_embedding.tile_embedding.weight"] = by_ratio(places)
    for place, gate in (("pre", -0.5), ("post", 0.875)):
        name = f"{v}{place}_tile_positional_embedding."
        found[f"{name}embedding.weight"] = by_ratio(matrix(4, 4, dim, gain=3))
        found[f"{name}gate"] = np.float32([gate])
        found[f"{v}layernorm_{place}.weight"], found[f"{v}layernorm_{place}.bias"] = vector(dim), small(dim)
    for kind, n in (("transformer", "num_hidden_layers"), ("global_transformer", "num_global_layers")):
        for i in range(vision[n]):
            name = f"{v}{kind}.layers.{i}."
            for part in "qkvo":
                found[f"{name}self_attn.{part}_proj.weight"] = matrix(dim, dim)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                found[f"{name}{norm}.weight"], found[f"{name}{norm}.bias"] = vector(dim), small(dim)
            found[f"{name}mlp.fc1.weight"], found[f"{name}mlp.fc1.bias"] = matrix(ffn, dim), small(ffn)
            found[f"{name}mlp.fc2.weight"], found[f"{name}mlp.fc2.bias"] = matrix(dim, ffn), small(dim)
            if kind == "global_transformer":
                found[f"{name}gate_attn"], found[f"{name}gate_ffn"] = small(1) + 1, small(1) - 1
    out = dim * (1 + len(vision["intermediate_layers_indices"]))
    t = TEXT["hidden_size"]
    found["multi_modal_projector.weight"], found["multi_modal_projector.bias"] = matrix(t, out), small(t)
    found |= _text(matrix, vector)
    return {name: bfloat16(value) for name, value in found.items()}


def _text(matrix: Any, vector: Any) -> Tensors:
    dim, ffn, vocab = TEXT["hidden_size"], TEXT["intermediate_size"], TEXT["vocab_size"]
    kv = dim // TEXT["num_attention_heads"] * TEXT["num_key_value_heads"]
    found: Tensors = {"language_model.model.embed_tokens.weight": matrix(vocab + 8, dim, gain=dim**0.5)}
    for i in range(TEXT["num_hidden_layers"]):
        name = f"language_model.model.layers.{i}."
        cross = i in TEXT["cross_attention_layers"]
        attention = f"{name}{'cross_attn' if cross else 'self_attn'}."
        for part, rows in (("q", dim), ("k", kv), ("v", kv), ("o", dim)):
            found[f"{attention}{part}_proj.weight"] = matrix(rows, dim, gain=1.6)
        if cross:
            for part in "qk":
                found[f"{attention}{part}_norm.weight"] = 2 * vector(dim // TEXT["num_attention_heads"])
            found[f"{name}cross_attn_attn_gate"] = np.float32([0.6 + 0.1 * i])
            found[f"{name}cross_attn_mlp_gate"] = np.float32([-0.4])
        for part, shape in (("gate", (ffn, dim)), ("up", (ffn, dim)), ("down", (dim, ffn))):
            found[f"{name}mlp.{part}_proj.weight"] = matrix(*shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{name}{norm}.weight"] = vector(dim)
    found["language_model.model.norm.weight"] = vector(dim)
    found["language_model.lm_head.weight"] = matrix(vocab, dim)
    return found


def by_ratio(places: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(4, 4, n) of places -> (9, 4 * n): the tiles of each aspect ratio, zeros where there are none."""
    n = places.shape[-1]
    table = np.zeros((1 + len(RATIOS), 4, n), np.float32)
    for number, (rows, columns) in enumerate(RATIOS, start=1):
        table[number, : rows * columns] = places[:rows, :columns].reshape(-1, n)
    return table.reshape(len(table), -1)


def places(table: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The way back, as far as aspect ratios reach: (4, 4, n); other places are zeros."""
    n = table.shape[1] // 4
    found = np.zeros((4, 4, n), np.float32)
    for number, (rows, columns) in enumerate(RATIOS, start=1):
        found[:rows, :columns] = table[number].reshape(4, n)[: rows * columns].reshape(rows, columns, n)
    return found


def prompts() -> dict[str, tuple[list[int], list[tuple[int, int]]]]:
    """By name: token ids, and the aspect ratios of their images. Meta's logits of them are in the fixture."""
    rng = np.random.default_rng(5)

    def text(n: int) -> list[int]:
        return [int(i) for i in rng.integers(0, TEXT["vocab_size"], n)]

    return {
        "text": (text(40), []),
        "one": ([*text(5), IMAGE_TOKEN, *text(40)], [(1, 1)]),
        "first": ([IMAGE_TOKEN, *text(9)], [(2, 2)]),
        "several": (
            [*text(3), IMAGE_TOKEN, *text(34), IMAGE_TOKEN, IMAGE_TOKEN, *text(30)],
            [(1, 2), (3, 1), (1, 1)],
        ),
    }


def pixels(number: int, ratio: tuple[int, int]) -> npt.NDArray[np.float32]:
    """(tiles, 3, size, size): of image `number`."""
    size, n = VISION["image_size"], ratio[0] * ratio[1]
    return np.random.default_rng(100 + number).standard_normal((n, 3, size, size)).astype(np.float32)


def processed(number: int, ratio: tuple[int, int]) -> dict[str, Any]:
    """The same as Hugging Face's processor gives it: four tiles, and which aspect ratio."""
    found = pixels(number, ratio)
    whole = np.zeros((1, 1, 4, *found.shape[1:]), np.float32)
    whole[0, 0, : len(found)] = found
    mask = np.arange(4) < len(found)
    ids = np.array([[RATIOS.index(ratio) + 1]])
    return {"pixel_values": whole, "aspect_ratio_ids": ids, "aspect_ratio_mask": mask[None, None].astype(int)}


def save_hf(folder: Path, found: Tensors | None = None, vision: dict[str, Any] = VISION) -> Path:
    """A folder with config.json and model.safetensors, in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vision_config": vision}))
    write_safetensors(folder / "model.safetensors", found or tensors(vision=vision))
    return folder


_META_PARTS = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "cross_attn.q_proj": "attention.wq",
    "cross_attn.k_proj": "attention.wk",
    "cross_attn.v_proj": "attention.wv",
    "cross_attn.o_proj": "attention.wo",
    "cross_attn.q_norm": "attention.q_norm",
    "cross_attn.k_norm": "attention.k_norm",
    "cross_attn_attn_gate": "gate_attn",
    "cross_attn_mlp_gate": "gate_ffwd",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
_META_VISION = {
    "self_attn.q_proj": "attn.wq",
    "self_attn.k_proj": "attn.wk",
    "self_attn.v_proj": "attn.wv",
    "self_attn.o_proj": "attn.wo",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "gate_attn": "gate_attn",
    "gate_ffn": "gate_ffn",
}
_META_WHOLE = {
    "vision_model.class_embedding": "class_embedding",
    "vision_model.gated_positional_embedding.embedding": "positional_embedding",
    "vision_model.gated_positional_embedding.gate": "gated_positional_embedding_gate",
}


def meta_tensors(found: Tensors) -> Tensors:
    """The same under Meta's names, in Meta's order of rows."""
    result: Tensors = {}
    for name, value in found.items():
        if name.startswith("language_model."):
            result |= _meta_text(name.removeprefix("language_model."), value)
        else:
            result |= _meta_vision(name, value)
    return result


def _meta_text(name: str, value: npt.NDArray[np.float32]) -> Tensors:
    if name == "model.embed_tokens.weight":
        n = TEXT["vocab_size"]
        return {
            "text_model.tok_embeddings.weight": value[:n],
            "text_model.learnable_embedding.weight": value[n:],
        }
    if not name.startswith("model.layers."):
        return {f"text_model.{'output' if 'lm_head' in name else 'norm'}.weight": value}
    number, part = name.removeprefix("model.layers.").split(".", 1)
    cross = TEXT["cross_attention_layers"]
    before = sum(i < int(number) for i in cross)
    place = f"cross_attention_layers.{before}" if int(number) in cross else f"layers.{int(number) - before}"
    if part.startswith(("self_attn.q_proj", "self_attn.k_proj")):
        halves = value.reshape(-1, 2, TEXT["hidden_size"] // TEXT["num_attention_heads"] // 2, value.shape[1])
        value = halves.swapaxes(1, 2).reshape(value.shape)  # pairs that rotate stand together
    stem = part.removesuffix(".weight")
    return {f"text_model.{place}.{_META_PARTS[stem]}{part[len(stem) :]}": value}


def _meta_vision(name: str, value: npt.NDArray[np.float32]) -> Tensors:
    inside = "vision_model.vision_encoder."
    if name in _META_WHOLE:
        return {inside + _META_WHOLE[name]: value}
    if name.startswith("multi_modal_projector."):
        return {name.replace("multi_modal_projector", "vision_model.vision_projection"): value}
    if "patch_embedding" in name:
        return {f"{inside}conv1._linear.weight": value.reshape(len(value), -1)}
    if "tile_embedding" in name:
        n = (VISION["image_size"] // VISION["patch_size"]) ** 2 + 1
        return {f"{inside}gated_positional_embedding": places(value).reshape(4, 4, n, -1)}
    plain = name.removeprefix("vision_model.")
    if "tile_positional_embedding" in plain:
        place, end = plain[: plain.index("_")], plain.split(".", 1)[1]
        table = places(value)[:, :, None] if end == "embedding.weight" else value
        return {f"{inside}{place}_tile_pos_embed.{end.removesuffix('.weight')}": table}
    if plain.startswith("layernorm_"):
        return {inside + plain.replace("layernorm_", "ln_"): value}
    kind, _, number, part = plain.split(".", 3)
    stem = part.removesuffix(".weight").removesuffix(".bias")
    return {f"{inside}{kind}.resblocks.{number}.{_META_VISION[stem]}{part[len(stem) :]}": value}


META_PARAMS: dict[str, Any] = {
    "dim": TEXT["hidden_size"],
    "n_layers": 4,
    "n_heads": TEXT["num_attention_heads"],
    "n_kv_heads": TEXT["num_key_value_heads"],
    "vocab_size": TEXT["vocab_size"],
    "multiple_of": 96,
    "ffn_dim_multiplier": 0.5,
    "norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "use_scaled_rope": True,
    "vision_chunk_size": VISION["image_size"],
    "vision_max_num_chunks": 4,
    "vision_num_cross_attention_layers": 2,
}
_CUT_COLUMNS = ("attention.wo.", "feed_forward.w2.", "attn.wo.", "mlp.c_proj.weight")
_WHOLE = ("norm", "gate", "ln_", "pos_embed", "class_embedding", "positional_embedding", "c_proj.bias")


def save_meta(folder: Path, found: Tensors, n_ranks: int = 1) -> Path:
    """A folder with params.json and consolidated.NN.pth, in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(META_PARAMS))
    whole = meta_tensors(found)
    for rank in range(n_ranks):
        part = {name: _part(name, value, rank, n_ranks) for name, value in whole.items()}
        stored = {name: bf16_bits(value) for name, value in part.items()}
        write_torch(folder / f"consolidated.{rank:02}.pth", stored)
    return folder


def _part(name: str, value: npt.NDArray[np.float32], rank: int, n_ranks: int) -> npt.NDArray[np.float32]:
    if any(text in name for text in _WHOLE):
        return value
    axis = 1 if any(text in name for text in _CUT_COLUMNS) else 0
    return np.ascontiguousarray(np.split(value, n_ranks, axis)[rank])
