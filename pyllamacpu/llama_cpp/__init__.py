"""llama-cpp-python's names over pyllamacpu, for programs that import `llama_cpp`.

    import sys
    import pyllamacpu.llama_cpp
    sys.modules["llama_cpp"] = pyllamacpu.llama_cpp   # before the program imports llama_cpp

or `import pyllamacpu.llama_cpp as llama_cpp`. The package has the Python level of llama-cpp-python 0.3:
`Llama` and its helper classes, the submodules by their names, and the constants of llama.h. The C functions
are not part of it, and asking for one says so.

What differs is in the docstring of `pyllamacpu.api`, for prompt formats in that of
`pyllamacpu.text.named_formats`.
"""

# ruff: noqa: F403 (as in llama_cpp, the package has every public name of these modules)

from __future__ import annotations

from typing import Any

from pyllamacpu.llama_cpp import llama_cpp as _constants
from pyllamacpu.llama_cpp.llama import *
from pyllamacpu.llama_cpp.llama_cache import *
from pyllamacpu.llama_cpp.llama_grammar import *
from pyllamacpu.llama_cpp.llama_speculative import *
from pyllamacpu.llama_cpp.llama_tokenizer import *
from pyllamacpu.llama_cpp.llama_types import *

__version__ = "0.3.36"  # whose names these are: programs compare it


def __getattr__(name: str) -> Any:
    return getattr(_constants, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_constants)})
