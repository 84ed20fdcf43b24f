"""Makes tests/fixtures/quantize_iq.json: what llama.cpp's quantizers lose on tests/quantize_iq_cases.py.

    python tools/make_quantize_iq_fixtures.py --library LLAMA_CPP/build/bin/libggml-base.so

Made with llama.cpp of llama-cpp-python 0.3.36 and gguf 0.17 or later (which decodes the blocks).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from pathlib import Path

import gguf
import numpy as np

ROOT = Path(__file__).parents[1]
MADE_BY = "tools/make_quantize_iq_fixtures.py, llama.cpp of llama-cpp-python 0.3.36"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from quantize_iq_cases import Floats, cases, errors, importance, matrix  # noqa: E402

from pyllamacpu.gguf.types import TensorType  # noqa: E402


def peer_values(library: ctypes.CDLL, x: Floats, kind: TensorType, columns: Floats | None) -> Floats:
    """`x` after the peer's quantization."""
    out = np.zeros((len(x), kind.row_bytes(x.shape[1])), np.uint8)
    weights = None if columns is None else ctypes.c_void_p(columns.ctypes.data)
    pointers = ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(out.ctypes.data)
    sizes = (ctypes.c_int64(n) for n in (0, *x.shape))
    library.ggml_quantize_chunk(ctypes.c_int(kind), *pointers, *sizes, weights)
    return np.asarray(gguf.quants.dequantize(out, gguf.GGMLQuantizationType(kind)), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--library", type=Path, required=True, help="libggml-base.so")
    library = ctypes.CDLL(str(parser.parse_args().library.resolve()))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    found: dict[str, object] = {"made_by": MADE_BY}
    for kind, name, weighted in cases():
        x, columns = matrix(name), importance() if weighted else None
        lost = errors(x, peer_values(library, x, kind, columns), kind, columns)
        found[f"{kind.name} {name} {'importance' if weighted else 'plain'}"] = [
            float(f"{e:.6g}") for e in lost
        ]
    path = ROOT / "tests" / "fixtures" / "quantize_iq.json"
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
