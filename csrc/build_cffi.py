"""The cffi build of `pyllamacpu._native` from csrc/.

No compiler flag names a CPU: each file under isa/ opens the target region of its own tier, and cpu.c chooses
one when the library is loaded. `-ffp-contract=off` keeps floating-point results the same wherever a kernel is
inlined.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent


def cdef_text() -> str:
    """api.h and its parts, each once, without lines that cffi does not take (guards, includes)."""
    seen: set[str] = set()

    def lines_of(name: str) -> Iterator[str]:
        seen.add(name)
        for line in (HERE / name).read_text(encoding="utf-8").splitlines():
            if line.startswith('#include "'):
                part = line.split('"')[1]
                yield from lines_of(part) if part not in seen else ()
            elif not line.startswith(("#if", "#endif", "#include", "#define PL_API_")):
                yield line

    return "\n".join(lines_of("api.h"))


def sources() -> list[str]:
    """Every C file, relative to the project's root as setuptools wants it."""
    return sorted(os.path.relpath(path, HERE.parent) for path in HERE.glob("*/*.c"))


def depends() -> list[str]:
    """What is read besides them: a change compiles the extension anew, and a source distribution has them."""
    headers = [path for end in ("h", "inc", "def") for path in HERE.rglob(f"*.{end}")]
    return sorted(os.path.relpath(path, HERE.parent) for path in [Path(__file__).resolve(), *headers])


def compile_args() -> list[str]:
    if sys.platform == "win32":
        return ["/O2", "/std:c11"]
    return [
        "-O3",
        "-g0",
        "-std=c11",
        "-ffp-contract=off",
        "-fno-math-errno",
        # Against flags of Python's own, which come first: with them a few tokens are up to a quarter slower
        # (csrc/kernels/README.md, Flags).
        "-fno-wrapv",
        "-fno-stack-clash-protection",
        "-fvisibility=hidden",
    ]


ffi = FFI()
ffi.cdef(cdef_text())
ffi.cdef('extern "Python" int pl_poll_signals(void);')  # native.py defines it; given to pl_plan_run
ffi.set_source(
    "pyllamacpu._native",
    '#include "api.h"',
    sources=sources(),
    include_dirs=[str(HERE)],
    depends=depends(),
    extra_compile_args=compile_args(),
    libraries=[] if sys.platform == "win32" else ["m", "pthread"],
    py_limited_api=True,
)
