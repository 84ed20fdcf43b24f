"""A vision tower that is ready to run: its weights, and a plan without KV spaces for each of its parts."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.batch import aligned_rows
from pyllamacpu.engine.leaving import check_wanted
from pyllamacpu.engine.memory import check_tower, holds, holds_no_more
from pyllamacpu.errors import ModelError
from pyllamacpu.forks import fork_safe_lock
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.graph.compiled import CompiledPlan
from pyllamacpu.graph.native_plan import NativePlan, Workload
from pyllamacpu.graph.recorder import Recorder
from pyllamacpu.model.pack_cache import PackCache
from pyllamacpu.model.towers import TowerPart, tower_architecture, tower_keys, tower_kind
from pyllamacpu.model.weights import Weights, check_tensors, load_weights
from pyllamacpu.native import ffi, lib

if TYPE_CHECKING:
    from pyllamacpu.images.picture import Picture
    from pyllamacpu.images.tiles import Tiles

Floats = npt.NDArray[np.float32]

_SLICE_OPERATIONS = 5e10  # of a run without a break: fractions of a second
_PAUSE = 0.0005  # seconds
_PATIENCE = 0.1  # likewise: until who waits for another image looks whether its own is still wanted


class TowerFile:
    """A tower's file, opened and checked; `load` packs its weights. Raises GGUFError, ModelError.

    path: an mmproj file, or one that holds a text model too.
    """

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.kind = tower_kind(file.metadata)
        self.architecture = tower_architecture(self.kind, file.paths[0])
        self.config = self.architecture.read_config(tower_keys(file))

    def check_fits(self, arch: str, dim: int) -> None:
        """Raises ModelError unless the tower is whole, for a text model of this architecture and width."""
        where = self.file.paths[0]
        if self.kind != arch:
            raise ModelError(f"{where}: a vision tower of {self.kind} models does not fit a {arch} model")
        if self.config.dim != dim:
            raise ModelError(
                f"{where}: the vision tower of a model of width {self.config.dim}; this one has {dim}"
            )
        check_tensors(self.file, self.architecture.tensors(self.config, self.file.tensors))

    @property
    def identity(self) -> bytes:
        """What tells images' rows of this tower from those of others, in this process."""
        files = ((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in self.file.statuses)
        text = repr((list(files), self.config))
        return hashlib.sha256(text.encode()).digest()

    def cut(self, picture: Picture) -> Tiles:
        return self.architecture.cut(self.config, picture)

    def placeholders(self, ids: Mapping[str, int], tiles: Tiles) -> list[int]:
        return self.architecture.placeholders(self.config, ids, tiles)

    def image_tokens(
        self, special: Mapping[str, int], n_vocab: int, metadata: Mapping[str, Any]
    ) -> dict[str, int]:
        """The ids of the tokens that say where images are: by the tokenizer's special tokens, else as
        released, where the vocabulary has room for them. The text model's file may name the placeholder's.
        """
        known = self.architecture.IMAGE_TOKENS.items()
        found = {what: special.get(name, -1 if special else usual) for what, (name, usual) in known}
        stated = metadata.get(f"{self.kind}.image_token_id")
        if isinstance(stated, int) and not isinstance(stated, bool):
            found["patch"] = stated
        return {what: token for what, token in found.items() if 0 <= token < n_vocab}


class Tower:
    """A tower with its weights, on a thread pool, which has one job at a time: `exclusive()` is entered while
    weights are packed, and for each run of a part. exact: see NativePlan; pack_cache: where they are kept.
    """

    def __init__(
        self,
        opened: TowerFile,
        pool: Any,
        exclusive: Callable[[], AbstractContextManager[object]],
        on_load: Callable[[int, int], None] | None = None,
        exact: bool = False,
        pack_cache: PackCache | None = None,
    ) -> None:
        self.opened, self.config = opened, opened.config
        self._exclusive, self._pool, self._exact = exclusive, pool, exact
        self._one_image = fork_safe_lock()  # whose rows are in the plans' buffers
        self._released = False
        file = opened.file
        specs = list(opened.architecture.tensors(self.config, file.tensors))
        check_tower(file, (spec.tensor or spec.name for spec in specs if spec.kind != "unused"))
        self.parts: dict[str, tuple[CompiledPlan, NativePlan]] = {}
        with exclusive():
            self.weights = load_weights(file, specs, pool, on_load, pack_cache=pack_cache)
            file.check_intact()
            for name, part in opened.architecture.PARTS.items():
                if part.lasting:
                    self.part(name)
            file.release_all()
        holds(self)

    def part(self, name: str) -> tuple[CompiledPlan, NativePlan]:
        """The plan of a part, made where it is not there."""
        if name not in self.parts:
            self._release_passing()
            part = self.opened.architecture.PARTS[name]
            plan, n = recorded_part(part, self.config, self.weights), part.max_rows(self.config)
            self.parts[name] = plan, NativePlan(plan, self._pool, (), n, n, self._exact)
        return self.parts[name]

    def _release_passing(self) -> None:
        parts = self.opened.architecture.PARTS
        for name in [name for name in self.parts if not parts[name].lasting]:
            plan, native = self.parts.pop(name)
            native.release()
            plan.release()

    @property
    def n_bytes(self) -> int:
        """Of packed weights and buffers."""
        return self.weights.n_bytes + sum(native.n_bytes for _, native in self.parts.values())

    @property
    def held_bytes(self) -> int:
        """Bytes of weights."""
        return self.weights.n_bytes

    def encode(self, tiles: Tiles) -> Floats:
        """An image -> (n_tiles * rows_per_tile, dim)."""
        try:
            rows = self.opened.architecture.encode(self.config, self.weights, self.run, tiles)
            self.opened.file.check_intact()  # weights may be mapped
            return rows
        finally:
            with self._one_image, self._exclusive():
                self._release_passing()

    def run(self, part: str, rows: Floats, wanted: Sequence[int] | None = None) -> Floats:
        """What a part makes of `rows` (n, width), or of those `wanted`; rows of zeros fill it up. Other work
        of the pool comes between its ops. Raises Abandoned soon after whoever waits for it has left.
        """
        with self._turn():
            if self._released:
                raise ModelError("the model was closed while an image was read")
            return self._run(part, rows, wanted)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The plans' buffers, when no other image needs them."""
        check_wanted()
        while not self._one_image.acquire(timeout=_PATIENCE):
            check_wanted()
        try:
            yield
        finally:
            self._one_image.release()

    def _run(self, part: str, rows: Floats, wanted: Sequence[int] | None) -> Floats:
        with self._exclusive():
            plan, native = self.part(part)
        n_rows = self.opened.architecture.PARTS[part].max_rows(self.config)
        ids = [-1 - i for i in range(len(rows))] + [0] * (n_rows - len(rows))
        outputs = list(range(len(rows)) if wanted is None else map(int, wanted))
        rows = np.ascontiguousarray(rows, np.float32)
        places = list(range(n_rows))
        ints = ffi.new("int32_t[]", ids + places + [0] * n_rows + outputs)
        hidden = aligned_rows(len(outputs), native.hidden_stride)
        batch = ffi.new("pl_batch *")
        batch.n_tokens, batch.n_sequences, batch.n_outputs = n_rows, 1, len(outputs)
        batch.tokens, batch.positions = ints, ints + n_rows
        batch.sequences, batch.outputs = ints + 2 * n_rows, ints + 3 * n_rows
        batch.embeddings = ffi.from_buffer("float *", rows)
        batch.n_embeddings, batch.embedding_stride = rows.shape
        batch.hidden = ffi.from_buffer("float *", hidden)
        is_main = threading.current_thread() is threading.main_thread()
        for first, end in self._slices(part, len(plan)):
            check_wanted()
            batch.first_op, batch.end_op = first, end
            with self._exclusive():
                native.run(batch, is_main)
            if end < len(plan):
                time.sleep(_PAUSE)  # who waits for the pool would not get it otherwise
        return hidden[:, : _width(plan)]

    def _slices(self, part: str, n_ops: int) -> Iterator[tuple[int, int]]:
        """Runs of a part's ops, (first, end), of about the same work."""
        first, work = 0, 0.0
        for i in range(n_ops):
            _, int8, fp32, _ = self.cost(part, i)
            if i > first and work + int8 + fp32 > _SLICE_OPERATIONS:
                yield first, i
                first, work = i, 0.0
            work += int8 + fp32
        yield first, n_ops

    def cost(self, part: str, op: int) -> tuple[float, float, float, tuple[float, ...]]:
        """Bytes read, int8 and float operations of op number `op` in a run of `part`, at least; those on int8
        again by the width of their codes.
        """
        _, native = self.part(part)
        n = self.opened.architecture.PARTS[part].max_rows(self.config)
        return native.cost(op, Workload(1, n, 0, n, 0))

    def release(self) -> None:
        """Frees the plans, when what runs is done; the file is closed by whoever opened it."""
        with self._one_image, self._exclusive():
            self._released = True
            holds_no_more(self)
            for plan, native in self.parts.values():
                native.release()
                plan.release()
            self.parts.clear()


def _width(plan: CompiledPlan) -> int:
    """Of the rows that a part gives."""
    is_result = (op for op in plan.ops if op.name in ("select", "copy") and op.values["out"] == lib.PL_HIDDEN)
    return int(next(is_result).values["x"].width)


def recorded_part(part: TowerPart, config: Any, weights: Weights) -> CompiledPlan:
    recorder = Recorder(())
    part.record(recorder, config, weights)
    return recorder.compile()
