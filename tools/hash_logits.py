"""A hash of the logits of every fixture model, to compare two builds bit for bit.

    python tools/hash_logits.py [--model FILE …]

Prints one line for each CPU tier of this machine: the SHA-256 over the logits of all models of
tests/fixtures/logits (the token ids of their fixtures; some of them with every KV type) and of the `--model`
files (256 ids counted up from 0, in chunks of 512 and of 7, then 8 tokens one by one). Each tier runs in a
process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "logits"
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")


def fixture_ids(name: str) -> Iterator[list[int]]:
    with np.load(FIXTURES / f"{name}.npz") as data:
        for key in sorted(data.files):
            if key.startswith("ids_"):
                yield [int(token) for token in data[key]]


def hash_fixtures(digest: hashlib._Hash) -> None:
    from pyllamacpu import Llama

    for path in sorted(FIXTURES.glob("*.gguf")):
        for kind in KV_TYPES if path.stem in ("gqa4", "head40", "q4_k", "biases") else ("f32",):
            with Llama(str(path), kv_type=kind, n_ctx=1024) as model:
                for ids in fixture_ids(path.stem):
                    digest.update(model.logits(ids).tobytes())


def hash_model(digest: hashlib._Hash, path: str) -> None:
    from pyllamacpu import Llama

    for n_batch in (512, 7):
        with Llama(path, n_ctx=512, n_batch=n_batch, logits_all=True) as model:
            digest.update(model.logits(list(range(256))).tobytes())
            for token in range(8):
                model.eval([token])
            digest.update(np.ascontiguousarray(model.scores[:8]).tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="a GGUF file, more than once if wanted")
    parser.add_argument("--this-tier", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    from pyllamacpu.native import isa_names, isa_selected

    if arguments.this_tier:
        digest = hashlib.sha256()
        hash_fixtures(digest)
        for path in arguments.model:
            hash_model(digest, path)
        print(isa_selected(), digest.hexdigest())
        return
    for tier in isa_names():
        files = [f"--model={path}" for path in arguments.model]
        command = [sys.executable, "-W", "ignore", __file__, "--this-tier", *files]  # long contexts are meant
        subprocess.run(command, check=True, env=os.environ | {"PYLLAMACPU_ISA": tier})


if __name__ == "__main__":
    main()
