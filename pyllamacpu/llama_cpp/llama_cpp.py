"""llama_cpp.llama_cpp: the constants of llama.h. Its functions are not here: models are not run by it."""

from __future__ import annotations

from typing import Any

from pyllamacpu.gguf.types import TensorType

_LISTS = {  # prefix: names that count from the number
    "LLAMA_VOCAB_TYPE": (0, "NONE SPM BPE WPM UGM RWKV PLAMO2"),
    "LLAMA_TOKEN_TYPE": (0, "UNDEFINED NORMAL UNKNOWN CONTROL USER_DEFINED UNUSED BYTE"),
    "LLAMA_ROPE_SCALING_TYPE": (-1, "UNSPECIFIED NONE LINEAR YARN LONGROPE"),
    "LLAMA_POOLING_TYPE": (-1, "UNSPECIFIED NONE MEAN CLS LAST RANK"),
    "LLAMA_ATTENTION_TYPE": (-1, "UNSPECIFIED CAUSAL NON_CAUSAL"),
    "LLAMA_FLASH_ATTN_TYPE": (-1, "AUTO DISABLED ENABLED"),
    "LLAMA_SPLIT_MODE": (0, "NONE LAYER ROW TENSOR"),
    "LLAMA_LOAD_MODE": (-1, "AUTO NONE MMAP MLOCK MMAP_MLOCK DIRECT_IO"),
    "LLAMA_KV_OVERRIDE_TYPE": (0, "INT FLOAT BOOL STR"),
    "GGML_NUMA_STRATEGY": (0, "DISABLED DISTRIBUTE ISOLATE NUMACTL MIRROR COUNT"),
    "LLAMA_FTYPE_MOSTLY": (
        7,
        "Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS Q2_K_S "
        "IQ3_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16",
    ),
}
_NUMBERS: dict[str, int] = {
    "LLAMA_DEFAULT_SEED": 0xFFFFFFFF,
    "LLAMA_TOKEN_NULL": -1,
    "LLAMA_ROPE_TYPE_NONE": -1,
    "LLAMA_ROPE_TYPE_NORM": 0,
    "LLAMA_ROPE_TYPE_NEOX": 2,
    "LLAMA_FTYPE_ALL_F32": 0,
    "LLAMA_FTYPE_MOSTLY_F16": 1,
    "LLAMA_FTYPE_MOSTLY_Q4_0": 2,
    "LLAMA_FTYPE_MOSTLY_Q4_1": 3,
    "LLAMA_FTYPE_MOSTLY_TQ1_0": 36,
    "LLAMA_FTYPE_MOSTLY_TQ2_0": 37,
    "LLAMA_FTYPE_MOSTLY_MXFP4_MOE": 38,
    "LLAMA_FTYPE_GUESSED": 1024,
}


def _constants() -> dict[str, int]:
    found = {f"GGML_TYPE_{member.name}": int(member) for member in TensorType}
    for prefix, (first, names) in _LISTS.items():
        found |= {f"{prefix}_{name}": first + i for i, name in enumerate(names.split())}
    return found | _NUMBERS


globals().update(_constants())


def llama_supports_mmap() -> bool:
    """Files are mapped while they are loaded."""
    return True


def llama_supports_mlock() -> bool:
    """Weights are not locked in memory."""
    return False


def llama_supports_gpu_offload() -> bool:
    """All is computed on the CPU."""
    return False


def llama_backend_init() -> None:
    """Nothing needs it."""


def llama_backend_free() -> None:
    """Nothing needs it."""


def llama_model_get_vocab(model: Any) -> Any:
    """The vocabulary of `Llama.model`."""
    return model.text_tokenizer


def llama_token_to_piece(vocab: Any, token: int, buf: Any, length: int, lstrip: int, special: bool) -> int:
    """Writes the bytes of a token into `buf`, without its first `lstrip` spaces. Returns how many; if they do
    not fit, that number below 0, and nothing is written.
    """
    raw = vocab.token_bytes(token, special=special) if token < vocab.n_vocab else b""
    raw = raw[min(lstrip, len(raw) - len(raw.lstrip(b" "))) :]
    if len(raw) > length:
        return -len(raw)
    buf[: len(raw)] = raw
    return len(raw)


def __getattr__(name: str) -> Any:
    if name.startswith(("llama_", "ggml_", "LLAMA_", "GGML_")):
        raise AttributeError(
            f"llama_cpp.{name} belongs to the C interface of llama.cpp, which pyllamacpu does not have: "
            "use the Llama class"
        )
    raise AttributeError(f"module 'llama_cpp' has no attribute {name!r}")
