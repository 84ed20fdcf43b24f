"""Writes GGUF files of real shapes with random weights, in any tensor type or mix: for measuring only.

    python benchmarks/synthetic.py 1B Q4_K_M                  # into the cache folder; prints the path
    python benchmarks/synthetic.py 8B Q4_0 --pure -o 8b.gguf  # every matrix in that type, the output too

The mixes are those of llama-quantize without an importance matrix, so speed and size are those of a real
file. Weights are random blocks whose scales give each matrix the spread that keeps activations sane. The
vocabulary has the right size and made-up tokens that llama.cpp accepts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import OptionError, PyllamacpuError
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.gguf.writer import GGUFWriter
from pyllamacpu.model.codebooks import ensure_codebook
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.store.paths import store_home

Bytes = npt.NDArray[np.uint8]
T = TensorType
CHUNK = 1 << 18  # blocks made at a time
SAMPLE = 512  # blocks decoded to find a type's spread


@dataclass(frozen=True)
class Shape:
    """A model's dimensions, as its config gives them. `rope_factor`: of Llama 3's scaling, 0 for none. With
    experts it is a Llama 4, every layer of which has them; `ffn_dim` is each one's, and the shared one's.
    """

    label: str
    n_layers: int
    dim: int
    n_heads: int
    kv_heads: int
    ffn_dim: int
    vocab: int
    n_ctx: int
    rope_theta: float
    tied: bool
    pre: str  # pre-tokenizer
    rope_factor: float = 0.0
    n_experts: int = 0

    @property
    def arch(self) -> str:
        return "llama4" if self.n_experts else "llama"

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


SHAPES: dict[str, Shape] = {
    "135M": Shape("135M", 30, 576, 9, 3, 1536, 49152, 8192, 1e5, True, "smollm"),  # SmolLM2-135M
    "1B": Shape("1B", 16, 2048, 32, 8, 8192, 128256, 131072, 5e5, True, "llama-bpe", 32.0),  # Llama-3.2-1B
    "3B": Shape("3B", 28, 3072, 24, 8, 8192, 128256, 131072, 5e5, True, "llama-bpe", 32.0),  # Llama-3.2-3B
    "8B": Shape("8B", 32, 4096, 32, 8, 14336, 128256, 131072, 5e5, False, "llama-bpe", 8.0),  # Llama-3.1-8B
    # Four of Llama 4 Scout's 48 layers, and a sixth of its vocabulary; 5 GB in four bits
    "SCOUT4": Shape("SCOUT4", 4, 5120, 40, 8, 8192, 32768, 1 << 20, 5e5, False, "llama4", 16.0, 16),
}

# The mixes: `general.file_type`, and the type of what has no rule of its own.
MIXES: dict[str, tuple[int, TensorType]] = {
    "F32": (0, T.F32),
    "F16": (1, T.F16),
    "BF16": (32, T.BF16),
    "Q4_0": (2, T.Q4_0),
    "Q4_1": (3, T.Q4_1),
    "Q5_0": (8, T.Q5_0),
    "Q5_1": (9, T.Q5_1),
    "Q8_0": (7, T.Q8_0),
    "Q2_K": (10, T.Q2_K),
    "Q2_K_S": (21, T.Q2_K),
    "Q3_K_S": (11, T.Q3_K),
    "Q3_K_M": (12, T.Q3_K),
    "Q3_K_L": (13, T.Q3_K),
    "Q4_K_S": (14, T.Q4_K),
    "Q4_K_M": (15, T.Q4_K),
    "Q5_K_S": (16, T.Q5_K),
    "Q5_K_M": (17, T.Q5_K),
    "Q6_K": (18, T.Q6_K),
    "IQ1_S": (24, T.IQ1_S),
    "IQ1_M": (31, T.IQ1_M),
    "IQ2_XXS": (19, T.IQ2_XXS),
    "IQ2_XS": (20, T.IQ2_XS),
    "IQ2_S": (28, T.IQ2_S),
    "IQ3_XXS": (23, T.IQ3_XXS),
    "IQ3_S": (26, T.IQ3_S),
    "IQ4_NL": (25, T.IQ4_NL),
    "IQ4_XS": (30, T.IQ4_XS),
    "TQ1_0": (36, T.TQ1_0),
    "TQ2_0": (37, T.TQ2_0),
    "MXFP4": (38, T.MXFP4),
}
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_FLOATS = (T.F32, T.F16, T.BF16)
_LOW_BITS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S")
# What llama-quantize takes where rows are not multiples of 256.
_NARROW = {T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0, T.TQ1_0: T.Q4_0, T.TQ2_0: T.Q4_0}


def mix_name(text: str) -> str:
    """The name of a mix in any letter case. Raises OptionError."""
    name = text.strip().upper()
    name = _ALIASES.get(name, name)
    if name not in MIXES:
        raise OptionError(f"unknown type {text!r}; known: {', '.join(MIXES)}")
    return name


def tensor_type(mix: str, name: str, shape: Shape) -> TensorType:
    """The type that llama-quantize gives the matrix `name` in that mix."""
    usual = MIXES[mix][1]
    if usual in _FLOATS:
        return usual
    kind = name.removesuffix(".weight").split(".")[-1]
    if kind == "ffn_gate_inp":
        return T.F32
    kind = kind.removesuffix("_exps").removesuffix("_shexp")
    layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
    cols = shape.ffn_dim if kind == "ffn_down" else shape.dim
    if kind == "output" or (kind == "token_embd" and shape.tied):
        chosen = _output_type(mix, usual, cols)
    elif kind == "token_embd":
        chosen = _embedding_type(mix, usual)
    else:
        chosen = _layer_type(mix, usual, kind, layer, shape)
    return chosen if cols % chosen.block_size == 0 else _NARROW.get(chosen, T.IQ4_NL)


def _output_type(mix: str, usual: TensorType, cols: int) -> TensorType:
    if mix == "MXFP4" or cols % usual.block_size:
        return T.Q8_0
    if mix in (*_LOW_BITS, "IQ3_XXS"):
        return T.Q5_K
    return usual if usual == T.Q8_0 else T.Q6_K


def _embedding_type(mix: str, usual: TensorType) -> TensorType:
    if mix in ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"):
        return T.Q2_K
    return {"IQ2_S": T.IQ3_S, "IQ3_XXS": T.IQ3_S, "TQ1_0": T.Q4_K, "TQ2_0": T.Q4_K}.get(mix, usual)


def more_bits(layer: int, n_layers: int) -> bool:
    """The layers that the M mixes give more bits to: the first and last eighth, and every third between."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def _layer_type(mix: str, usual: TensorType, kind: str, layer: int, shape: Shape) -> TensorType:
    if kind == "attn_v":
        return _value_type(mix, usual, layer, shape)
    if kind == "ffn_down":
        return _down_type(mix, usual, layer, shape)
    if kind == "attn_output":
        special = {"Q2_K": T.Q3_K, "Q3_K_M": T.Q4_K, "Q3_K_L": T.Q5_K, "IQ3_XXS": T.IQ3_S}
        special |= {"IQ1_S": T.IQ2_XXS, "IQ1_M": T.IQ2_XXS, "IQ2_S": T.IQ3_S}
        return special.get(mix, usual)
    if kind in ("attn_q", "attn_k") and mix == "IQ3_XXS":
        return T.IQ2_S
    return usual


