"""Make tests/fixtures/convert/logits.npz: the logits of the models of tests/convert_models.py, by
transformers.

    python tools/make_convert_fixtures.py

Needs torch and transformers. Each model is written as a checkpoint (config.json in the spelling under test,
safetensors) and loaded by transformers from there, in float32. For each there is `NAME`, (rows, vocab)
float32, at the positions convert_models.ROWS; `meta` is JSON with the makers' versions. Models that must
equal another one are compared with it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "fixtures" / "convert" / "logits.npz"
sys.path.insert(0, str(ROOT / "tests"))

from convert_models import MODELS, ROWS, Model, token_ids, write_checkpoint  # noqa: E402


@torch.no_grad()
def logits_of(model: Model, folder: Path) -> np.ndarray:
    """(rows, vocab) float32 at ROWS."""
    write_checkpoint(folder, model)
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.from_numpy(token_ids(model.fixture)).long()[None]
    return np.asarray(loaded(ids).logits[0].numpy()[list(ROWS)])


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in MODELS:
            logits = logits_of(model, Path(folder) / model.name)
            gap = np.abs(logits - found.setdefault(model.fixture, logits)).max() / logits.std()
            print(f"{model.name}: std {logits.std():.3f}, {gap:.1e} from {model.fixture}")
            if gap > 1e-5:
                sys.exit(f"{model.name} is not like {model.fixture}")
    meta = {
        "script": "tools/make_convert_fixtures.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(OUT, meta=np.array(json.dumps(meta)), **found)
    print(f"{OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
