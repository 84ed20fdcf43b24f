"""The machine's limits, measured: bytes read and operations done per second by loops that do nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyllamacpu.bench.system import cache_bytes
from pyllamacpu.gguf.types import TensorType
from pyllamacpu.limits import memory_usable
from pyllamacpu.native import check, ffi, isa_selected, lib, thread_pool

MB = 1 << 20
CODE_WIDTHS = (4, 5, 6, 7, 8, 16)  # bits; 16: attention over keys and values in whole numbers


@dataclass(frozen=True)
class Limits:
    """What `n_threads` threads of this machine reach at best with the tier `isa`, per second."""

    n_threads: int
    isa: str
    read_bytes: float  # bytes of memory, not from caches
    int8_ops: float  # multiplications and additions of int8 codes
    fp32_ops: float
    code_ops: tuple[float, ...] = ()  # of codes of CODE_WIDTHS; 0: no type of this tier has such

    def of(self, resource: str) -> float:
        """The limit of "read", "int8" or "fp32"."""
        return {"read": self.read_bytes, "int8": self.int8_ops, "fp32": self.fp32_ops}[resource]


def probe_bytes() -> int:
    """Bytes to read so that caches do not matter: eight last-level caches, an eighth of memory at most."""
    wanted = max(256 * MB, min(8 * cache_bytes(), 2048 * MB))
    memory = memory_usable()
    return max(MB, min(wanted, memory // 8) if memory else wanted)


def measure(n_threads: int, seconds: float = 1.0) -> Limits:
    """Measures for about `seconds` (filling the memory that is read comes on top, about 0.1 s).

    Other work on the machine makes the limits look lower. Raises NativeError without memory or threads.
    """
    pool = thread_pool(n_threads)
    try:
        read = _checked(lib.pl_probe_read(pool, probe_bytes(), seconds / 2), "measuring the memory")
        codes = _code_rates(pool, seconds / 4)
        fp32 = _checked(lib.pl_probe_fma(pool, seconds / 4), "measuring the float units")
    finally:
        ffi.release(pool)
    return Limits(n_threads, isa_selected(), read, codes[CODE_WIDTHS.index(8)], fp32, codes)


def code_bits(kind: int) -> int:
    """The width of the codes that products with a tensor type multiply, where the tier's speed depends on it
    (4 to 8 bits); 8 for all quantized types otherwise, and 0 for float types.
    """
    return int(lib.pl_code_bits(kind))


def _code_rates(pool: Any, seconds: float) -> tuple[float, ...]:
    """Operations per second with codes of CODE_WIDTHS; 0 for a width that no type has."""
    widths = {8, 16, *map(code_bits, TensorType)} - {0}
    return tuple(
        _checked(lib.pl_probe_dot(pool, bits, seconds / len(widths)), "measuring the integer units")
        if bits in widths
        else 0.0
        for bits in CODE_WIDTHS
    )


def _checked(rate: float, what: str) -> float:
    if rate < 0:
        check(int(rate), what)
    return float(rate)
