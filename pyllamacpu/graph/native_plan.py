"""A compiled plan that is ready to run: the C object, and what may go wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.errors import NativeError
from pyllamacpu.graph.compiled import CompiledPlan
from pyllamacpu.native import check, ffi, lib, raise_interruption


@dataclass(frozen=True)
class Workload:
    """A step to count the cost of: `sequences` sequences of `depth` tokens get `n_tokens` more each."""

    sequences: int
    n_tokens: int
    depth: int
    n_outputs: int
    n_logits: int


class NativePlan:
    """A plan made for a thread pool and the KV spaces' page shapes (pl_cache handles).

    exact: every block of activations has a residual block, so that they have 16 bits.

    Raises NativeError that names the op which does not fit, and why.
    """

    def __init__(
        self,
        plan: CompiledPlan,
        pool: Any,
        spaces: Sequence[Any],
        max_tokens: int,
        n_ctx: int,
        exact: bool = False,
    ) -> None:
        self.plan, self.max_tokens = plan, max_tokens
        self._spaces = list(spaces)  # their shapes must outlive the plan
        error = ffi.new("pl_plan_error *")
        handle = lib.pl_plan_new(pool, self._spaces, len(spaces), *plan.arguments(), max_tokens, n_ctx, error)
        if handle == ffi.NULL:
            raise _error(plan, error)
        self.handle = ffi.gc(handle, lib.pl_plan_free)
        lib.pl_plan_set_exact(handle, int(exact))
        self.logits_stride = int(lib.pl_plan_logits_stride(handle))
        self.hidden_stride = int(lib.pl_plan_hidden_stride(handle))

    @property
    def n_bytes(self) -> int:
        """Of buffers and scratch."""
        return int(lib.pl_plan_bytes(self.handle))

    def run(self, batch: Any, poll_signals: bool = True) -> None:
        """Runs a pl_batch. With `poll_signals` Python's signal handlers run meanwhile; what they raise ends
        the run, and is raised here. Otherwise the run needs the interpreter's lock at no time.
        """
        code = lib.pl_plan_run(self.handle, batch, lib.pl_poll_signals if poll_signals else ffi.NULL)
        if code == lib.PL_EINTERRUPTED:
            raise_interruption()
        check(code, "a step of the model")

    def profile(self, seconds: npt.NDArray[np.float64] | None) -> None:
        """From now on each op's seconds are added to `seconds` (n_ops,); None ends it."""
        lib.pl_plan_profile(
            self.handle, ffi.NULL if seconds is None else ffi.cast("double *", seconds.ctypes.data)
        )

    def cost(self, op: int, work: Workload) -> tuple[float, float, float, tuple[float, ...]]:
        """Bytes read, int8 and float operations of an op, as api/plan.h counts them; those on int8 again
        by the width of their codes, 4 to 8 bits and 16.
        """
        found = ffi.new("pl_cost *")
        given = (work.sequences, work.n_tokens, work.depth, work.n_outputs, work.n_logits)
        check(lib.pl_plan_cost(self.handle, op, ffi.new("pl_workload *", given), found), "the cost of an op")
        return found.read, found.int8, found.fp32, tuple(found.codes)

    def release(self) -> None:
        """Frees it now."""
        ffi.release(self.handle)


def measured_bytes(
    plan: CompiledPlan, spaces: Sequence[Any], max_tokens: int, n_ctx: int, n_threads: int
) -> int:
    """What NativePlan.n_bytes would be; the plan's weights need only be described."""
    error = ffi.new("pl_plan_error *")
    bytes_ = lib.pl_plan_measure(
        list(spaces), len(spaces), *plan.arguments(), max_tokens, n_ctx, n_threads, error
    )
    if bytes_ < 0:
        raise _error(plan, error)
    return int(bytes_)


def _error(plan: CompiledPlan, error: Any) -> NativeError:
    message = ffi.string(error.message).decode()
    if error.op < 0:
        return NativeError(f"the plan: {message}")
    name = plan.names[error.op] if error.op < len(plan) else "?"
    return NativeError(f"op {error.op} ({name}): {message}")
