"""Llama 4's vision tower, recorded as plans: each tile by itself becomes rows of the text model's width.

A tile of 336 x 336 pixels is 24 x 24 patches and a class token, which stands last and is dropped at the end.
34 layers with rotary positions in two dimensions (first half of a head: column, second half: row), then four
neighbouring patches become one row of four times the width, which an MLP projects. Sources: the folder
models/llama4/vision of Meta's llama-models (GELU by the error function); tensor names as llama.cpp has them
in mmproj files, and those of ollama's files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllamacpu.errors import ImageError
from pyllamacpu.gguf.reader import TensorInfo
from pyllamacpu.model.layer_norm import layer_norm
from pyllamacpu.model.ranges import NORM_EPS, ROPE_THETA, SHUFFLE_RATIO
from pyllamacpu.model.towers import Floats, RunPart, TowerKeys, TowerPart, given_numbers, no_rows
from pyllamacpu.model.weights import TensorSpec, Vector, Weights, padded_vector

if TYPE_CHECKING:  # models describe, the engine runs: it imports them, not the other way round
    from pyllamacpu.graph.ops import Tensor
    from pyllamacpu.graph.recorder import Recorder
    from pyllamacpu.images.picture import Picture
    from pyllamacpu.images.tiles import Tiles

CHANNELS = 3
LEVELS = [0.5] * CHANNELS  # mean of pixels from 0 to 1, and their standard deviation
MAX_TILES = 16  # of a canvas, beside the global one
_NORMS = ("ln1", "ln2")
_OLLAMA = {
    "v.class_embd": "v.class_embedding",
    "v.patch_embd.weight": "v.patch_embedding.weight",
    "v.position_embd.weight": "v.positional_embedding_vlm",
    "v.pre_ln": "v.layernorm_pre",
    "v.post_ln": "v.layernorm_post",
    "mm.model.mlp.1.weight": "v.vision_adapter.mlp.fc1.weight",
    "mm.model.mlp.2.weight": "v.vision_adapter.mlp.fc2.weight",
    "mm.model.fc.weight": "mm.linear_1.weight",
}
_OLLAMA_LAYER = {
    "ln1": "attn_norm",
    "ln2": "ffn_norm",
    "attn_out": "attn_output",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}


@dataclass(frozen=True)
class Llama4VisionConfig:
    """Sizes in elements, of images in pixels. dim: of the rows that the tower gives."""

    dim: int
    width: int  # of a patch's state
    n_layers: int
    n_heads: int
    ffn_dim: int
    image_size: int
    patch_size: int
    shuffle: int  # so many patches a side become one row
    norm_eps: float
    rope_theta: float

    @property
    def grid(self) -> int:
        """Patches of a tile's side."""
        return self.image_size // self.patch_size

    @property
    def n_patches(self) -> int:
        return self.grid**2

    @property
    def rows_per_tile(self) -> int:
        return self.n_patches // self.shuffle**2

    @property
    def patch_values(self) -> int:
        return CHANNELS * self.patch_size**2

    @property
    def head_dim(self) -> int:
        return self.width // self.n_heads


def read_config(keys: TowerKeys) -> Llama4VisionConfig:
    """Raises ModelError that names the key and its value."""
    ratio = keys.real("pixel_shuffle_ratio", *SHUFFLE_RATIO, 0.5)  # ollama's files
    eps = keys.real("layer_norm_epsilon", *NORM_EPS, 1e-5)  # likewise
    config = Llama4VisionConfig(
        dim=_text_dim(keys),
        width=keys.whole("embedding_length"),
        n_layers=keys.whole("block_count", high=1 << 12),
        n_heads=keys.whole("attention.head_count", high=1 << 10),
        ffn_dim=keys.whole("feed_forward_length"),
        image_size=keys.whole("image_size", high=1 << 14),
        patch_size=keys.whole("patch_size", high=1 << 10),
        shuffle=keys.whole("projector.scale_factor", round(1 / ratio), high=64),
        norm_eps=keys.real("attention.layer_norm_epsilon", *NORM_EPS, eps),
        rope_theta=keys.real("rope.freq_base", *ROPE_THETA, 10000.0),
    )
    for key in ("image_mean", "image_std"):
        if (value := keys.get(key)) is not None and not np.array_equal(value, LEVELS):
            raise keys.error(key, value, "images are prepared with 0.5 for each colour")
    if config.image_size % config.patch_size or config.grid % config.shuffle:
        raise keys.error("image_size", config.image_size, "must be whole groups of patches")
    if config.width % (4 * config.n_heads):
        raise keys.error("embedding_length", config.width, "heads must be pairs of both dimensions")
    return config


