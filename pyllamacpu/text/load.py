"""From the metadata of a file to its tokenizer. Only the library that it needs is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyllamacpu.errors import TokenizerError
from pyllamacpu.gguf.overrides import check_used
from pyllamacpu.text.tokenizer import Tokenizer
from pyllamacpu.text.vocab import read_vocabulary


def load_tokenizer(metadata: Mapping[str, Any], path: str = "model") -> Tokenizer | None:
    """The tokenizer described by `metadata`, or None when the file has none and serves token ids only.

    Raises TokenizerError for a damaged description or a kind that Llama models do not use; OptionError for an
    overridden key that means nothing to it.
    """
    tokenizer = _load(metadata, path)
    check_used(metadata, "tokenizer.")
    return tokenizer


def _load(metadata: Mapping[str, Any], path: str) -> Tokenizer | None:
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None or (isinstance(kind, str) and kind in ("none", "no_vocab")):
        return None
    if not isinstance(kind, str):
        raise TokenizerError(f"{path}: tokenizer.ggml.model is {kind!r:.80}, not a text; convert it again")
    if kind in ("llama", "t5"):
        from pyllamacpu.text.spm import SentencePieceTokenizer, UnigramTokenizer

        made = SentencePieceTokenizer if kind == "llama" else UnigramTokenizer
        return made(read_vocabulary(metadata, path, sentencepiece=True), metadata)
    if kind == "gpt2":
        from pyllamacpu.text.bpe import ByteLevelTokenizer

        return ByteLevelTokenizer(read_vocabulary(metadata, path, sentencepiece=False), metadata)
    if kind == "unigram":
        raise TokenizerError(
            f"{path}: is a classifier, whose tokenizer (tokenizer.ggml.model {kind!r}) is run by "
            "`pyllamacpu prompt-guard` and pyllamacpu.safety.PromptGuard only"
        )
    raise TokenizerError(
        f"{path}: tokenizer.ggml.model is {kind!r}; only 'llama' and 't5' (SentencePiece) and 'gpt2' "
        "(byte-level BPE) tokenizers are supported"
    )
