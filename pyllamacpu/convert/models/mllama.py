"""Llama 3.2 Vision's config.json, and what its params.json says beyond a dense model's."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pyllamacpu.convert.models.fields import Fields, words
from pyllamacpu.convert.models.mllama_vision import VisionShape
from pyllamacpu.convert.models.rope import read_rope
from pyllamacpu.convert.models.shape import ModelShape
from pyllamacpu.model.mllama_vision import MOST_TILES, STATES, TILES, aspect_ratios

EXTRA_ROWS = 8  # of the embedding, after the vocabulary: the first is that of <|image|>
_OUTER = words("text_config vision_config image_token_index image_token_id tie_word_embeddings")
_TEXT = words(
    """
    hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size
    max_position_embeddings rms_norm_eps rope_theta rope_scaling rope_parameters hidden_act
    original_max_position_embeddings tie_word_embeddings cross_attention_layers head_dim
    """
)
_VISION = words(
    """
    hidden_size intermediate_size num_hidden_layers num_global_layers attention_heads num_attention_heads
    num_channels image_size patch_size norm_eps max_num_tiles max_aspect_ratio_id hidden_act
    intermediate_layers_indices supported_aspect_ratios vision_output_dim
    """
)


def read_mllama(outer: Fields, ignored: set[str], harmless: Iterable[str]) -> ModelShape:
    """MllamaForConditionalGeneration, or MllamaForCausalLM: its text model alone. Raises CheckpointError."""
    text, vision = outer, None
    if (inner := outer.inside("text_config", ignored)) is not None:
        outer.only(_OUTER, harmless)
        text = inner
        if (tower := outer.inside("vision_config", ignored)) is not None:
            vision = _read_vision(tower, harmless)
    text.only(_TEXT, harmless)
    n_layers = text.whole("num_hidden_layers", 40, low=1)
    dim, n_heads = text.whole("hidden_size", 4096, low=1), text.whole("num_attention_heads", 32, low=1)
    kv_heads = text.whole("num_key_value_heads", 8, low=1)
    if n_heads % kv_heads or dim % n_heads or dim // n_heads % 2:
        raise text.error("num_attention_heads", n_heads, f"must fit {kv_heads} heads of keys and {dim}")
    if (head_dim := text.whole("head_dim", dim // n_heads)) != dim // n_heads:
        raise text.error("head_dim", head_dim, f"must be {dim // n_heads}, as the other sizes say")
    rope, n_ctx = read_rope(text, text.whole("max_position_embeddings", 131072, low=1), 500000.0)
    return ModelShape(
        arch="mllama",
        layout="hf",
        n_layers=n_layers,
        dim=dim,
        n_heads=n_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn_dim=text.whole("intermediate_size", 14336, low=1),
        vocab_size=text.whole("vocab_size", 128256, low=1),
        n_ctx=n_ctx,
        norm_eps=text.real("rms_norm_eps", 1e-5),
        rope=rope,
        tied=text.flag("tie_word_embeddings") or outer.flag("tie_word_embeddings"),
        image_token=outer.whole("image_token_index", outer.whole("image_token_id", 0)),
        cross_layers=_cross_layers(text, n_layers),
        extra_rows=EXTRA_ROWS,
        vision=vision,
        notes=rope.notes,
    )


def _cross_layers(text: Fields, n_layers: int) -> tuple[int, ...]:
    key, usual = "cross_attention_layers", list(range(3, 40, 5))
    found = _indices(text, key, usual, n_layers)
    if not 0 < len(found) < n_layers:
        raise text.error(key, list(found), f"must be some, and not all, of {n_layers} layers")
    return found


def _indices(config: Fields, key: str, usual: list[int], n_layers: int) -> tuple[int, ...]:
    """Numbers of layers, in their order."""
    found = config.get(key, usual)
    fine = isinstance(found, list) and all(type(i) is int and 0 <= i < n_layers for i in found)
    if not fine or sorted(set(found)) != found:
        raise config.error(key, found, f"must be a list of some of {n_layers} layers, in order")
    return tuple(found)


def _read_vision(config: Fields, harmless: Iterable[str]) -> VisionShape:
    config.only(_VISION, harmless)
    if config.get("hidden_act", "gelu") != "gelu":
        raise config.error("hidden_act", config.get("hidden_act"), "only gelu can be stated in a GGUF file")
    tiles = config.whole("max_num_tiles", TILES, low=1)
    if tiles > MOST_TILES:
        raise config.error("max_num_tiles", tiles, f"must be {MOST_TILES} at the most")
    known = [list(ratio) for ratio in aspect_ratios(tiles)]
    ratios = config.get("supported_aspect_ratios", known)
    if ratios not in (known, None):
        raise config.error("supported_aspect_ratios", ratios, f"must be all of up to {tiles} tiles, in order")
    n_layers = config.whole("num_hidden_layers", 32, low=1)
    return checked_vision(
        config,
        VisionShape(
            n_layers=n_layers,
            n_global_layers=config.whole("num_global_layers", 8),
            dim=config.whole("hidden_size", 1280, low=1),
            n_heads=config.whole("attention_heads", config.whole("num_attention_heads", 16, low=1), low=1),
            ffn_dim=config.whole("intermediate_size", 5120, low=1),
            image_size=config.whole("image_size", 448, low=1),
            patch_size=config.whole("patch_size", 14, low=1),
            norm_eps=config.real("norm_eps", 1e-5),
            states=_indices(config, "intermediate_layers_indices", list(STATES), n_layers),
            max_tiles=tiles,
            channels=config.whole("num_channels", 3, low=1),
        ),
    )


def checked_vision(config: Fields, vision: VisionShape) -> VisionShape:
    if vision.image_size % vision.patch_size:
        raise config.error("image_size", vision.image_size, f"must be patches of {vision.patch_size}")
    if vision.dim % vision.n_heads or vision.dim // vision.n_heads % 2:
        raise config.error("hidden_size", vision.dim, f"must be {vision.n_heads} heads of an even size")
    if vision.channels != 3:
        raise config.error("num_channels", vision.channels, "must be 3")
    return vision


def meta_vision(params: Fields) -> VisionShape:
    """The tower of Meta's checkpoints: its constants are in their code, its other sizes in the tensors."""
    vision = VisionShape(
        n_layers=32,
        n_global_layers=8,
        dim=1280,
        n_heads=16,
        ffn_dim=5120,
        image_size=params.whole("vision_chunk_size", low=1),
        patch_size=14,
        norm_eps=1e-5,
        states=STATES,
    )
    if params.whole("vision_max_num_chunks", vision.max_tiles) != vision.max_tiles:
        raise params.error("vision_max_num_chunks", params.get("vision_max_num_chunks"), "must be 4")
    return checked_vision(params, vision)


def meta_cross_layers(n_layers: int, n_cross: int) -> tuple[int, ...]:
    """Where Meta's cross layers stand when all are counted: each before one of the `n_layers` others, spread
    from the last one on.
    """
    before = list(range(n_layers))[::-1][:: math.ceil(n_layers / n_cross)][:n_cross][::-1]
    return tuple(layer + i for i, layer in enumerate(before))
