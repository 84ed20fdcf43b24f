"""Make tests/fixtures/lora/logits.npz: what PEFT computes with the adapters of tests/lora_cases.py.

    python tools/make_lora_fixtures.py

Needs torch, transformers and peft. Model and adapters are written as checkpoints and loaded from there, in
float32, without merging. For each run there is its name, (rows, vocab) float32, at the positions
convert_models.ROWS; `meta` is JSON with the makers' versions. A run that does not differ clearly from the
base model is an error, and so are parts of an adapter that PEFT does not take.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "fixtures" / "lora" / "logits.npz"
sys.path.insert(0, str(ROOT / "tests"))

from convert_models import BY_NAME, ROWS, token_ids, write_checkpoint  # noqa: E402
from lora_cases import BY_CASE, RUNS, write_case  # noqa: E402


def with_adapters(model: Any, run: str, folder: Path) -> Any:
    """The model with the run's adapters, all active at their scales."""
    names = [name for name, _ in RUNS[run]]
    paths = {name: write_case(folder / name, BY_CASE[name]) for name in names}
    found = peft.PeftModel.from_pretrained(model, paths[names[0]], adapter_name=names[0])
    for name in names[1:]:
        found.load_adapter(paths[name], adapter_name=name)
    found.base_model.set_adapter(names)
    for module in found.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            for name, scale in RUNS[run]:
                module.set_scale(name, scale)
    return found.eval()


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error", UserWarning)  # such as missing keys
    warnings.filterwarnings("ignore", message=".*tie.*")
    found: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for run in RUNS:
            base = BY_CASE[RUNS[run][0][0]].base
            path = write_checkpoint(Path(folder) / base, BY_NAME[base])
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, attn_implementation="eager"
            )
            ids = torch.from_numpy(token_ids(BY_NAME[base].fixture)).long()[None]
            plain = model.eval()(ids).logits[0].numpy()
            logits = with_adapters(model, run, Path(folder))(ids).logits[0].numpy()
            gap = np.abs(logits - plain).mean() / plain.std()
            print(f"{run}: std {logits.std():.3f}, {gap:.2f} from the base model")
            if gap < 0.1:
                sys.exit(f"{run} is like the base model")
            found[run] = logits[list(ROWS)]
    meta = {
        "script": "tools/make_lora_fixtures.py",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(OUT, meta=np.array(json.dumps(meta)), **found)
    print(f"{OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
