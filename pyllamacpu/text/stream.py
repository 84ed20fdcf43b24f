"""Text from tokens as they come: never half a character, and in sum the same as decoding them all at once."""

from __future__ import annotations

import codecs

from pyllamacpu.text.tokenizer import Tokenizer


class StreamDecoder:
    """Turns token ids into text one by one.

    A character whose bytes are spread over several tokens comes out when it is whole; bytes that cannot
    become UTF-8 come out as U+FFFD. `"".join(push(id) for id in ids) + flush()` equals `tokenizer.decode(ids,
    special, at_start)`. `at_start=True` is for ids that begin a text (the space that SentencePiece put first
    is removed), False for ids that continue one, such as an answer.
    """

    def __init__(self, tokenizer: Tokenizer, special: bool = False, at_start: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._shown = frozenset() if special else tokenizer.call_marks
        self._drop_space = at_start and tokenizer.strips_leading_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that is certain once `token` has come. Raises TokenizerError for an id outside the
        vocabulary.
        """
        piece = self._tokenizer.token_bytes(token, self._special or token in self._shown)
        if self._drop_space and piece and not self._tokenizer.is_special(token):
            piece, self._drop_space = piece.removeprefix(b" "), False
        return self._utf8.decode(piece)

    @property
    def pending(self) -> bytes:
        """Bytes of a character that is not whole yet."""
        return self._utf8.getstate()[0]

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never became whole. The decoder can be used
        again.
        """
        return self._utf8.decode(b"", final=True)
