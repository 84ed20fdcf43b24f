"""What quantizing a file will do, decided before anything is written: the plan.

Everything that can be wrong is found here: types that cannot be written, importance that is missing or of the
wrong size, tensors that are quantized already. Metadata and the order of tensors are llama-quantize's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import GGUFError, ModelError, OptionError
from pyllamacpu.gguf.keys import KeyValue, metadata_keys
from pyllamacpu.gguf.reader import GGUFFile, TensorInfo
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.model.dequantize import dequantize
from pyllamacpu.quantize.file_types import FILE_TYPE_KEY, FileType, file_type_keys, guessed_number
from pyllamacpu.quantize.imatrix import Imatrix
from pyllamacpu.quantize.prune import kept_names, pruned_keys
from pyllamacpu.quantize.recipes import (
    FLOATS,
    Choice,
    ModelTraits,
    Role,
    SourceTensor,
    TypeOptions,
    choose_types,
    file_order,
    layer_of,
    needs_imatrix,
    quantizable,
    role_of,
)
from pyllamacpu.weights.blocks import can_quantize, needs_importance
from pyllamacpu.weights.opens import why_it_would_not_open


def parse_override(text: str) -> KeyValue:
    """`KEY=int:N`, `KEY=float:X`, `KEY=bool:true` or `KEY=str:TEXT`. Whole numbers become uint32."""
    key, equals, typed = text.partition("=")
    word, colon, value = typed.partition(":")
    if key == "general.alignment" or key.startswith("split."):
        raise OptionError(f"--override-kv {key}: that is how the file is laid out, and cannot be set")
    try:
        if key and equals and colon:
            if word == "int" and abs(int(value)) < 1 << 32:
                return KeyValue(key, abs(int(value)), ValueType.UINT32)
            if word == "float":
                return KeyValue(key, float(value), ValueType.FLOAT32)
            if word == "bool" and value in ("true", "false"):
                return KeyValue(key, value == "true", ValueType.BOOL)
            if word == "str":
                return KeyValue(key, value, ValueType.STRING)
    except ValueError:
        pass
    raise OptionError(f"--override-kv {text!r} is not KEY=TYPE:VALUE with TYPE int, float, bool or str")


@dataclass(frozen=True)
class Settings:
    """What the user asks for. `imatrix_name` goes into the metadata; `prune`: layers to leave out."""

    file_type: FileType
    types: TypeOptions = field(default_factory=TypeOptions)
    imatrix: Imatrix | None = None
    imatrix_name: str = ""
    overrides: tuple[KeyValue, ...] = ()
    prune: frozenset[int] = frozenset()
    allow_requantize: bool = False
    keep_split: bool = False
    part_of_imatrix: bool = False  # the user has left something of the importance out


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor: `name` in the output, where it comes from, the type that it gets."""

    name: str
    source: TensorInfo
    choice: Choice

    @property
    def kind(self) -> TensorType:
        return self.choice.kind

    @property
    def changed(self) -> bool:
        return self.kind != self.source.type

    @property
    def n_rows(self) -> int:
        return prod(self.source.shape[:-1])

    @property
    def n_bytes(self) -> int:
        """In the output."""
        return self.n_rows * self.kind.row_bytes(self.source.shape[-1])


