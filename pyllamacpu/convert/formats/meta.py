"""Meta's original checkpoints: `consolidated.NN.pth`, one file per model-parallel rank, and `params.json`.

Every rank holds a part of each matrix. Which axis was cut follows from the layer (Megatron's scheme, as in
fairscale): column-parallel ones (wq, wk, wv, w1, w3, output) along their outputs, row-parallel ones (wo, w2)
along their inputs. The embedding was cut along its width in Llama 1 and 2 and along the vocabulary since; its
shape tells. Norms and the router are whole in every rank. With more ranks than key-value heads, neighbouring
ranks hold the same head. Source: meta-llama/llama-models, models/checkpoint.py and the models beside it.

Names stay Meta's, with two exceptions for Llama 4: its fused matrices are taken apart (wqkv; fc1 into w1 and
w3; norms under their plain names; the shared expert as `shared_expert.w1` …), and its experts come with three
axes, in the order their names tell: `moe_w_in_eD_F` is (n_experts, dim, n_ff).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyllamacpu.convert.formats.json_file import read_json
from pyllamacpu.convert.formats.safetensors import read_safetensors
from pyllamacpu.convert.formats.shards import check_numbered, read_together
from pyllamacpu.convert.formats.torch_file import read_torch
from pyllamacpu.errors import CheckpointError
from pyllamacpu.weights.lazy_ops import concatenate, reshape, slice_rows
from pyllamacpu.weights.lazy_tensor import LazyTensor

_FILE = re.compile(r"consolidated\.(\d{2,})\.pth")
_SAFE = "consolidated.safetensors"  # the same layout in one file, as Mistral's releases have it
_PART = re.compile(r"consolidated-\d{5,6}-of-\d{5,6}\.safetensors")  # the same in numbered files
_UNUSED = re.compile(r"rope\.freqs|.*\._extra_state")  # computed anew, and bookkeeping of the training


@dataclass(frozen=True)
class _Params:
    """What params.json says that the merging needs."""

    path: Path
    dim: int
    n_q: int  # rows of wq: heads times their size
    n_kv: int  # rows of wk and wv
    n_experts: int
    vocab: int  # 0 where the file leaves it to the tokenizer


Merged = dict[str, LazyTensor]
Merge = Callable[[str, list[LazyTensor], _Params], Merged]


def is_meta(folder: Path) -> bool:
    """Whether the folder has the files of a Meta checkpoint."""
    if (folder / "params.json").is_file() and ((folder / _SAFE).is_file() or _numbered(folder)):
        return True
    return any(is_meta_file(path) for path in folder.glob("consolidated.*.pth"))


def is_meta_file(path: Path) -> bool:
    return path.name == _SAFE or any(pattern.fullmatch(path.name) for pattern in (_FILE, _PART))


def _numbered(folder: Path) -> list[Path]:
    """Mistral's numbered files, each with whole tensors."""
    return sorted(path for path in folder.iterdir() if _PART.fullmatch(path.name))


def read_meta(folder: Path) -> tuple[Merged, dict[str, Any], list[Path]]:
    """All tensors, merged; params.json; the files. Raises CheckpointError when a rank is missing."""
    files = _rank_files(folder)
    config = read_json(folder / "params.json")
    params = _params(folder / "params.json", config)
    if _PART.fullmatch(files[0].name):
        check_numbered(folder, files)
        ranks = [read_together(files, lambda path: read_safetensors(path)[0]).tensors]
        return _merged(ranks, files[:1], params), config, files
    ranks = [read_torch(path) if path.suffix == ".pth" else read_safetensors(path)[0] for path in files]
    for path, rank in zip(files, ranks, strict=True):
        if odd := sorted(rank.keys() ^ ranks[0].keys()):
            raise CheckpointError(path, f"differs from {files[0].name} in having or not having {odd[0]!r}")
    return _merged(ranks, files, params), config, files


def _merged(ranks: list[Merged], files: list[Path], params: _Params) -> Merged:
    tensors: Merged = {}
    for name in ranks[0]:
        if not _UNUSED.fullmatch(name):
            tensors.update(_merge_rule(name, files)(name, [rank[name] for rank in ranks], params))
    return tensors


def _rank_files(folder: Path) -> list[Path]:
    found = {int(match[1]): path for path in folder.iterdir() if (match := _FILE.fullmatch(path.name))}
    if not found:
        return [folder / _SAFE] if (folder / _SAFE).is_file() else _numbered(folder)
    missing = sorted(set(range(max(found) + 1)) - found.keys())
    if missing:
        names = ", ".join(f"consolidated.{number:02}.pth" for number in missing)
        raise CheckpointError(folder, f"{names} missing; download all parts of the checkpoint")
    return [found[number] for number in sorted(found)]


