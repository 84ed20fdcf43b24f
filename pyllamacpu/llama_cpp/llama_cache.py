"""llama_cpp.llama_cache: caches for `Llama.set_cache`."""

from pyllamacpu.api.caches import BaseLlamaCache, LlamaCache, LlamaDiskCache, LlamaRAMCache

__all__ = ["BaseLlamaCache", "LlamaCache", "LlamaDiskCache", "LlamaRAMCache"]
