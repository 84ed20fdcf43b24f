"""Converting Llama 3.2 Vision: names, gates, tables of tiles, in both layouts.

Covers convert/models/mllama.py, convert/models/mllama_tensors.py, convert/models/mllama_vision.py,
convert/models/slots.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoint_build import bf16_bits
from mllama_models import (
    CONFIG,
    META_PARAMS,
    META_VISION,
    TEXT,
    VISION,
    meta_tensors,
    save_hf,
    save_meta,
    tensors,
)
from torch_build import write_torch

from pyllamacpu.convert.conversion import ConvertOptions
from pyllamacpu.convert.sources import plan_conversion
from pyllamacpu.errors import CheckpointError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.model.dequantize import dequantize


def converted(source: Path, target: Path, **options: object) -> GGUFFile:
    given: dict[str, object] = {"outfile": str(target), "outtype": "f32", **options}
    plan_conversion(source, ConvertOptions(**given)).run()  # type: ignore[arg-type]
    return GGUFFile.open(target)


def values(file: GGUFFile, name: str) -> np.ndarray:
    info = file.tensors[name]
    return dequantize(file.data(name), info.type, tuple(info.shape))


def test_names_and_keys_are_ollamas_newer_ones(tmp_path: Path) -> None:
    found = tensors()
    file = converted(save_hf(tmp_path / "hf"), tmp_path / "m.gguf")
    assert file.metadata["general.architecture"] == "mllama"
    assert file.metadata["mllama.attention.cross_attention_layers"].tolist() == [1, 4]
    assert file.metadata["mllama.vision.global.block_count"] == 2
    assert file.metadata["mllama.vision.intermediate_layers_indices"].tolist() == [1, 2]
    assert file.tensors["token_embd.weight"].shape == (TEXT["vocab_size"] + 8, TEXT["hidden_size"])
    assert file.tensors["output.weight"].shape == (TEXT["vocab_size"], TEXT["hidden_size"])
    layer = "language_model.model.layers.4."
    for part in "qkvo":
        kept = values(file, f"blk.4.cross_attn_{part}_proj.weight")
        assert np.array_equal(kept, found[f"{layer}cross_attn.{part}_proj.weight"])
    gate = found[f"{layer}cross_attn_attn_gate"]
    assert np.array_equal(values(file, "blk.4.cross_attn_attn_gate"), gate)
    tanh = np.tanh(found["vision_model.gated_positional_embedding.gate"])
    assert np.array_equal(values(file, "v.position_embd.gate"), 1 - tanh)
    assert np.array_equal(values(file, "v.tile_position_embd.gate"), tanh)
    assert file.tensors["v.patch_embd.weight"].shape == (VISION["hidden_size"], 3, 14, 14)


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_metas_layout_gives_the_same_tensors(tmp_path: Path, n_ranks: int) -> None:
    found = tensors(vision=META_VISION)
    ours = converted(save_hf(tmp_path / "hf", found, META_VISION), tmp_path / "hf.gguf")
    theirs = converted(save_meta(tmp_path / "meta", found, n_ranks), tmp_path / "meta.gguf")
    assert set(ours.tensors) == set(theirs.tensors)
    for name in set(ours.tensors):  # in tables of tiles, what is not a tile is zeros in both
        assert np.array_equal(values(ours, name), values(theirs, name)), name
    for key in ("mllama.attention.cross_attention_layers", "mllama.vision.block_count"):
        assert np.array_equal(ours.metadata[key], theirs.metadata[key])


def test_the_tower_alone(tmp_path: Path) -> None:
    source = save_hf(tmp_path / "hf")
    file = converted(source, tmp_path / "mmproj.gguf", mmproj=True, outtype="q8_0")
    assert file.metadata["general.type"] == "mmproj"
    assert "mllama.block_count" not in file.metadata
    assert all(name.startswith(("v.", "mm.")) for name in file.tensors)
    assert file.tensors["v.blk.0.ffn_up.weight"].type.name == "Q8_0"
    assert file.tensors["v.tile_position_embd.weight"].type.name == "F32"


def test_a_tower_beside_four_bits_has_eight(tmp_path: Path) -> None:
    file = converted(save_hf(tmp_path / "hf"), tmp_path / "m.gguf", outtype="q4_0")
    assert file.tensors["blk.0.ffn_up.weight"].type.name == "Q4_0"
    assert file.tensors["v.blk.0.ffn_up.weight"].type.name == "Q8_0"
    assert file.tensors["mm.0.weight"].type.name == "Q8_0"


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("text_config", "cross_attention_layers", [4, 1]),
        ("text_config", "cross_attention_layers", [6]),
        ("text_config", "cross_attention_layers", []),
        ("text_config", "cross_attention_layers", [0, 1, 2, 3, 4, 5]),
        ("text_config", "hidden_act", "gelu"),
        ("text_config", "partial_rotary_factor", 0.5),
        ("text_config", "head_dim", 8),
        ("vision_config", "intermediate_layers_indices", [1, 9]),
        ("vision_config", "image_size", 57),
        ("vision_config", "hidden_act", "silu"),
        ("vision_config", "max_num_tiles", 8),
        ("vision_config", "max_num_tiles", 17),
        ("vision_config", "supported_aspect_ratios", [[1, 1], [2, 1], [1, 2]]),
    ],
)
def test_configs_that_make_no_sense_are_refused(tmp_path: Path, where: str, key: str, value: object) -> None:
    folder = save_hf(tmp_path / "hf")
    config = {**CONFIG, where: {**CONFIG[where], key: value}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="supported_aspect_ratios|" + key):
        plan_conversion(folder, ConvertOptions(outfile=str(tmp_path / "m.gguf")))


@pytest.mark.parametrize(
    "name", ["gated_positional_embedding", "pre_tile_pos_embed.embedding", "post_tile_pos_embed.embedding"]
)
def test_metas_tables_of_other_tiles_are_refused(tmp_path: Path, name: str) -> None:
    found = meta_tensors(tensors(vision=META_VISION))
    full = f"vision_model.vision_encoder.{name}"
    (tmp_path / "params.json").write_text(json.dumps(META_PARAMS))
    for damaged in (found[full][:2, :2], found[full][:, :3], found[full].reshape(-1)):
        stored = found | {full: np.ascontiguousarray(damaged)}
        write_torch(
            tmp_path / "consolidated.00.pth", {key: bf16_bits(value) for key, value in stored.items()}
        )
        with pytest.raises(CheckpointError, match="has shape"):
            plan_conversion(tmp_path, ConvertOptions(outfile=str(tmp_path / "m.gguf")))
