"""Make tests/fixtures/deberta.json: the logits that transformers computes of tests/deberta_models.py.

    PYTHONPATH=tests python tools/make_deberta_fixtures.py

Needs torch and transformers beside the package. The checkpoints are made from a seed; of each variant the
file has the logits (float32) of the token ids, which it repeats.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import deberta_models
import torch
import transformers
from transformers import DebertaV2ForSequenceClassification


def logits(folder: Path, ids: list[list[int]]) -> list[list[float]]:
    model = DebertaV2ForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return [model(torch.tensor([window])).logits[0].tolist() for window in ids]


def main() -> None:
    ids = deberta_models.token_ids()
    found = {
        "made_by": "tools/make_deberta_fixtures.py",
        "ids": ids,
        "transformers": transformers.__version__,
        "logits": {},
    }
    with tempfile.TemporaryDirectory() as room:
        for variant in deberta_models.VARIANTS:
            folder = deberta_models.write_checkpoint(Path(room) / variant, variant)
            found["logits"][variant] = logits(folder, ids)
    deberta_models.FIXTURE.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
