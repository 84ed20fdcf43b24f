"""Llama 3.2's vision tower, recorded as plans: all tiles of an image together become states that the text
model's layers attend to.

A tile is its patches after a class token. Positions are added by patch, by tile and patch, and by tile; up to
`max_tiles` tiles and their padding attend to each other in the first layers and, after an embedding by tile,
in the gated global ones. The result is the last state and those that stood before some of the first layers,
side by side, projected. Sources: multimodal/model.py and encoder_utils.py of Meta's llama-models; tensor
names as in ollama's files of both generations.

Padding: each tile has rows of zeros after its tokens, and tiles that an image lacks are there too, without
pixels. What belongs to the image attends to all of it, so that it cannot be left out; but rows of padding
that start equal stay equal, since padding attends to the image only. One row then stands for all of a tile's
padding, and one tile for all that lack: in exact arithmetic the same (csrc/exec/tile_attention.c). Every row
is computed, as Meta's code does, with PYLLAMACPU_WHOLE_TILES=1, and where the tables of a file have different
values for the tiles that an image lacks: transformers adds those, released checkpoints hold zeros there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pyllamacpu.errors import ImageError, ModelError
from pyllamacpu.gguf.reader import TensorInfo
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.model.layer_norm import layer_norm
from pyllamacpu.model.ranges import NORM_EPS
from pyllamacpu.model.towers import Floats, RunPart, TowerKeys, TowerPart, given_numbers, no_rows
from pyllamacpu.model.weights import TensorSpec, Weights
from pyllamacpu.units import environment_switch

if TYPE_CHECKING:  # models describe, the engine runs: it imports them, not the other way round
    from pyllamacpu.graph.ops import Tensor
    from pyllamacpu.graph.recorder import Recorder
    from pyllamacpu.images.picture import Picture
    from pyllamacpu.images.tiles import Tiles

CHANNELS = 3
MULTIPLE = 8  # rows of a tile are padded to the next multiple, and by one at the least
TILES = 4
"""Those that an image has at the most, as released."""
MOST_TILES = 16
"""Of any tower: its plans are made for each number of tiles."""
WHOLE_TILES_VARIABLE = "PYLLAMACPU_WHOLE_TILES"
IMAGE_TOKENS = {"image": ("<|image|>", 128256), "patch": ("<|image|>", 128256)}
"""An image takes the place of one token."""
STATES = (3, 7, 15, 23, 30)
"""As released: layers whose inputs the text model gets beside the last state."""


def aspect_ratios(max_tiles: int) -> tuple[tuple[int, int], ...]:
    """(rows, columns) of images of up to so many tiles; their numbers count from 1, 0 is an image that is
    not there. Source: get_all_supported_aspect_ratios of transformers' image processor.
    """
    sides = range(1, max_tiles + 1)
    return tuple((rows, columns) for rows in sides for columns in sides if rows * columns <= max_tiles)


_LAYER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_up", "ffn_down")
_OLDER = {"attn_norm": "ln1", "ffn_norm": "ln2", "attn_output": "attn_out"}


@dataclass(frozen=True)
class MllamaVisionConfig:
    """Sizes in elements, of images in pixels. dim: of the states that the tower gives. `states`: layers whose
    inputs are among them. `whole_tiles`: each row of padding is computed.
    """

    dim: int
    width: int  # of a patch's state
    n_layers: int
    n_global_layers: int
    n_heads: int
    ffn_dim: int
    image_size: int
    patch_size: int
    norm_eps: float
    states: tuple[int, ...]
    max_tiles: int = TILES
    whole_tiles: bool = False

    @property
    def grid(self) -> int:
        """Patches of a tile's side."""
        return self.image_size // self.patch_size

    @property
    def rows_per_tile(self) -> int:
        """States of a tile: its class token's and those of its patches."""
        return self.grid**2 + 1

    @property
    def padding(self) -> int:
        """Rows of zeros after a tile's tokens, in Meta's code."""
        return MULTIPLE - self.rows_per_tile % MULTIPLE

    @property
    def tile_rows(self) -> int:
        """Rows of a tile that are computed."""
        return self.rows_per_tile + (self.padding if self.whole_tiles else 1)

    def computed_tiles(self, n_tiles: int) -> int:
        """Of an image with so many."""
        return self.max_tiles if self.whole_tiles else min(n_tiles + 1, self.max_tiles)

    @property
    def aspect_ratios(self) -> tuple[tuple[int, int], ...]:
        return aspect_ratios(self.max_tiles)

    @property
    def patch_values(self) -> int:
        return CHANNELS * self.patch_size**2


