"""Build of the one compiled extension; everything else is in pyproject.toml.

The wheel is cp310-abi3: the extension uses only Python's limited API, so one wheel serves Python 3.10 and up.
"""

from setuptools import setup
from setuptools.command.build_ext import build_ext


class BuildExt(build_ext):
    """Leaves the extension in the source tree too: Python started in this folder imports from here."""

    def run(self) -> None:
        super().run()
        if not self.inplace:
            self.copy_extensions_to_source()


setup(
    cffi_modules=["csrc/build_cffi.py:ffi"],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
