"""Make tests/fixtures/llama4_vision/*: tiny random Llama 4 checkpoints with a vision tower, and what Meta's
own code computes from images: the tower's rows, and the logits of a prompt that holds them.

    python tools/make_llama4_vision_fixtures.py

Needs torch, fairscale, llama-models (whose models/llama4 is the code), transformers and safetensors. `meta`:
params.json and consolidated.00.pth, the model's state_dict in bfloat16. `hf`: the same weights under the
names of transformers (whose own rows and logits are compared with Meta's here, and must agree).
vision.npz: pixels (tiles, 3, size, size), ids, rows of the tower and logits by Meta's code in float32.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import fairscale.nn.model_parallel.initialize as fs_init
import numpy as np
import torch
from llama_models.llama4.args import ModelArgs
from llama_models.llama4.datatypes import MaskedEmbedding, TransformerInput
from llama_models.llama4.model import Transformer
from make_llama4_meta_fixtures import SCOUT, random_weights
from safetensors.torch import save_file

OUT = Path(__file__).parent.parent / "tests" / "fixtures" / "llama4_vision"
PATCH = 99  # the placeholder's id
SIZE, PATCH_SIZE = 56, 14
VISION: dict[str, Any] = {
    "image_size": {"height": SIZE, "width": SIZE},
    "patch_size": {"height": PATCH_SIZE, "width": PATCH_SIZE},
    "dim": 48,
    "n_layers": 3,
    "n_heads": 4,
    "mlp_ratio": 4.0,
    "output_dim": 32,
    "pixel_shuffle_ratio": 0.5,
}
PARAMS: dict[str, Any] = SCOUT | {"n_layers": 4, "vision_args": VISION, "moe_args": SCOUT["moe_args"]}
N_TILES, PER_TILE = 3, (SIZE // PATCH_SIZE // 2) ** 2


def prompt(rng: np.random.Generator) -> np.ndarray:
    """Text, an image of three tiles with separators, text."""
    text = rng.integers(0, PATCH, 40)
    image = [1, *[PATCH] * PER_TILE, 2, *[PATCH] * PER_TILE, 3, 4, *[PATCH] * PER_TILE, 5]
    return np.concatenate([text[:13], image, text[13:]]).astype(np.int32)


@torch.no_grad()
def computed(model: Transformer, pixels: torch.Tensor, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows after the projection (n, dim), and logits."""
    tokens = torch.from_numpy(ids).long()[None]
    mask = (tokens == PATCH)[..., None]
    encoder = model.vision_embeddings.vision_encoder.float()
    encoder.freq_cis = encoder.freq_cis.to(torch.complex64)
    reference = torch.zeros(1, len(ids), VISION["output_dim"])
    embedded = model.vision_embeddings([[pixels]], mask, reference)
    rows = model.vision_projection(embedded)[0][mask[0, :, 0]]
    image = MaskedEmbedding(embedded, mask)
    found = TransformerInput(tokens=tokens, tokens_position=0, image_embedding=image)
    return rows.numpy(), model(found).logits[0].numpy()


def hf_config() -> dict[str, Any]:
    width, ffn = VISION["dim"], int(VISION["dim"] * VISION["mlp_ratio"])
    moe = PARAMS["moe_args"]
    text = {
        "model_type": "llama4_text",
        "hidden_size": PARAMS["dim"],
        "num_hidden_layers": PARAMS["n_layers"],
        "num_attention_heads": PARAMS["n_heads"],
        "num_key_value_heads": PARAMS["n_kv_heads"],
        "head_dim": PARAMS["dim"] // PARAMS["n_heads"],
        "vocab_size": PARAMS["vocab_size"],
        "intermediate_size": 0,
        "intermediate_size_mlp": 64,
        "rms_norm_eps": PARAMS["norm_eps"],
        "rope_theta": PARAMS["rope_theta"],
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 16.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
        "max_position_embeddings": 131072,
        "num_local_experts": moe["num_experts"],
        "num_experts_per_tok": moe["top_k"],
        "interleave_moe_layer_step": moe["interleave_moe_layer_step"],
        "use_qk_norm": True,
        "attention_chunk_size": PARAMS["attention_chunk_size"],
        "attn_temperature_tuning": True,
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0],
    }
    vision = {
        "model_type": "llama4_vision_model",
        "hidden_size": width,
        "num_hidden_layers": VISION["n_layers"],
        "num_attention_heads": VISION["n_heads"],
        "intermediate_size": ffn,
        "image_size": SIZE,
        "patch_size": PATCH_SIZE,
        "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": VISION["output_dim"],
        "projector_output_dim": VISION["output_dim"],
        "vision_output_dim": VISION["output_dim"],
        "rope_theta": 10000,
        "vision_feature_layer": -1,
    }
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "image_token_index": PATCH,
        "boi_token_index": 1,
        "eoi_token_index": 5,
        "text_config": text,
        "vision_config": vision,
    }


