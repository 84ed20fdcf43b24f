"""The cffi build of `pyllamacpu._native` from csrc/.

No compiler flag names a CPU: each file under isa/ opens the target region of its own tier, and cpu.c chooses
one when the library is loaded. `-ffp-contract=off` keeps floating-point results the same wherever a kernel is
inlined.
"""

import os
import sys
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent


def cdef_text() -> str:
    """api.h without the lines that cffi's parser does not take (guards, includes)."""
    lines = (HERE / "api.h").read_text().splitlines()
    return "\n".join(
        line for line in lines if not line.startswith(("#if", "#endif", "#include", "#define PL_API_H"))
    )


def sources() -> list[str]:
    """Every C file, relative to the project's root as setuptools wants it."""
    return sorted(os.path.relpath(path, HERE.parent) for path in HERE.glob("*/*.c"))


def compile_args() -> list[str]:
    if sys.platform == "win32":
        return ["/O2", "/std:c11"]
    return ["-O3", "-g0", "-std=c11", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]


ffi = FFI()
ffi.cdef(cdef_text())
ffi.cdef('extern "Python" int pl_poll_signals(void);')  # native.py defines it; given to pl_plan_run
ffi.set_source(
    "pyllamacpu._native",
    '#include "api.h"',
    sources=sources(),
    include_dirs=[str(HERE)],
    depends=[
        os.path.relpath(p, HERE.parent)
        for p in [*HERE.glob("*.h"), *HERE.glob("*/*.h"), *HERE.glob("*/*.inc"), *HERE.glob("*/*.def")]
    ],
    extra_compile_args=compile_args(),
    libraries=[] if sys.platform == "win32" else ["m", "pthread"],
    py_limited_api=True,
)
