"""Byte-level BPE (`tokenizer.ggml.model = gpt2`): the tokenizers of Llama 3, Llama 4, SmolLM2 and their
relatives.

Text is cut into words (`pretokenize.py`), a word is written in an alphabet of 256 letters, one per byte, and
its letters are merged into pieces by the file's list of merges (`merges.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from pyllamacpu.errors import TokenizerError
from pyllamacpu.text.merges import Merges
from pyllamacpu.text.pretokenize import PRE_TOKENIZERS
from pyllamacpu.text.tokenizer import Tokenizer, to_bytes
from pyllamacpu.text.vocab import TokenType, Vocabulary, string_list

MAX_CACHED_WORDS = 1 << 16
MAX_CACHED_LENGTH = 64  # characters


def _byte_letters() -> list[str]:
    """The letter for each byte: itself where it is visible Latin-1, else the next letter from U+0100 on
    (GPT-2).
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(spare)) for byte in range(256)]


BYTE_LETTERS = _byte_letters()
LETTER_BYTES = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}
_TO_LETTERS = dict(enumerate(BYTE_LETTERS))


def to_letters(data: bytes) -> str:
    """Bytes in the alphabet of the vocabulary."""
    return data.decode("latin-1").translate(_TO_LETTERS)


def from_letters(piece: str) -> bytes:
    """The bytes a piece stands for; characters outside the alphabet stand for their own UTF-8."""
    try:
        return bytes([LETTER_BYTES[letter] for letter in piece])
    except KeyError:
        parts = (LETTER_BYTES.get(c) for c in piece)
        encoded = ((c.encode("utf-8", "surrogateescape"), byte) for c, byte in zip(piece, parts, strict=True))
        return b"".join(own if byte is None else bytes((byte,)) for own, byte in encoded)


class ByteLevelTokenizer(Tokenizer):
    """`kind` gpt2. `pre` names the pre-tokenizer; a name that is not known warns and uses the default one."""

    kind = "gpt2"

    def __init__(self, vocab: Vocabulary, metadata: Mapping[str, Any]) -> None:
        self.pre = metadata.get("tokenizer.ggml.pre")
        known = PRE_TOKENIZERS.get(str(self.pre))
        self._words = known or PRE_TOKENIZERS["default"]
        super().__init__(vocab, metadata, add_bos=self._words.add_bos)
        if known is None:
            fault = "no pre-tokenizer" if self.pre is None else f"an unknown pre-tokenizer, {self.pre!r}"
            self.warnings.append(
                f"{vocab.path}: the file names {fault} (tokenizer.ggml.pre); text is split the default way "
                "and the model may answer worse. Convert the model again"
            )
        key = "tokenizer.ggml.merges"
        if key not in metadata:
            raise TokenizerError(f"{vocab.path}: {key} is missing; convert the model again")
        self._merge_list = string_list(metadata[key], key, vocab.path)
        self._cache: dict[str, tuple[int, ...]] = {}

    def _encode_plain(self, text: bytes, follows_special: bool) -> list[int]:
        ids: list[int] = []
        cache = self._cache
        for word in self._words.split(self._decoded(text)):
            known = cache.get(word)
            if known is None:
                known = tuple(self._encode_word(word.encode("utf-8", "surrogateescape")))
                if len(word) <= MAX_CACHED_LENGTH:
                    if len(cache) >= MAX_CACHED_WORDS:
                        cache.clear()
                    cache[word] = known
            ids.extend(known)
        return ids

    def _decoded(self, text: bytes) -> str:
        """Bytes that are not UTF-8 pass through as lone surrogates: no letters, no digits, no space."""
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:
            return text.decode("utf-8", "surrogateescape").translate(self._replaced)

    def _encode_word(self, word: bytes) -> list[int]:
        letters = to_letters(word)
        if self._words.whole_words and letters in self._text_ids:
            return [self._text_ids[letters]]
        if not self._missing.isdisjoint(word):
            word = bytes(byte for byte in word if byte not in self._missing)
            letters = to_letters(word)
        return self._merges.merge(letters)

    @cached_property
    def _merges(self) -> Merges:
        return Merges(self._merge_list, BYTE_LETTERS, self._text_ids)

    @cached_property
    def _missing(self) -> frozenset[int]:
        """Bytes that have no token. They are left out of a word before it is merged, as `tokenizers` does it
        (SmolLM2 lacks a few control characters and bytes that only invalid or unassigned text has).
        """
        return frozenset(byte for byte, letter in enumerate(BYTE_LETTERS) if letter not in self._text_ids)

    def fewest_tokens(self, text: str | bytes) -> int:
        left = to_bytes(text).translate(None, bytes(self._missing))
        return -(-len(left) // self._longest_token)

    @cached_property
    def _replaced(self) -> dict[int, str]:
        """Escaped invalid bytes that have no token: U+FFFD is put for them, so that the model sees that they
        were there.
        """
        return {0xDC00 + byte: "\ufffd" for byte in self._missing if byte >= 0x80}

    @cached_property
    def _text_ids(self) -> dict[str, int]:
        """Spelling → id of the tokens that plain text can become."""
        hidden = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
        special = self.vocab.of_type(*hidden)
        return {piece: token for piece, token in self.vocab.ids.items() if piece not in special}

    def _piece_bytes(self, token: int) -> bytes:
        piece = self.vocab.pieces[token]
        if self.vocab.types[token] == TokenType.USER_DEFINED:
            return piece.encode("utf-8", "surrogateescape")
        if self.vocab.types[token] == TokenType.BYTE and len(piece) == 6:
            return bytes((int(piece[3:5], 16),))
        return from_letters(piece)
