"""Which type each tensor gets: the mixes of llama-quantize (src/llama-quant.cpp of llama.cpp).

A mix gives most matrices its base type and those that matter more a better one: the output, the values of
attention, the second half of the feed-forward, some layers more than others. A type that does not fit a row
length gives way to one with smaller blocks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from math import prod
from typing import Any

import numpy as np

from pyllamacpu.errors import ModelError
from pyllamacpu.gguf.metadata import architecture_of
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.model.architectures import DEBERTA
from pyllamacpu.quantize.file_types import FileType

T = TensorType
FLOATS = frozenset({T.F32, T.F16, T.BF16})
_OWN_RULES = ("falcon", "glm5-next", "bailingmoe3")  # architectures whose mixes differ in llama-quantize


class Role(Enum):
    """What a matrix does; the rules go by that."""

    OUTPUT = auto()
    EMBEDDING = auto()
    QKV = auto()
    KV_B = auto()
    V = auto()
    K = auto()
    Q = auto()
    ATTENTION_OUTPUT = auto()
    UP = auto()
    GATE = auto()
    DOWN = auto()
    OTHER = auto()


_ROLE_PARTS = (
    ("attn_qkv.weight", Role.QKV),
    ("attn_kv_b.weight", Role.KV_B),
    ("attn_v.weight", Role.V),
    ("attn_k.weight", Role.K),
    ("attn_q.weight", Role.Q),
    ("attn_output.weight", Role.ATTENTION_OUTPUT),
    ("ffn_up", Role.UP),
    ("ffn_gate", Role.GATE),
    ("ffn_down", Role.DOWN),
)
_VALUES = (Role.V, Role.QKV, Role.KV_B)
_CLASSIFIER_ROLES = (
    Role.V,
    Role.ATTENTION_OUTPUT,
    Role.DOWN,
)  # the last reads what 8 bits suit least: gelu's
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")

# Matrices that stay as they are: small, or not multiplied with. Parts of names.
_KEPT = (
    *("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel"),
    *("per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "attn_rel_b.weight"),
    *("indexer.k_proj.weight", "indexer.q_proj.weight", "time_mix_first.weight"),
    *(
        f"time_mix_{part}.weight"
        for part in ("w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")
    ),
    *("time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight"),
    *(".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd", ".patch_merger"),
    *("a.rvq.codebook", "mm.a.code_embd", "tile_position_embd"),
)
_TOWER = ("v.", "mm.")  # of an image's tower, in a file of its own or beside the text model
_KEPT_NAMES = ("position_embd.weight", "token_types.weight")


def role_of(name: str) -> Role:
    if name == "output.weight":
        return Role.OUTPUT
    if name in _EMBEDDINGS:
        return Role.EMBEDDING
    return next((role for part, role in _ROLE_PARTS if part in name), Role.OTHER)


def quantizable(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor is one that quantizing changes: a matrix of weights, and none of those kept."""
    n_dims = len(shape) - next((i for i, n in enumerate(shape) if n > 1), len(shape))
    return (
        n_dims >= 2
        and name.endswith("weight")
        and name not in _KEPT_NAMES
        and not any(part in name for part in _KEPT)
    )


def needs_imatrix(name: str, kind: TensorType, file_type: FileType) -> bool:
    """Whether that type makes garbage of the tensor without importance."""
    if role_of(name) in (Role.OUTPUT, Role.EMBEDDING):
        return False
    if kind == T.Q2_K:
        return file_type.mix == "Q2_K_S"
    return kind in (T.IQ3_XXS, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ1_M, T.IQ1_S)


_SMALLER_BLOCKS = dict.fromkeys(
    (T.IQ1_S, T.IQ1_M, T.IQ2_XXS, T.IQ2_XS, T.IQ2_S, T.IQ3_XXS, T.IQ3_S, T.IQ4_XS), T.IQ4_NL
)
_SMALLER_BLOCKS |= dict.fromkeys((T.Q2_0, T.Q2_K, T.Q3_K, T.TQ1_0, T.TQ2_0), T.Q4_0)
_SMALLER_BLOCKS |= {T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0}


def fitting(kind: TensorType, cols: int) -> TensorType:
    """`kind`, or what takes its place for rows of `cols` that are not whole blocks of it."""
    if cols % kind.block_size:
        kind = _SMALLER_BLOCKS.get(kind, kind)
    return T.F16 if cols % kind.block_size else kind


