"""llama_cpp.llama_grammar: grammars."""

from pyllamacpu.api.grammar import LlamaGrammar

__all__ = ["LlamaGrammar"]
