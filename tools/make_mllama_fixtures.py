"""Make tests/fixtures/mllama.npz: what Meta's own code computes of tiny random Llama 3.2 Vision models.

    python tools/make_mllama_fixtures.py

Needs torch, fairscale, and llama-models (whose models/llama3/multimodal/model.py is the code). The weights
are those of tests/mllama_models.py, from a seed; the file holds the states of an image of each aspect ratio,
and the logits of prompts with no, one and several images. Meta's classes have the sizes of the tower built
in: they are given here as arguments to the same classes.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import fairscale.nn.model_parallel.initialize as fs_init
import numpy as np
import torch
from llama_models.llama3.args import ModelArgs
from llama_models.llama3.chat_format import create_vision_mask
from torch.nn import functional

for _name in ("torchvision", "torchvision.transforms"):  # images are not cut here
    sys.modules.setdefault(_name, ModuleType(_name)).functional = None
from llama_models.llama3.multimodal import model as meta  # noqa: E402

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path.insert(0, str(TESTS))
import mllama_models as tiny  # noqa: E402

OUT = TESTS / "fixtures" / "mllama.npz"
IMAGE = tiny.IMAGE_TOKEN


def vision_encoder(vision: dict[str, Any]) -> meta.VisionEncoder:
    return meta.VisionEncoder(
        max_num_tiles=4,
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        width=vision["hidden_size"],
        layers=vision["num_hidden_layers"],
        heads=vision["attention_heads"],
        mlp_ratio=vision["intermediate_size"] / vision["hidden_size"],
        n_global_layers=vision["num_global_layers"],
        global_model=True,
        return_intermediate=vision["intermediate_layers_indices"],
    )


def load(module: torch.nn.Module, found: dict[str, np.ndarray], prefix: str) -> None:
    state = {n.removeprefix(prefix): torch.from_numpy(v) for n, v in found.items() if n.startswith(prefix)}
    module.load_state_dict(state, strict=True)


@torch.no_grad()
def states(
    encoder: Any, projection: Any, found: list[np.ndarray], ratios: list[tuple[int, int]]
) -> torch.Tensor:
    """(1, images, 4, tokens, dim)"""
    size = tiny.VISION["image_size"]
    stacked = torch.zeros(1, len(found), 4, 3, size, size)
    for i, image in enumerate(found):
        stacked[0, i, : len(image)] = torch.from_numpy(image)
    seen = encoder(stacked, torch.tensor([ratios]))
    return functional.linear(seen, projection["weight"], projection["bias"])


@torch.no_grad()
def logits(text: Any, vision: torch.Tensor | None, ids: list[int], n_tiles: list[int]) -> np.ndarray:
    text.setup_cache(1, "cpu", torch.float32)
    tokens, n = torch.tensor([ids]), len(ids)
    places = torch.arange(n)
    h = text.get_partially_trainable_embedding(tokens)
    if vision is None:
        found = text(places, h, None, None, None, text_only_inference=True)
        return found[0].numpy()
    caches = torch.stack(
        [
            layer.compute_xattn_kv_cache(vision.reshape(1, -1, vision.shape[-1]))
            for layer in text.cross_attention_layers
        ]
    )
    masks = meta._pad_masks([create_vision_mask(ids, IMAGE)], [n_tiles], n, 4)
    seen, rows = text._get_xattn_mask(n, "cpu", torch.float32, vision, masks)
    return text(places, h, seen, rows, caches)[0].numpy()


def start_parallel() -> None:
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}
    torch.distributed.init_process_group("gloo")
    fs_init.initialize_model_parallel(1)


def text_model(found: dict[str, np.ndarray]) -> Any:
    params = {k: v for k, v in tiny.META_PARAMS.items() if not k.startswith("vision_max")}
    text = meta.CrossAttentionTransformerText(
        ModelArgs(**{**params, "max_batch_size": 1, "max_seq_len": 128})
    )
    load(text, found, "text_model.")
    return text.eval()


def main() -> None:
    start_parallel()
    found = tiny.meta_tensors(tiny.tensors())
    encoder = vision_encoder(tiny.VISION)
    load(encoder, found, "vision_model.vision_encoder.")
    names = ("weight", "bias")
    projection = {n: torch.from_numpy(found[f"vision_model.vision_projection.{n}"]) for n in names}
    text = text_model(found)
    result: dict[str, Any] = {}
    for number, ratio in enumerate(tiny.RATIOS):
        image = tiny.pixels(number, ratio)
        seen = states(encoder.eval(), projection, [image], [ratio])[0, 0, : len(image)]
        result[f"states_{ratio[0]}x{ratio[1]}"] = seen.reshape(-1, seen.shape[-1]).numpy()
    for name, (ids, ratios) in tiny.prompts().items():
        images = [tiny.pixels(i, ratio) for i, ratio in enumerate(ratios)]
        vision = states(encoder, projection, images, ratios) if images else None
        result[f"logits_{name}"] = logits(text, vision, ids, [len(image) for image in images])
    made_by = ", ".join(f"{name} {version(name)}" for name in ("torch", "llama-models"))
    np.savez_compressed(OUT, made_by=np.array(made_by), **result)
    for name, value in result.items():
        print(name, value.shape, float(value.std()))


if __name__ == "__main__":
    main()
