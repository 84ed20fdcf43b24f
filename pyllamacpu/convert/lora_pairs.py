"""The tensors of an adapter: A and B of each weight, and copies of the base model's own weights.

PEFT stores A (rank, in) and B (out, rank), MLX both transposed (`lora_a`, `lora_b`). Beside them PEFT stores
the embedding and output matrix of the base (`base_layer`) when these have an adapter, or when the vocabulary
may have been resized.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pyllamacpu.convert.checkpoint import open_checkpoint
from pyllamacpu.convert.models.leftovers import all_zero, equal
from pyllamacpu.convert.models.plain_names import plain_name
from pyllamacpu.convert.models.shape import ModelShape
from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights.lazy_ops import transpose
from pyllamacpu.weights.lazy_tensor import LazyTensor

WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors")
_PEFT = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<part>[AB])(\.(?!weight$)(?P<adapter>\w+))?(\.weight)?"
)
_MLX = re.compile(r"(?P<module>.+)\.lora_(?P<part>[ab])")


@dataclass
class Pair:
    """A (rank, in) and B (out, rank) of one weight; `module` is its layer's name in the base model."""

    module: str
    a: LazyTensor | None = None
    b: LazyTensor | None = None

    @property
    def rank(self) -> int:
        return 1 if self.b is None or len(self.b.shape) != 2 else self.b.shape[1]


@dataclass(frozen=True)
class AdapterTensors:
    """`pairs` by the base's name of the weight, without prefixes; `copies` of the base's weights likewise.
    `layered`: those of the copies that are beside an adapter of the same layer.
    """

    pairs: dict[str, Pair]
    copies: dict[str, LazyTensor]
    layered: frozenset[str]


def read_pairs(source: Path, tensors: Mapping[str, LazyTensor]) -> AdapterTensors:
    """Raises CheckpointError for tensors that are neither A nor B, nor could be copies."""
    pairs: dict[str, Pair] = {}
    copies: dict[str, LazyTensor] = {}
    layered = set()
    adapters = set()
    seen: dict[str, str] = {}
    for name, tensor in tensors.items():
        match = _PEFT.fullmatch(name) or _MLX.fullmatch(name)
        if match:
            _check_matrix(source, name, tensor)
            module, weight = match["module"], plain_name(match["module"]) + ".weight"
            adapters.add(match.groupdict().get("adapter"))
            _check_first(
                source, seen, f"{weight}.{match['part'].lower()}.{match.groupdict().get('adapter')}", name
            )
            pair = pairs.setdefault(weight, Pair(_module(module)))
            value = transpose(tensor) if match["part"] in "ab" else tensor
            if match["part"] in "Aa":
                pair.a = value
            else:
                pair.b = value
        elif ".lora_" not in name and name.endswith((".weight", ".bias")):
            plain = plain_name(name)
            _check_first(source, seen, plain.replace(".base_layer.", "."), name)
            copies[plain.replace(".base_layer.", ".")] = tensor
            layered |= {plain.replace(".base_layer.", ".")} if ".base_layer." in plain else set()
        else:
            raise _unknown(source, name)
    if len(adapters) > 1:
        raise CheckpointError(source, f"holds {len(adapters)} adapters: {', '.join(map(str, adapters))}")
    if not pairs:
        raise (
            _unknown(source, next(iter(copies)))
            if copies
            else CheckpointError(source, "holds no LoRA tensors")
        )
    return AdapterTensors(pairs, copies, frozenset(layered))


def _check_matrix(source: Path, name: str, tensor: LazyTensor) -> None:
    if len(tensor.shape) != 2 or not tensor.n_elements:
        raise CheckpointError(
            source, f"{name} has the shape {tensor.shape}: A and B of a LoRA are matrices, of rank 1 or more"
        )


def _check_first(source: Path, seen: dict[str, str], key: str, name: str) -> None:
    """Raises CheckpointError when the tensor `key` was there before, under another name."""
    if (before := seen.setdefault(key, name)) != name:
        raise CheckpointError(
            source, f"{before} and {name} are of the same weight, and which of them counts is not certain"
        )


def _module(name: str) -> str:
    """As PEFT compares it with patterns: the layer's name in the base model."""
    return name.removeprefix("base_model.model.")


def _unknown(source: Path, *names: str) -> CheckpointError:
    hint = "" if ".lora_" in names[0] else " (full weights: merge the adapter into its base instead)"
    return CheckpointError(source, f"has tensors that are no A or B of a LoRA: {', '.join(names)}{hint}")


def check_copies(source: Path, found: AdapterTensors, shape: ModelShape, base: Path) -> Iterator[str]:
    """What to say about copies of the base's weights. Raises CheckpointError for those that are not copies:
    trained ones, or of a vocabulary of another size. `base`: the folder of the base model, which may hold
    nothing but a config.
    """
    of_base = _weights_of(base) if found.copies and base.resolve() != source.resolve() else {}
    trusted = []
    for name, tensor in found.copies.items():
        if name.endswith(".bias") and all_zero(tensor):
            continue
        rows = shape.n_embeddings if name == "embed_tokens.weight" else shape.vocab_size
        if name in ("embed_tokens.weight", "lm_head.weight") and rows and tensor.n_rows != rows:
            raise CheckpointError(
                source,
                f"its {name} has {tensor.n_rows} rows, the base model {rows}: the vocabulary was resized; "
                "merge the adapter into its base (merge_and_unload), convert that",
            )
        if name == "lm_head.weight" and shape.tied and name not in of_base:
            name = "embed_tokens.weight"
        if name in of_base and equal(tensor, of_base[name]):
            continue
        if name in of_base or name not in found.layered:
            raise _unknown(source, name)
        trusted.append(name)
    if trusted:
        yield (
            f"warning: {', '.join(trusted)} in the adapter should be copies of the base model's and are left "
            "out; whether they are, only the base's weights could tell, which are not here"
        )


def _weights_of(folder: Path) -> dict[str, LazyTensor]:
    """The base model's weights by their plain names; empty when they are not here."""
    try:
        return {plain_name(name): tensor for name, tensor in open_checkpoint(folder).tensors.items()}
    except CheckpointError:
        return {}