def _value_type(mix: str, usual: TensorType, layer: int, shape: Shape) -> TensorType:
    grouped = shape.n_heads >= 4 * shape.kv_heads
    if mix in ("Q4_K_M", "Q5_K_M"):
        return T.Q6_K if more_bits(layer, shape.n_layers) else usual
    if mix == "Q3_K_M":
        return T.Q5_K if layer < 2 else T.Q4_K
    if mix == "Q4_K_S":
        return T.Q5_K if layer < 4 else usual
    if mix in ("Q2_K", "Q2_K_S", *_LOW_BITS, "IQ3_XXS", "IQ3_S") and grouped:
        return T.Q4_K
    if mix in ("IQ4_NL", "IQ4_XS") and grouped:
        return T.Q5_K
    ungrouped = {"Q2_K": T.Q3_K, "IQ2_S": T.IQ3_S, "IQ3_XXS": T.IQ3_S, "Q3_K_L": T.Q5_K}
    return T.Q2_K if mix in _LOW_BITS and mix != "IQ2_S" else ungrouped.get(mix, usual)


def _down_type(mix: str, usual: TensorType, layer: int, shape: Shape) -> TensorType:
    early = layer < shape.n_layers // 8
    if mix in ("Q4_K_M", "Q5_K_M"):
        return T.Q6_K if more_bits(layer, shape.n_layers) else usual
    if mix == "Q3_K_M":
        return T.Q5_K if layer < shape.n_layers // 16 else T.Q4_K
    if mix == "IQ3_XXS":
        return T.Q4_K if early else T.Q3_K
    if early and mix in ("Q4_K_S", "IQ4_NL", "IQ4_XS", "Q2_K_S", *_LOW_BITS):
        special = {"Q2_K_S": T.Q4_K, "IQ2_S": T.IQ3_S} | dict.fromkeys(("Q4_K_S", "IQ4_NL", "IQ4_XS"), T.Q5_K)
        return special.get(mix, T.Q2_K)
    return {"Q2_K": T.Q3_K, "Q3_K_L": T.Q5_K}.get(mix, usual)


