"""Make tests/fixtures/llama4: tiny random Llama 4 checkpoints, and the logits that transformers computes.

    python tools/make_llama4_fixtures.py [NAME ...]

Needs torch and transformers. NAME/ is a checkpoint as Hugging Face's `save_pretrained` writes it, its weights
in bfloat16; NAME.npz has the logits of these weights in float32: `ids` (n,) int32, `rows` (the positions
kept) and `logits` (rows, n_vocab). Where there are experts, also the squares of the inputs of the last
layer's, added up for each: `squares` (n_experts, dim), over `counts` (n_experts,) tokens. `meta` is JSON with
the makers' versions, and the smallest difference between the last expert that the router took for a token and
the first that it did not. The next seed is tried where that is so small that another order of additions may
choose another expert.
"""

from __future__ import annotations

import argparse
import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import Llama4ForCausalLM, Llama4TextConfig

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "llama4"
LENGTH = 700
ROWS = (0, 1, 31, 62, 63, 64, 65, 127, 128, 255, 256, 400, 511, 512, 640, 699)
NEAR_TIE = 3e-5  # of logits whose spread is about 1
SCALED = {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0}
SCOUT: dict[str, Any] = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 32,
    "intermediate_size_mlp": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 1,
    "attention_chunk_size": 64,
    "floor_scale": 128,
    "max_position_embeddings": 4096,
    "rope_parameters": {**SCALED, "original_max_position_embeddings": 64, "rope_theta": 500000.0},
}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 500000.0}
MAVERICK = SCOUT | {
    "interleave_moe_layer_step": 2,
    "num_local_experts": 12,
    "use_qk_norm": False,
    "rope_parameters": PLAIN_ROPE,
}
SHAPES: dict[str, dict[str, Any]] = {
    "scout": SCOUT,
    "scout_8192": SCOUT | {"attention_chunk_size": 8192, "num_experts_per_tok": 2, "num_hidden_layers": 4},
    "maverick": MAVERICK,
    "guard4": SCOUT
    | {"moe_layers": [], "attention_chunk_size": None, "floor_scale": 8192, "rope_parameters": PLAIN_ROPE},
    # Chunks that are not whole pages, a layer that is chunked without rope, and one the other way round.
    "odd": SCOUT
    | {
        "attention_chunk_size": 100,
        "no_rope_layers": [1, 0, 1, 0],
        "layer_types": ["full_attention", "chunked_attention", "chunked_attention", "full_attention"],
        "num_experts_per_tok": 3,
        "attention_bias": True,
    },
}


def random_weights(model: Llama4ForCausalLM, rng: np.random.Generator) -> None:
    """Wide enough that attention and the router are far from uniform."""
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if len(shape) == 1:
            values = rng.uniform(0.5, 1.5, shape) - (0 if "norm" in name else 1)
        else:
            fan_in = shape[1] if name.endswith(("gate_up_proj", "down_proj")) else shape[-1]
            gain = 1.6 if ".q_proj." in name or ".k_proj." in name else 1.2
            values = rng.standard_normal(shape) * (1 if "embed_tokens" in name else gain / fan_in**0.5)
        parameter.copy_(torch.from_numpy(values).to(torch.bfloat16))


def smallest_gap(routed: list[torch.Tensor], k: int) -> float:
    """Between the k-th of a token's router logits and the next one."""
    ordered = [logits.sort(dim=1, descending=True).values for logits in routed]
    return min((float((x[:, k - 1] - x[:, k]).min()) for x in ordered), default=float("inf"))


def squares_of(routed: torch.Tensor, n_experts: int) -> dict[str, np.ndarray]:
    """Of the experts' inputs, expert by expert for all tokens: zeros where a token goes elsewhere."""
    inputs = routed.double().numpy().reshape(n_experts, LENGTH, -1)
    return {"squares": (inputs**2).sum(1), "counts": (inputs != 0).any(2).sum(1)}


@torch.no_grad()
def computed(
    config: Llama4TextConfig, seed: int
) -> tuple[Llama4ForCausalLM, dict[str, np.ndarray], np.ndarray, float]:
    """The model, token ids and squares, logits, and the router's smallest gap."""
    model = Llama4ForCausalLM(config).eval().float()
    rng = np.random.default_rng(seed)
    random_weights(model, rng)
    ids = rng.integers(0, config.vocab_size, LENGTH).astype(np.int32)
    routed: list[torch.Tensor] = []
    inputs: list[torch.Tensor] = []
    for layer in model.model.layers:
        if layer.is_moe_layer:
            layer.feed_forward.router.register_forward_hook(lambda _m, _i, out: routed.append(out[1]))
            layer.feed_forward.experts.register_forward_hook(lambda _m, i, _out: inputs.append(i[0]))
    logits = model(torch.from_numpy(ids).long()[None]).logits[0].numpy()
    found = {"ids": ids} | (squares_of(inputs[-1], config.num_local_experts) if inputs else {})
    return model, found, logits, smallest_gap(routed, config.num_experts_per_tok)


def make(name: str) -> None:
    config = Llama4TextConfig(**SHAPES[name], attn_implementation="eager")
    seed = zlib.crc32(name.encode())
    model, found, logits, gap = computed(config, seed)
    while gap < NEAR_TIE:
        seed += 1
        model, found, logits, gap = computed(config, seed)
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    rows = np.array(ROWS, np.int32)
    meta = {
        "script": "tools/make_llama4_fixtures.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "router_gap": gap,
    }
    np.savez_compressed(
        OUT / f"{name}.npz", meta=np.array(json.dumps(meta)), rows=rows, logits=logits[rows], **found
    )
    size = sum(path.stat().st_size for path in (*folder.iterdir(), OUT / f"{name}.npz"))
    print(
        f"{name}: {size / 1000:.0f} kB, logits' spread {logits.std():.2f}, router's gap {gap:.1e}", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[[], *SHAPES], help="make only these fixtures")
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    for name in parser.parse_args().names or SHAPES:
        make(name)


if __name__ == "__main__":
    main()
