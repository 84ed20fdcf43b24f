"""LoRA adapters of PEFT and MLX as GGUF adapters, as llama.cpp's `--lora` reads them.

A weight W of the base model becomes W + alpha / rank * B A. The file holds A (rank, in) and B (out, rank)
under the name of W with .lora_a and .lora_b; rows of B change their order as those of W do. The file states
one alpha: where modules are scaled otherwise, B is multiplied by what is left. Source:
convert_lora_to_gguf.py and src/llama-adapter.cpp of llama.cpp for the format, PEFT's LoraConfig for the
meaning of the fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pyllamacpu.convert.checkpoint import holds_model, open_checkpoint
from pyllamacpu.convert.conversion import Conversion, ConvertOptions, build_conversion
from pyllamacpu.convert.formats.json_file import read_optional_json
from pyllamacpu.convert.general import general_keys
from pyllamacpu.convert.lora_config import Scaling, base_name, check_ranks, check_tying, read_scaling
from pyllamacpu.convert.lora_experts import ranks_in_file, with_stacks
from pyllamacpu.convert.lora_pairs import WEIGHT_FILES, Pair, check_copies, read_pairs
from pyllamacpu.convert.models.config import read_config
from pyllamacpu.convert.models.fields import Fields
from pyllamacpu.convert.models.names import pair_order
from pyllamacpu.convert.models.shape import ModelShape
from pyllamacpu.convert.models.slots import Slot, slots
from pyllamacpu.convert.unused_options import check_ignored, check_used
from pyllamacpu.errors import CheckpointError, OptionError
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.model.lora import MAX_ALPHA, MIN_ALPHA
from pyllamacpu.quantize.file_types import file_type_keys
from pyllamacpu.weights.lazy_ops import map_rows, take_rows, transpose
from pyllamacpu.weights.lazy_tensor import LazyTensor
from pyllamacpu.weights.stream import OutputTensor

CONFIG = "adapter_config.json"
_KINDS = {"f32": TensorType.F32, "f16": TensorType.F16, "bf16": TensorType.BF16, "q8_0": TensorType.Q8_0}
_NUMBERS = {TensorType.F32: 0, TensorType.F16: 1, TensorType.BF16: 32, TensorType.Q8_0: 7}


def is_adapter(source: Path) -> bool:
    """Whether a folder holds an adapter. A config that was left behind in a merged model does not make it
    one.
    """
    if not source.is_dir() or not (source / CONFIG).is_file():
        return False
    return any((source / name).is_file() for name in WEIGHT_FILES) or not holds_model(source)


def plan_adapter(source: Path, options: ConvertOptions) -> Conversion:
    """The plan of an adapter. Raises CheckpointError, OptionError."""
    check_used(source, "LoRA adapter", options)
    stated = read_optional_json(source / CONFIG)
    config = Fields(source / CONFIG, {k: v for k, v in stated.items() if k not in options.ignored_config})
    scaling = read_scaling(config)
    base, base_config = _base(source, config, options)
    check_ignored(options, {source / CONFIG: stated, base: base_config})
    shape = read_config(base, base_config, "hf", options.ignored_config)
    checkpoint = open_checkpoint(_weights(source))
    found = read_pairs(source, checkpoint.tensors)
    check_tying(config, "embed_tokens.weight" in found.pairs, shape.tied)
    notes = tuple(check_copies(source, found, shape, base.parent))
    if holds_model(source):
        notes = (*notes, "the folder holds a whole model too: only the adapter is converted")
    kind = _kind(options.outtype, checkpoint.tensors)
    alpha, pairs = _scaled(scaling, found.pairs)
    if not MIN_ALPHA <= abs(alpha) <= MAX_ALPHA:
        raise CheckpointError(
            source / CONFIG,
            f"scales its product by {alpha:g} / rank: no adapter of use has an alpha beyond {MIN_ALPHA:g} to "
            f"{MAX_ALPHA:g}; the file is damaged",
        )
    keys = [
        KeyValue("general.architecture", shape.arch),
        *general_keys(source, {}, {}, "", options.name, kind="adapter"),
        KeyValue("adapter.type", "lora"),
        KeyValue("adapter.lora.alpha", alpha, ValueType.FLOAT32),
        *_invocation(config),
        *file_type_keys(_NUMBERS[kind]),
    ]
    items = _items(source, shape, pairs, kind)
    check_ranks(config, {pair.module: pair.rank for pair in pairs.values()})
    return build_conversion(source, checkpoint.files, options, kind.name, keys, items, notes)


def _scaled(scaling: Scaling, pairs: Mapping[str, Pair]) -> tuple[float, dict[str, Pair]]:
    """The file's alpha, and the pairs with B multiplied where alpha / rank is not their scale.

    Readers take alpha 0 for "not scaled", so an adapter without effect gets a B of zeros instead.
    """
    ranks = ranks_in_file(pairs)
    wanted = {name: scaling.of(pair.module, pair.rank) * ranks[name] for name, pair in pairs.items()}
    alphas = set(wanted.values())
    alpha = alphas.pop() if len(alphas) == 1 else scaling.alpha or max(wanted.values())
    alpha = alpha or 1.0
    scaled = dict(pairs)
    for name, pair in pairs.items():
        if wanted[name] != alpha and pair.b is not None:
            scaled[name] = replace(pair, b=_times(pair.b, wanted[name] / alpha))
    return alpha, scaled


def _times(tensor: LazyTensor, factor: float) -> LazyTensor:
    return map_rows(tensor, lambda values: values * np.float32(factor))


def _invocation(config: Fields) -> list[KeyValue]:
    tokens = config.get("alora_invocation_tokens")
    return [KeyValue("adapter.alora.invocation_tokens", tokens, ValueType.UINT32)] if tokens else []


def _base(source: Path, config: Fields, options: ConvertOptions) -> tuple[Path, dict[str, Any]]:
    """The base model's config.json: from --base, beside the adapter, or where the adapter names it."""
    named = base_name(config)
    folders = [options.base] if options.base else [source, *([Path(named), source / named] if named else [])]
    for folder in folders:
        path = folder if folder.is_file() else folder / "config.json"
        values = read_optional_json(path)
        if values:
            return path, values
    if options.base:
        raise CheckpointError(options.base, "has no config.json")
    cached = None if not named or options.base else _cached(named)
    if cached:
        return cached, read_optional_json(cached)
    raise CheckpointError(
        source,
        f"the config of its base model {named or '(not named)'} is not here; give its folder with --base",
    )