def read_config(keys: TowerKeys) -> MllamaVisionConfig:
    """Raises ModelError that names the key and its value."""
    config = MllamaVisionConfig(
        dim=_text_dim(keys),
        width=keys.whole("embedding_length"),
        n_layers=keys.whole("block_count", high=1 << 12),
        n_global_layers=keys.whole("global.block_count", low=0, high=1 << 12),
        n_heads=keys.whole("attention.head_count", high=1 << 10),
        ffn_dim=keys.whole("feed_forward_length"),
        image_size=keys.whole("image_size", high=1 << 14),
        patch_size=keys.whole("patch_size", high=1 << 10),
        norm_eps=keys.real("attention.layer_norm_epsilon", *NORM_EPS, 1e-5),
        states=_states(keys),
        max_tiles=keys.whole("max_num_tiles", TILES, high=MOST_TILES),
        whole_tiles=environment_switch(WHOLE_TILES_VARIABLE),
    )
    if config.image_size % config.patch_size or config.grid > 1 << 10:
        raise keys.error("image_size", config.image_size, "must be whole patches")
    if config.width % (2 * config.n_heads):
        raise keys.error("embedding_length", config.width, f"must be {config.n_heads} heads of an even size")
    if (found := keys.whole("num_channels", CHANNELS)) != CHANNELS:
        raise keys.error("num_channels", found, f"only {CHANNELS} is known")
    return config


def _text_dim(keys: TowerKeys) -> int:
    """A file that holds the text model too says it there."""
    text = TowerKeys(keys.where, keys.metadata, keys.prefix.removesuffix("vision."))
    stated = text.get("embedding_length")
    return keys.whole("projection_dim") if stated is None else text.whole("embedding_length")


def _states(keys: TowerKeys) -> tuple[int, ...]:
    key, n_layers = "intermediate_layers_indices", keys.whole("block_count", high=1 << 12)
    value = keys.get(key)
    found = list(STATES) if value is None else value.tolist() if isinstance(value, np.ndarray) else value
    fine = isinstance(found, list) and all(type(i) is int and 0 <= i < n_layers for i in found)
    if not fine or sorted(set(found)) != found or len(found) > 7:
        raise keys.error(key, value, f"must be numbers of some of the {n_layers} layers, in order, 7 at most")
    return tuple(found)


# ---- tensors ----


def tensors(config: MllamaVisionConfig, found: Mapping[str, TensorInfo]) -> Iterator[TensorSpec]:
    """All of the tower's; those of a text model in the same file are another plan's."""
    c, dim = config, (config.width,)
    rows, tiles = c.rows_per_tile, (1 + len(c.aspect_ratios)) * c.max_tiles
    yield TensorSpec("v.class_embd", "vector", dim)
    yield TensorSpec("v.patch_embd.weight", "matrix", (c.width, c.patch_values), reshaped=True)
    tables = {
        "position_embd": rows,
        "tile_position_embd": tiles * rows,
        "pre_tile_position_embd": tiles,
        "post_tile_position_embd": tiles,
    }
    for name, n in tables.items():
        yield TensorSpec(f"v.{name}.weight", "table", (n, c.width), reshaped=True)
        yield TensorSpec(f"v.{name}.gate", "vector", (1,))
    for name in ("v.pre_ln", "v.post_ln"):
        yield TensorSpec(f"{name}.weight", "vector", dim)
        yield TensorSpec(f"{name}.bias", "vector", dim)
    for i in range(c.n_layers):
        yield from _layer_specs(c, f"v.blk.{i}.", found)
    for i in range(c.n_global_layers):
        yield from _layer_specs(c, f"v.global.blk.{i}.", found)
        for gate in ("attn_gate", "ffn_gate"):
            yield TensorSpec(f"v.global.blk.{i}.{gate}", "vector", (1,))
    yield TensorSpec("mm.0.weight", "matrix", (c.dim, c.width * (1 + len(c.states))))
    yield TensorSpec("mm.0.bias", "vector", (c.dim,))
    for name in found:
        if not name.startswith(("v.", "mm.")):
            yield TensorSpec(name, "unused")


