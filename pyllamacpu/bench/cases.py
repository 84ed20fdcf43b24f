"""Which tests to run: the combinations of all values that the options give, as llama-bench makes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from pyllamacpu.engine.precision import kv_types_of
from pyllamacpu.errors import OptionError
from pyllamacpu.store.paths import PackFolder


@dataclass(frozen=True)
class BenchOptions:
    """What to measure. Several values of a field make several tests; the defaults are llama-bench's.

    n_prompt, n_gen, n_pg, n_depth: tokens (0: no such test). n_batch, n_ubatch: tokens of a step at most
    (the smaller one counts). n_threads: 0 is as many as this process may use. repetitions: runs of each test.
    delay: seconds before each test. limits: measure the machine's limits too, for `limit_seconds`.
    """

    models: tuple[Path, ...]
    n_prompt: tuple[int, ...] = (512,)
    n_gen: tuple[int, ...] = (128,)
    n_pg: tuple[tuple[int, int], ...] = ()
    n_depth: tuple[int, ...] = (0,)
    n_batch: tuple[int, ...] = (2048,)
    n_ubatch: tuple[int, ...] = (512,)
    type_k: tuple[str, ...] = ()  # none: that of the precision
    type_v: tuple[str, ...] = ()
    n_threads: tuple[int, ...] = (0,)
    precision: tuple[str, ...] = ("fast",)
    adapters: tuple[tuple[str, float], ...] = ()  # LoRA files and their scales, of each model
    expert_memory: int | None = None  # bytes; experts stay in the file then
    kv_overrides: tuple[tuple[str, bool | int | float | str], ...] = ()  # metadata instead of a file's own
    pack_cache: PackFolder | None = None  # where packed weights are kept
    mmproj: Path | None = None  # the vision tower to measure; None: the model's own, or one beside it
    repetitions: int = 5
    warmup: bool = True
    delay: float = 0.0
    limits: bool = True
    limit_seconds: float = 1.0
    profile: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Setup:
    """How a model is loaded: tests with the same setup share one engine."""

    model: Path
    n_threads: int
    type_k: str
    type_v: str
    n_batch: int
    n_ubatch: int
    precision: str = "fast"
    adapters: tuple[tuple[str, float], ...] = ()  # LoRA files and their scales
    expert_memory: int | None = None
    kv_overrides: tuple[tuple[str, bool | int | float | str], ...] = ()
    pack_cache: PackFolder | None = None

    @property
    def step_tokens(self) -> int:
        """Tokens of a step at most."""
        return min(self.n_batch, self.n_ubatch)


@dataclass(frozen=True)
class Case:
    """One test: after `n_depth` tokens, not timed, `n_prompt` tokens at once, then `n_gen` one by one."""

    setup: Setup
    n_prompt: int
    n_gen: int
    n_depth: int = 0

    @property
    def name(self) -> str:
        """As llama-bench calls it: pp512, tg128, pp512+tg128, with the depth after an @."""
        parts = [f"pp{self.n_prompt}"] if self.n_prompt else []
        parts += [f"tg{self.n_gen}"] if self.n_gen else []
        return "+".join(parts) + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def n_tokens(self) -> int:
        """Tokens that are timed."""
        return self.n_prompt + self.n_gen

    @property
    def n_ctx(self) -> int:
        """Positions that it needs."""
        return self.n_depth + self.n_tokens


def cases(options: BenchOptions) -> list[Case]:
    """All tests, those of one setup together. Raises OptionError when there is none."""
    tests = [
        *((n, 0) for n in options.n_prompt if n),
        *((0, n) for n in options.n_gen if n),
        *options.n_pg,
    ]
    found = [
        Case(setup, *test, depth) for setup in _setups(options) for depth in options.n_depth for test in tests
    ]
    if not found:
        raise OptionError("there is nothing to measure: give -p, -n or -pg a number of tokens")
    return found


def _setups(options: BenchOptions) -> Iterator[Setup]:
    for model, n_threads, type_k, type_v, n_batch, n_ubatch, precision in product(
        options.models,
        options.n_threads,
        options.type_k or (None,),
        options.type_v or (None,),
        options.n_batch,
        options.n_ubatch,
        options.precision,
    ):
        yield Setup(
            model,
            n_threads,
            *kv_types_of(precision, type_k, type_v),
            n_batch,
            n_ubatch,
            precision,
            options.adapters,
            options.expert_memory,
            options.kv_overrides,
            options.pack_cache,
        )