# Blocks

# Where the float16 scale of a block lies, and that of the minimum with the ratio for a mean of 0.
_SCALES: dict[TensorType, tuple[tuple[int, float], ...]] = {
    T.Q4_0: ((0, 1.0),),
    T.Q4_1: ((0, 1.0), (2, -7.5)),
    T.Q5_0: ((0, 1.0),),
    T.Q5_1: ((0, 1.0), (2, -15.5)),
    T.Q8_0: ((0, 1.0),),
    T.Q2_K: ((80, 1.0), (82, 1.5)),
    T.Q3_K: ((108, 1.0),),
    T.Q4_K: ((0, 1.0), (2, 7.5)),
    T.Q5_K: ((0, 1.0), (2, 15.5)),
    T.Q6_K: ((208, 1.0),),
    T.TQ1_0: ((52, 1.0),),
    T.TQ2_0: ((64, 1.0),),
} | {kind: ((0, 1.0),) for kind in TensorType if kind.name.startswith("IQ") and kind != T.IQ1_M}


def _random_bytes(random: np.random.Generator, n: int) -> Bytes:
    return random.integers(0, 1 << 64, -(-n // 8), dtype=np.uint64, endpoint=False).view(np.uint8)[:n]


def _set_scales(blocks: Bytes, kind: TensorType, scale: npt.NDArray[np.float32]) -> None:
    """blocks: (n, block bytes), scale: (n,)."""
    if kind == T.MXFP4:  # a power of two, as its exponent
        blocks[:, 0] = np.round(127 + np.log2(scale)).astype(np.uint8)
    elif kind == T.IQ1_M:  # four bits in each of four words
        words = blocks[:, 48:56].view("<u2")
        bits = scale.astype("<f2").view("<u2")
        for i in range(4):
            words[:, i] = (words[:, i] & 0x0FFF) | ((bits >> (4 * i) & 0xF) << 12)
    else:
        for offset, ratio in _SCALES[kind]:
            blocks[:, offset : offset + 2] = (scale * ratio).astype("<f2").view(np.uint8).reshape(-1, 2)


def random_blocks(random: np.random.Generator, kind: TensorType, n: int, spread: float) -> Bytes:
    """`n` blocks of a quantized type, (n, block bytes), whose weights have about the deviation `spread`."""
    blocks = _random_bytes(random, n * kind.block_bytes).reshape(n, kind.block_bytes)
    if kind == T.TQ2_0:  # codes are 0, 1, 2 in two bits each
        low = blocks[:, :64] & 0x55
        blocks[:, :64] = low | (blocks[:, :64] & 0xAA & ~(low << 1))
    _set_scales(
        blocks, kind, (0.6 + 0.8 * random.random(n, np.float32)) * np.float32(spread / unit_spread(kind))
    )
    return blocks


_units: dict[TensorType, float] = {}


def unit_spread(kind: TensorType) -> float:
    """The standard deviation of random weights whose blocks have the scale 1."""
    if kind not in _units:
        ensure_codebook(kind)
        blocks = _random_bytes(np.random.default_rng(0), SAMPLE * kind.block_bytes).reshape(SAMPLE, -1)
        _set_scales(blocks, kind, np.ones(SAMPLE, np.float32))
        decoded = dequantize(blocks.reshape(-1), kind, (SAMPLE, kind.block_size))
        _units[kind] = float(decoded.std())
    return _units[kind]


def random_floats(random: np.random.Generator, kind: TensorType, n: int, spread: float) -> Bytes:
    """`n` numbers of a float type: random sign and mantissa, and one of four exponents."""
    width, mantissa, bias = {T.F32: (32, 23, 127), T.F16: (16, 10, 15), T.BF16: (16, 7, 127)}[kind]
    word = np.dtype(f"<u{width // 8}")
    bits = _random_bytes(random, n * word.itemsize).view(word)
    top = bias + 1 + int(np.floor(np.log2(spread)))
    exponent = word.type(top) - (bits >> word.type(mantissa) & word.type(3))
    kept = word.type(1 << width - 1 | (1 << mantissa) - 1)
    return (bits & kept | exponent << word.type(mantissa)).view(np.uint8)


def random_tensor(random: np.random.Generator, kind: TensorType, n: int, spread: float) -> Iterator[Bytes]:
    """The bytes of `n` weights, in pieces."""
    make = random_floats if kind in _FLOATS else random_blocks
    n_blocks = n // kind.block_size
    step = CHUNK if kind.block_size > 1 else CHUNK * 32
    for start in range(0, n_blocks, step):
        yield make(random, kind, min(step, n_blocks - start), spread)


# The file


def matrices(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Names and (rows, cols) of all matrices, (n, rows, cols) of experts."""
    kv = shape.kv_heads * shape.head_dim
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.vocab, shape.dim)}
    for i in range(shape.n_layers):
        for name, size in (
            ("attn_q", (shape.dim, shape.dim)),
            ("attn_k", (kv, shape.dim)),
            ("attn_v", (kv, shape.dim)),
            ("attn_output", (shape.dim, shape.dim)),
        ):
            found[f"blk.{i}.{name}.weight"] = size
        found |= _feed_forward(shape, f"blk.{i}.")
    return found if shape.tied else found | {"output.weight": (shape.vocab, shape.dim)}


def _feed_forward(shape: Shape, prefix: str) -> dict[str, tuple[int, ...]]:
    size, n = (shape.ffn_dim, shape.dim), shape.n_experts
    sizes = {"ffn_gate": size, "ffn_up": size, "ffn_down": size[::-1]}
    if not n:
        return {f"{prefix}{name}.weight": size for name, size in sizes.items()}
    found: dict[str, tuple[int, ...]] = {f"{prefix}ffn_gate_inp.weight": (n, shape.dim)}
    found |= {f"{prefix}{name}_exps.weight": (n, *size) for name, size in sizes.items()}
    return found | {f"{prefix}{name}_shexp.weight": size for name, size in sizes.items()}


def vectors(shape: Shape) -> dict[str, npt.NDArray[np.float32]]:
    ones = np.ones(shape.dim, np.float32)
    found = {f"blk.{i}.{kind}_norm.weight": ones for i in range(shape.n_layers) for kind in ("attn", "ffn")}
    found["output_norm.weight"] = ones
    if shape.rope_factor:
        found["rope_freqs.weight"] = llama3_divisors(shape)
    return found


def llama3_divisors(shape: Shape, low: float = 1.0, high: float = 4.0, n_original: int = 8192) -> np.ndarray:
    """What Llama 3's scaling divides each frequency by, (head_dim / 2,)."""
    frequencies = shape.rope_theta ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim)
    turns = n_original * frequencies / (2 * np.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1 - smooth) / shape.rope_factor + smooth)).astype(np.float32)


