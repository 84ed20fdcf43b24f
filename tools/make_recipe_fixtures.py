"""Makes tests/fixtures/recipes.json: the types that llama-quantize gives tensors, for many mixes and shapes.

    python tools/make_recipe_fixtures.py --bin LLAMA_CPP/build/bin

Runs `llama-quantize --dry-run` on files of the shapes in tests/quantize_shapes.py, with and without an
importance matrix. Made with llama.cpp of llama-cpp-python 0.3.36. In the fixture: shape, then mix (`+` after
it: with a matrix, only where that changes something), then kind of tensor.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from pyllamacpu.gguf.values import ValueType
from pyllamacpu.gguf.writer import GGUFWriter
from pyllamacpu.quantize.file_types import FILE_TYPES
from pyllamacpu.quantize.imatrix import Imatrix, ImatrixEntry, write_imatrix

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from quantize_shapes import SHAPES, Shape, compressed  # noqa: E402

MADE_BY = "tools/make_recipe_fixtures.py, llama-quantize of llama-cpp-python 0.3.36"
_LINE = re.compile(r"^\[ *\d+/ *\d+\] +(\S+) +- \[.*?\], type = +(\S+), size = .*?(?:\((\S+)\))?$", re.M)
# Beyond the mixes by themselves: options for one shape.
OPTIONS = {
    "--pure Q4_K_M": "SmolLM2-135M",
    "--pure IQ2_XXS": "Llama-2-7B",
    "--leave-output-tensor Q4_K_M": "Llama-3.1-8B",
    "--output-tensor-type q8_0 Q3_K_M": "Llama-3.2-1B",
    "--output-tensor-type q8_0 Q2_K": "Llama-3.1-8B",
    "--token-embedding-type q3_k Q4_K_M": "Llama-3.2-1B",
    "--token-embedding-type f16 --output-tensor-type bf16 Q6_K": "Llama-2-7B",
    "--tensor-type attn_q=q8_0 --tensor-type blk.[01].ffn=iq4_xs Q4_K_M": "Llama-3.1-8B",
    "--tensor-type FFN_DOWN=q4_K --tensor-type ffn=q8_0 Q5_K_S": "SmolLM2-135M",
    "--tensor-type attn=q4_0 F16": "Llama-3.2-1B",
    "--tensor-type attn_v=q6_k --pure Q4_0": "Llama-3.3-70B",
}


def write_model(path: Path, shape: Shape) -> None:
    with GGUFWriter(path) as writer:
        for key, value in shape.metadata().items():
            kind = None if isinstance(value, str) else ValueType.UINT32
            writer.add(key, value, ValueType.FLOAT32 if isinstance(value, float) else kind)
        for tensor in shape.tensors():
            dtype = np.float32 if tensor.kind.name == "F32" else np.float16
            writer.add_array(tensor.name, np.zeros(tensor.shape, dtype))


def dry_run(program: Path, model: Path, *options: str) -> dict[str, str]:
    """Types by tensor."""
    command = [str(program), "--dry-run", *options[:-1], str(model), options[-1]]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    # A warning about a fallback may stand in the middle of the line.
    found = _LINE.findall(result.stdout + result.stderr)
    if result.returncode or not found:
        raise SystemExit(f"{' '.join(command)}: {result.stdout[-2000:]}{result.stderr[-2000:]}")
    return {name: (new or old).lower() for name, old, new in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True, help="the folder of llama-quantize")
    program = parser.parse_args().bin.resolve() / "llama-quantize"
    found: dict[str, dict[str, dict[str, str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model, matrix = Path(folder, "model.gguf"), Path(folder, "imatrix.gguf")
        entry = ImatrixEntry(np.ones((1, 256), np.float32), np.ones(1, np.int64))
        write_imatrix(matrix, Imatrix({"blk.0.attn_q.weight": entry}, ("text",), 1, 256))
        for label, shape in SHAPES.items():
            write_model(model, shape)
            n_tensors = len(shape.tensors())
            rows = found[label] = {}
            for mix in FILE_TYPES:
                plain = dry_run(program, model, mix)
                weighted = dry_run(program, model, "--imatrix", str(matrix), mix)
                assert len(plain) == len(weighted) == n_tensors, (label, mix, len(plain))
                rows[mix] = compressed(plain)
                if weighted != plain:
                    rows[f"{mix}+"] = compressed(weighted)
            for options, wanted in OPTIONS.items():
                if wanted == label:
                    rows[options] = compressed(dry_run(program, model, *options.split()))
    text = json.dumps({"made_by": MADE_BY} | found, indent=0).replace("\n", "")
    text = text.replace(f'"{MADE_BY}",', f'"{MADE_BY}",\n').replace("}},", "}},\n").replace("},", "},\n")
    (ROOT / "tests" / "fixtures" / "recipes.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