def _text_dim(keys: TowerKeys) -> int:
    """ollama's files hold the text model too, which says it."""
    if keys.prefix == "clip.vision.":
        return keys.whole("projection_dim")
    text = TowerKeys(keys.where, keys.metadata, keys.prefix.removesuffix("vision."))
    return text.whole("embedding_length")


# ---- tensors ----


def tensors(config: Llama4VisionConfig, found: Mapping[str, TensorInfo]) -> Iterator[TensorSpec]:
    """All of the tower's; those of a text model in the same file are another plan's."""
    ollama = _OLLAMA["v.class_embd"] in found
    for spec in _specs(config, _projector_sizes(found, ollama)):
        tensor = _ollama_name(spec.name) if ollama else spec.name
        yield TensorSpec(spec.name, spec.kind, spec.shape, spec.optional, tensor)
    for name in found:
        if not name.startswith(("v.", "mm.")):
            yield TensorSpec(name, "unused")


def _projector_sizes(found: Mapping[str, TensorInfo], ollama: bool) -> tuple[int, int]:
    """Rows of the projector's first two matrices, which no key tells."""
    names = ("mm.model.mlp.1.weight", "mm.model.mlp.2.weight")
    infos = [found.get(_ollama_name(name) if ollama else name) for name in names]
    first, second = (1 if info is None else info.shape[0] for info in infos)
    return first, second


def _specs(c: Llama4VisionConfig, projector: tuple[int, int]) -> Iterator[TensorSpec]:
    yield TensorSpec("v.class_embd", "vector", (c.width,))
    yield TensorSpec("v.patch_embd.weight", "matrix", (c.width, c.patch_values))
    yield TensorSpec("v.position_embd.weight", "table", (c.n_patches + 1, c.width))
    for norm in ("v.pre_ln", "v.post_ln"):
        yield from _norm_specs(norm, c.width)
    products = {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), (c.width, c.width)),
        "ffn_up": (c.ffn_dim, c.width),
        "ffn_down": (c.width, c.ffn_dim),
    }
    for i in range(c.n_layers):
        for norm in _NORMS:
            yield from _norm_specs(f"v.blk.{i}.{norm}", c.width)
        for name, shape in products.items():
            yield TensorSpec(f"v.blk.{i}.{name}.weight", "matrix", shape)
            yield TensorSpec(f"v.blk.{i}.{name}.bias", "vector", shape[:1])
    hidden, out = projector
    yield TensorSpec("mm.model.mlp.1.weight", "matrix", (hidden, c.width * c.shuffle**2))
    yield TensorSpec("mm.model.mlp.2.weight", "matrix", (out, hidden))
    yield TensorSpec("mm.model.fc.weight", "matrix", (c.dim, out))


