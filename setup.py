"""Build of the one compiled extension; everything else is in pyproject.toml.

The wheel is cp310-abi3: the extension uses only Python's limited API, so one wheel serves Python 3.10 and up.
"""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from setuptools import setup
from setuptools.command.build_ext import build_ext

# The tier scalar is a reference and a fallback: -O1 compiles it in a third of the time.
FLAGS = {"scalar.c": ["-O1"]} if sys.platform != "win32" else {}


def say(text: str) -> None:
    print(f"pyllamacpu: {text}", flush=True)


class BuildExt(build_ext):
    """Leaves the extension in the source tree too: Python started in this folder imports from here."""

    def build_extension(self, ext: Any) -> None:
        """Compiles the files side by side, those that take longest first."""
        compile_one = self.compiler.compile

        def compile_source(source: str, extra_postargs: list[str], **options: Any) -> list[str]:
            flags = [*extra_postargs, *FLAGS.get(os.path.basename(source), [])]
            return compile_one([source], extra_postargs=flags, **options)

        def compile_all(sources: list[str], **options: Any) -> list[str]:
            slow_first = sorted(sources, key=lambda path: f"isa{os.sep}" not in path)
            cpus = os.cpu_count() or 1
            say(f"compiling {len(sources)} files, {min(cpus, len(sources))} at a time (pip shows it with -v)")
            begin = time.monotonic()
            with ThreadPoolExecutor(cpus) as pool:
                objects = pool.map(lambda source: timed(source, **options), slow_first)
                names = [name for names in objects for name in names]
            say(f"compiled in {time.monotonic() - begin:.0f} s; linking")
            return names

        def timed(source: str, **options: Any) -> list[str]:
            begin = time.monotonic()
            names: list[str] = compile_source(source, **options)
            tier = "the kernels of a CPU tier, " if f"isa{os.sep}" in source else ""
            say(f"{source}: {tier}{time.monotonic() - begin:.1f} s")
            return names

        self.compiler.compile = compile_all
        super().build_extension(ext)

    def run(self) -> None:
        super().run()
        if not self.inplace:
            self.copy_extensions_to_source()


setup(
    cffi_modules=["csrc/build_cffi.py:ffi"],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