def _layer_specs(c: MllamaVisionConfig, prefix: str, found: Mapping[str, TensorInfo]) -> Iterator[TensorSpec]:
    older = f"{prefix}ln1.weight" in found
    sizes = {"ffn_up": (c.ffn_dim, c.width), "ffn_down": (c.width, c.ffn_dim)}
    for name in _LAYER:
        shape = (c.width,) if name.endswith("norm") else sizes.get(name, (c.width, c.width))
        theirs = prefix + (_older_name(name, prefix, c, found) if older else name)
        yield TensorSpec(
            f"{prefix}{name}.weight",
            "matrix" if len(shape) > 1 else "vector",
            shape,
            tensor=f"{theirs}.weight",
        )
        if not name.startswith("attn_") or name.endswith("norm"):
            yield TensorSpec(f"{prefix}{name}.bias", "vector", shape[:1], tensor=f"{theirs}.bias")


def _older_name(name: str, prefix: str, c: MllamaVisionConfig, found: Mapping[str, TensorInfo]) -> str:
    """Of ollama's older files, in which the first product of a feed-forward is called ffn_down, and the
    second ffn_up: the shapes tell.
    """
    first = found.get(f"{prefix}ffn_down.weight")
    if name in ("ffn_up", "ffn_down") and first is not None and first.shape[0] == c.ffn_dim:
        return "ffn_down" if name == "ffn_up" else "ffn_up"
    return _OLDER.get(name, name)


# ---- layers ----


def record_tiles(plan: Recorder, config: MllamaVisionConfig, weights: Weights, n_tiles: int) -> None:
    """Rows of `input_rows` become the states of an image of `n_tiles` tiles."""
    c = config
    rows = plan.embed(no_rows(_input_width(c)))
    patches, positions, tiles, kept = _columns(plan, rows, (c.patch_values, c.width, c.width, 1))
    x = plan.linear(patches, weights.matrix("v.patch_embd.weight")) + positions
    x = plan.op("scale_rows", x=layer_norm(plan, weights, "v.pre_ln", x, c.norm_eps), factors=kept)
    states = []
    for i in range(c.n_layers):
        states += [plan.select(x)] if i in c.states else []
        x = _layer(plan, c, weights.under(f"v.blk.{i}."), x, n_tiles)
    x = layer_norm(plan, weights, "v.post_ln", x, c.norm_eps) + tiles
    for i in range(c.n_global_layers):
        x = _layer(plan, c, weights.under(f"v.global.blk.{i}."), x, n_tiles, gated=True)
    found = [plan.select(x)]
    if states:
        found.append(plan.op("interleave", x=states, width=c.width * len(states), rows=states[0].rows))
    x = plan.op("concatenate", x=found, width=c.width * (1 + len(states)), rows=found[0].rows)
    plan.output_hidden(plan.linear(x, *weights.linear("mm.0")))


def _columns(plan: Recorder, x: Tensor, widths: tuple[int, ...]) -> list[Tensor]:
    ends = np.cumsum(widths).tolist()
    return [plan.op("columns", x=x, first=end - n, width=n) for n, end in zip(widths, ends, strict=True)]


def _layer(
    plan: Recorder, c: MllamaVisionConfig, w: Weights, x: Tensor, n_tiles: int, gated: bool = False
) -> Tensor:
    a = plan.linear(_attention(plan, c, w, x, n_tiles), *w.linear("attn_output"))
    x = x + _gated(plan, w, "attn_gate", a, gated)
    h = plan.linear(layer_norm(plan, w, "ffn_norm", x, c.norm_eps), *w.linear("ffn_up"))
    h = plan.linear(plan.op("gelu", x=h, tanh=0), *w.linear("ffn_down"))
    return x + _gated(plan, w, "ffn_gate", h, gated)