def layer_of(name: str) -> int:
    """The layer in a tensor's name; -1 for those outside of the layers."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def file_order(names: Iterable[str]) -> list[str]:
    """The order in which llama-quantize goes through the tensors, and writes them."""
    return sorted(names, key=lambda name: (layer_of(name), name.encode()))


@dataclass(frozen=True)
class ModelTraits:
    """What the rules ask about a model."""

    arch: str
    n_layers: int
    n_heads: int
    kv_heads: int
    n_experts: int

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> ModelTraits:
        """Raises ModelError when the file does not say what model it is."""
        arch = architecture_of(metadata)
        arch = "clip.vision" if arch == "clip" else arch  # a vision tower alone
        layers = (f"{arch}.block_count", f"{arch}.vision.block_count")
        if not isinstance(arch, str) or not any(key in metadata for key in layers):
            raise ModelError("the file has no general.architecture or no block_count; is it a model?")
        heads = _number(metadata, f"{arch}.attention.head_count", 0)
        return cls(
            arch,
            _number(metadata, f"{arch}.block_count", 0),
            heads,
            _number(metadata, f"{arch}.attention.head_count_kv", heads),
            _number(metadata, f"{arch}.expert_count", 0),
        )

    @property
    def grouped(self) -> bool:
        """Whether four or more heads share their keys and values."""
        return bool(self.kv_heads) and self.n_heads // self.kv_heads >= 4

    @property
    def is_70b(self) -> bool:
        if self.arch == "llama":
            return self.n_layers == 80 and self.n_heads != self.kv_heads and self.n_experts != 8
        return (self.arch, self.n_layers) in (("qwen2", 80), ("deci", 80), ("olmo", 80), ("jais2", 68))


def _number(metadata: Mapping[str, Any], key: str, default: int) -> int:
    """A whole number, or the first of an array of one per layer."""
    value = metadata.get(key, default)
    if hasattr(value, "__len__") and not isinstance(value, str):
        value = value[0] if len(value) else default
    if not isinstance(value, (int, float, np.number)) or not 0 <= value < 1 << 31 or int(value) != value:
        raise ModelError(f"{key} must be a whole number, not {value!r:.80}")
    return int(value)


@dataclass(frozen=True)
class SourceTensor:
    """A tensor to choose a type for; `shape` ends with the row length."""

    name: str
    shape: tuple[int, ...]
    kind: TensorType


@dataclass(frozen=True)
class TypeOptions:
    """What the user says about types. `by_name`: patterns, the first that is found in a name counts.

    `exact`: types by whole names, before anything else.
    """

    pure: bool = False
    leave_output: bool = False
    output: TensorType | None = None
    embedding: TensorType | None = None
    by_name: tuple[tuple[re.Pattern[str], TensorType], ...] = ()
    exact: Mapping[str, TensorType] = field(default_factory=dict)

    def named(self, name: str) -> TensorType | None:
        return next((kind for pattern, kind in self.by_name if pattern.search(name)), None)


@dataclass(frozen=True)
class Choice:
    """The type of one tensor. `wanted`: what it would be if its rows fitted. `usual`: the mix's base type
    when the user's own choice replaced that.
    """

    kind: TensorType
    wanted: TensorType
    usual: TensorType | None = None

    @property
    def fell_back(self) -> bool:
        return self.kind != self.wanted


def choose_types(
    tensors: Sequence[SourceTensor],
    file_type: FileType,
    traits: ModelTraits,
    options: TypeOptions,
    has_imatrix: bool,
) -> dict[str, Choice]:
    """A type for each tensor, by name; `tensors` in the order of the file, which the rules count along."""
    rules = MixRules(file_type, traits, options, has_imatrix, [tensor.name for tensor in tensors])
    return {tensor.name: _choice(tensor, file_type, options, rules) for tensor in tensors}


def _choice(tensor: SourceTensor, file_type: FileType, options: TypeOptions, rules: MixRules) -> Choice:
    kept = file_type.copies or not quantizable(tensor.name, tensor.shape)
    if kept or (options.leave_output and tensor.name == "output.weight"):
        return Choice(tensor.kind, tensor.kind)
    base, manual, usual = file_type.base, options.named(tensor.name), None
    role = role_of(tensor.name)
    table_of_layers = tensor.name == _EMBEDDINGS[1] and manual is not None
    if tensor.name in options.exact:
        wanted = options.exact[tensor.name]
    elif role == Role.EMBEDDING and options.embedding is not None and not table_of_layers:
        wanted = options.embedding
    elif role == Role.OUTPUT and options.output is not None:
        wanted = options.output
    elif base in FLOATS:
        wanted = base
    elif manual is not None:
        wanted, usual = manual, base if manual != base else None
    elif options.pure:
        wanted = base
    elif (finer := rules.classifier_type(tensor.name, role)) is not None:
        wanted = finer
    elif tensor.name.startswith(_TOWER):
        wanted = T.Q8_0  # what fewer bits would spoil is seen in every answer, and they would save little
    else:
        wanted = rules.type_of(tensor, role)
    return Choice(fitting(wanted, tensor.shape[-1]), wanted, usual)


class MixRules:
    """The rules of one mix on one model. Some count the matrices of a role, so the order matters."""

    def __init__(
        self,
        file_type: FileType,
        traits: ModelTraits,
        options: TypeOptions,
        has_imatrix: bool,
        names: Sequence[str],
    ) -> None:
        if traits.arch in _OWN_RULES and file_type.base not in FLOATS and not options.pure:
            raise ModelError(
                f"no mixes are known for {traits.arch} models; use --pure for one type throughout"
            )
        self.mix, self.base = file_type.mix, file_type.base
        self.traits, self.options, self.has_imatrix = traits, options, has_imatrix
        self.tied = "output.weight" not in names
        self.n_values = sum(role_of(name) in _VALUES for name in names if not name.startswith(_TOWER))
        self.seen: Counter[Role] = Counter()  # the matrices of a role that came before

    def type_of(self, tensor: SourceTensor, role: Role) -> TensorType:
        """The type that the mix gives a tensor, before its row length is looked at."""
        if role == Role.OUTPUT or (self.tied and role == Role.EMBEDDING):
            return self._output(tensor.shape[-1])
        if self.mix == "MXFP4_MOE":
            return T.MXFP4 if len(tensor.shape) > 2 and prod(tensor.shape[:-2]) > 1 else T.Q8_0
        if role == Role.EMBEDDING:
            return _EMBEDDING_TYPES.get(self.mix, self.base)
        role = Role.V if role in _VALUES else role
        kind = self._low(role) if self.mix in _LOW_BITS else self._usual(role, tensor.name)
        self.seen[role] += 1
        return kind

    def classifier_type(self, name: str, role: Role) -> TensorType | None:
        """Of an encoder that classifies texts (Prompt Guard), those whose errors show most in its logits for
        the time that they take. None: as the mix has it.
        """
        if self.traits.arch != DEBERTA:
            return None
        if name.startswith("cls."):
            return T.F32
        is_last = layer_of(name) == self.traits.n_layers - 1  # multiplied with the first token alone
        finer = role in _CLASSIFIER_ROLES or "attn_rel_" in name or (is_last and role == Role.UP)
        return T.F16 if finer else None

    def _usual(self, role: Role, name: str) -> TensorType:
        if role == Role.V:
            return self._value()
        if role in (Role.Q, Role.K):
            return self._query_or_key(role)
        if role == Role.ATTENTION_OUTPUT:
            return self._attention_output()
        if role == Role.DOWN:
            return self._down(self._layer(role, name))
        if role in (Role.GATE, Role.UP):
            return self._gate_or_up(self._layer(role, name))
        return self.base

    def _low(self, role: Role) -> TensorType:
        """The mixes of one and two bits."""
        more = T.IQ3_S if self.mix in ("IQ2_S", "IQ2_M") else T.Q2_K
        experts = self.traits.n_experts
        if role == Role.V:
            return T.Q4_K if self.traits.grouped or experts >= 4 else more
        if role == Role.K and experts == 8:
            return T.Q4_K
        if role == Role.DOWN and self.seen[role] < self.traits.n_layers // 8:
            return more
        if role == Role.ATTENTION_OUTPUT:
            return T.Q5_K if experts == 8 else _LOW_OUTPUT_TYPES.get(self.mix, self.base)
        return self.base

    def _output(self, cols: int) -> TensorType:
        """The output, or the embedding where it serves as that."""
        if self.options.output is not None:
            return self.options.output
        if self.mix == "MXFP4_MOE" or cols % self.base.block_size:
            return T.Q8_0
        if self.mix in _LOW_BITS or self.mix == "IQ3_XXS":
            return T.Q5_K
        return self.base if self.base == T.Q8_0 else T.Q6_K

    def _more_bits(self, layer: int, n_layers: int) -> bool:
        """The first and last eighth, and every third layer between."""
        eighth = n_layers // 8
        return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2

    def _layer(self, role: Role, name: str) -> int:
        """Which layer a feed-forward matrix is in: counted, but for models with experts by its name."""
        if self.traits.n_experts <= 1:
            return self.seen[role]
        layer = layer_of(name)
        if not 0 <= layer < self.traits.n_layers:
            raise ModelError(f"tensor {name!r} is in no layer of 0 to {self.traits.n_layers - 1}")
        return layer

    def _value(self) -> TensorType:
        kind = self.base
        if self.traits.grouped and self.mix in _GROUPED_VALUE_TYPES:
            kind = _GROUPED_VALUE_TYPES[self.mix]
        elif self.mix == "IQ3_XXS":
            kind = T.IQ3_XXS if self.has_imatrix else T.IQ3_S
        elif self.mix == "Q3_K_M":
            kind = T.Q5_K if self.seen[Role.V] < 2 else T.Q4_K
        elif self.mix in ("Q4_K_M", "Q5_K_M"):
            kind = T.Q6_K if self._more_bits(self.seen[Role.V], self.n_values) else self.base
        elif self.mix == "Q4_K_S":
            kind = T.Q5_K if self.seen[Role.V] < 4 else self.base
        else:
            kind = _VALUE_TYPES.get(self.mix, self.base)
        if self.traits.is_70b and kind in (T.Q3_K, T.Q4_K):
            kind = T.Q5_K
        return T.Q8_0 if self.traits.n_experts == 8 else kind

    def _query_or_key(self, role: Role) -> TensorType:
        if role == Role.K and self.traits.n_experts == 8:
            return T.Q8_0
        return {"IQ3_XS": T.IQ3_XXS, "IQ3_XXS": T.IQ2_S}.get(self.mix, self.base)

    def _attention_output(self) -> TensorType:
        if self.traits.n_experts == 8:
            return T.Q5_K if self.mix in _EXPERT_OUTPUT_MIXES else self.base
        return _ATTENTION_OUTPUT_TYPES.get(self.mix, self.base)

    def _down(self, layer: int) -> TensorType:
        n = self.traits.n_layers
        early, more = layer < n // 8, self._more_bits(layer, n)
        if self.mix == "Q3_K_M":
            return T.Q5_K if layer < n // 16 else T.Q4_K
        if self.mix == "IQ3_XXS" and not self.has_imatrix:
            return T.Q4_K if early else T.Q3_K
        if self.mix in ("Q4_K_M", "Q5_K_M"):
            return T.Q6_K if more else self.base
        if self.mix == "IQ3_M":
            return T.Q4_K if early or (self.traits.n_experts == 8 and more) else self.base
        if self.mix in ("IQ4_NL", "IQ4_XS"):
            return T.Q5_K if early and not self.has_imatrix else self.base
        if self.mix in ("Q4_0", "Q5_0"):
            return _WITH_MINIMUM[self.base] if early and self.has_imatrix else self.base
        if self.mix in ("Q2_K_S", "Q4_K_S"):
            return {"Q2_K_S": T.Q4_K, "Q4_K_S": T.Q5_K}[self.mix] if early else self.base
        return {"Q2_K": T.Q3_K, "Q3_K_L": T.Q5_K}.get(self.mix, self.base)

    def _gate_or_up(self, layer: int) -> TensorType:
        between = self.traits.n_layers // 8 <= layer < 7 * self.traits.n_layers // 8
        return T.IQ3_XXS if self.mix == "IQ3_XS" and between else self.base


_LOW_BITS = ("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ2_S", "IQ2_M", "IQ1_M")
_LOW_OUTPUT_TYPES = {"IQ1_S": T.IQ2_XXS, "IQ1_M": T.IQ2_XXS, "IQ2_S": T.IQ3_S, "IQ2_M": T.IQ3_S}
_EMBEDDING_TYPES = dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), T.Q2_K)
_EMBEDDING_TYPES |= dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), T.IQ3_S)
_EMBEDDING_TYPES |= dict.fromkeys(("TQ1_0", "TQ2_0"), T.Q4_K)
_GROUPED_VALUE_TYPES = dict.fromkeys(("Q2_K", "Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S"), T.Q4_K)
_GROUPED_VALUE_TYPES |= {"IQ4_NL": T.Q5_K, "IQ4_XS": T.Q5_K}
_VALUE_TYPES = {"Q2_K": T.Q3_K, "IQ3_M": T.Q4_K, "Q3_K_L": T.Q5_K}
_ATTENTION_OUTPUT_TYPES = {"Q2_K": T.Q3_K, "IQ3_XXS": T.IQ3_S, "Q3_K_L": T.Q5_K}
_ATTENTION_OUTPUT_TYPES |= {"Q3_K_M": T.Q4_K, "IQ3_M": T.Q4_K}
_EXPERT_OUTPUT_MIXES = (
    *("Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL"),
    *("Q4_K_S", "Q4_K_M", "IQ3_S", "IQ3_M", "IQ4_XS"),
)
_WITH_MINIMUM = {T.Q4_0: T.Q4_1, T.Q5_0: T.Q5_1}
