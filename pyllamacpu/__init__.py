"""pyllamacpu: a CPU-first runner for the Llama family.

    from pyllamacpu import Llama

The names below are imported when they are first used, so that `import pyllamacpu` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "Llama": "pyllamacpu.llama",
    "LlamaState": "pyllamacpu.state",
    "LogitsProcessorList": "pyllamacpu.compat",
    "StoppingCriteriaList": "pyllamacpu.compat",
    "SamplingOptions": "pyllamacpu.engine.sampler",
    "PyllamacpuError": "pyllamacpu.errors",
}

__all__ = [
    "Llama",
    "LlamaState",
    "LogitsProcessorList",
    "PyllamacpuError",
    "SamplingOptions",
    "StoppingCriteriaList",
    "__version__",
]

if TYPE_CHECKING:
    from pyllamacpu.compat import LogitsProcessorList, StoppingCriteriaList
    from pyllamacpu.engine.sampler import SamplingOptions
    from pyllamacpu.errors import PyllamacpuError
    from pyllamacpu.llama import Llama
    from pyllamacpu.state import LlamaState


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
