"""Build of the one compiled extension; everything else is in pyproject.toml.

The wheel is cp310-abi3: the extension uses only Python's limited API, so one wheel serves Python 3.10 and up.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from setuptools import setup
from setuptools.command.build_ext import build_ext

# The tier scalar is a reference and a fallback: -O1 compiles it in a third of the time.
FLAGS = {"scalar.c": ["-O1"]} if sys.platform != "win32" else {}


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
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: compile_source(source, **options), slow_first)
                return [name for names in objects for name in names]

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