def _params(path: Path, config: Mapping[str, Any]) -> _Params:
    if scheme := config.get("quantization_args"):
        raise CheckpointError(
            path,
            f"quantized checkpoints of Meta's own format cannot be read: quantization_args {scheme!r}"[:300],
        )

    def number(key: str, default: int | None = None, source: Mapping[str, Any] = config) -> int:
        value = source.get(key, default)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or (value <= 0 and key != "vocab_size"):
            raise CheckpointError(path, f"{key} must be a whole number above 0, not {value!r}")
        return value

    dim, n_heads = number("dim"), number("n_heads")
    head_dim = number("head_dim", dim // n_heads)
    experts = config.get("moe_args")
    n_experts = number("num_experts", None, experts) if isinstance(experts, Mapping) else 0
    n_kv_heads = number("n_kv_heads", n_heads)
    vocab = max(0, number("vocab_size", 0))  # Llama 2 has -1
    return _Params(path, dim, n_heads * head_dim, n_kv_heads * head_dim, n_experts, vocab)


def _merge_rule(name: str, files: list[Path]) -> Merge:
    for pattern, rule in _RULES:
        if pattern.fullmatch(name):
            return rule
    if len(files) == 1:
        return _replicated
    raise CheckpointError(
        files[0],
        f"tensor {name!r} is unknown: along which axis its {len(files)} parts continue cannot be told",
    )


# one rule per kind of layer: the name, the parts of all ranks, the params -> merged tensors


def _replicated(name: str, parts: list[LazyTensor], _params: _Params) -> Merged:
    for part in parts[1:]:
        if part.shape != parts[0].shape:
            raise CheckpointError(part.source, f"shape {part.shape} differs from {parts[0].shape}")
    return {name: parts[0]}


def _along(axis: int) -> Merge:
    def merge(name: str, parts: list[LazyTensor], _params: _Params) -> Merged:
        _check_matrix(parts, axis)
        return {name: concatenate(parts, axis if len(parts[0].shape) > 1 else 0)}

    return merge


def _check_matrix(parts: list[LazyTensor], axis: int) -> None:
    if len(parts[0].shape) <= axis:
        raise CheckpointError(parts[0].source, f"shape {parts[0].shape} is not a matrix")


def _to_size(axis: int, size: Callable[[_Params], int], what: str) -> Merge:
    """Along `axis`, which must then have `size`: this tells when the last ranks are missing."""

    def merge(name: str, parts: list[LazyTensor], params: _Params) -> Merged:
        _check_matrix(parts, axis)
        total, expected = sum(part.shape[axis] for part in parts), size(params)
        if total != expected:
            raise _does_not_fit(parts, params, f"{total} {what}", expected)
        return {name: concatenate(parts, axis)}

    return merge


def _does_not_fit(parts: list[LazyTensor], params: _Params, found: str, expected: int) -> CheckpointError:
    return CheckpointError(
        parts[0].source,
        f"the {len(parts)} parts together have {found}, {params.path.name} asks for {expected}; "
        "a consolidated.*.pth file is missing, or params.json belongs to another model",
    )


def _key_value(name: str, parts: list[LazyTensor], params: _Params) -> Merged:
    """wk and wv: with more ranks than heads, each head is in several neighbouring ranks."""
    _check_matrix(parts, 0)
    total = sum(part.shape[0] for part in parts)
    copies, rest = divmod(total, params.n_kv)
    if rest or copies < 1 or len(parts) % copies:
        raise _does_not_fit(parts, params, f"{total} rows", params.n_kv)
    for index, part in enumerate(parts):
        first = parts[index - index % copies]
        if part is not first and part.raw(0, 1).tobytes() != first.raw(0, 1).tobytes():
            raise CheckpointError(part.source, f"should be a copy of {first.source}, but differs")
    return {name: concatenate(parts[::copies], 0)}


def _embedding(name: str, parts: list[LazyTensor], params: _Params) -> Merged:
    """Cut along the vocabulary when every part has the full width."""
    _check_matrix(parts, 1)
    rows, width = parts[0].shape[0], parts[0].shape[1]
    axis = 0 if width == params.dim else 1
    merged = concatenate(parts, axis)
    if merged.shape[1] != params.dim or rows == 0:
        raise _does_not_fit(parts, params, f"the width {merged.shape[1]}", params.dim)
    if params.vocab and merged.shape[0] < params.vocab:
        raise _does_not_fit(parts, params, f"{merged.shape[0]} rows", params.vocab)
    return {name: merged}


def _renamed(new: str, rule: Merge) -> Merge:
    """`rule`, with the last parts of the name replaced by `new` (it begins at the layer's name)."""

    def merge(name: str, parts: list[LazyTensor], params: _Params) -> Merged:
        prefix = re.match(r"layers\.\d+\.", name)
        return rule(f"{prefix[0] if prefix else ''}{new}", parts, params)

    return merge


def _query_key_value(name: str, parts: list[LazyTensor], params: _Params) -> Merged:
    """Each part has the rows of its q, then its k, then its v."""
    n_q = params.n_q // len(parts)
    n_kv, rest = divmod(parts[0].shape[0] - n_q, 2)
    if rest or n_kv <= 0 or len(parts[0].shape) != 2:
        raise _does_not_fit(parts, params, f"{parts[0].shape[0]} rows each", n_q)
    ends = {"wq": (0, n_q), "wk": (n_q, n_q + n_kv), "wv": (n_q + n_kv, n_q + 2 * n_kv)}
    merged: Merged = {}
    for key, (start, stop) in ends.items():
        rule = _RULES_QKV["q" if key == "wq" else "kv"]
        pieces = [slice_rows(part, start, stop) for part in parts]
        merged |= rule(name.replace("wqkv", key), pieces, params)
    return merged


def _gate_up(name: str, parts: list[LazyTensor], _params: _Params) -> Merged:
    """Each part has the rows of its w1, then its w3."""
    merged = {}
    for index, key in enumerate(("w1", "w3")):
        half = parts[0].shape[0] // 2
        pieces = [slice_rows(part, index * half, (index + 1) * half) for part in parts]
        merged[name.replace("mlp.fc1_weight", f"{key}.weight")] = concatenate(pieces, 0)
    return merged


def _experts(axis: int) -> Merge:
    """(n_experts * rows, columns) or (n_experts, rows, columns) per part, cut along `axis` of the latter."""

    def merge(name: str, parts: list[LazyTensor], params: _Params) -> Merged:
        if len(parts[0].shape) != 3:
            _check_matrix(parts, 1)
        if not params.n_experts or parts[0].shape[0] % params.n_experts:
            raise CheckpointError(params.path, f"moe_args.num_experts does not fit {parts[0].source}")
        cubes = [reshape(part, (params.n_experts, -1, part.shape[-1])) for part in parts]
        return {name: concatenate(cubes, axis)}

    return merge


_QUERY = _to_size(0, lambda params: params.n_q, "rows")
_RULES_QKV: dict[str, Merge] = {"q": _QUERY, "kv": _key_value}
_T = r"(text_model\.)?"  # of models with a vision tower
_L = rf"{_T}(cross_attention_)?layers\.\d+\."
_TABLE: dict[str, Merge] = {
    _T + r"tok_embeddings\.weight": _embedding,
    _T + r"output\.weight": _along(0),
    _T + r"learnable_embedding\.weight": _along(0),
    _T + r"norm\.weight": _replicated,
    _L + r"(attention_norm|ffn_norm|attention\.[qk]_norm)\.weight": _replicated,
    _L + r"gate_(attn|ffwd)": _replicated,
    _L + r"attention\.wq\.(weight|bias)": _QUERY,
    _L + r"attention\.w[kv]\.(weight|bias)": _key_value,
    _L + r"attention\.wo\.weight": _to_size(1, lambda params: params.n_q, "columns"),
    _L + r"attention\.wo\.bias": _replicated,
    _L + r"feed_forward\.(shared_expert\.)?w[13]\.weight": _along(0),
    _L + r"feed_forward\.(shared_expert\.)?w2\.weight": _along(1),
    # Llama 4
    _L + r"attention\.wqkv\.weight": _query_key_value,
    _L + r"attention\.wqkv\.layer_norm_weight": _renamed("attention_norm.weight", _replicated),
    _L + r"feed_forward\.(norm\.weight|mlp\.layer_norm_weight)": _renamed("ffn_norm.weight", _replicated),
    _L + r"feed_forward\.mlp\.fc1_weight": _gate_up,
    _L + r"feed_forward\.mlp\.fc2_weight": _renamed("feed_forward.w2.weight", _along(1)),
    _L + r"feed_forward\.router_DE": _replicated,
    _L + r"feed_forward\.w_in_shared_FD\.weight": _renamed("feed_forward.shared_expert.w1.weight", _along(0)),
    _L + r"feed_forward\.w_swiglu_FD\.weight": _renamed("feed_forward.shared_expert.w3.weight", _along(0)),
    _L + r"feed_forward\.w_out_shared_DF\.weight": _renamed(
        "feed_forward.shared_expert.w2.weight", _along(1)
    ),
    _L + r"feed_forward\.experts\.(moe_w_in_eD_F|moe_w_swiglu_eD_F)": _experts(2),
    _L + r"feed_forward\.experts\.moe_w_out_eF_D": _experts(1),
    # and as its code names them when it is run
    _L + r"feed_forward\.experts\.w1": _renamed("feed_forward.experts.moe_w_in_eD_F", _experts(2)),
    _L + r"feed_forward\.experts\.w3": _renamed("feed_forward.experts.moe_w_swiglu_eD_F", _experts(2)),
    _L + r"feed_forward\.experts\.w2": _renamed("feed_forward.experts.moe_w_out_eF_D", _experts(1)),
    # vision towers (Llama 3.2 Vision and 4)
    r"vision.*\.(wo|c_proj)\.weight": _along(1),
    r"vision.*\.((wq|wk|wv|c_fc)\.(weight|bias)|conv1\._linear\.weight)|vision_projection\.weight": _along(0),
    r"vision_model\.vision_projection\.(weight|bias)": _along(0),
    r"vision.*": _replicated,
}
_RULES = [(re.compile(pattern), rule) for pattern, rule in _TABLE.items()]
