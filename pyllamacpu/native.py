"""The one module that imports the compiled extension: `ffi`, `lib`, and the choice of the CPU tier.

The tier is chosen when this module is first imported: the fastest one that the CPU has, or the one that the
environment variable `PYLLAMACPU_ISA` names (an unknown name, or one that this CPU lacks, is a `NativeError`).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from .errors import NativeError, RequestCancelled
from .topology import CpuGroup, placement

try:
    from ._native import ffi, lib
except ImportError as error:  # a source tree that was never built, or a wheel for another platform
    raise NativeError(
        f"the compiled extension pyllamacpu._native is missing ({error}); install the package "
        "with `pip install .`"
    ) from error

__all__ = [
    "check",
    "ending_when",
    "extension_content",
    "ffi",
    "isa_names",
    "isa_selected",
    "lib",
    "pointer",
    "raise_interruption",
    "thread_pool",
]

ISA_VARIABLE = "PYLLAMACPU_ISA"

_MESSAGES = {
    lib.PL_EINVAL: "invalid argument",
    lib.PL_ENOMEM: "out of memory",
    lib.PL_EINTERRUPTED: "interrupted",
    lib.PL_EUNSUPPORTED: "not supported",
    lib.PL_EREAD: "a file cannot be read",
}


def check(code: int, what: str) -> int:
    """`code` itself when it is not an error; otherwise a `NativeError` that says what failed and why."""
    if code < 0:
        raise NativeError(f"{what}: {_MESSAGES.get(code, f'error {code}')}")
    return code


def pointer(handle: Any, what: str) -> Any:
    """`handle` itself when it is not NULL; otherwise a `NativeError` (out of memory, or arguments that do not
    fit).
    """
    if handle == ffi.NULL:
        raise NativeError(f"{what}: out of memory, or arguments that do not fit")
    return handle


pools_follow_cpus = True  # tests want races


def thread_pool(n_threads: int, groups: Sequence[CpuGroup] | None = None) -> Any:
    """A pool of threads for C calls, freed with its last user. If they are more than the CPUs that this
    process may use (now, or later), only as many run. groups: where they run; as `placement` says.
    """
    if not 1 <= n_threads <= lib.PL_MAX_THREADS:
        raise NativeError(f"{n_threads} threads: give from 1 to {lib.PL_MAX_THREADS}")
    found = placement(n_threads) if groups is None else groups
    native = ffi.new("pl_cpu_group[]", len(found))
    for group, at in zip(found, native, strict=True):
        at.n_threads, at.node, at.speed = group.n_threads, group.node, group.speed
        for cpu in group.cpus:
            if cpu < lib.PL_MAX_CPUS:
                at.cpus[cpu // 64] |= 1 << cpu % 64
    handle = pointer(lib.pl_pool_new(native, len(found), pools_follow_cpus), f"{n_threads} threads")
    return ffi.gc(handle, lib.pl_pool_free)


_of_thread = threading.local()


def _keep(kind: Any, error: BaseException, trace: Any) -> None:
    _of_thread.error = error


@ffi.def_extern(error=1, onerror=_keep)  # type: ignore[untyped-decorator]
def pl_poll_signals() -> int:
    """Lets Python's signal handlers run inside a long C call: entering Python code is enough for that.

    What a handler raises (KeyboardInterrupt) is kept for `raise_interruption`, and the C call is told to end.
    """
    return int(_is_unwanted())


def _is_unwanted() -> bool:
    is_over: Callable[[], bool] | None = getattr(_of_thread, "is_over", None)
    return is_over is not None and is_over()


@contextmanager
def ending_when(is_over: Callable[[], bool]) -> Iterator[None]:
    """Long C calls of this thread that poll for signals end with RequestCancelled once `is_over()`; it is
    asked about every 50 ms.
    """
    _of_thread.is_over = is_over
    try:
        yield
    finally:
        _of_thread.is_over = None


def raise_interruption() -> NoReturn:
    """Raises what ended the C call that has just returned PL_EINTERRUPTED in this thread."""
    error, _of_thread.error = getattr(_of_thread, "error", None), None
    if error is None and _is_unwanted():
        raise RequestCancelled("the request was cancelled")
    raise error if error is not None else KeyboardInterrupt


def isa_names(available: bool = True) -> list[str]:
    """Tiers compiled into this build, slowest first; only those that this CPU has, unless `available` is
    False.
    """
    names, index = [], 0
    while lib.pl_isa_name(index) != ffi.NULL:
        if not available or lib.pl_isa_available(index):
            names.append(ffi.string(lib.pl_isa_name(index)).decode())
        index += 1
    return names


def extension_content() -> bytes:
    """The bytes of the compiled extension's file: other kernels are other bytes."""
    return Path(str(sys.modules[f"{__package__}._native"].__file__)).read_bytes()


def _select_isa(name: str | None) -> str:
    index = lib.pl_isa_select(name.encode() if name else ffi.NULL)
    if index >= 0:
        return str(ffi.string(lib.pl_isa_name(index)).decode())
    if index == lib.PL_EUNSUPPORTED:
        raise NativeError(
            f"{ISA_VARIABLE}={name}: this CPU lacks that tier; it has {', '.join(isa_names())} "
            "(unset the variable to choose)"
        )
    raise NativeError(
        f"{ISA_VARIABLE}={name}: no such tier; this build has {', '.join(isa_names(available=False))}"
    )


_selected = _select_isa(os.environ.get(ISA_VARIABLE) or None)


def isa_selected() -> str:
    """The tier that this process uses."""
    return _selected
