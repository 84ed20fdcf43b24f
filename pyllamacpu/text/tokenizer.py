"""From text to token ids and back: the part that all kinds of tokenizer share.

`load.load_tokenizer` chooses the kind. A kind turns plain text into ids (`_encode_plain`) and one id into
bytes (`_piece_bytes`); this class finds special tokens in the text, adds BOS and EOS, and joins bytes into
characters.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from pyllamacpu.errors import TokenizerError
from pyllamacpu.text.many_cores import encode_texts
from pyllamacpu.text.marked_calls import SHOWN_MARKS
from pyllamacpu.text.vocab import ADDS_EOS, TokenType, Vocabulary, flag, found_in_words, word_tokens

MAX_SPECIAL = 1024  # characters of a control token
NOT_LOOKED_FOR = (
    "control tokens of more than {most} characters in this file: {n}; they are not looked for in prompts, "
    "where their spelling is plain text"
)
HIDDEN = (TokenType.CONTROL, TokenType.UNKNOWN)


class Tokenizer(ABC):
    """A tokenizer made from GGUF metadata. Immutable after construction and safe to share between threads.

    Attributes: `kind` ("llama" or "gpt2"), `pre` (name of the pre-tokenizer, or None), `n_vocab`, the ids
    `bos`, `eos`, `eot`, `eom`, `nl`, `unk`, `pad` (None when the vocabulary has none), `fim` (role → id for
    fill-in-the-middle: pre, suf, mid, pad, rep, sep), `eog` (every id that ends a generation), `add_bos` and
    `add_eos` (what `encode(add_special=True)` adds), and `warnings`: sentences that the program must show
    to its user, beside the file's name.
    """

    kind: str
    pre: str | None = None

    def __init__(self, vocab: Vocabulary, metadata: Mapping[str, Any], add_bos: bool) -> None:
        self.vocab = vocab
        self.n_vocab = len(vocab)
        self.bos, self.eos, self.eot, self.eom = vocab.bos, vocab.eos, vocab.eot, vocab.eom
        self.unk, self.pad = vocab.unk, vocab.pad
        self.fim = dict(vocab.fim)
        self.eog = vocab.eog
        self.add_bos = flag(metadata, "add_bos_token", add_bos, vocab.path) and vocab.bos is not None
        self.add_eos = flag(metadata, "add_eos_token", False, vocab.path) and vocab.eos is not None
        self.warnings: list[str] = [*vocab.warnings]
        if self.add_eos:
            self.warnings.append(ADDS_EOS)
        if words := word_tokens(vocab.pieces, vocab.types):
            self.warnings.append(found_in_words(words))
        if too_long := sum(len(piece) > MAX_SPECIAL for piece in vocab.of_type(*HIDDEN)):
            self.warnings.append(NOT_LOOKED_FOR.format(n=too_long, most=MAX_SPECIAL))

    # Text → ids

    def encode(self, text: str | bytes, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        `add_special` adds BOS and EOS where the file asks for them. With `parse_special`, spellings of
        control tokens in `text` become those tokens (the leftmost, then the longest, wins), and a BOS spelled
        at the very start is not doubled; without it they are plain text. User-defined tokens are recognised
        either way, as they were in training. Bytes that are not UTF-8 are encoded byte by byte.
        """
        ids: list[int] = []
        for part in self._split_special(to_bytes(text), parse_special):
            if isinstance(part, int):
                ids.append(part)
            elif part:
                ids.extend(self._encode_plain(part, follows_special=self._starts_anew(ids)))
        return self.with_special(ids) if add_special else ids

    def encode_all(
        self, texts: Iterable[str | bytes], add_special: bool = True, parse_special: bool = False
    ) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        if isinstance(texts, str | bytes | bytearray | memoryview):
            raise TokenizerError("a list of texts is wanted, not a single one")
        encode = partial(self.encode, add_special=add_special, parse_special=parse_special)
        return encode_texts(encode, [to_bytes(text) for text in texts])

    def encode_fragment(self, text: str | bytes, before: Sequence[int]) -> list[int]:
        """Ids of plain text that follows the ids `before` (of which only the last matters): no special
        tokens, no BOS.
        """
        ids = list(before[-1:])
        for part in self._split_special(to_bytes(text), parse_special=False):
            if isinstance(part, int):
                ids.append(part)
            elif part:
                ids.extend(self._encode_plain(part, follows_special=self._starts_anew(ids)))
        return ids[len(before[-1:]) :]

    def with_special(self, ids: list[int]) -> list[int]:
        """`ids` with the BOS and EOS that the file asks for, each once."""
        if self.add_bos and self.bos is not None and ids[:1] != [self.bos]:
            ids = [self.bos, *ids]
        if self.add_eos and self.eos is not None and (len(ids) < 2 or ids[-1] != self.eos):
            ids = [*ids, self.eos]
        return ids

    def fewest_tokens(self, text: str | bytes) -> int:
        """A number of tokens that `text` has at the least, found without encoding it."""
        return -(-len(to_bytes(text)) // self._longest_token) if self._keeps_all_bytes else 0

    @cached_property
    def _longest_token(self) -> int:
        """Bytes of text that a token can stand for, at the most."""
        return max(len(piece.encode("utf-8", "surrogatepass")) for piece in self.vocab.pieces)

    @property
    def _keeps_all_bytes(self) -> bool:
        """Whether no byte of a text is lost on its way to tokens, and none joined to one unknown token."""
        return False

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """Spelling → id of the control and unknown tokens: what `parse_special` looks for. Not of those that
        are far longer than any real one: looking for them could take the square of their length.
        """
        found = self.vocab.of_type(*HIDDEN)
        return {piece: token for piece, token in found.items() if len(piece) <= MAX_SPECIAL}

    @cached_property
    def user_defined_tokens(self) -> dict[str, int]:
        """Spelling → id of tokens that are text and are matched before everything else."""
        return self.vocab.of_type(TokenType.USER_DEFINED)

    def _split_special(self, text: bytes, parse_special: bool) -> Iterator[bytes | int]:
        pattern, table = self._special_pattern if parse_special else self._plain_pattern
        if pattern is None:
            yield text
            return
        end = 0
        for match in pattern.finditer(text):
            yield text[end : match.start()]
            yield table[match.group()]
            end = match.end()
        yield text[end:]

    @cached_property
    def _special_pattern(self) -> tuple[re.Pattern[bytes] | None, dict[bytes, int]]:
        return alternation({**self._presplit_tokens(), **self.special_tokens})

    @cached_property
    def _plain_pattern(self) -> tuple[re.Pattern[bytes] | None, dict[bytes, int]]:
        return alternation(self._presplit_tokens())

    def _presplit_tokens(self) -> dict[str, int]:
        """User-defined tokens that this class must cut out of the text before `_encode_plain` sees it."""
        return self.user_defined_tokens

    def _starts_anew(self, ids: Sequence[int]) -> bool:
        """Whether text after these ids is first or follows a control token (and gets the vocabulary's space
        prefix).
        """
        return not ids or self.vocab.types[ids[-1]] in HIDDEN

    @abstractmethod
    def _encode_plain(self, text: bytes, follows_special: bool) -> list[int]:
        """Ids of `text`, which holds no special token. `follows_special`: it is first, or comes after one."""

    # Ids → text

    def token_bytes(self, token: int, special: bool = False) -> bytes:
        """The bytes that `token` stands for; control and unknown tokens are empty unless `special`."""
        self.check_id(token)
        kind = self.vocab.types[token]
        if kind in HIDDEN:
            return self.vocab.pieces[token].encode("utf-8", "surrogateescape") if special else b""
        return self._piece_bytes(token)

    @abstractmethod
    def _piece_bytes(self, token: int) -> bytes:
        """The bytes of a token that is neither control nor unknown."""

    def decode(self, ids: Iterable[int], special: bool = False, at_start: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD. Control tokens are shown only if
        `special`.

        `at_start` says that `ids` begin a text: the space that SentencePiece put before its first word is
        removed. Pass False for ids that continue a text.
        """
        return self.decode_bytes(ids, special, at_start).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int], special: bool = False, at_start: bool = True) -> bytes:
        """As `decode`, as raw bytes."""
        drop = at_start and self.strips_leading_space
        out = bytearray()
        for token in ids:
            piece = self.token_bytes(token, special)
            if drop and piece and not self.is_special(token):
                piece, drop = piece.removeprefix(b" "), False
            out += piece
        return bytes(out)

    @property
    def strips_leading_space(self) -> bool:
        """Whether a text's first piece carries a space that was not in the text."""
        return False

    # One token

    def check_id(self, token: int) -> None:
        """Raises TokenizerError when `token` is not an id of this vocabulary."""
        if not 0 <= token < self.n_vocab:
            raise TokenizerError(f"token id {token} is outside the vocabulary of {self.n_vocab} tokens")

    def piece(self, token: int) -> str:
        """The spelling of a token in the file's own alphabet."""
        self.check_id(token)
        return self.vocab.pieces[token]

    def token_id(self, piece: str) -> int | None:
        """The id of a spelling in the file's own alphabet, or None."""
        return self.vocab.pieces.id_of(piece)

    def is_control(self, token: int) -> bool:
        """Whether the token steers the model and is not text."""
        self.check_id(token)
        return self.vocab.types[token] == TokenType.CONTROL

    def is_special(self, token: int) -> bool:
        """Whether the token is control or unknown: hidden when text is shown."""
        self.check_id(token)
        return self.vocab.types[token] in HIDDEN

    def is_byte(self, token: int) -> bool:
        """Whether the token is one raw byte of the SentencePiece byte fallback."""
        self.check_id(token)
        return self.vocab.types[token] == TokenType.BYTE

    @cached_property
    def call_marks(self) -> frozenset[int]:
        """Control tokens that an answer shows, because calls are read by them."""
        found = (self.special_tokens.get(mark) for mark in SHOWN_MARKS)
        return frozenset(token for token in found if token is not None)

    @cached_property
    def nl(self) -> int | None:
        """The token of a newline: the last one that plain "\\n" is encoded to."""
        ids = self._encode_plain(b"\n", follows_special=False)
        return ids[-1] if ids else None


def to_bytes(text: str | bytes) -> bytes:
    """UTF-8 of `text`. Surrogates in pairs are joined, escaped bytes (PEP 383) restored, other lone ones
    U+FFFD.
    """
    if isinstance(text, bytes | bytearray | memoryview):
        return bytes(text)
    if not isinstance(text, str):
        raise TokenizerError(f"text to tokenize must be str or bytes, not {type(text).__name__}")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        pass
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8")


def alternation(tokens: Mapping[str, int]) -> tuple[re.Pattern[bytes] | None, dict[bytes, int]]:
    """A pattern that finds any of these spellings, the longest first, and the table from what it matched to
    the id.
    """
    table = {name.encode("utf-8", "surrogateescape"): token for name, token in tokens.items() if name}
    if not table:
        return None, table
    names = sorted(table, key=len, reverse=True)
    return re.compile(b"|".join(map(re.escape, names))), table
