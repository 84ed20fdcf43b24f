"""The result of one test, with llama-bench's keys and ours."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pyllamacpu import __version__
from pyllamacpu.bench.cases import Case
from pyllamacpu.bench.cost import Cost
from pyllamacpu.bench.machine import Limits
from pyllamacpu.bench.models import ModelFacts

NS = 1_000_000_000


@dataclass(frozen=True)
class Share:
    """How near a test came to its limit; `resource` is "read" (bytes/s), "int8" or "fp32" (operations/s)."""

    resource: str
    rate: float  # per second
    limit: float  # per second

    @property
    def share(self) -> float:
        return self.rate / self.limit


@dataclass(frozen=True)
class OpTime:
    """One line of a profile: all ops of that name in all steps of a test."""

    name: str
    seconds: float
    cost: Cost


@dataclass(frozen=True)
class Result:
    """`samples_ns`: nanoseconds of each repetition. `peak_memory`, `weight_bytes`, `scratch_bytes`: bytes."""

    case: Case
    model: ModelFacts
    cpu: str
    isa: str
    n_threads: int
    samples_ns: tuple[int, ...]
    test_time: str  # UTC, ISO 8601
    load_ns: int
    peak_memory: int
    weight_bytes: int
    scratch_bytes: int
    cost: Cost
    limits: Limits | None = None
    profile: tuple[OpTime, ...] = field(default=())

    @property
    def name(self) -> str:
        return self.case.name

    @property
    def samples_ts(self) -> list[float]:
        """Tokens per second of each repetition."""
        return [self.case.n_tokens * NS / ns for ns in self.samples_ns]

    @property
    def median_ts(self) -> float:
        return statistics.median(self.samples_ts)

    def rate(self, resource: str) -> float:
        """Bytes or operations per second in the median repetition."""
        return self.cost.of(resource) * NS / statistics.median(self.samples_ns)

    @property
    def share(self) -> Share | None:
        """Of the resource that limits this test; None when the limits were not measured."""
        if self.limits is None:
            return None
        resource = self.cost.limiting(self.limits)
        return Share(resource, self.rate(resource), self.cost.limit(resource, self.limits))

    def row(self) -> dict[str, Any]:
        """llama-bench's keys in its order, then ours. Times in ns, rates per second, sizes in bytes."""
        return self._setup_keys() | self._time_keys() | self._memory_keys() | self._limit_keys()

    def _setup_keys(self) -> dict[str, Any]:
        setup = self.case.setup
        return {
            "build_commit": __version__,
            "build_number": 0,
            "cpu_info": self.cpu,
            "gpu_info": "",
            "backends": "pyllamacpu",
            "model_filename": self.model.filename,
            "model_type": self.model.type,
            "model_size": self.model.size,
            "model_n_params": self.model.n_params,
            "n_batch": setup.n_batch,
            "n_ubatch": setup.n_ubatch,
            "n_threads": self.n_threads,
            "type_k": setup.type_k,
            "type_v": setup.type_v,
            "precision": setup.precision,
            "n_gpu_layers": 0,
            "n_prompt": self.case.n_prompt,
            "n_gen": self.case.n_gen,
            "n_depth": self.case.n_depth,
        }

    def _time_keys(self) -> dict[str, Any]:
        return {
            "test_time": self.test_time,
            "avg_ns": round(statistics.fmean(self.samples_ns)),
            "stddev_ns": round(_spread(self.samples_ns)),
            "avg_ts": statistics.fmean(self.samples_ts),
            "stddev_ts": _spread(self.samples_ts),
            "samples_ns": list(self.samples_ns),
            "samples_ts": self.samples_ts,
            "median_ns": round(statistics.median(self.samples_ns)),
            "median_ts": self.median_ts,
        }

    def _memory_keys(self) -> dict[str, Any]:
        return {
            "isa": self.isa,
            "load_ns": self.load_ns,
            "peak_memory": self.peak_memory,
            "weight_bytes": self.weight_bytes,
            "scratch_bytes": self.scratch_bytes,
        }

    def _limit_keys(self) -> dict[str, Any]:
        keys: dict[str, Any] = {
            "read_bytes_per_second": self.rate("read"),
            "int8_ops_per_second": self.rate("int8"),
            "fp32_ops_per_second": self.rate("fp32"),
        }
        share, limits = self.share, self.limits
        keys |= {
            "limit_read_bytes_per_second": limits.read_bytes if limits else None,
            "limit_int8_ops_per_second": self.cost.limit("int8", limits) if limits else None,
            "limit_fp32_ops_per_second": limits.fp32_ops if limits else None,
            "limited_by": share.resource if share else None,
            "limit_share": share.share if share else None,
            "least_ns": round(self.cost.least_seconds(limits) * NS) if limits else None,
        }
        return keys


def _spread(values: Sequence[float]) -> float:
    """The sample standard deviation, 0 for one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
