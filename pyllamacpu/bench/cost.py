"""What a plan must at least move and compute: the bytes and operations of each of its ops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from pyllamacpu.bench.machine import Limits
from pyllamacpu.engine.engine import Engine
from pyllamacpu.graph.native_plan import Workload

RESOURCES = ("read", "int8", "fp32")


@dataclass(frozen=True)
class Cost:
    """`read`: bytes from memory that no cache can save (weights, keys and values, table rows). `int8` and
    `fp32`: operations, a multiplication and its addition being two. `codes`: those on int8 again, by the
    width of their codes: 4 to 8 bits, and 16 (attention over 8-bit and 4-bit keys and values).
    """

    read: float = 0.0
    int8: float = 0.0
    fp32: float = 0.0
    codes: tuple[float, ...] = ()

    def __add__(self, other: Cost) -> Cost:
        codes = tuple(a + b for a, b in zip_longest(self.codes, other.codes, fillvalue=0.0))
        return Cost(self.read + other.read, self.int8 + other.int8, self.fp32 + other.fp32, codes)

    def __mul__(self, times: float) -> Cost:
        codes = tuple(ops * times for ops in self.codes)
        return Cost(self.read * times, self.int8 * times, self.fp32 * times, codes)

    def of(self, resource: str) -> float:
        return {"read": self.read, "int8": self.int8, "fp32": self.fp32}[resource]

    def least_seconds(self, limits: Limits) -> float:
        """No run can be faster: reading and computing overlap, the two kinds of computing do not."""
        compute = self.int8 / self.limit("int8", limits) + self.fp32 / limits.fp32_ops
        return max(self.read / limits.read_bytes, compute)

    def limit(self, resource: str, limits: Limits) -> float:
        """The limit of "read", "int8" or "fp32"; of int8 that for this mixture of code widths."""
        if resource != "int8" or not any(self.codes) or not limits.code_ops:
            return limits.of(resource)
        seconds = sum(ops / rate for ops, rate in zip(self.codes, limits.code_ops, strict=True) if ops)
        return sum(self.codes) / seconds

    def limiting(self, limits: Limits) -> str:
        """The resource that takes longest."""
        return max(RESOURCES, key=lambda name: self.of(name) / self.limit(name, limits))


@dataclass(frozen=True)
class Step:
    """`sequences` sequences of `depth` tokens get `n_tokens` more each; `n_outputs` rows of logits in all."""

    n_tokens: int
    depth: int
    n_outputs: int
    sequences: int = 1


def steps_of(n_prompt: int, n_gen: int, depth: int, n_batch: int) -> Iterator[tuple[Step, int]]:
    """The steps of a test, and how often each runs. Generated tokens count as at their mean depth."""
    for start in range(0, n_prompt, n_batch):
        n = min(n_batch, n_prompt - start)
        yield Step(n, depth + start, int(start + n == n_prompt)), 1
    if n_gen:
        yield Step(1, depth + n_prompt + (n_gen - 1) // 2, 1), n_gen


def costs(engine: Engine, step: Step) -> dict[str, Cost]:
    """By the name of the op, as `Engine.profile` names them."""
    work = Workload(step.sequences, step.n_tokens, step.depth, step.n_outputs, step.n_outputs)
    found: dict[str, Cost] = {}
    for i, name in enumerate(engine.plan.names):
        found[name] = found.get(name, Cost()) + Cost(*engine.op_cost(i, work))
    return found


def total(engine: Engine, step: Step) -> Cost:
    return sum(costs(engine, step).values(), Cost())


def test_cost(engine: Engine, n_prompt: int, n_gen: int, depth: int) -> Cost:
    """Of all steps of a test, without the filling of `depth`."""
    return sum(
        (total(engine, step) * times for step, times in steps_of(n_prompt, n_gen, depth, engine.n_batch)),
        Cost(),
    )
