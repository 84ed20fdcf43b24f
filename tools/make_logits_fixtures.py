"""Make tests/fixtures/logits: tiny random Llamas (GGUF) and the logits that transformers computes.

    python tools/make_logits_fixtures.py [NAME ...]

Needs torch, transformers and gguf. For each shape of `logits_shapes.py`: random weights are encoded in the
shape's tensor type, written as NAME.gguf as llama.cpp's converter would, decoded again by the `gguf` package,
and given to transformers in float32. NAME.npz holds, for each input length n, `ids_n` (n,) int32, `rows_n`
(the positions kept) and `logits_n` (rows, n_vocab) float32, plus `meta`: JSON with the makers' versions and
the measured figures. Every fixture is also computed by `numpy_llama.py` in float64 from the file alone; the
two must agree.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import zlib
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as QType
from gguf_llama import (
    decode,
    gguf_name,
    hf_name,
    llama3_divisors,
    reorder_heads,
    to_halves,
    to_pairs,
    write_file,
)
from logits_shapes import FLOAT_SHAPES, QUANT_SHAPES, Shape
from numpy_llama import NumpyLlama
from random_blocks import SCALES, TERNARY, random_rows
from transformers import LlamaConfig, LlamaForCausalLM

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "logits"
LONG_ROWS = (0, 1, 31, 63, 64, 127, 255, 256, 400, 511, 512, 699)
SHORT_ROWS = (0, 1, 2, 7, 15, 16, 31, 32)
YARN_KEYS = {
    "attention_factor": "yarn_attn_factor",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}
MAX_ORACLE_GAP = 5e-5  # of the logits' spread, between float32 transformers and float64 numpy
VERSIONS = {
    "script": "tools/make_logits_fixtures.py",
    "torch": torch.__version__,
    "transformers": transformers.__version__,
    "gguf": version("gguf"),
    "numpy": np.__version__,
}
MADE_BY = ", ".join(f"{key} {value}" for key, value in VERSIONS.items())


def config_of(shape: Shape) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.dim,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv,
        head_dim=shape.head,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.eps,
        tie_word_embeddings=shape.tied,
        attention_bias=shape.attention_bias,
        mlp_bias=shape.mlp_bias,
        rope_parameters={"rope_type": "default", **shape.rope, "rope_theta": shape.theta},
        attn_implementation="eager",
    )


def spread_of(name: str, fan_in: int, qtype: QType) -> float:
    """Standard deviation of a random matrix: large enough that attention is far from uniform.

    Random minima give neighbouring weights a common part, which sharpens attention: such types start lower.
    """
    sharp = 0.7 if qtype in (QType.Q2_K, QType.Q4_K, QType.Q5_K) else 1.6
    gain = {"attn_q": sharp, "attn_k": sharp, "token_embd": fan_in**0.5, "output": 2.0}
    return gain.get(name.split(".")[-2], 1.2) / fan_in**0.5


def encode(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], qtype: QType
) -> tuple[np.ndarray, QType]:
    """Random content for one tensor: (data for the file, its type). Vectors stay float32."""
    if len(shape) == 1:
        norm = name.endswith("norm.weight")
        return rng.uniform(0.5, 1.5, shape).astype(np.float32) - (0 if norm else 1), QType.F32
    rows, fan_in = shape
    std = spread_of(name, fan_in, qtype)
    if qtype in SCALES or qtype in (*TERNARY, QType.IQ1_M):
        return random_rows(rng, (rows, fan_in), qtype, std), qtype
    values = (rng.standard_normal(shape) * std).astype(np.float32)
    return (values if qtype == QType.F32 else gguf.quants.quantize(values, qtype)), qtype


def rope_metadata(shape: Shape) -> dict[str, object]:
    """The rope scaling keys, as the converter writes them."""
    kind, prefix = shape.rope.get("rope_type"), "llama.rope.scaling"
    if kind == "linear" and "rope.scaling.type" in shape.leave_out:
        return {"llama.rope.scale_linear": shape.rope["factor"]}
    if kind not in ("linear", "yarn"):
        return {}
    keys: dict[str, object] = {f"{prefix}.type": kind, f"{prefix}.factor": shape.rope["factor"]}
    if kind == "yarn":
        keys[f"{prefix}.original_context_length"] = shape.rope["original_max_position_embeddings"]
        keys |= {f"{prefix}.{ours}": shape.rope[hf] for hf, ours in YARN_KEYS.items() if hf in shape.rope}
    return keys


def metadata_of(shape: Shape) -> dict[str, object]:
    keys: dict[str, object] = {
        "general.name": f"fixture {shape.name}",
        "llama.block_count": shape.n_layers,
        "llama.context_length": shape.context,
        "llama.embedding_length": shape.dim,
        "llama.feed_forward_length": shape.ffn,
        "llama.attention.head_count": shape.n_heads,
        "llama.attention.head_count_kv": shape.n_kv,
        "llama.rope.freq_base": shape.theta,
        "llama.attention.layer_norm_rms_epsilon": shape.eps,
        "llama.vocab_size": shape.vocab,
        "llama.rope.dimension_count": shape.head,
        "general.quantization_version": 2,
    }
    if shape.head_dim is not None:
        keys |= {"llama.attention.key_length": shape.head, "llama.attention.value_length": shape.head}
    keys |= rope_metadata(shape)
    return {key: value for key, value in keys.items() if key.removeprefix("llama.") not in shape.leave_out}


def make_tensors(shape: Shape, model: LlamaForCausalLM) -> dict[str, tuple[np.ndarray, QType]]:
    """Random encoded tensors under their GGUF names, in the file's row order."""
    rng = np.random.default_rng(zlib.crc32(shape.name.encode()))
    tensors: dict[str, tuple[np.ndarray, QType]] = {}
    for theirs, value in model.state_dict().items():
        if shape.tied and theirs == "lm_head.weight":
            continue
        name = gguf_name(theirs)
        qtype = shape.mixed.get(name.split(".")[-2], shape.qtype)
        tensors[name] = encode(rng, name, tuple(value.shape), qtype)
    if shape.rope.get("rope_type") == "llama3":
        inv_freq = shape.theta ** (-np.arange(0, shape.head, 2) / shape.head)
        tensors["rope_freqs.weight"] = (llama3_divisors(inv_freq, shape.rope), QType.F32)
    return tensors


