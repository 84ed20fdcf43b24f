"""llama_cpp.llama_speculative: draft models."""

from pyllamacpu.api.drafts import LlamaDraftModel, LlamaPromptLookupDecoding

__all__ = ["LlamaDraftModel", "LlamaPromptLookupDecoding"]