def _cached(named: str) -> Path | None:
    """config.json in the hub's local cache, without a download."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(named, "config.json")
    except ValueError:  # no name of a repository
        return None
    return Path(found) if isinstance(found, str) else None


def _weights(source: Path) -> Path:
    for name in WEIGHT_FILES:
        if (source / name).is_file():
            return source / name
    raise CheckpointError(source, f"has none of {', '.join(WEIGHT_FILES)}")


def _kind(outtype: str, tensors: Mapping[str, LazyTensor]) -> TensorType:
    text = outtype.strip().lower()
    if text == "auto":
        kinds = {tensor.dtype for tensor in tensors.values()}
        return (
            TensorType[kinds.pop()] if len(kinds) == 1 and kinds <= {"F32", "F16", "BF16"} else TensorType.F32
        )
    if text not in _KINDS:
        raise OptionError(f"adapters can be {', '.join(_KINDS)} or auto, not {outtype}")
    return _KINDS[text]


def _items(
    source: Path, shape: ModelShape, pairs: Mapping[str, Pair], kind: TensorType
) -> list[OutputTensor]:
    sized = replace(shape, vocab_size=shape.vocab_size or _rows_of_embedding(pairs), tied=False)
    known = {slot.source: slot for slot in slots(sized) if len(slot.shape) >= 2}
    items = []
    for name, pair in sorted(with_stacks(source, pairs, shape.n_experts).items()):
        slot = known.get(name)
        if slot is None:
            raise CheckpointError(
                source,
                f"the base model has no {name} that a GGUF adapter could change: give its own base with "
                "--base, or merge the adapter into its base (merge_and_unload), convert that",
            )
        if name == "lm_head.weight" and shape.tied:
            raise CheckpointError(source, "it changes lm_head, which the base model ties to the embedding")
        if pair.a is None or pair.b is None:
            raise CheckpointError(source, f"{name} has only one of A and B")
        items += _item_pair(source, slot, pair.a, pair.b, kind)
    return items


def _rows_of_embedding(pairs: Mapping[str, Pair]) -> int:
    head, embedding = pairs.get("lm_head.weight"), pairs.get("embed_tokens.weight")
    if head and head.b is not None:
        return head.b.shape[0]
    return embedding.a.shape[1] if embedding and embedding.a is not None else 1


def _item_pair(
    source: Path, slot: Slot, a: LazyTensor, b: LazyTensor, kind: TensorType
) -> list[OutputTensor]:
    """lora_a (rank, in), lora_b (out, rank); of the embedding lora_a (rows, rank), lora_b (dim, rank); of
    experts one for each.
    """
    *experts, n_out, n_in = slot.shape
    embedding = slot.name == "token_embd.weight"
    rank = a.shape[-2]
    # PEFT's Embedding looks rows up in A and multiplies them by B: W^T = B A with A (rank, rows), B (dim,
    # rank).
    wanted = ((rank, n_out), (n_in, rank)) if embedding else ((rank, n_in), (n_out, rank))
    if (a.shape, b.shape) != tuple((*experts, *sizes) for sizes in wanted):
        raise CheckpointError(
            source,
            f"{slot.source}: A {a.shape} and B {b.shape} do not fit the base model's {slot.shape}; wrong "
            f"--base?",
        )
    if slot.heads:
        b = take_rows(b, pair_order(n_out, slot.heads))
    if embedding:
        a = transpose(a)
    return [
        OutputTensor(f"{slot.name}.lora_a", a, _fitting(kind, a)),
        OutputTensor(f"{slot.name}.lora_b", b, _fitting(kind, b)),
    ]


def _fitting(kind: TensorType, tensor: LazyTensor) -> TensorType:
    """F16 for rows that are not whole blocks."""
    return kind if tensor.shape[-1] % kind.block_size == 0 else TensorType.F16
