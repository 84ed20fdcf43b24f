"""Measuring images: the parts of a vision tower, and what the text model does for their rows, with their
limits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pyllamacpu import __version__
from pyllamacpu.bench.cases import BenchOptions, cases
from pyllamacpu.bench.cost import Cost
from pyllamacpu.bench.formats import Column
from pyllamacpu.bench.machine import Limits, measure
from pyllamacpu.bench.models import ModelFacts, model_facts
from pyllamacpu.bench.result import NS, OpTime, Result
from pyllamacpu.bench.runner import Progress, open_engine, run
from pyllamacpu.bench.system import cpu_name
from pyllamacpu.engine.engine import Engine
from pyllamacpu.engine.image_keys import ImageKeys
from pyllamacpu.engine.pages import PAGE
from pyllamacpu.engine.tower import Tower, TowerFile
from pyllamacpu.engine.tower_files import missing_tower, open_tower
from pyllamacpu.errors import OptionError
from pyllamacpu.gguf.metadata import architecture_of
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.graph.native_plan import NativePlan, Workload
from pyllamacpu.images.picture import Picture
from pyllamacpu.model.config import ModelConfig
from pyllamacpu.model.pack_cache import open_pack_cache
from pyllamacpu.native import isa_selected, thread_pool
from pyllamacpu.topology import threads_running, threads_usable

TABLE = "llama_bench_image"
PRODUCTS = "matmul"  # what ops that are products of matrices are called


@dataclass(frozen=True)
class ImageResult:
    """A part of the work of an image. `products`: seconds and cost of the matrix products alone."""

    model: ModelFacts
    test: str
    n_threads: int
    n_rows: int  # of an image, for the text model
    samples_ns: tuple[int, ...]
    cost: Cost
    products: tuple[float, Cost]
    limits: Limits | None
    precision: str
    profile: tuple[OpTime, ...] = ()

    @property
    def name(self) -> str:
        return self.test

    @property
    def seconds(self) -> float:
        return statistics.median(self.samples_ns) / NS

    def row(self) -> dict[str, Any]:
        limits, (seconds, cost) = self.limits, self.products
        return {
            "build_commit": __version__,
            "cpu_info": cpu_name(),
            "isa": isa_selected(),
            "model_filename": self.model.filename,
            "model_type": self.model.type,
            "test": self.test,
            "n_threads": self.n_threads,
            "precision": self.precision,
            "n_rows": self.n_rows,
            "median_ns": round(self.seconds * NS),
            "samples_ns": list(self.samples_ns),
            "int8_ops": self.cost.int8,
            "fp32_ops": self.cost.fp32,
            "limit_int8_ops_per_second": self.cost.limit("int8", limits) if limits else None,
            "limit_fp32_ops_per_second": limits.fp32_ops if limits else None,
            "limit_share": self.cost.least_seconds(limits) / self.seconds if limits else None,
            "products_ns": round(seconds * NS),
            "products_limit_share": cost.least_seconds(limits) / seconds if limits and seconds else None,
        }


def run_images(options: BenchOptions, progress: Progress | None = None) -> Iterator[ImageResult]:
    """The parts of the tower, all of it, and the text model's prompt, or its keys and values of an image,
    where there is a text model.

    Raises OptionError for a model without a tower, and what opening a model can raise.
    """
    say = progress or (lambda text, done, total: None)
    n_threads = (options.n_threads or (0,))[0] or threads_usable()
    for path in options.models:
        with GGUFFile.open(path) as file:
            opened, is_alone = _tower_of(file, options.mmproj)
            attends = not is_alone and _attends_to_images(file)
            say("measuring the machine", 0, 2)
            limits = measure(n_threads, options.limit_seconds) if options.limits else None
            say(f"loading {opened.file.paths[0].name}", 1, 2)
            pool = thread_pool(n_threads)
            exact, kept = options.precision[0] == "exact", open_pack_cache(options.pack_cache)
            tower = Tower(opened, pool, nullcontext, exact=exact, pack_cache=kept)
            try:
                n_rows, found = _measured(tower, options, limits, n_threads)
            finally:
                tower.release()
                if opened.file is not file:
                    opened.file.close()
        yield from found
        if not is_alone:
            own = replace(options, models=(path,), n_prompt=(n_rows,), n_gen=(0,), n_pg=(), n_depth=(0,))
            if attends:
                say(f"loading {path.name}", 1, 2)
                yield _of_keys(own, n_rows, limits)
                continue
            for result in run(replace(own, profile=True), progress):
                yield _of_prompt(result, n_rows)


def _tower_of(file: GGUFFile, mmproj: Path | None) -> tuple[TowerFile, bool]:
    """The tower, and whether its file holds nothing else. Raises GGUFError, ModelError, OptionError."""
    arch = architecture_of(file.metadata)
    if arch == "clip":
        if mmproj is not None:
            raise OptionError(f"{file.paths[0]}: is a vision tower itself: leave --mmproj out")
        return TowerFile(file), True
    dim = file.metadata.get(f"{arch}.embedding_length")
    found = open_tower(file, dim if isinstance(dim, int) else 0, mmproj)
    if found is None:
        raise missing_tower(file.paths[0], arch, file)
    return found, False


def _attends_to_images(file: GGUFFile) -> bool:
    """Whether layers of the text model do, so that an image is one token in its prompts."""
    return ModelConfig.from_metadata(file.metadata, file.tensors).mllama is not None


@dataclass
class _Call:
    """A run of a part while an image is read, to be repeated."""

    part: str
    run: Callable[[], object]


def _measured(
    tower: Tower, options: BenchOptions, limits: Limits | None, n_threads: int
) -> tuple[int, list[ImageResult]]:
    """Rows of an image of one tile, and the results of each part of the tower and of all of them."""
    size = tower.config.image_size
    pixels = np.random.default_rng(options.seed).integers(0, 256, (size, size, 3), np.uint8)
    tiles = tower.opened.cut(Picture(pixels))
    calls: list[_Call] = []

    def noted(part: str, rows: Any, wanted: Any = None) -> Any:
        calls.append(_Call(part, lambda: tower.run(part, rows, wanted)))
        return tower.run(part, rows, wanted)

    opened = tower.opened
    n_rows = len(opened.architecture.encode(tower.config, tower.weights, noted, tiles))
    model = model_facts(opened.file)
    parts = [_of_part(tower, call, options, limits, n_threads, n_rows, model) for call in calls]
    samples = tuple(map(sum, zip(*(part.samples_ns for part in parts), strict=True)))
    seconds = sum(part.products[0] for part in parts)
    products = sum((part.products[1] for part in parts), Cost()), sum((part.cost for part in parts), Cost())
    whole = replace(
        parts[0], test="tile", samples_ns=samples, cost=products[1], products=(seconds, products[0])
    )
    return n_rows, [*parts, replace(whole, profile=())]


def _of_part(
    tower: Tower,
    call: _Call,
    options: BenchOptions,
    limits: Limits | None,
    n_threads: int,
    n_rows: int,
    model: ModelFacts,
) -> ImageResult:
    _, native = tower.part(call.part)
    samples, profile = _profiled(
        native, call.run, lambda i: Cost(*tower.cost(call.part, i)), options.repetitions
    )
    return ImageResult(
        model,
        f"tower {call.part}",
        n_threads,
        n_rows,
        samples,
        sum((op.cost for op in profile), Cost()),
        _products(profile),
        limits,
        options.precision[0],
        profile,
    )


def _profiled(
    native: NativePlan, run: Callable[[], object], cost: Callable[[int], Cost], repetitions: int
) -> tuple[tuple[int, ...], tuple[OpTime, ...]]:
    """Nanoseconds of each run, and the ops of the plan by their names. cost: of the op of a number."""
    samples, profiles = [], []
    for _ in range(repetitions):
        seconds = np.zeros(len(native.plan), np.float64)
        native.profile(seconds)
        start = time.perf_counter_ns()
        run()
        samples.append(time.perf_counter_ns() - start)
        native.profile(None)
        profiles.append(seconds)
    spent = np.median(profiles, axis=0)
    ops: dict[str, OpTime] = {}
    for i, name in enumerate(native.plan.names):
        old = ops.get(name, OpTime(name, 0.0, Cost()))
        ops[name] = OpTime(name, old.seconds + float(spent[i]), old.cost + cost(i))
    return tuple(samples), tuple(ops.values())


def _of_keys(options: BenchOptions, n_rows: int, limits: Limits | None) -> ImageResult:
    """What the layers of `options`' model that attend to images do for the rows of one."""
    engine = open_engine(next(iter(cases(options))).setup, n_ctx=PAGE)
    try:
        return _keys_result(engine, options, n_rows, limits)
    finally:
        engine.close()