def vocabulary(n: int) -> tuple[list[str], list[str], list[int]]:
    """Tokens, merges, token types of a byte-level BPE: bytes, what two and three of them make, specials."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    tokens, merges = list(letters), []
    n_special = 256
    made = 0
    while len(tokens) < n - n_special:
        left, right = tokens[made // 256], letters[made % 256]
        tokens.append(left + right)
        merges.append(f"{left} {right}")
        made += 1
    specials = [f"<|special_{i}|>" for i in range(n - len(tokens))]
    return tokens + specials, merges, [1] * len(tokens) + [3] * len(specials)


def write(path: Path, shape: Shape, mix: str, *, pure: bool = False, seed: int = 0) -> None:
    """Writes the model, whole or not at all. OptionError when rows do not fit a pure type; GGUFError."""
    chosen = {
        name: MIXES[mix][1] if pure and "gate_inp" not in name else tensor_type(mix, name, shape)
        for name in matrices(shape)
    }
    random = np.random.default_rng(seed)
    with GGUFWriter(path, shape.arch) as writer:
        _add_metadata(writer, shape, mix)
        for name, size in matrices(shape).items():
            chosen[name].row_bytes(size[-1])
            writer.add_tensor(name, size, chosen[name])
        for name, values in vectors(shape).items():
            writer.add_array(name, values)
        for name, size in matrices(shape).items():
            spread = 1.0 if name == "token_embd.weight" and not shape.tied else size[-1] ** -0.5
            for piece in random_tensor(random, chosen[name], prod(size), spread):
                writer.write(name, piece)


def _add_metadata(writer: GGUFWriter, shape: Shape, mix: str) -> None:
    tokens, merges, types = vocabulary(shape.vocab)
    first_special = len(types) - types.count(3)
    values = {
        "general.name": f"synthetic {shape.label}",
        "general.size_label": shape.label,
        "general.file_type": MIXES[mix][0],
        "general.quantization_version": 2,
        "llama.block_count": shape.n_layers,
        "llama.context_length": shape.n_ctx,
        "llama.embedding_length": shape.dim,
        "llama.feed_forward_length": shape.ffn_dim,
        "llama.attention.head_count": shape.n_heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": shape.rope_theta,
        "llama.rope.dimension_count": shape.head_dim,
        "llama.vocab_size": shape.vocab,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": shape.pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": first_special,
        "tokenizer.ggml.eos_token_id": first_special + 1,
    }
    experts = {
        "llama.expert_count": shape.n_experts,
        "llama.expert_used_count": 1,
        "llama.expert_feed_forward_length": shape.ffn_dim,
        "llama.interleave_moe_layer_step": 1,
    }
    for key, value in (values | experts if shape.n_experts else values).items():
        writer.add(key.replace("llama.", f"{shape.arch}.", 1) if key.startswith("llama.") else key, value)


def cache_folder() -> Path:
    """Where models are kept that were made on demand."""
    return store_home() / "synthetic"


def cached(name: str, folder: Path | None = None) -> Path:
    """The file of `SHAPE:TYPE` or `SHAPE:TYPE:pure`, made when it is not there yet. Raises OptionError."""
    label, _, rest = name.partition(":")
    text, _, flag = rest.partition(":")
    if label.upper() not in SHAPES or flag not in ("", "pure"):
        raise OptionError(
            f"{name}: write SHAPE:TYPE[:pure]; shapes: {', '.join(SHAPES)}; types: {', '.join(MIXES)}"
        )
    mix = mix_name(text)
    folder = folder or cache_folder()
    path = folder / f"synthetic-{label.upper()}-{mix}{'-pure' if flag else ''}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write(path, SHAPES[label.upper()], mix, pure=bool(flag))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES, type=str.upper)
    parser.add_argument("type", help=f"{', '.join(MIXES)}")
    parser.add_argument(
        "-o", "--output", type=Path, help="the file; else one in the cache folder, which is reused"
    )
    parser.add_argument("--pure", action="store_true", help="every matrix in that type")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        if args.output:
            write(args.output, SHAPES[args.shape], mix_name(args.type), pure=args.pure, seed=args.seed)
            print(args.output)
        else:
            print(cached(f"{args.shape}:{args.type}{':pure' if args.pure else ''}"))
    except PyllamacpuError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
