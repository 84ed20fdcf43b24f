"""Text in and out of the model: tokenizers, the streaming detokenizer and chat templates."""

from pyllamacpu.text.chat import choose_template, encode_chat
from pyllamacpu.text.stream import StreamDecoder
from pyllamacpu.text.template import ChatTemplate
from pyllamacpu.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "StreamDecoder", "Tokenizer", "choose_template", "encode_chat"]
