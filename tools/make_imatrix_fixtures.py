"""Makes tests/fixtures/imatrix: importance matrices of a tiny model as llama-imatrix writes them.

    python tools/make_imatrix_fixtures.py --bin LLAMA_CPP/build/bin --vocabulary smollm2.gguf

The model is random: 2 layers of 64 with 4 experts (2 used), and the vocabulary of the file given. The last
expert is never used. Made with llama.cpp of llama-cpp-python 0.3.36 and SmolLM2's vocabulary.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.gguf.writer import GGUFWriter

FOLDER = Path(__file__).parents[1] / "tests" / "fixtures" / "imatrix"
N_LAYERS, DIM, FFN, N_EXPERTS = 2, 64, 96, 4
TEXT = "The quick brown fox jumps over the lazy dog while the rain keeps falling on a stone bridge. " * 2


def numbers() -> dict[str, int]:
    return {
        "context_length": 128,
        "embedding_length": DIM,
        "block_count": N_LAYERS,
        "feed_forward_length": FFN,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "expert_count": N_EXPERTS,
        "expert_used_count": 2,
    }


def shapes(n_vocab: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, DIM), "output_norm.weight": (DIM,)}
    for layer in range(N_LAYERS):
        found |= {
            f"blk.{layer}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (DIM,),
                "attn_q": (DIM, DIM),
                "attn_k": (DIM // 2, DIM),
                "attn_v": (DIM // 2, DIM),
                "attn_output": (DIM, DIM),
                "ffn_norm": (DIM,),
                "ffn_gate_inp": (N_EXPERTS, DIM),
                "ffn_gate_exps": (N_EXPERTS, FFN, DIM),
                "ffn_up_exps": (N_EXPERTS, FFN, DIM),
                "ffn_down_exps": (N_EXPERTS, DIM, FFN),
            }.items()
        }
    return found


def write_model(path: Path, vocabulary: Path) -> None:
    random = np.random.default_rng(11)
    with GGUFFile.open(vocabulary) as source, GGUFWriter(path, "llama") as writer:
        for key, value in numbers().items():
            writer.add(f"llama.{key}", value, ValueType.UINT32)
        writer.add("llama.attention.layer_norm_rms_epsilon", 1e-5, ValueType.FLOAT32)
        others = [key for key in source.metadata if not key.startswith("tokenizer.")]
        writer.copy_metadata(source.metadata, skip=others)
        for name, shape in shapes(len(source.metadata["tokenizer.ggml.tokens"])).items():
            values = random.standard_normal(shape, np.float32) * 0.1 + ("norm" in name)
            if name == "token_embd.weight":
                values[:, 0] += 3  # a direction that all tokens share …
            elif "ffn_gate_inp" in name:
                values[-1, 0] = -20  # … and that the last expert is never chosen for
            writer.add_array(name, values.astype(np.float32), TensorType.F32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bin", type=Path, required=True, help="the folder of llama-imatrix")
    parser.add_argument("--vocabulary", type=Path, required=True, help="a GGUF file")
    given = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model, text = Path(folder, "model.gguf"), Path(folder, "text.txt")
        write_model(model, given.vocabulary)
        text.write_text(TEXT)
        for form, suffix in (("gguf", "gguf"), ("dat", "dat")):
            command = [given.bin.resolve() / "llama-imatrix", "-m", model, "-f", "text.txt", "-c", "16"]
            command += ["-o", FOLDER.resolve() / f"tiny.{suffix}", "--output-format", form, "--no-ppl"]
            subprocess.run([str(part) for part in command], cwd=folder, check=True, capture_output=True)


if __name__ == "__main__":
    main()