@dataclass(frozen=True)
class QuantizePlan:
    """All that will be written. `number` is general.file_type; `n_parts` the files of the output.

    `without_importance`: names of tensors whose type is garbage without importance, when there is none: a
    plan that can be looked at, but not run. `notes`: what the user should know; `warnings`: what is hardly
    meant.
    """

    file: GGUFFile
    settings: Settings
    traits: ModelTraits
    tensors: tuple[PlannedTensor, ...]
    number: int
    n_layers: int  # left after pruning
    n_parts: int
    without_importance: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def source_bytes(self) -> int:
        return sum(tensor.source.n_bytes for tensor in self.tensors)

    @property
    def n_bytes(self) -> int:
        return sum(tensor.n_bytes for tensor in self.tensors)

    @property
    def n_elements(self) -> int:
        return sum(tensor.source.n_elements for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.n_bytes / self.n_elements

    @property
    def n_fallbacks(self) -> int:
        return sum(tensor.choice.fell_back for tensor in self.tensors)

    def importance(self, tensor: PlannedTensor) -> npt.NDArray[np.float32] | None:
        """(matrices, cols) float32 of a tensor, or None. Raises GGUFError for another size."""
        return _importance(self.settings.imatrix, tensor.source, self.settings.imatrix_name)

    def metadata(self) -> list[KeyValue]:
        """The source's, then what is added."""
        added = self.added_metadata()
        return [*(key for key in _own_keys(self.file) if key.name not in added), *added.values()]

    def added_metadata(self) -> dict[str, KeyValue]:
        """The keys that are not the source's, in the order that they are written in, after all others."""
        found = [
            *reversed(file_type_keys(self.number)),
            *self.settings.overrides,
            *_imatrix_keys(self.settings),
        ]
        if self.settings.prune:
            found += pruned_keys(self.file, self.traits.arch, self.traits.n_layers, self.settings.prune)
        keys: dict[str, KeyValue] = {}
        for override in found:
            keys.pop(override.name, None)
            keys[override.name] = override
        return keys


def _check_opens(plan: QuantizePlan) -> None:
    """Raises OptionError where what the user changes makes a model that cannot be opened any more."""
    file, settings = plan.file, plan.settings
    if not (settings.overrides or settings.prune):
        return
    reason = why_it_would_not_open(plan.metadata(), [(t.name, t.source.shape, t.kind) for t in plan.tensors])
    if not reason:
        return
    before = [(info.name, info.shape, info.type) for info in file.tensors.values()]
    if not why_it_would_not_open(list(_own_keys(file)), before):
        options = [
            name
            for name, given in (("--override-kv", settings.overrides), ("--prune-layers", settings.prune))
            if given
        ]
        raise OptionError(f"{', '.join(options)}: the result could not be opened: {reason}")


def _own_keys(file: GGUFFile) -> Iterator[KeyValue]:
    """The source's; how it was split and aligned does not matter."""
    for key in metadata_keys(file.metadata):
        if key.name != "general.alignment" and not key.name.startswith("split."):
            yield key


def _traits(file: GGUFFile, settings: Settings) -> ModelTraits:
    """With what is overridden. Raises ModelError; OptionError where it is the overrides that are wrong."""
    own = ModelTraits.of(file.metadata)
    try:
        return ModelTraits.of({**file.metadata, **{item.name: item.value for item in settings.overrides}})
    except ModelError as error:
        raise OptionError(f"--override-kv: the result would be no {own.arch} model: {error}") from error


def make_plan(file: GGUFFile, settings: Settings) -> QuantizePlan:
    """Decides every tensor's type.

    Raises OptionError, ModelError or GGUFError for whatever would go wrong later, but for importance that is
    missing altogether, which a dry run may leave for later.
    """
    traits = _traits(file, settings)
    names = kept_names(file.tensors, traits.n_layers, settings.prune)
    order = file_order(names)
    if settings.keep_split:
        infos = {new: file.tensors[old] for new, old in names.items()}
        order.sort(key=lambda name: (infos[name].part, infos[name].offset))
    described = [_tensor(new, file.tensors[names[new]]) for new in order]
    chosen = choose_types(
        described, settings.file_type, traits, settings.types, has_imatrix=settings.imatrix is not None
    )
    tensors = tuple(PlannedTensor(name, file.tensors[names[name]], chosen[name]) for name in order)
    _check_types(file, tensors, settings)
    lacking = _without_importance(tensors, settings)
    plan = QuantizePlan(
        file,
        settings,
        traits,
        tensors,
        _number(file, settings.file_type),
        traits.n_layers - len(settings.prune),
        len(file.paths) if settings.keep_split else 1,
        lacking,
        _notes(file, tensors, settings),
        (*_unused_patterns(described, settings), *_missed_layers(tensors, settings)),
    )
    _check_opens(plan)
    return plan


def check_importance(plan: QuantizePlan) -> None:
    """Raises OptionError when the plan needs importance that there is not."""
    if not plan.without_importance:
        return
    name = plan.without_importance[0]
    kind = next(tensor.kind.name for tensor in plan.tensors if tensor.name == name)
    more = f" and {len(plan.without_importance) - 1} more" if len(plan.without_importance) > 1 else ""
    what = "give --imatrix" if plan.settings.imatrix is None else "the one given has nothing about it"
    raise OptionError(
        f"tensor {name!r}{more}: {kind} needs an importance matrix, without which it is garbage; {what}"
    )


def _tensor(name: str, info: TensorInfo) -> SourceTensor:
    return SourceTensor(name, info.shape, info.type)


def _check_types(file: GGUFFile, tensors: tuple[PlannedTensor, ...], settings: Settings) -> None:
    for tensor in tensors:
        if not tensor.changed:
            continue
        source = tensor.source.type
        if not can_quantize(tensor.kind):
            raise OptionError(
                f"tensor {tensor.name!r} cannot be written as {tensor.kind.name}; choose another type"
            )
        if source.block_size > 1 and not settings.allow_requantize:
            raise OptionError(
                f"{file.paths[0]}: tensor {tensor.source.name!r} is {source.name} already; quantize from "
                "F32, F16 or BF16, or say --allow-requantize, which costs quality"
            )
        try:
            dequantize(np.empty(0, np.uint8), source, (0, source.block_size))
        except ModelError as error:
            raise ModelError(f"{file.paths[0]}: {tensor.source.name!r}: {error}") from error


def _importance(imatrix: Imatrix | None, info: TensorInfo, where: str) -> npt.NDArray[np.float32] | None:
    found = imatrix.importance(info.name) if imatrix else None
    if found is None:
        return None
    cols, n_matrices = info.shape[-1], prod(info.shape[:-2])
    if found.size != cols * n_matrices:
        if role_of(info.name) == Role.EMBEDDING:
            return None  # looked up, not multiplied with: what was measured is another use of the matrix
        sizes = f"{found.size} values for {info.name!r}, which takes {n_matrices} x {cols}"
        raise GGUFError(where, f"has {sizes}: it was made for another model")
    return found.reshape(n_matrices, cols)


def _without_importance(tensors: tuple[PlannedTensor, ...], settings: Settings) -> tuple[str, ...]:
    lacking = []
    for tensor in tensors:
        wanted = needs_imatrix(tensor.name, tensor.kind, settings.file_type) or needs_importance(tensor.kind)
        found = (
            _importance(settings.imatrix, tensor.source, settings.imatrix_name) if tensor.changed else None
        )
        if tensor.changed and wanted and found is None:
            lacking.append(tensor.name)
    return tuple(lacking)


def _number(file: GGUFFile, file_type: FileType) -> int:
    if not file_type.copies:
        return file_type.number
    known = file.metadata.get(FILE_TYPE_KEY)
    return known if isinstance(known, int) else guessed_number([info.type for info in file.tensors.values()])


def _notes(file: GGUFFile, tensors: tuple[PlannedTensor, ...], settings: Settings) -> tuple[str, ...]:
    notes: Counter[tuple[str, str]] = Counter()  # by kind of tensor, and what happens to it
    for tensor in tensors:
        choice, cols = tensor.choice, tensor.source.shape[-1]
        kind = re.sub(r"^blk\.\d+\.", "blk.*.", tensor.name)
        if choice.usual is not None:
            notes[kind, f"{choice.wanted.name} as asked, instead of {choice.usual.name}"] += 1
        if choice.fell_back:
            reason = f"rows of {cols} are not a multiple of {choice.wanted.block_size}"
            notes[
                kind, f"{reason}, which {choice.wanted.name} takes; falling back to {choice.kind.name}"
            ] += 1
    texts = [f"{kind}{f' ({n} tensors)' if n > 1 else ''}: {text}" for (kind, text), n in notes.items()]
    known = settings.imatrix.entries if settings.imatrix else {}
    unused = [name for name in known if name not in file.tensors]
    if unused:
        texts.append(f"the importance matrix has {len(unused)} entries that the model has not: {unused[0]}")
    return tuple(texts)


def _unused_patterns(tensors: Sequence[SourceTensor], settings: Settings) -> Iterator[str]:
    """Of the types by name: those that no tensor gets."""
    by_name = settings.types.by_name
    named = settings.types.exact or not (settings.file_type.copies or settings.file_type.base in FLOATS)
    names = [tensor.name for tensor in tensors if named and quantizable(tensor.name, tensor.shape)]
    fitting = ([i for i, (pattern, _) in enumerate(by_name) if pattern.search(name)] for name in names)
    first = {found[0] for found in fitting if found}
    for i, (pattern, kind) in enumerate(by_name):
        if i not in first:
            found = any(pattern.search(name) for name in names)
            why = "patterns before it match first" if found else "it matches no tensor that is quantized"
            yield f"--tensor-type {pattern.pattern}={kind.name.lower()} has no effect: {why}"


def _missed_layers(tensors: Sequence[PlannedTensor], settings: Settings) -> Iterator[str]:
    """Layers with quantized tensors that an importance matrix has nothing about."""
    if settings.imatrix is None or settings.part_of_imatrix:
        return
    plain = [TensorType.Q8_0, *(kind for kind in TensorType if kind.is_float)]  # made without importance
    quantized = [tensor.source.name for tensor in tensors if tensor.changed and tensor.kind not in plain]
    missed = [name for name in quantized if layer_of(name) >= 0 and name not in settings.imatrix.entries]
    if missed:
        layers = sorted({layer_of(name) for name in missed})
        shown = ", ".join(map(str, layers[:5])) + (f" and {len(layers) - 5} more" if len(layers) > 5 else "")
        yield (
            f"the importance matrix has nothing about {len(missed)} tensors of layers {shown}, such as "
            f"{missed[0]}: they are quantized without importance"
        )


def _imatrix_keys(settings: Settings) -> list[KeyValue]:
    if settings.imatrix is None:
        return []
    matrix, prefix = settings.imatrix, "quantize.imatrix."
    found = [KeyValue(f"{prefix}file", settings.imatrix_name, ValueType.STRING)]
    if matrix.datasets:
        found.append(KeyValue(f"{prefix}dataset", matrix.datasets[0], ValueType.STRING))
    found.append(KeyValue(f"{prefix}entries_count", len(matrix.entries), ValueType.UINT32))
    if matrix.chunk_count > 0:
        found.append(KeyValue(f"{prefix}chunks_count", matrix.chunk_count, ValueType.UINT32))
    return found


def with_types(settings: Settings, exact: Mapping[str, TensorType]) -> Settings:
    """The same settings with types by tensor."""
    return replace(settings, types=replace(settings.types, exact=dict(exact)))
