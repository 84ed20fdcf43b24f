"""Make tests/fixtures/mixtral: a tiny random Mixtral checkpoint, and the logits that transformers computes.

    python tools/make_mixtral_fixtures.py

Needs torch and transformers. tiny/ is a checkpoint as Hugging Face's `save_pretrained` writes it, its weights
in bfloat16; tiny.npz has the logits of these weights in float32: `ids` (n,) int32, `rows` (the positions
kept) and `logits` (rows, n_vocab). `meta` is JSON with the makers' versions, and the smallest difference
between the last expert that the router took for a token and the first that it did not; the next seed is
tried where that is so small that another order of additions may choose another expert.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import MixtralConfig, MixtralForCausalLM

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "mixtral"
LENGTH = 300
ROWS = (0, 1, 31, 32, 63, 64, 127, 128, 200, 255, 256, 299)
NEAR_TIE = 3e-5  # of logits whose spread is about 1
CONFIG = MixtralConfig(
    vocab_size=131,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=6,
    num_experts_per_tok=3,
    max_position_embeddings=4096,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    attn_implementation="eager",
)


def random_weights(model: MixtralForCausalLM, rng: np.random.Generator) -> None:
    """Wide enough that attention and the router are far from uniform."""
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if len(shape) == 1:
            values = rng.uniform(0.5, 1.5, shape)
        else:
            gain = 1.6 if ".q_proj." in name or ".k_proj." in name else 1.2
            values = rng.standard_normal(shape) * (1 if "embed_tokens" in name else gain / shape[-1] ** 0.5)
        parameter.copy_(torch.from_numpy(values).to(torch.bfloat16))


@torch.no_grad()
def computed(seed: int) -> tuple[MixtralForCausalLM, np.ndarray, np.ndarray, float]:
    """The model, token ids, logits, and the router's smallest gap."""
    model = MixtralForCausalLM(CONFIG).eval().float()
    rng = np.random.default_rng(seed)
    random_weights(model, rng)
    ids = rng.integers(0, CONFIG.vocab_size, LENGTH).astype(np.int32)
    given: list[torch.Tensor] = []
    routers = [
        (name, parameter) for name, parameter in model.named_parameters() if name.endswith(".gate.weight")
    ]
    assert len(routers) == CONFIG.num_hidden_layers
    for name, _ in routers:
        block = model.get_submodule(name.removesuffix(".gate.weight"))
        block.register_forward_hook(lambda _m, i, _out: given.append(i[0].reshape(-1, CONFIG.hidden_size)))
    logits = model(torch.from_numpy(ids).long()[None]).logits[0].numpy()
    gaps = []
    for (_, weight), h in zip(routers, given, strict=True):
        scores = (h @ weight.T).sort(dim=1, descending=True).values
        k = CONFIG.num_experts_per_tok
        gaps.append(float((scores[:, k - 1] - scores[:, k]).min()))
    return model, ids, logits, min(gaps)


def main() -> None:
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    seed = 7
    model, ids, logits, gap = computed(seed)
    while gap < NEAR_TIE:
        seed += 1
        model, ids, logits, gap = computed(seed)
    folder = OUT / "tiny"
    shutil.rmtree(folder, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    rows = np.array(ROWS, np.int32)
    meta = {
        "script": "tools/make_mixtral_fixtures.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "router_gap": gap,
    }
    np.savez_compressed(
        OUT / "tiny.npz", meta=np.array(json.dumps(meta)), ids=ids, rows=rows, logits=logits[rows]
    )
    size = sum(path.stat().st_size for path in (*folder.iterdir(), OUT / "tiny.npz"))
    print(f"{size / 1000:.0f} kB, logits' spread {logits.std():.2f}, router's gap {gap:.1e}, seed {seed}")


if __name__ == "__main__":
    main()
