"""Tokenizers with llama-cpp-python's method names."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from pyllamacpu.api.loading import LoadOptions, model_file, open_model
from pyllamacpu.engine.token_ids import check_tokens
from pyllamacpu.errors import TokenizerError
from pyllamacpu.text.tokenizer import Tokenizer, to_bytes


class HasTokenizer(Protocol):
    """A `Llama`, as far as its tokenizer goes."""

    @property
    def text_tokenizer(self) -> Tokenizer | None: ...


class BaseLlamaTokenizer(abc.ABC):
    """Text to ids and back. A class of the caller's own can be given to `Llama(tokenizer=...)`."""

    @abc.abstractmethod
    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids of UTF-8 text. With `special`, spellings of control tokens become those tokens."""

    def tokenize_all(
        self, texts: Iterable[bytes | str], add_bos: bool = True, special: bool = True
    ) -> list[list[int]]:
        """`tokenize` of each text."""
        as_bytes = (text.encode("utf-8", "ignore") if isinstance(text, str) else text for text in texts)
        return [self.tokenize(text, add_bos, special) for text in as_bytes]

    @abc.abstractmethod
    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """The bytes of `tokens`, which follow `prev_tokens`. Control tokens are shown only if `special`."""


class LlamaTokenizer(BaseLlamaTokenizer):
    """The tokenizer of an opened `Llama`. Raises TokenizerError for a model without one."""

    def __init__(self, llama: HasTokenizer) -> None:
        found = llama.text_tokenizer
        if found is None:
            raise TokenizerError("this model has no tokenizer; use token ids: generate(), eval(), logits()")
        self._tokenizer = found

    @classmethod
    def from_ggml_file(cls, path: str) -> LlamaTokenizer:
        """The tokenizer of a GGUF file. Raises GGUFError, TokenizerError."""
        parts = open_model(model_file(path), LoadOptions(vocab_only=True))
        try:
            return cls(_Opened(parts.tokenizer))
        finally:
            parts.close()

    def __call__(self) -> LlamaTokenizer:
        """Itself: `Llama.tokenizer_` was called once."""
        return self

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        return self._tokenizer.encode(text, add_special=add_bos, parse_special=special)

    def tokenize_all(
        self, texts: Iterable[bytes | str], add_bos: bool = True, special: bool = True
    ) -> list[list[int]]:
        """`tokenize` of each text, on all cores."""
        return self._tokenizer.encode_all(texts, add_special=add_bos, parse_special=special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        """The bytes of `tokens`.

        The space that SentencePiece puts before a text's first word is removed only where a text begins:
        behind BOS.
        """
        ids = check_tokens(tokens, self._tokenizer.n_vocab)
        begins = not prev_tokens and ids[:1] == [self._tokenizer.bos]
        return self._tokenizer.decode_bytes(ids, special=special, at_start=begins)

    def encode(self, text: str, add_bos: bool = True, special: bool = True) -> list[int]:
        """Token ids of text."""
        return self.tokenize(to_bytes(text), add_bos, special)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`; bytes that are no UTF-8 are left out."""
        return self.detokenize(tokens).decode("utf-8", "ignore")


class _Opened:
    """Stands for a model of which only the tokenizer was opened."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.text_tokenizer = tokenizer


class LlamaHFTokenizer(BaseLlamaTokenizer):
    """A tokenizer of the transformers package, whose ids must be the model's."""

    def __init__(self, hf_tokenizer: Any) -> None:
        self.hf_tokenizer = hf_tokenizer

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str) -> LlamaHFTokenizer:
        """Needs transformers, which pyllamacpu itself does not. Raises ImportError without it."""
        try:
            from transformers import AutoTokenizer  # type: ignore[import-not-found]
        except ImportError:
            raise ImportError("LlamaHFTokenizer.from_pretrained needs: pip install transformers") from None
        return cls(AutoTokenizer.from_pretrained(pretrained_model_name_or_path))

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = True) -> list[int]:
        """Ids as the tokenizer's own settings make them. `special` (and not `add_bos`) puts BOS before them,
        as in llama-cpp-python.
        """
        return list(self.hf_tokenizer.encode(text.decode("utf-8", "ignore"), add_special_tokens=special))

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Sequence[int] | None = None, special: bool = False
    ) -> bytes:
        before = self._bytes(prev_tokens or (), special)
        return self._bytes([*(prev_tokens or ()), *tokens], special)[len(before) :]

    def _bytes(self, tokens: Sequence[int], special: bool) -> bytes:
        if not tokens:
            return b""
        text: str = self.hf_tokenizer.decode(list(tokens), skip_special_tokens=not special)
        return text.encode("utf-8", "ignore")
