"""Build of the one compiled extension; everything else is in pyproject.toml.

The wheel is cp310-abi3: the extension uses only Python's limited API, so one wheel serves Python 3.10 and
later.
"""

from setuptools import setup

setup(
    cffi_modules=["csrc/build_cffi.py:ffi"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
