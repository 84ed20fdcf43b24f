"""Makes tests/fixtures/quantized.json: digests of what llama-quantize writes for tests/quantize_model.py.

    python tools/make_quantize_fixtures.py --bin LLAMA_CPP/build/bin

Only types that leave no choice (F16, BF16, Q8_0), so that files can be compared byte by byte: what is tested
is metadata, order and splitting. Made with llama.cpp of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from quantize_model import write_matrix, write_model  # noqa: E402

WHOLE, SPLIT = "model.gguf", "parts-00001-of-00003.gguf"
CASES = (
    f"{WHOLE} out.gguf Q8_0",
    f"{WHOLE} F16",
    f"{WHOLE} out.gguf BF16",
    f"{WHOLE} COPY",
    f"{WHOLE} out.gguf 7",
    f"{SPLIT} out.gguf Q8_0",
    f"--keep-split {SPLIT} out.gguf Q8_0",
    f"--keep-split {SPLIT} F16",
    f"--imatrix matrix.gguf {WHOLE} out.gguf Q8_0",
    f"--imatrix matrix.gguf --exclude-weights ffn_ --exclude-weights blk.1 {WHOLE} out.gguf Q8_0",
    f"--imatrix matrix.gguf --include-weights attn_q --include-weights blk.0 {WHOLE} out.gguf Q8_0",
    f"--leave-output-tensor {WHOLE} out.gguf Q8_0",
    f"--output-tensor-type bf16 --token-embedding-type f16 {WHOLE} out.gguf Q8_0",
    f"--tensor-type attn_[qk]=f16 --tensor-type ATTN=bf16 {WHOLE} out.gguf Q8_0",
    f"--prune-layers 2,0 {WHOLE} out.gguf Q8_0",
    f"--override-kv llama.context_length=int:-77 --override-kv a.b=float:1.5 {WHOLE} out.gguf Q8_0",
    f"--override-kv general.name=str:x=y:z --override-kv new=bool:true {WHOLE} out.gguf F16",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True, help="the folder of llama-quantize")
    program = parser.parse_args().bin.resolve() / "llama-quantize"
    found: dict[str, dict[str, str]] = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_model(folder / WHOLE)
            write_model(folder / "parts.gguf", n_parts=3)
            write_matrix(folder / "matrix.gguf")
            before = {*folder.iterdir()}
            subprocess.run([str(program), *case.split()], cwd=folder, check=True, capture_output=True)
            new = sorted({*folder.iterdir()} - before)
            found[case] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in new}
    (ROOT / "tests" / "fixtures" / "quantized.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
