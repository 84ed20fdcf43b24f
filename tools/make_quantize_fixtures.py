"""Records how well another library's quantizers do on seeded matrices: tests/fixtures/quantize_errors.json.

    python tools/make_quantize_fixtures.py --peer .../libggml-base.so --version 'llama.cpp b1234'

The library must have ggml_quantize_chunk. For every type and distribution, with and without importance, the
file holds the sums of squared errors after dequantizing: weighted as our search weighs them (`cost`), as the
peer's does (`peer_cost`, where it is another sum), and by the importance alone or not at all (`plain`).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from quantize_cases import DISTRIBUTIONS, QUANTIZED, errors, importance, key, matrix  # noqa: E402

TARGET = ROOT / "tests" / "fixtures" / "quantize_errors.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", required=True, help="shared library with ggml_quantize_chunk")
    parser.add_argument("--version", required=True, help="what it is, for the record")
    args = parser.parse_args()
    chunk = ctypes.CDLL(args.peer).ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    found = {}
    for distribution in DISTRIBUTIONS:
        x = matrix(distribution)
        for weights in (None, importance()):
            for kind in QUANTIZED:
                packed = np.zeros((len(x), kind.row_bytes(x.shape[1])), np.uint8)
                given = None if weights is None else weights.ctypes.data
                chunk(kind, x.ctypes.data, packed.ctypes.data, 0, *x.shape, given)
                found[key(kind, distribution, weights is not None)] = errors(x, packed, kind, weights)
    record = {"made_by": "tools/make_quantize_fixtures.py", "peer": args.version, "errors": found}
    TARGET.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