def hf_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Meta's tensors under transformers' names."""
    tables = {
        "vision_embeddings.vision_encoder.class_embedding": "vision_model.class_embedding",
        "vision_embeddings.vision_encoder.positional_embedding_vlm": "vision_model.positional_embedding_vlm",
        "vision_embeddings.vision_encoder.conv1._linear": "vision_model.patch_embedding.linear",
        "vision_embeddings.vision_encoder.ln_pre": "vision_model.layernorm_pre",
        "vision_embeddings.vision_encoder.ln_post": "vision_model.layernorm_post",
        "vision_embeddings.vision_encoder.transformer.resblocks": "vision_model.model.layers",
        "vision_embeddings.vision_adapter.mlp.c_fc": "vision_model.vision_adapter.mlp.fc1",
        "vision_embeddings.vision_adapter.mlp.c_proj": "vision_model.vision_adapter.mlp.fc2",
        "vision_projection": "multi_modal_projector.linear_1",
        "tok_embeddings": "language_model.model.embed_tokens",
        "output": "language_model.lm_head",
        "norm": "language_model.model.norm",
        "layers": "language_model.model.layers",
    }
    parts = {
        ".ln_1.": ".input_layernorm.",
        ".ln_2.": ".post_attention_layernorm.",
        ".attention_norm.": ".input_layernorm.",
        ".ffn_norm.": ".post_attention_layernorm.",
        ".attn.w": ".self_attn.",
        ".attention.w": ".self_attn.",
        ".mlp.c_fc.": ".mlp.fc1.",
        ".mlp.c_proj.": ".mlp.fc2.",
        ".shared_expert.w1.": ".shared_expert.gate_proj.",
        ".shared_expert.w3.": ".shared_expert.up_proj.",
        ".shared_expert.w2.": ".shared_expert.down_proj.",
    }
    found: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        for old, new in tables.items():
            if name.startswith(old + ".") or name == old:
                name = new + name[len(old) :]
                break
        for old, new in parts.items():
            name = name.replace(old, new)
        for letter in "qkvo":
            name = name.replace(f".self_attn.{letter}.", f".self_attn.{letter}_proj.")
        if name.endswith("router_DE"):
            name, value = name.replace("router_DE", "router.weight"), value.T
        if name.endswith(".experts.w1"):
            up = state[name.replace("language_model.model.", "").replace("w1", "w3")]
            name, value = name.replace(".w1", ".gate_up_proj"), torch.cat([value, up], dim=-1)
        elif name.endswith(".experts.w3"):
            continue
        found[name.replace(".experts.w2", ".experts.down_proj")] = value.contiguous()
    return found


@torch.no_grad()
def by_transformers(folder: Path, pixels: torch.Tensor, ids: np.ndarray) -> np.ndarray:
    from transformers import Llama4ForConditionalGeneration

    model = Llama4ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    tokens = torch.from_numpy(ids).long()[None]
    states = model.vision_model(pixels).last_hidden_state
    embeddings = model.get_input_embeddings()(tokens)
    embeddings[0, tokens[0] == PATCH] = model.multi_modal_projector(states.flatten(0, 1))
    found: np.ndarray = model.language_model(inputs_embeds=embeddings).logits[0].numpy()
    return found


def main() -> None:
    torch.set_num_threads(1)
    torch.Tensor.cuda = lambda self: self  # Meta's code puts its cache there
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29512", "RANK": "0", "WORLD_SIZE": "1"}
    torch.distributed.init_process_group("gloo")
    fs_init.initialize_model_parallel(1)
    rng = np.random.default_rng(4)
    model = Transformer(ModelArgs(**{**PARAMS, "max_batch_size": 1, "max_seq_len": 128})).eval().float()
    with torch.no_grad():
        random_weights(model, rng)
    pixels = torch.from_numpy(rng.uniform(-1, 1, (N_TILES, 3, SIZE, SIZE)).astype(np.float32))
    ids = prompt(rng)
    rows, logits = computed(model, pixels, ids)
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT / "meta").mkdir(parents=True)
    (OUT / "hf").mkdir()
    state = {key: value.to(torch.bfloat16) for key, value in model.state_dict().items()}
    stated = {key: value for key, value in PARAMS.items() if value not in (None, False)}
    (OUT / "meta" / "params.json").write_text(json.dumps(stated, indent=1) + "\n")
    torch.save(state, OUT / "meta" / "consolidated.00.pth")
    config = hf_config()
    named = hf_state(state)
    config["text_config"]["intermediate_size"] = named[
        "language_model.model.layers.0.feed_forward.experts.down_proj"
    ].shape[1]
    (OUT / "hf" / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(named, OUT / "hf" / "model.safetensors", {"format": "pt"})
    other = by_transformers(OUT / "hf", pixels, ids)
    difference = float(np.abs(other - logits).max() / logits.std())
    print(
        f"rows: spread {rows.std():.3f}; logits: {logits.std():.3f}; transformers differs by {difference:.1e}"
    )
    meta = {"script": "tools/make_llama4_vision_fixtures.py", "transformers_difference": difference}
    packages = ("torch", "fairscale", "llama-models", "transformers", "numpy")
    meta |= {package: version(package) for package in packages}
    arrays = {"pixels": pixels.numpy(), "ids": ids, "rows": rows, "logits": logits}
    np.savez_compressed(OUT / "vision.npz", **arrays, meta=np.array(json.dumps(meta)))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
