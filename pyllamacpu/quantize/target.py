"""The best file of a given size: types chosen per tensor by what the model itself says about them.

One run: a text (the user's, or sampled from the model), importance from it unless it is given, the errors of
all types (sensitivity.py), the divergence per error of each tensor, and a knapsack (allocate.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pyllamacpu.engine.engine import Engine
from pyllamacpu.errors import OptionError
from pyllamacpu.evaluate import Divergence, Recorded, Windows, divergence_from, record
from pyllamacpu.files import kept, part_path
from pyllamacpu.gguf.reader import GGUFFile, TensorInfo
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.limits import memory_usable
from pyllamacpu.progress import OnCount
from pyllamacpu.quantize.allocate import Candidate, allocate
from pyllamacpu.quantize.calibrate import N_CTX, sampled_windows, text_windows
from pyllamacpu.quantize.collect import collect
from pyllamacpu.quantize.driver import run
from pyllamacpu.quantize.file_types import FileType, guessed_number, parse_file_type
from pyllamacpu.quantize.imatrix import Imatrix
from pyllamacpu.quantize.plan import QuantizePlan, Settings, make_plan, with_types
from pyllamacpu.quantize.recipes import FLOATS, ModelTraits, Role, TypeOptions, fitting, quantizable, role_of
from pyllamacpu.quantize.sensitivity import (
    Errors,
    candidates,
    groups,
    kinds_for,
    measure_cost,
    measure_errors,
)

_N_BATCH = 1024
_SHARE_OF_MEMORY = 0.75
_METADATA = 4096  # bytes that the importance matrix's keys may take
_MARK = 1024  # set in file types that are guessed


@dataclass(frozen=True)
class Target:
    """The size wanted: of the file in bytes, or of its tensors in bits per weight."""

    n_bytes: int | None = None
    bits: float | None = None


@dataclass(frozen=True, eq=False)
class Measured:
    """Of one model and text. cost: divergence per unit of error, by tensor; `base` predicts the original."""

    errors: tuple[Errors, ...]
    cost: Mapping[str, float]
    base: Recorded
    fixed_bytes: int  # of tensors that stay as they are


@dataclass(frozen=True)
class Chosen:
    """A type for each tensor, in the order of the file, and the divergence that is predicted for all."""

    types: Mapping[str, Candidate]
    predicted: float
    n_bytes: int  # of all tensors


def budget(file: GGUFFile, target: Target) -> int:
    """Bytes that the tensors may take. Raises OptionError for a size that leaves nothing."""
    elements = sum(info.n_elements for info in file.tensors.values())
    if target.bits is not None:
        return int(target.bits * elements / 8)
    assert target.n_bytes is not None
    outside = file.n_bytes - sum(info.n_bytes for info in file.tensors.values())
    left = target.n_bytes - outside - 32 * len(file.tensors) - _METADATA
    if left <= 0:
        raise OptionError(f"{target.n_bytes} bytes hold no model: its metadata alone takes {outside}")
    return left


def check_room(file: GGUFFile, room: int, types: TypeOptions) -> None:
    """Raises OptionError when not even the smallest types are that small: before measuring, which is long."""
    bits = 8 * room / sum(info.n_elements for info in file.tensors.values())
    smallest = 0
    for info in file.tensors.values():
        cols, any_importance = info.shape[-1], np.ones((1, 1), np.float32)
        kinds = [info.type]
        if quantizable(info.name, info.shape):
            kinds = _forced(info, types) or [info.type, *kinds_for(info, any_importance, bits)]
        smallest += min(info.n_elements // cols * kind.row_bytes(cols) for kind in kinds)
    if smallest > room:
        raise OptionError(
            f"the tensors take {smallest} bytes in the smallest types, and there is room for {room}; "
            "choose a larger target"
        )


@contextmanager
def runnable(file: GGUFFile, out: Path, expert_memory: int | None = None) -> Iterator[GGUFFile]:
    """The model to measure with: itself, or, where it would fill memory, a copy in Q8_0. expert_memory: bytes
    for its experts, which stay in the file: it is measured itself then, however large.

    Floats are what to measure with: quantized products round activations too, and that noise, which any
    change of a weight stirs up, hides small divergences. The copy is a temporary file beside `out`.
    """
    memory = memory_usable()
    if expert_memory is not None or not memory or file.n_bytes < _SHARE_OF_MEMORY * memory:
        with GGUFFile.open(file.paths[0]) as again:
            yield again
        return
    path = part_path(out)
    plan = make_plan(file, Settings(parse_file_type("Q8_0"), allow_requantize=True))
    for _ in run(plan, path):
        pass
    with kept(path), GGUFFile.open(path) as small:
        yield small


def open_engine(file: GGUFFile, expert_memory: int | None = None) -> Engine:
    """An engine that reads several windows in a tensor."""
    return Engine(file, n_ctx=_N_BATCH, n_batch=_N_BATCH, expert_memory=expert_memory)


def calibration(engine: Engine, text: Path | None, n_tokens: int, seed: int, progress: OnCount) -> Windows:
    """The user's text, or the model's own."""
    if text is not None:
        return text_windows(engine.file.metadata, text, n_tokens, min(N_CTX, engine.config.n_ctx_train))

    def on_progress(done: int, total: int) -> None:
        progress("the model writes a text to be measured on", done, total)

    return sampled_windows(engine, n_tokens, N_CTX, seed, on_progress)


def gather(
    small: GGUFFile, cut: Windows, dataset: str, progress: OnCount, expert_memory: int | None = None
) -> Imatrix:
    """The importance matrix of a text, the output's too."""

    def on_window(done: int, total: int, _: float | None) -> None:
        progress("which inputs matter", done, total)

    found = collect(
        small.paths[0],
        cut,
        datasets=[dataset],
        process_output=True,
        with_perplexity=False,
        on_window=on_window,
        n_ctx=_N_BATCH,
        n_batch=_N_BATCH,
        expert_memory=expert_memory,
    )
    return found.imatrix


