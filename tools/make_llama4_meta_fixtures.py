"""Make tests/fixtures/llama4/meta_*: tiny random Llama 4 checkpoints in Meta's layout, and the logits that
Meta's own code computes.

    python tools/make_llama4_meta_fixtures.py

Needs torch, fairscale, and llama-models (whose models/llama4 is the code). Files as make_llama4_fixtures.py
makes them, but for the checkpoint: params.json and consolidated.00.pth, the model's state_dict in bfloat16;
that of `meta_scout` under the names of the released files.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import zlib
from importlib.metadata import version
from typing import Any

import fairscale.nn.model_parallel.initialize as fs_init
import numpy as np
import torch
from llama_models.llama4.args import ModelArgs
from llama_models.llama4.datatypes import TransformerInput
from llama_models.llama4.model import Transformer
from make_llama4_fixtures import LENGTH, NEAR_TIE, OUT, ROWS, smallest_gap

SCOUT: dict[str, Any] = {
    "dim": 64,
    "n_layers": 4,
    "n_heads": 4,
    "n_kv_heads": 2,
    "vocab_size": 131,
    "ffn_exp": 4.0,
    "ffn_dim_multiplier": 0.4,
    "multiple_of": 32,
    "norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "use_scaled_rope": True,
    "use_qk_norm": True,
    "attention_chunk_size": 64,
    "attn_temperature_tuning": True,
    "nope_layer_interval": 4,
    "moe_args": {"num_experts": 4, "top_k": 1, "interleave_moe_layer_step": 1, "auto_scale_F": True},
}
SHAPES = {
    "meta_scout": SCOUT,
    "meta_maverick": SCOUT
    | {
        "use_scaled_rope": False,
        "use_qk_norm": False,
        "attention_chunk_size": None,  # and no temperature: as if the keys were not there
        "attn_temperature_tuning": False,
        "moe_args": SCOUT["moe_args"] | {"num_experts": 8, "top_k": 2, "interleave_moe_layer_step": 2},
    },
}


def random_weights(model: Transformer, rng: np.random.Generator) -> None:
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if len(shape) == 1:
            values = rng.uniform(0.5, 1.5, shape)
        else:
            fan_in = shape[1] if "experts.w" in name and "shared" not in name else shape[-1]
            fan_in = shape[0] if name.endswith("router_DE") else fan_in
            gain = 1.6 if name.endswith(("wq.weight", "wk.weight")) else 1.2
            values = rng.standard_normal(shape) * (1 if "tok_embeddings" in name else gain / fan_in**0.5)
        parameter.copy_(torch.from_numpy(values).to(torch.bfloat16))


@torch.no_grad()
def computed(params: dict[str, Any], seed: int) -> tuple[Transformer, np.ndarray, np.ndarray, float]:
    """The model, token ids, logits, and the router's smallest gap."""
    args = ModelArgs(**{**params, "max_batch_size": 1, "max_seq_len": LENGTH})
    model, rng = Transformer(args).eval().float(), np.random.default_rng(seed)
    random_weights(model, rng)
    ids = rng.integers(0, args.vocab_size, LENGTH).astype(np.int32)
    routed: list[torch.Tensor] = []
    for layer in model.layers:
        feed = layer.feed_forward
        if hasattr(feed, "router_DE"):
            feed.register_forward_hook(lambda m, i, _o: routed.append(i[0][0] @ m.router_DE))
    tokens = torch.from_numpy(ids).long()[None]
    logits = model(TransformerInput(tokens=tokens, tokens_position=0)).logits[0].numpy()
    return model, ids, logits, smallest_gap(routed, params["moe_args"]["top_k"])


def released(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Under the names that Meta's files have, and with what these have joined."""
    found: dict[str, torch.Tensor] = {}
    names = {"w1": "moe_w_in_eD_F", "w3": "moe_w_swiglu_eD_F", "w2": "moe_w_out_eF_D"}
    shared = {"w1": "w_in_shared_FD", "w3": "w_swiglu_FD", "w2": "w_out_shared_DF"}
    for name, value in state.items():
        stem, _, last = name.rpartition(".")
        if ".experts." in name:
            found[f"{stem}.{names[last]}"] = value.reshape(-1, value.shape[-1])
        elif ".shared_expert." in name:
            found[name.replace(f"shared_expert.{stem[-2:]}", shared[stem[-2:]])] = value
        elif name.endswith("attention.wq.weight"):
            parts = [state[name.replace("wq", part)] for part in ("wq", "wk", "wv")]
            found[name.replace("wq", "wqkv")] = torch.cat(parts)
        elif name.endswith("attention_norm.weight"):
            found[name.replace("attention_norm.weight", "attention.wqkv.layer_norm_weight")] = value
        elif name.endswith("ffn_norm.weight"):
            found[name.replace("ffn_norm.weight", "feed_forward.norm.weight")] = value
        elif not name.endswith(("wk.weight", "wv.weight")):
            found[name] = value
    return found


def make(name: str, params: dict[str, Any]) -> None:
    seed = zlib.crc32(name.encode())
    model, ids, logits, gap = computed(params, seed)
    while gap < NEAR_TIE:
        seed += 1
        model, ids, logits, gap = computed(params, seed)
    state = {key: value.to(torch.bfloat16) for key, value in model.state_dict().items()}
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stated = {key: value for key, value in params.items() if value not in (None, False)}
    (folder / "params.json").write_text(json.dumps(stated, indent=1) + "\n")
    torch.save(released(state) if name == "meta_scout" else state, folder / "consolidated.00.pth")
    meta = {"script": "tools/make_llama4_meta_fixtures.py", "router_gap": gap}
    meta |= {package: version(package) for package in ("torch", "fairscale", "llama-models", "numpy")}
    rows = np.array(ROWS, np.int32)
    arrays = {"ids": ids, "rows": rows, "logits": logits[rows], "meta": np.array(json.dumps(meta))}
    np.savez_compressed(OUT / f"{name}.npz", **arrays)
    print(f"{name}: spread {logits.std():.2f}, router's gap {gap:.1e}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    torch.Tensor.cuda = lambda self: self  # Meta's code puts its cache there
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "RANK": "0", "WORLD_SIZE": "1"}
    torch.distributed.init_process_group("gloo")
    fs_init.initialize_model_parallel(1)
    for name, params in SHAPES.items():
        make(name, params)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
