"""PEFT LoRA adapters as GGUF adapters, as llama.cpp's `--lora` reads them.

A weight W of the base model becomes W + alpha / rank * B A. The file holds A (rank, in) and B (out, rank)
under the name of W with .lora_a and .lora_b; rows of B change their order as those of W do. Source:
convert_lora_to_gguf.py and src/llama-adapter.cpp of llama.cpp for the format, PEFT's LoraConfig for the
meaning of the fields.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyllamacpu.convert.checkpoint import open_checkpoint
from pyllamacpu.convert.conversion import Conversion, ConvertOptions, build_conversion
from pyllamacpu.convert.formats.json_file import read_optional_json
from pyllamacpu.convert.general import general_keys
from pyllamacpu.convert.models.config import read_config
from pyllamacpu.convert.models.fields import Fields, words
from pyllamacpu.convert.models.names import Slot, pair_order, slots
from pyllamacpu.convert.models.plain_names import plain_name
from pyllamacpu.convert.models.shape import ModelShape
from pyllamacpu.errors import CheckpointError, OptionError
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.quantize.file_types import file_type_keys
from pyllamacpu.weights.lazy_ops import take_rows, transpose
from pyllamacpu.weights.lazy_tensor import LazyTensor
from pyllamacpu.weights.stream import OutputTensor

_CONFIG = "adapter_config.json"
_NAME = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<part>[AB])(\.(?P<adapter>\w+))?(\.weight)?"
)
_HARMLESS = words(
    """
    auto_mapping base_model_name_or_path revision peft_type task_type inference_mode r target_modules
    exclude_modules lora_alpha lora_dropout fan_in_fan_out init_lora_weights layers_to_transform
    layers_pattern loftq_config eva_config corda_config peft_version qalora_group_size runtime_config
    parent_library alora_invocation_tokens target_parameters ensure_weight_tying megatron_core
    layer_replication trainable_token_indices use_rslora rank_pattern
    """
)
_KINDS = {"f32": TensorType.F32, "f16": TensorType.F16, "bf16": TensorType.BF16, "q8_0": TensorType.Q8_0}
_NUMBERS = {TensorType.F32: 0, TensorType.F16: 1, TensorType.BF16: 32, TensorType.Q8_0: 7}


@dataclass
class _Pair:
    """A (rank, in) and B (out, rank) of one weight."""

    a: LazyTensor | None = None
    b: LazyTensor | None = None


def is_adapter(source: Path) -> bool:
    return source.is_dir() and (source / _CONFIG).is_file()


def plan_adapter(source: Path, options: ConvertOptions) -> Conversion:
    """The plan of an adapter. Raises CheckpointError, OptionError."""
    if options.vocab_only:
        raise OptionError(f"{source}: a LoRA adapter has no vocabulary")
    stated = read_optional_json(source / _CONFIG)
    config = Fields(source / _CONFIG, {k: v for k, v in stated.items() if k not in options.ignored_config})
    _check_config(config)
    base, base_config = _base(source, config, options)
    shape = read_config(base, base_config, "hf", options.ignored_config)
    checkpoint = open_checkpoint(_weights(source))
    pairs = _pairs(source, checkpoint.tensors)
    kind = _kind(options.outtype, checkpoint.tensors)
    items = _items(source, shape, pairs, kind)
    keys = [
        KeyValue("general.architecture", shape.arch),
        *general_keys(source, {}, {}, "", options.name, kind="adapter"),
        KeyValue("adapter.type", "lora"),
        KeyValue("adapter.lora.alpha", _alpha(config, pairs), ValueType.FLOAT32),
        *_invocation(config),
        *file_type_keys(_NUMBERS[kind]),
    ]
    return build_conversion(source, checkpoint.files, options, kind.name, keys, items, ())


def _check_config(config: Fields) -> None:
    if str(config.get("peft_type", "LORA")).upper() != "LORA":
        raise config.error("peft_type", config.get("peft_type"), "only LORA adapters can be converted")
    off = {"bias"} if config.get("bias") == "none" else set()
    config.only(_HARMLESS, off)
    for key in ("trainable_token_indices", "layer_replication", "target_parameters"):
        if config.get(key):
            raise config.error(key, config.get(key), "GGUF adapters cannot state that")


def _alpha(config: Fields, pairs: Mapping[str, _Pair]) -> float:
    """llama.cpp scales by alpha / rank; PEFT's rank-stabilised kind by alpha / sqrt(rank)."""
    alpha = config.real("lora_alpha")
    if not config.flag("use_rslora"):
        return alpha
    ranks = {pair.b.shape[1] for pair in pairs.values() if pair.b is not None}
    if len(ranks) != 1:
        raise config.error(
            "use_rslora", True, f"with several ranks {sorted(ranks)} GGUF adapters cannot state that"
        )
    return alpha * math.sqrt(ranks.pop())


