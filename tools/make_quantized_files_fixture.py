"""Makes tests/fixtures/quantized.json: hashes of the files that llama-quantize writes of small models.

    python tools/make_quantized_files_fixture.py --bin LLAMA_CPP/build/bin --of 'llama-cpp-python 0.3.36'

Runs the command lines that are the fixture's keys on the files of tests/quantize_model.py. Made with
llama.cpp of llama-cpp-python 0.3.36.
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
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from quantize_model import write_matrix, write_model  # noqa: E402

FIXTURE = ROOT / "tests" / "fixtures" / "quantized.json"
MADE_BY = "tools/make_quantized_files_fixture.py, llama-quantize of"


def hashes(program: Path, arguments: list[str]) -> dict[str, str]:
    """Of the files that a run makes, by name."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model.gguf")
        write_model(folder / "parts.gguf", n_parts=3)
        write_matrix(folder / "matrix.gguf")
        before = {*folder.iterdir()}
        subprocess.run([program, *arguments], cwd=folder, check=True, capture_output=True)
        new = sorted({*folder.iterdir()} - before)
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in new}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True, help="the folder of llama-quantize")
    parser.add_argument("--of", required=True, help="what it was built from: llama-cpp-python 0.3.36")
    args = parser.parse_args()
    program = (args.bin / "llama-quantize").resolve()
    cases = [case for case in json.loads(FIXTURE.read_text()) if case != "made_by"]
    found = {case: hashes(program, case.split()) for case in cases}
    FIXTURE.write_text(json.dumps({"made_by": f"{MADE_BY} {args.of}"} | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
