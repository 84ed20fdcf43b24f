"""From a checkpoint's tensors to those of a GGUF file: names, the order of q and k rows, experts.

Every tensor of the result is known from the config; what the checkpoint has beyond them is an error unless it
is known to be of no use. GGUF names: docs/gguf.md of the ggml project and what llama.cpp's loader asks for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyllamacpu.convert.models.leftovers import check_no_adapter, check_rest, equal
from pyllamacpu.convert.models.mllama_tensors import complete_vision, vision_tensors, with_common_names
from pyllamacpu.convert.models.mllama_vision import VisionShape
from pyllamacpu.convert.models.plain_names import is_useless, plain_name
from pyllamacpu.convert.models.shape import NO_OUTPUT, ModelShape
from pyllamacpu.convert.models.slots import EXPERTS, META_EXPERTS, MIXTRAL_EXPERTS, Slot, slots
from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights.lazy_ops import slice_axis, stack, take_rows, transpose
from pyllamacpu.weights.lazy_tensor import LazyTensor, from_array

_BIAS = re.compile(r"layers\.[^.]*\.(.+\.bias)")


@dataclass(frozen=True)
class Mapped:
    """The tensors of the result in the order of the file, and what must be said about those left out."""

    tensors: dict[str, LazyTensor]
    shape: ModelShape
    notes: tuple[str, ...]


def pair_order(n_rows: int, n_heads: int) -> npt.NDArray[np.int64]:
    """Row numbers that turn Hugging Face's q or k, where rope turns i and i + head_dim / 2, into GGUF's,
    where it turns neighbours.
    """
    half = n_rows // n_heads // 2
    rows = np.arange(n_rows, dtype=np.int64).reshape(n_heads, 2, half)
    order: npt.NDArray[np.int64] = rows.swapaxes(1, 2).reshape(-1)
    return order


def map_tensors(
    path: Path, shape: ModelShape, tensors: Mapping[str, LazyTensor], lost: Mapping[str, str] | None = None
) -> Mapped:
    """All tensors of the result. `lost`: tensors that an index names and no file has, and what to say of
    each. Raises CheckpointError that names what is missing, misshapen or not understood.
    """
    check_no_adapter(path, tensors)
    found = _plain_tensors(path, tensors)
    if shape.arch == "mllama" and shape.layout == "meta":
        found = with_common_names(found)
    shape = complete(path, shape, found)
    _check_lost(path, shape, found, lost or {})
    result: dict[str, LazyTensor] = {}
    taken: set[str] = set()
    divisors = shape.rope.divisors(shape.head_dim)
    if divisors is not None:
        result["rope_freqs.weight"] = from_array(divisors, f"{path}: rope scaling")
    absent = _absent_biases(shape, found)
    for slot in slots(shape):
        if slot.source.endswith(absent):
            continue
        if EXPERTS in slot.source or MIXTRAL_EXPERTS in slot.source:
            tensor = _experts(path, found, slot, taken)
        elif slot.source.endswith("_DE"):
            tensor = transpose(_take(path, found, slot.source, slot.shape[::-1]))
            taken.add(slot.source)
        else:
            tensor = _take(path, found, slot.source, slot.shape)
            taken.add(slot.source)
        result[slot.name] = take_rows(tensor, pair_order(slot.shape[0], slot.heads)) if slot.heads else tensor
    if shape.vision is not None:
        result |= _tower(path, shape, shape.vision, found, taken)
    notes = check_rest(path, shape, found, set(found) - taken)
    if absent:
        said = f"the config announces biases that no layer has: {', '.join(absent)}; they count as zero"
        notes = (said, *notes)
    return Mapped(result, shape, notes)


def _tower(
    path: Path, shape: ModelShape, vision: VisionShape, found: Mapping[str, LazyTensor], taken: set[str]
) -> dict[str, LazyTensor]:
    def take(name: str, size: tuple[int, ...]) -> LazyTensor:
        taken.add(name)
        return _take(path, found, name, size)

    return dict(vision_tensors(shape, vision, take))


def _absent_biases(shape: ModelShape, found: Mapping[str, LazyTensor]) -> tuple[str, ...]:
    """Ends of names of biases that the config announces and no layer has, though they have others (Qwen's q,
    k and v). Where single layers lack one, or all lack all, the checkpoint is incomplete.
    """
    ends = {slot.source.split(".", 2)[2] for slot in slots(shape) if slot.source.endswith(".bias")}
    held = {match[1] for name in found if (match := _BIAS.fullmatch(name))}
    return tuple(sorted(ends - held)) if held else ()


def complete(path: Path, shape: ModelShape, tensors: Mapping[str, LazyTensor]) -> ModelShape:
    """The shape with the sizes that only the tensors tell: rows of the embedding, and Meta's ffn size."""
    embedding = "tok_embeddings.weight" if shape.layout == "meta" else "embed_tokens.weight"
    output = "output.weight" if shape.layout == "meta" else "lm_head.weight"
    if shape.layout == "meta" and output not in tensors:
        shape = replace(shape, tied=True)
    shape = _untied(shape, tensors.get(embedding), tensors.get(output))
    if shape.vision is not None and shape.layout == "meta":
        shape = replace(shape, vision=complete_vision(shape.vision, tensors))
    if not shape.vocab_size and embedding in tensors:
        shape = replace(shape, vocab_size=tensors[embedding].n_rows)
    if shape.moe_step and not shape.expert_ffn_dim:
        experts = _found(path, tensors, f"layers.{shape.moe_step - 1}.{EXPERTS}.{META_EXPERTS['w1']}")
        shape = replace(shape, expert_ffn_dim=experts.shape[-1])
    if not shape.ffn_dim:
        dense = next((i for i in range(shape.n_layers) if not shape.has_experts(i)), None)
        name = f"layers.{dense}.feed_forward.w1.weight"
        rows = 2 * shape.expert_ffn_dim if dense is None else _found(path, tensors, name).n_rows
        shape = replace(shape, ffn_dim=rows)
    return shape


