"""pyllamacpu: a CPU-first runner for the Llama family.

    from pyllamacpu import Llama

The names below are imported when they are first used, so that `import pyllamacpu` costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's, without importing it: see cli/interrupts.py

__version__ = "0.1.0"

_HOMES = {
    "AsyncLlama": "pyllamacpu.api.async_llama",
    "Llama": "pyllamacpu.api.llama",
    "LlamaGrammar": "pyllamacpu.api.grammar",
    "LlamaState": "pyllamacpu.api.state",
    "LogitsProcessorList": "pyllamacpu.api.compat",
    "StoppingCriteriaList": "pyllamacpu.api.compat",
    "SamplingOptions": "pyllamacpu.sampling.sampler",
    "PyllamacpuError": "pyllamacpu.errors",
}

__all__ = [
    "AsyncLlama",
    "Llama",
    "LlamaGrammar",
    "LlamaState",
    "LogitsProcessorList",
    "PyllamacpuError",
    "SamplingOptions",
    "StoppingCriteriaList",
    "__version__",
]

if TYPE_CHECKING:
    from pyllamacpu.api.async_llama import AsyncLlama
    from pyllamacpu.api.compat import LogitsProcessorList, StoppingCriteriaList
    from pyllamacpu.api.grammar import LlamaGrammar
    from pyllamacpu.api.llama import Llama
    from pyllamacpu.api.state import LlamaState
    from pyllamacpu.errors import PyllamacpuError
    from pyllamacpu.sampling.sampler import SamplingOptions


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