def _keys_result(engine: Engine, options: BenchOptions, n_rows: int, limits: Limits | None) -> ImageResult:
    keys, plan = engine.image_keys, engine.image_plan
    assert keys is not None and plan is not None
    states = np.random.default_rng(options.seed).standard_normal((n_rows, engine.dim), np.float32)
    room = ImageKeys(keys.cache, keys.space, n_rows)
    scales = engine.adapters.rows([engine.sequence().adapters])
    batches = [min(plan.max_tokens, n_rows - i) for i in range(0, n_rows, plan.max_tokens)]

    def cost(op: int) -> Cost:
        return sum((Cost(*plan.cost(op, Workload(1, n, 0, 0, 0))) for n in batches), Cost())

    def fill() -> None:
        keys.fill(room, 0, states, plan, scales)

    if options.warmup:
        fill()
    samples, profile = _profiled(plan, fill, cost, options.repetitions)
    return ImageResult(
        model_facts(engine.file),
        f"keys of {n_rows}",
        threads_running(engine.n_threads),
        n_rows,
        samples,
        sum((op.cost for op in profile), Cost()),
        _products(profile),
        limits,
        engine.precision,
        profile,
    )


def _products(profile: tuple[OpTime, ...]) -> tuple[float, Cost]:
    own = [op for op in profile if op.name.startswith(PRODUCTS)]
    return sum(op.seconds for op in own), sum((op.cost for op in own), Cost())


def _of_prompt(result: Result, n_rows: int) -> ImageResult:
    return ImageResult(
        result.model,
        f"prompt of {n_rows}",
        result.n_threads,
        n_rows,
        result.samples_ns,
        result.cost,
        _products(result.profile),
        result.limits,
        result.case.setup.precision,
        result.profile,
    )


def image_columns(first: ImageResult) -> list[Column]:
    columns: list[Column] = [
        ("model", False, lambda result: result.model.type),
        ("test", False, lambda result: result.test),
        ("      ms", True, lambda result: f"{1e3 * result.seconds:.1f}"),
        ("    Gop", True, lambda result: f"{(result.cost.int8 + result.cost.fp32) / 1e9:.1f}"),
    ]
    if first.limits:
        columns.append(("of limit", True, lambda result: _percent(result.row()["limit_share"])))
        columns.append(("products of limit", True, lambda r: _percent(r.row()["products_limit_share"])))
    return columns


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"