def load(model: LlamaForCausalLM, shape: Shape, tensors: dict[str, tuple[np.ndarray, QType]]) -> None:
    """Put the decoded tensors into the transformers model."""
    values = {name: decode(*pair) for name, pair in tensors.items() if name != "rope_freqs.weight"}
    values = reorder_heads(values, shape.n_heads, shape.n_kv, to_halves)
    back = reorder_heads(values, shape.n_heads, shape.n_kv, to_pairs)
    assert all(np.array_equal(back[name], decode(*tensors[name])) for name in back)
    state = {hf_name(name): torch.from_numpy(value.copy()) for name, value in values.items()}
    if shape.tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)


def rows_of(length: int) -> np.ndarray:
    if length <= 8:
        return np.arange(length, dtype=np.int32)
    return np.array([r for r in (LONG_ROWS if length > 64 else SHORT_ROWS) if r < length], np.int32)


def relative_rms(values: np.ndarray, reference: np.ndarray) -> float:
    return float(np.sqrt(((values - reference) ** 2).mean()) / reference.std())


def attention_entropy(model: LlamaForCausalLM, ids: torch.Tensor) -> float:
    """Entropy of the last position's attention over that of uniform attention, mean of heads and layers."""
    weights = torch.stack([a[0, :, -1] for a in model(ids, output_attentions=True).attentions])
    return float(torch.special.entr(weights).sum(-1).mean() / np.log(ids.shape[1]))


def measure(path: Path, shape: Shape, arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """How far float64 numpy, and numpy with 8-bit inputs of matrices, are from the expected logits."""
    exact = NumpyLlama(path)
    figures = {"oracle_gap": 0.0, "q8_block32": 0.0, "q8_block256": 0.0}
    for length in shape.lengths:
        ids, rows, expected = (arrays[f"{key}_{length}"] for key in ("ids", "rows", "logits"))
        gap = np.abs(exact.logits(ids)[rows] - expected).max() / expected.std()
        figures["oracle_gap"] = max(figures["oracle_gap"], float(gap))
        for block in (32, 256) if shape in QUANT_SHAPES else ():
            if shape.dim % block == 0 and shape.ffn % block == 0:
                rounded = NumpyLlama(path, block=block).logits(ids)[rows]
                key = f"q8_block{block}"
                figures[key] = max(figures[key], relative_rms(rounded, expected))
    if figures["oracle_gap"] > MAX_ORACLE_GAP:
        raise SystemExit(f"{shape.name}: the two oracles differ by {figures['oracle_gap']:.2e} of the spread")
    return figures


@torch.no_grad()
def make(shape: Shape) -> None:
    model = LlamaForCausalLM(config_of(shape)).eval().float()
    tensors = make_tensors(shape, model)
    load(model, shape, tensors)
    path = OUT / f"{shape.name}.gguf"
    write_file(path, metadata_of(shape), ((n, data, qtype) for n, (data, qtype) in tensors.items()), MADE_BY)

    rng = np.random.default_rng(zlib.crc32(shape.name.encode()) + 1)
    arrays: dict[str, np.ndarray] = {}
    for length in shape.lengths:
        ids, rows = rng.integers(0, shape.vocab, length).astype(np.int32), rows_of(length)
        logits = model(torch.from_numpy(ids).long()[None]).logits[0].numpy()
        arrays |= {f"ids_{length}": ids, f"rows_{length}": rows, f"logits_{length}": logits[rows]}
    last = torch.from_numpy(arrays[f"ids_{max(shape.lengths)}"]).long()[None]
    figures = measure(path, shape, arrays) | {"attention_entropy": attention_entropy(model, last)}
    types = sorted({qtype.name for data, qtype in tensors.values() if data.ndim > 1})
    spec = {k: v for k, v in dataclasses.asdict(shape).items() if k not in ("qtype", "mixed")}
    meta = {**VERSIONS, "shape": spec, "types": types, "lengths": list(shape.lengths), **figures}
    np.savez_compressed(OUT / f"{shape.name}.npz", meta=np.array(json.dumps(meta)), **arrays)
    size = path.stat().st_size + path.with_suffix(".npz").stat().st_size
    print(shape.name, f"{size / 1000:.0f} kB", {k: float(f"{v:.2g}") for k, v in figures.items()}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="make only these fixtures")
    names = parser.parse_args().names
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    shapes = [s for s in (*FLOAT_SHAPES, *QUANT_SHAPES) if not names or s.name in names]
    if names and len(shapes) != len(names):
        sys.exit(f"unknown fixture among {names}")
    for shape in shapes:
        make(shape)


if __name__ == "__main__":
    main()
