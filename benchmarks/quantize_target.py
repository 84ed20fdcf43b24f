"""Mixes of llama-quantize against types chosen for the same size: KL divergence from the unquantized model.

    python benchmarks/quantize_target.py model-f16.gguf text.txt --mix Q4_K_M --mix Q3_K_M

Types are chosen and importance is collected on a text that the model writes; `text.txt`, which neither has
seen, is what divergences are measured on. `--noise` first adds to weights that were made of Q4_1 blocks what
their rounding took: without it a model that was quantized once has types that fit it exactly.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from pyllamacpu.evaluate import Recorded, record
from pyllamacpu.gguf import GGUFFile, GGUFWriter, TensorType
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.quantize.calibrate import sampled_windows, text_windows
from pyllamacpu.quantize.driver import run
from pyllamacpu.quantize.file_types import parse_file_type
from pyllamacpu.quantize.imatrix import Imatrix
from pyllamacpu.quantize.plan import QuantizePlan, Settings, make_plan
from pyllamacpu.quantize.target import (
    check,
    choose,
    chosen_plan,
    gather,
    measure,
    open_engine,
    some_windows,
)


def without_grid(source: Path, target: Path) -> None:
    """Writes the model as F16, with uniform noise of one step in all blocks of Q4_1."""
    random = np.random.default_rng(0)
    with GGUFFile.open(source) as file, GGUFWriter(target) as writer:
        writer.copy_metadata(file.metadata)
        for name, info in file.tensors.items():
            values = dequantize(file.data(name), info.type, info.shape)
            if info.type == TensorType.Q4_1:
                blocks = file.data(name).reshape(-1, info.type.block_bytes)
                steps = blocks[:, :2].copy().view("<f2").astype(np.float32)
                noise = random.random((len(blocks), 32), np.float32) - np.float32(0.5)
                values = (values.reshape(-1, 32) + steps * noise).reshape(info.shape)
            writer.add_array(name, values.astype(np.float16) if values.ndim > 1 else values)


def quiet(text: str, done: int, total: int) -> None:
    if done == 0:
        print(f"{text} ({total}) …", flush=True)


def divergence(plan: QuantizePlan, folder: Path, base: Recorded) -> str:
    out = folder / "quantized.gguf"
    for _ in run(plan, out):
        pass
    found = check(out, base)
    return f"{plan.n_bytes / 1e6:8.2f} MB  KLD {found.mean_kld.value:.4f} ± {found.mean_kld.error:.4f}"


def rows(file: GGUFFile, mixes: list[str], n_tokens: int, text: Path, folder: Path) -> Iterator[str]:
    with GGUFFile.open(file.paths[0]) as again:
        engine = open_engine(again)
        base = record(engine, text_windows(file.metadata, text, 2048))
        cut = sampled_windows(engine, n_tokens)
        imatrix: Imatrix = gather(again, cut, "sampled", quiet)
        settings = Settings(parse_file_type("COPY"), imatrix=imatrix, imatrix_name="sampled")
        for mix in mixes:
            plain = Settings(parse_file_type(mix))
            yield f"{mix:8} no importance  {divergence(make_plan(file, plain), folder, base)}"
            same = make_plan(file, replace(plain, imatrix=imatrix, imatrix_name="sampled"))
            yield f"{mix:8} importance     {divergence(same, folder, base)}"
            bits = 8 * same.n_bytes / same.n_elements
            measured = measure(file, engine, some_windows(cut, 512), settings, bits, quiet)
            ours = chosen_plan(file, settings, choose(measured, same.n_bytes))
            yield f"{mix:8} types chosen   {divergence(ours, folder, base)}"
        engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--mix", action="append", help="[default: Q4_K_M and Q3_K_M]")
    parser.add_argument("--tokens", type=int, default=4096, help="that the model writes")
    parser.add_argument("--noise", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), given.model
        if given.noise:
            model = folder / "noisy.gguf"
            without_grid(given.model, model)
        with GGUFFile.open(model) as file:
            for row in rows(file, given.mix or ["Q4_K_M", "Q3_K_M"], given.tokens, given.text, folder):
                print(row, flush=True)


if __name__ == "__main__":
    main()