def _norm_specs(name: str, width: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", "vector", (width,))
    yield TensorSpec(f"{name}.bias", "vector", (width,))


def _ollama_name(name: str) -> str:
    if name in _OLLAMA:
        return _OLLAMA[name]
    stem, _, end = name.rpartition(".")
    if stem in _OLLAMA:
        return f"{_OLLAMA[stem]}.{end}"
    head, _, part = stem.rpartition(".")
    return f"{head}.{_OLLAMA_LAYER.get(part, part)}.{end}"


# ---- layers ----


def record_encoder(plan: Recorder, config: Llama4VisionConfig, weights: Weights) -> None:
    """Patches (n_patches, 3 * size * size), then a row of zeros for the class token, become their states."""
    c = config
    x = plan.linear(plan.embed(no_rows(c.patch_values)), weights.matrix("v.patch_embd.weight"))
    x = x + plan.op("position_rows", table=_positions(c, weights), width=c.width)
    x = layer_norm(plan, weights, "v.pre_ln", x, c.norm_eps)
    rope = plan.op("position_rows", table=_angles(c), width=c.head_dim)
    for i in range(c.n_layers):
        w = weights.under(f"v.blk.{i}.")
        x = x + plan.linear(_attention(plan, c, w, rope, x), *w.linear("attn_out"))
        h = plan.linear(layer_norm(plan, w, "ln2", x, c.norm_eps), *w.linear("ffn_up"))
        x = x + plan.linear(plan.op("gelu", x=h, tanh=0), *w.linear("ffn_down"))
    plan.output_hidden(layer_norm(plan, weights, "v.post_ln", plan.select(x), c.norm_eps))


def _attention(plan: Recorder, c: Llama4VisionConfig, w: Weights, rope: Tensor, x: Tensor) -> Tensor:
    h = layer_norm(plan, w, "ln1", x, c.norm_eps)
    q, k, v = (plan.linear(h, *w.linear(name)) for name in ("attn_q", "attn_k", "attn_v"))
    for rotated in (q, k):
        plan.op("rope", x=rotated, rope=rope, n_heads=c.n_heads)
    scale = c.head_dim**-0.5
    return plan.op("self_attention", q=q, k=k, v=v, n_heads=c.n_heads, kv_heads=c.n_heads, scale=scale)


def record_projector(plan: Recorder, config: Llama4VisionConfig, weights: Weights) -> None:
    """Groups of patches (n, shuffle^2 * width) become rows of the text model's width."""
    x = plan.embed(no_rows(config.width * config.shuffle**2))
    for name in ("mm.model.mlp.1", "mm.model.mlp.2"):
        x = plan.op("gelu", x=plan.linear(x, weights.matrix(f"{name}.weight")), tanh=0)
    plan.output_hidden(plan.linear(x, weights.matrix("mm.model.fc.weight")))


PARTS = {
    "encoder": TowerPart(record_encoder, lambda config: config.n_patches + 1),
    "projector": TowerPart(record_projector, lambda config: config.rows_per_tile),
}


def _positions(c: Llama4VisionConfig, weights: Weights) -> Vector:
    """(n_patches + 1, width): what is added at each position; the class token is its own embedding and
    that of the last position.
    """
    from pyllamacpu.model.dequantize import dequantize

    table, class_token = weights.table("v.position_embd.weight"), weights.vector("v.class_embd")
    if not table.data.size:  # only described
        return padded_vector("positions", np.zeros((c.n_patches + 1) * c.width, np.float32))
    rows = dequantize(table.data, table.type, (table.rows, table.cols)).astype(np.float32)
    rows[-1] += class_token.values[: class_token.size]
    return padded_vector("positions", rows.reshape(-1))


def _angles(c: Llama4VisionConfig) -> Vector:
    """(n_patches + 1, head_dim): cosines, then sines, of the columns' angles and the rows'; none of the class
    token's.
    """
    pairs = np.arange(0, c.head_dim // 2, 2, dtype=np.float32) / np.float32(c.head_dim // 2)
    frequencies = (1.0 / np.power(np.float32(c.rope_theta), pairs, dtype=np.float32)).astype(np.float32)
    place = np.arange(c.n_patches)
    angles = np.zeros((c.n_patches + 1, c.head_dim // 2), np.float32)
    columns, rows = (place % c.grid + 1).astype(np.float32), (place // c.grid + 1).astype(np.float32)
    angles[:-1] = np.concatenate([np.outer(columns, frequencies), np.outer(rows, frequencies)], axis=1)
    exact = angles.astype(np.float64)
    table = np.concatenate([np.cos(exact), np.sin(exact)], axis=1).astype(np.float32)
    return padded_vector("angles", table.reshape(-1))


# ---- images ----


def encode(config: Llama4VisionConfig, weights: Weights, run: RunPart, tiles: Tiles) -> Floats:
    """Tile by tile -> (n * rows_per_tile, dim)."""
    pixels = tiles.pixels
    found = np.empty((len(pixels) * config.rows_per_tile, config.dim), np.float32)
    for i, tile in enumerate(pixels):
        states = run("encoder", patches(config, tile))
        n = config.rows_per_tile
        found[i * n : (i + 1) * n] = run("projector", shuffled(config, states))
    return found


def patches(config: Llama4VisionConfig, tile: Floats) -> Floats:
    """(3, size, size) -> (n_patches, 3 * patch * patch), each by channel, row and column."""
    grid, size = config.grid, config.patch_size
    cut = tile.reshape(CHANNELS, grid, size, grid, size).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(cut.reshape(config.n_patches, -1), np.float32)


def shuffled(config: Llama4VisionConfig, states: Floats) -> Floats:
    """(n_patches, width) -> (rows_per_tile, shuffle^2 * width): the patches of a square side by side."""
    grid, s = config.grid, config.shuffle
    squares = states.reshape(grid // s, s, grid // s, s, config.width).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(squares.reshape(config.rows_per_tile, -1))


def cut(config: Llama4VisionConfig, picture: Picture) -> Tiles:
    from pyllamacpu.images.tiles import llama4_tiles

    return llama4_tiles(picture, config.image_size, MAX_TILES)


def given_tiles(config: Llama4VisionConfig, pixels: Floats, more: Mapping[str, Any]) -> Tiles:
    """How the tiles lie is what `aspect_ratios` (rows, columns) say, with the global one as the last. Without
    them they are for prompts that hold their placeholders. Raises ImageError.
    """
    from pyllamacpu.images.tiles import Tiles

    if "aspect_ratios" not in more:
        return Tiles(pixels, 1, len(pixels))
    ratio = given_numbers(more, "aspect_ratios")
    if len(pixels) == 1 and ratio == [1, 1]:
        return Tiles(pixels, 1, 1)
    if len(ratio) != 2 or min(ratio) < 1 or ratio[0] * ratio[1] + 1 != len(pixels):
        said = f"aspect_ratios {ratio!r:.80} are not the rows and columns of {len(pixels)} tiles"
        raise ImageError("image", f"{said}, the global one included")
    rows, columns = ratio
    return Tiles(pixels, rows, columns, has_global=True)


IMAGE_TOKENS = {
    "start": ("<|image_start|>", 200080),
    "end": ("<|image_end|>", 200081),
    "column": ("<|tile_x_separator|>", 200084),
    "row": ("<|tile_y_separator|>", 200085),
    "image": ("<|image|>", 200090),
    "patch": ("<|patch|>", 200092),
}
"""Tokens that say where images are: their spelling, and their ids in the released vocabulary."""


def placeholders(config: Llama4VisionConfig, ids: Mapping[str, int], tiles: Tiles) -> list[int]:
    """The tokens of an image, whose patches its rows take the place of (chat_format.py of Meta's code).

    Raises ImageError for tiles of which nobody knows how they lie.
    """
    patch_rows = [ids["patch"]] * config.rows_per_tile
    found = [ids["start"]]
    if len(tiles.pixels) > 1:
        if not tiles.has_global:
            raise ImageError(
                "image", f"aspect_ratios (rows, columns) must say how its {len(tiles.pixels)} tiles lie"
            )
        for _ in range(tiles.rows):
            for column in range(tiles.cols):
                found += [*patch_rows, ids["column"]] if column < tiles.cols - 1 else patch_rows
            found.append(ids["row"])
    return [*found, ids["image"], *patch_rows, ids["end"]]