def _untied(shape: ModelShape, embedding: LazyTensor | None, output: LazyTensor | None) -> ModelShape:
    """An output matrix that differs from the embedding is the model's, whatever the config says of it."""
    if not shape.tied or embedding is None or output is None or equal(embedding, output):
        return shape
    note = (
        "the config says that the output matrix is the token embedding (tie_word_embeddings), but the "
        "checkpoint has another one: it is kept"
    )
    dropped = [text for text in shape.notes if text != NO_OUTPUT]
    return replace(shape, tied=False, notes=(*dropped, note))


def _check_lost(
    path: Path, shape: ModelShape, found: Mapping[str, LazyTensor], lost: Mapping[str, str]
) -> None:
    """Raises CheckpointError for tensors of an index that are nowhere, but for those that nothing needs:
    rotary tables, which are computed anew, and an output matrix that is the embedding.
    """
    for name, text in lost.items():
        plain = plain_name(name)
        if plain not in found and not is_useless(plain) and not (shape.tied and plain == "lm_head.weight"):
            raise CheckpointError(path, text)


def _found(path: Path, tensors: Mapping[str, LazyTensor], name: str) -> LazyTensor:
    if name not in tensors:
        raise CheckpointError(path, f"the tensor {name} is missing; the checkpoint is incomplete")
    return tensors[name]


def _plain_tensors(path: Path, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        plain = plain_name(name)
        if plain in found:
            raise CheckpointError(path, f"two tensors are called {plain}, one of them {name}")
        found[plain] = tensor
    return found


def _take(path: Path, found: Mapping[str, LazyTensor], name: str, shape: tuple[int, ...]) -> LazyTensor:
    tensor = found.get(name)
    if tensor is None:
        raise CheckpointError(path, _missing_text(name))
    if not tensor.is_float or tensor.dtype.startswith("F8"):
        raise CheckpointError(
            path,
            f"the tensor {name} holds {tensor.dtype} {tensor.shape}: it is quantized, and nothing says how "
            f"(config.json has no quantization_config, or one of another method)",
        )
    if tensor.shape != shape:
        raise CheckpointError(
            path, f"the tensor {name} has shape {tensor.shape}, the config says {shape}; one of them is wrong"
        )
    return tensor


def _missing_text(name: str) -> str:
    if name == "lm_head.weight":
        return (
            "there is no output matrix lm_head.weight, and the config does not say that it is the token "
            'embedding; if it is, set "tie_word_embeddings": true in config.json'
        )
    return f"the tensor {name} is missing; the checkpoint is incomplete"


def _experts(path: Path, found: Mapping[str, LazyTensor], slot: Slot, taken: set[str]) -> LazyTensor:
    """(n_experts, out, in) from stacked experts (n_experts, in, out), or from single ones (out, in).

    Hugging Face's stacks hold gate and up side by side, Meta's one each.
    """
    n, n_out, n_in = slot.shape
    prefix, part = slot.source.removesuffix(".weight").rsplit(".", 1)
    if MIXTRAL_EXPERTS in prefix:
        return _single_experts(path, found, slot, taken)
    joined = f"{prefix}.gate_up_proj" if part in ("gate_proj", "up_proj") else f"{prefix}.{part}"
    joined = f"{prefix}.{META_EXPERTS[part]}" if part in META_EXPERTS else joined
    if joined in found or part in META_EXPERTS:
        both = part in ("gate_proj", "up_proj")
        tensor = _take(path, found, joined, (n, n_in, 2 * n_out if both else n_out))
        taken.add(joined)
        if both:
            start = n_out if part == "up_proj" else 0
            tensor = slice_axis(tensor, 2, start, start + n_out)
        return transpose(tensor, (0, 2, 1))
    return _single_experts(path, found, slot, taken)


def _single_experts(path: Path, found: Mapping[str, LazyTensor], slot: Slot, taken: set[str]) -> LazyTensor:
    n, n_out, n_in = slot.shape
    prefix, part = slot.source.removesuffix(".weight").rsplit(".", 1)
    single = [f"{prefix}.{i}.{part}.weight" for i in range(n)]
    taken.update(single)
    return stack([_take(path, found, name, (n_out, n_in)) for name in single])
