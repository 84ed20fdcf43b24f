"""Byte-level BPE (`tokenizer.ggml.model = gpt2`): the tokenizers of Llama 3, Llama 4, SmolLM2 and their
relatives.

Text is cut into words (`bpe_words.py`), a word is written in an alphabet of 256 letters, one per byte, and
its letters are merged into pieces by the file's list of merges (`merges.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from pyllamacpu.errors import TokenizerError
from pyllamacpu.text.bpe_words import PRE_TOKENIZERS
from pyllamacpu.text.merges import Merges
from pyllamacpu.text.tokenizer import Tokenizer, to_bytes
from pyllamacpu.text.vocab import TokenType, Vocabulary, joined_lines, string_lines

HIDDEN = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)  # plain text never becomes these


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


def n_malformed(merges: bytes) -> int:
    """How many of these lines are not two words with one space between them."""
    letters = np.frombuffer(merges, np.uint8)
    ends, spaces = np.flatnonzero(letters == ord("\n")), np.flatnonzero(letters == ord(" "))
    begins = np.concatenate(([0], ends[:-1] + 1)) if len(ends) else ends
    first = np.searchsorted(spaces, begins)
    alone = np.searchsorted(spaces, ends) - first == 1
    at = spaces[first[alone]]
    return len(ends) - int(np.count_nonzero((at > begins[alone]) & (at < ends[alone] - 1)))


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
                f"the file names {fault} (tokenizer.ggml.pre); text is split the default way and the "
                "model may answer worse. Convert the model again"
            )
        key = "tokenizer.ggml.merges"
        if key not in metadata:
            raise TokenizerError(f"{vocab.path}: {key} is missing; convert the model again")
        self._merge_lines = string_lines(metadata[key], key, vocab.path)
        if n := n_malformed(self._merge_lines):
            self.warnings.append(
                f"{n} of the file's merges ({key}) are not two pieces with a space between them, and join "
                "nothing. Convert the model again"
            )

    def _encode_plain(self, text: bytes, follows_special: bool) -> list[int]:
        if self._words.rule is not None:
            return self._merges.encode(self._replaced(text))
        words = self._words.split(self._replaced(text).decode("utf-8", "surrogateescape"))
        encode = self._merges.encode
        return [token for word in words for token in encode(word.encode("utf-8", "surrogateescape"))]

    def _replaced(self, text: bytes) -> bytes:
        """The text with U+FFFD for invalid bytes that have no token, so that the model sees that they were
        there; the others pass: they are no letters, no digits, no space.
        """
        try:
            text.decode("utf-8")
        except UnicodeDecodeError:
            replaced = {0xDC00 + byte: "\ufffd" for byte in self._missing if byte >= 0x80}
            decoded = text.decode("utf-8", "surrogateescape").translate(replaced)
            return decoded.encode("utf-8", "surrogateescape")
        return text

    @cached_property
    def _merges(self) -> Merges:
        lines, self._merge_lines = self._merge_lines, b""  # C has a copy
        kinds = np.frombuffer(bytes(self.vocab.types), np.uint8)
        return Merges(
            joined_lines(self.vocab.pieces),
            np.isin(kinds, HIDDEN),
            lines,
            rule=self._words.rule,
            whole_words=self._words.whole_words,
        )

    @cached_property
    def _missing(self) -> frozenset[int]:
        """Bytes that have no token. They are left out of a word before it is merged, as `tokenizers` does it
        (SmolLM2 lacks a few control characters and bytes that only invalid or unassigned text has).
        """
        found = map(self.vocab.pieces.id_of, BYTE_LETTERS)
        types = (None if token is None else self.vocab.types[token] for token in found)
        return frozenset(byte for byte, kind in enumerate(types) if kind is None or kind in HIDDEN)

    def fewest_tokens(self, text: str | bytes) -> int:
        left = to_bytes(text).translate(None, bytes(self._missing))
        return -(-len(left) // self._longest_token)

    def _piece_bytes(self, token: int) -> bytes:
        piece = self.vocab.pieces[token]
        if self.vocab.types[token] == TokenType.USER_DEFINED:
            return piece.encode("utf-8", "surrogateescape")
        if self.vocab.types[token] == TokenType.BYTE and len(piece) == 6:
            return bytes((int(piece[3:5], 16),))
        return from_letters(piece)