def _gated(plan: Recorder, w: Weights, gate: str, x: Tensor, gated: bool) -> Tensor:
    return plan.op("scale", x=x, factor=float(w.vector(gate).values[0])) if gated else x


def _attention(plan: Recorder, c: MllamaVisionConfig, w: Weights, x: Tensor, n_tiles: int) -> Tensor:
    h = layer_norm(plan, w, "attn_norm", x, c.norm_eps)
    q, k, v = (plan.linear(h, *w.linear(f"attn_{part}")) for part in "qkv")
    after = c.computed_tiles(n_tiles) - n_tiles
    return plan.op(
        "tile_attention",
        q=q,
        k=k,
        v=v,
        n_heads=c.n_heads,
        kv_heads=c.n_heads,
        scale=(c.width // c.n_heads) ** -0.5,
        n_tiles=n_tiles,
        tile_rows=c.tile_rows,
        tile_tokens=c.rows_per_tile,
        padding_weight=c.padding // (c.tile_rows - c.rows_per_tile),
        tile_weight=(c.max_tiles - n_tiles) // after if after else 1,
    )


def _max_rows(config: MllamaVisionConfig, n_tiles: int) -> int:
    return config.computed_tiles(n_tiles) * config.tile_rows


def _record_whole(plan: Recorder, config: MllamaVisionConfig, weights: Weights, n_tiles: int) -> None:
    record_tiles(plan, replace(config, whole_tiles=True), weights, n_tiles)


def _max_whole_rows(config: MllamaVisionConfig, n_tiles: int) -> int:
    return _max_rows(replace(config, whole_tiles=True), n_tiles)


_NUMBERS = range(1, MOST_TILES + 1)
_WHOLE = "whole {}"
PARTS = {
    **{
        str(n): TowerPart(partial(record_tiles, n_tiles=n), partial(_max_rows, n_tiles=n), False)
        for n in _NUMBERS
    },
    **{
        _WHOLE.format(n): TowerPart(
            partial(_record_whole, n_tiles=n), partial(_max_whole_rows, n_tiles=n), False
        )
        for n in _NUMBERS
    },
}
"""By the number of an image's tiles; `whole` where every row of padding is computed."""


# ---- images ----


def encode(config: MllamaVisionConfig, weights: Weights, run: RunPart, tiles: Tiles) -> Floats:
    """An image's states: (n_tiles * rows_per_tile, dim)."""
    n = len(tiles.pixels)
    if (tiles.rows, tiles.cols) not in config.aspect_ratios or n != tiles.rows * tiles.cols:
        raise ModelError(f"an image of {tiles.rows} x {tiles.cols} tiles: there are up to {config.max_tiles}")
    part = str(n)
    if not config.whole_tiles and not _padding_is_equal(config, weights, tiles):
        config, part = replace(config, whole_tiles=True), _WHOLE.format(n)
    wanted = np.arange(n * config.tile_rows).reshape(n, -1)[:, : config.rows_per_tile]
    return run(part, input_rows(config, weights, tiles), wanted.reshape(-1).tolist())


def _padding_is_equal(c: MllamaVisionConfig, weights: Weights, tiles: Tiles) -> bool:
    """Whether the tiles that an image lacks are all alike, so that one may stand for them. Released
    checkpoints have zeros in the tables where an aspect ratio has no tile, but nothing forbids other values.
    """
    n = len(tiles.pixels)
    at, missing = _first_tile(c, tiles) + n, c.max_tiles - n
    if missing < 2:
        return True
    rows = c.rows_per_tile
    found = [_gated_rows(c, weights, f"{place}_tile_position_embd", at, missing) for place in ("pre", "post")]
    found.append(_gated_rows(c, weights, "tile_position_embd", at * rows, missing * rows))
    by_tile = (table.reshape(missing, -1) for table in found)
    return all(bool((table == table[:1]).all()) for table in by_tile)


def _first_tile(c: MllamaVisionConfig, tiles: Tiles) -> int:
    """The row of an image's first tile in tables by aspect ratio."""
    return (c.aspect_ratios.index((tiles.rows, tiles.cols)) + 1) * c.max_tiles


def _input_width(c: MllamaVisionConfig) -> int:
    return c.patch_values + 2 * c.width + 1


def input_rows(c: MllamaVisionConfig, weights: Weights, tiles: Tiles) -> Floats:
    """(computed tiles * tile_rows, …): of each token its patch, what is added to that and, later, to its
    state by tile, and 1; 0 of rows of padding, whose states are zeros before the first layer.
    """
    n, n_computed = len(tiles.pixels), c.computed_tiles(len(tiles.pixels))
    found = np.zeros((n_computed, c.tile_rows, _input_width(c)), np.float32)
    tokens = found[:, : c.rows_per_tile]
    patch, added, by_tile, kept = np.split(found, np.cumsum([c.patch_values, c.width, c.width]), axis=2)
    cut = tiles.pixels.reshape(n, CHANNELS, c.grid, c.patch_size, c.grid, c.patch_size)
    patch[:n, 1 : c.rows_per_tile] = cut.transpose(0, 2, 4, 1, 3, 5).reshape(n, c.grid**2, -1)
    added, kept = added[:, : tokens.shape[1]], kept[:, : tokens.shape[1]]
    first = _first_tile(c, tiles)
    added[:, 0] = weights.vector("v.class_embd").values[: c.width]
    added[:, 1:] += _gated_rows(c, weights, "pre_tile_position_embd", first, n_computed)[:, None]
    added += _gated_rows(c, weights, "position_embd", 0, c.rows_per_tile)
    at, size = first * c.rows_per_tile, n_computed * c.rows_per_tile
    added += _gated_rows(c, weights, "tile_position_embd", at, size).reshape(n_computed, -1, c.width)
    by_tile[:] = _gated_rows(c, weights, "post_tile_position_embd", first, n_computed)[:, None]
    kept[:] = 1
    return found.reshape(-1, found.shape[2])


def _gated_rows(c: MllamaVisionConfig, weights: Weights, name: str, first: int, n: int) -> Floats:
    """Rows of a table of positions, times what its gate has become."""
    table, gate = weights.table(f"v.{name}.weight"), weights.vector(f"v.{name}.gate").values[0]
    row_bytes = table.type.row_bytes(table.cols)
    data = table.data[first * row_bytes : (first + n) * row_bytes]
    rows: Floats = dequantize(data, table.type, (n, c.width)).astype(np.float32) * gate
    return rows


def cut(config: MllamaVisionConfig, picture: Picture) -> Tiles:
    from pyllamacpu.images.tiles import llama32_tiles

    return llama32_tiles(picture, config.image_size, config.max_tiles)


def given_tiles(config: MllamaVisionConfig, pixels: Floats, more: Mapping[str, Any]) -> Tiles:
    """Of (max_tiles, 3, size, size) pixels those tiles that the image has, as `aspect_ratio_ids` or the
    `aspect_ratio_mask` say; a single tile needs neither. Raises ImageError.
    """
    from pyllamacpu.images.tiles import Tiles

    ratios, number = config.aspect_ratios, 1 if len(pixels) == 1 else 0
    if "aspect_ratio_ids" in more:
        ids = given_numbers(more, "aspect_ratio_ids")
        if len(ids) != 1:
            raise ImageError("image", f"aspect_ratio_ids are of {len(ids)} images: give each by itself")
        number = ids[0]
    if not 1 <= number <= len(ratios):
        known = f"aspect_ratio_ids from 1 to {len(ratios)} tell how {len(pixels)} tiles lie"
        raise ImageError("image", f"{known}; found {number or 'none'}")
    rows, columns = ratios[number - 1]
    n = rows * columns
    if len(pixels) not in (n, config.max_tiles):
        raise ImageError(
            "image", f"has {len(pixels)} tiles, where its aspect ratio {rows} x {columns} has {n}"
        )
    if "aspect_ratio_mask" in more and given_numbers(more, "aspect_ratio_mask") not in (
        [1] * n,
        [1] * n + [0] * (config.max_tiles - n),
    ):
        raise ImageError("image", f"the aspect_ratio_mask is not of {n} tiles, as aspect_ratio_ids say")
    return Tiles(np.ascontiguousarray(pixels[:n]), rows, columns)


def placeholders(config: MllamaVisionConfig, ids: Mapping[str, int], tiles: Tiles) -> list[int]:
    return [ids["patch"]]