def _invocation(config: Fields) -> list[KeyValue]:
    tokens = config.get("alora_invocation_tokens")
    return [KeyValue("adapter.alora.invocation_tokens", tokens, ValueType.UINT32)] if tokens else []


def _base(source: Path, config: Fields, options: ConvertOptions) -> tuple[Path, dict[str, Any]]:
    """The base model's config.json: from --base, beside the adapter, or where the adapter names it."""
    named = str(config.get("base_model_name_or_path", ""))
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
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (source / name).is_file():
            return source / name
    raise CheckpointError(source, "has neither adapter_model.safetensors nor adapter_model.bin")


def _pairs(source: Path, tensors: Mapping[str, LazyTensor]) -> dict[str, _Pair]:
    """A and B by the weight's name. Raises CheckpointError for tensors that are neither."""
    pairs: dict[str, _Pair] = {}
    unknown = []
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if not match or len(tensor.shape) != 2:
            unknown.append(name)
            continue
        pair = pairs.setdefault(plain_name(match["module"].removeprefix("base_model.")) + ".weight", _Pair())
        if match["part"] == "A":
            pair.a = tensor
        else:
            pair.b = tensor
    if unknown:
        hint = (
            " (full weights: merge the adapter into its base instead)" if ".lora_" not in unknown[0] else ""
        )
        raise CheckpointError(
            source, f"has tensors that are no A or B of a LoRA: {', '.join(unknown[:3])}{hint}"
        )
    if not pairs:
        raise CheckpointError(source, "holds no LoRA tensors")
    return pairs


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
    source: Path, shape: ModelShape, pairs: Mapping[str, _Pair], kind: TensorType
) -> list[OutputTensor]:
    sized = replace(shape, vocab_size=shape.vocab_size or _rows_of_embedding(pairs), tied=False)
    known = {slot.source: slot for slot in slots(sized) if len(slot.shape) == 2}
    items = []
    for name, pair in sorted(pairs.items()):
        slot = known.get(name)
        if slot is None:
            raise CheckpointError(source, f"the base model has no {name} that a GGUF adapter could change")
        if name == "lm_head.weight" and shape.tied:
            raise CheckpointError(source, "it changes lm_head, which the base model ties to the embedding")
        if pair.a is None or pair.b is None:
            raise CheckpointError(source, f"{name} has only one of A and B")
        items += _item_pair(source, slot, pair.a, pair.b, kind)
    return items


def _rows_of_embedding(pairs: Mapping[str, _Pair]) -> int:
    head, embedding = pairs.get("lm_head.weight"), pairs.get("embed_tokens.weight")
    if head and head.b is not None:
        return head.b.shape[0]
    return embedding.a.shape[1] if embedding and embedding.a is not None else 1


def _item_pair(
    source: Path, slot: Slot, a: LazyTensor, b: LazyTensor, kind: TensorType
) -> list[OutputTensor]:
    """lora_a (rank, in), lora_b (out, rank); of the embedding lora_a (rows, rank), lora_b (dim, rank)."""
    n_out, n_in = slot.shape
    embedding = slot.name == "token_embd.weight"
    rank = a.shape[0]
    # PEFT's Embedding looks rows up in A and multiplies them by B: W^T = B A with A (rank, rows), B (dim,
    # rank).
    wanted = ((rank, n_out), (n_in, rank)) if embedding else ((rank, n_in), (n_out, rank))
    if (a.shape, b.shape) != wanted:
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
