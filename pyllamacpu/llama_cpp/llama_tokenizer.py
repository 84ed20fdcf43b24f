"""llama_cpp.llama_tokenizer: tokenizers by themselves."""

from pyllamacpu.api.tokenizers import BaseLlamaTokenizer, LlamaHFTokenizer, LlamaTokenizer

__all__ = ["BaseLlamaTokenizer", "LlamaHFTokenizer", "LlamaTokenizer"]
