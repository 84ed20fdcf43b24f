"""What a benchmark says about a model: its kind, its size, and how its tensors are stored."""

from __future__ import annotations

from dataclasses import dataclass

from pyllamacpu.gguf.reader import GGUFFile

# `general.file_type` of GGUF files by the names that benchmarks show. Source: enum llama_ftype of llama.cpp.
FILE_TYPES: dict[int, str] = {
    0: "all F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K - Medium",
    11: "Q3_K - Small",
    12: "Q3_K - Medium",
    13: "Q3_K - Large",
    14: "Q4_K - Small",
    15: "Q4_K - Medium",
    16: "Q5_K - Small",
    17: "Q5_K - Medium",
    18: "Q6_K",
    19: "IQ2_XXS - 2.0625 bpw",
    20: "IQ2_XS - 2.3125 bpw",
    21: "Q2_K - Small",
    22: "IQ3_XS - 3.3 bpw",
    23: "IQ3_XXS - 3.0625 bpw",
    24: "IQ1_S - 1.5625 bpw",
    25: "IQ4_NL - 4.5 bpw",
    26: "IQ3_S - 3.4375 bpw",
    27: "IQ3_S mix - 3.66 bpw",
    28: "IQ2_S - 2.5 bpw",
    29: "IQ2_M - 2.7 bpw",
    30: "IQ4_XS - 4.25 bpw",
    31: "IQ1_M - 1.75 bpw",
    32: "BF16",
    36: "TQ1_0 - 1.69 bpw ternary",
    37: "TQ2_0 - 2.06 bpw ternary",
    38: "MXFP4 MoE",
}


@dataclass(frozen=True)
class ModelFacts:
    """`size`: bytes of its tensors."""

    filename: str
    type: str
    size: int
    n_params: int


def model_facts(file: GGUFFile) -> ModelFacts:
    tensors = file.tensors.values()
    n_params = sum(info.n_elements for info in tensors if not info.name.startswith("rope_"))
    label = file.metadata.get("general.size_label")
    size = label if isinstance(label, str) and label.isprintable() else size_label(n_params)
    kind = f"{file.metadata.get('general.architecture', 'unknown')} {size[:12]} {_storage(file)}"
    return ModelFacts(str(file.paths[0]), kind, sum(info.n_bytes for info in tensors), n_params)


def size_label(n_params: int) -> str:
    """135M, 1B, 70B."""
    return f"{n_params / 1e9:.0f}B" if n_params >= 995e6 else f"{n_params / 1e6:.0f}M"


def _storage(file: GGUFFile) -> str:
    """How the file calls its mix of types; without that, the type of most of its bytes."""
    number = file.metadata.get("general.file_type")
    if isinstance(number, int) and number in FILE_TYPES:
        return FILE_TYPES[number]
    totals: dict[str, int] = {}
    for info in file.tensors.values():
        totals[info.type.name] = totals.get(info.type.name, 0) + info.n_bytes
    return max(totals, key=lambda name: totals[name]) if totals else "empty"
