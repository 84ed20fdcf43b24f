"""llama_cpp.llama: the `Llama` class and what goes with it."""

from pyllamacpu.api.caches import BaseLlamaCache, LlamaCache, LlamaDiskCache, LlamaRAMCache
from pyllamacpu.api.compat import (
    LogitsProcessor,
    LogitsProcessorList,
    MinTokensLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from pyllamacpu.api.drafts import LlamaDraftModel
from pyllamacpu.api.grammar import LlamaGrammar
from pyllamacpu.api.llama import Llama
from pyllamacpu.api.state import LlamaState
from pyllamacpu.api.tokenizers import BaseLlamaTokenizer, LlamaTokenizer

__all__ = [
    "BaseLlamaCache",
    "BaseLlamaTokenizer",
    "Llama",
    "LlamaCache",
    "LlamaDiskCache",
    "LlamaDraftModel",
    "LlamaGrammar",
    "LlamaRAMCache",
    "LlamaState",
    "LlamaTokenizer",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MinTokensLogitsProcessor",
    "StoppingCriteria",
    "StoppingCriteriaList",
]