def some_windows(cut: Windows, n_tokens: int) -> Windows:
    """Windows spread evenly over all of them, `n_tokens` together at most, but one at least."""
    n = max(1, min(n_tokens // cut.n_ctx, cut.n_windows))
    return replace(cut, tokens=cut.tokens[np.arange(n) * cut.n_windows // n])


def measure(
    file: GGUFFile, engine: Engine, cut: Windows, settings: Settings, bits: float, progress: OnCount
) -> Measured:
    """Errors and costs of all tensors of `file`, whose values `engine` runs with."""
    progress("what the model predicts", 0, 1)
    base = record(engine, cut)
    plan = make_plan(file, replace(settings, file_type=parse_file_type("COPY")))
    infos = [tensor.source for tensor in plan.tensors if quantizable(tensor.name, tensor.source.shape)]
    importance = {tensor.source.name: plan.importance(tensor) for tensor in plan.tensors}
    errors = []
    for done, info in enumerate(infos):
        progress("errors of all types", done, len(infos))
        kinds = _forced(info, settings.types) or kinds_for(info, importance[info.name], bits)
        errors.append(measure_errors(file, info, importance[info.name], kinds))
    cost: dict[str, float] = {}
    by_name = {item.info.name: item for item in errors}
    probed = groups(infos, ModelTraits.of(file.metadata).n_layers)
    for done, group in enumerate(probed):
        progress("what the model minds", done, len(probed))
        cost |= measure_cost(engine, base, file, [by_name[info.name] for info in group], bits)
    fixed = sum(tensor.source.n_bytes for tensor in plan.tensors if tensor.source.name not in by_name)
    return Measured(tuple(errors), cost, base, fixed)


def _forced(info: TensorInfo, types: TypeOptions) -> list[TensorType]:
    """The one type that the user wants for a tensor, if any."""
    role = role_of(info.name)
    wanted = types.named(info.name)
    if role == Role.OUTPUT:
        wanted = info.type if types.leave_output else types.output or wanted
    elif role == Role.EMBEDDING:
        wanted = types.embedding or wanted
    return [fitting(wanted, info.shape[-1])] if wanted is not None else []


def choose(measured: Measured, n_bytes: int, types: TypeOptions | None = None) -> Chosen:
    """The types that predict the least divergence within `n_bytes` of tensors. Raises OptionError."""
    options = []
    for errors in measured.errors:
        found = candidates(errors, measured.cost[errors.info.name])
        forced = _forced(errors.info, types) if types else []
        options.append([item for item in found if item.kind in forced] if forced else found)
    picked = allocate(options, n_bytes - measured.fixed_bytes)
    names = [errors.info.name for errors in measured.errors]
    return Chosen(
        dict(zip(names, picked, strict=True)),
        sum(item.cost for item in picked),
        measured.fixed_bytes + sum(item.n_bytes for item in picked),
    )


def chosen_plan(file: GGUFFile, settings: Settings, chosen: Chosen) -> QuantizePlan:
    """The plan that writes the chosen types."""
    kinds = {name: candidate.kind for name, candidate in chosen.types.items()}
    most = guessed_number([*kinds.values()]) & ~_MARK
    base = Counter(kinds.values()).most_common(1)[0][0]
    mixed = FileType("mixed", "mixed", most, base, "types chosen per tensor")
    return make_plan(file, with_types(replace(settings, file_type=mixed), kinds))


def curve(measured: Measured, n_points: int = 24) -> list[tuple[int, float]]:
    """(bytes of tensors, predicted divergence) for budgets from the smallest types to the largest."""
    options = [candidates(errors, measured.cost[errors.info.name]) for errors in measured.errors]
    sizes = [sorted(item.n_bytes for item in found if item.kind not in FLOATS) for found in options]
    low = sum(min(item.n_bytes for item in found) for found in options)
    high = low + sum(found[-1] - found[0] for found in sizes if found)
    points = []
    for i in range(n_points):
        picked = allocate(options, low + (high - low) * i // (n_points - 1))
        n_bytes = measured.fixed_bytes + sum(item.n_bytes for item in picked)
        points.append((n_bytes, sum(item.cost for item in picked)))
    return points


def check(path: Path, base: Recorded, expert_memory: int | None = None) -> Divergence:
    """The divergence of the file that was written."""
    engine = open_engine(GGUFFile.open(path), expert_memory)
    try:
        return divergence_from(base, engine)
    finally:
        engine.close()
