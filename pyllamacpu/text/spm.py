"""SentencePiece BPE (`tokenizer.ggml.model = llama`): the tokenizers of Llama 1 and 2, Code Llama and their
relatives.

The model that the GGUF file was made from is rebuilt as a `sentencepiece` ModelProto and run by that library,
so ids are the original's. The proto is written here, field by field (sentencepiece_model.proto, protobuf wire
format), because the protobuf package is not a dependency of sentencepiece.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import sentencepiece

from pyllamacpu.errors import TokenizerError
from pyllamacpu.text.tokenizer import Tokenizer
from pyllamacpu.text.vocab import TokenType, Vocabulary, flag, number_list, string_list

SPACE = "▁"  # how the vocabulary writes a space
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
INVALID_UTF8 = re.compile("[\udc80-\udcff]+")
VARINT, LENGTH, FIXED32 = 0, 2, 5
UNIGRAM_MODEL, BPE_MODEL = 1, 2


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | VARINT) + _varint(value)


def _message(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | LENGTH) + _varint(len(data)) + data


def model_proto(
    pieces: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    byte_fallback: bool,
    model_type: int = BPE_MODEL,
) -> bytes:
    """A serialized ModelProto over these pieces that leaves whitespace as it is and adds no prefix."""
    out = bytearray()
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        out += _message(
            1,
            _message(1, piece.encode("utf-8"))
            + _varint(2 << 3 | FIXED32)
            + struct.pack("<f", score)
            + _number(3, int(kind)),
        )
    trainer = _number(3, model_type) + _number(4, len(pieces)) + _number(35, int(byte_fallback))
    trainer += _number(40, types.index(TokenType.UNKNOWN))
    normalizer = (
        _message(1, b"identity") + _number(3, 0) + _number(4, 0) + _number(5, 1)
    )  # add_dummy_prefix and remove_extra_whitespaces off, escape_whitespaces on
    return bytes(out) + _message(2, trainer) + _message(3, normalizer)


class SentencePieceTokenizer(Tokenizer):
    """`kind` llama. A space goes before the text, and again before text that follows a control or user-
    defined token, if the file's `add_space_prefix` says so (its default): what llama.cpp and Hugging Face's
    `legacy` Llama tokenizer do, and what Meta's code does by encoding each turn by itself. User-defined
    tokens that are spelled with ▁ are sentencepiece's own (runs of spaces), and are left to that library.
    """

    kind = "llama"
    model_type = BPE_MODEL

    def __init__(self, vocab: Vocabulary, metadata: Mapping[str, Any]) -> None:
        super().__init__(vocab, metadata, add_bos=True)
        self.pre = metadata.get("tokenizer.ggml.pre")
        self.add_space_prefix = flag(metadata, "add_space_prefix", True, vocab.path)
        self._strip_spaces = flag(metadata, "remove_extra_whitespaces", False, vocab.path)
        if "tokenizer.ggml.precompiled_charsmap" in metadata:  # which the library reads unchecked
            self.warnings.append(
                "tokenizer.ggml.precompiled_charsmap is ignored: text is not normalized before it is "
                "tokenized, as Llama's own tokenizers do it"
            )
        self._type_byte_pieces()
        self._byte_ids = self._find_bytes()
        self._scores = self._read_scores(metadata)

    def _type_byte_pieces(self) -> None:
        """Some converters lost the types: without any byte token, pieces spelled <0xAB> are the bytes."""
        types = self.vocab.types
        if TokenType.BYTE not in types:
            for token, piece in enumerate(self.vocab.pieces):
                if types[token] == TokenType.NORMAL and BYTE_PIECE.match(piece):
                    types[token] = int(TokenType.BYTE)

    def _find_bytes(self) -> dict[int, int]:
        """Byte → id of its token."""
        found = {}
        for piece, token in self.vocab.of_type(TokenType.BYTE).items():
            match = BYTE_PIECE.match(piece)
            if match is None:
                raise TokenizerError(
                    f"{self.vocab.path}: token {token} is typed as a byte but spelled {piece!r}; "
                    "convert the model again"
                )
            found[int(match.group(1), 16)] = token
        return found

    def _read_scores(self, metadata: Mapping[str, Any]) -> list[float]:
        """Scores, higher merges first. Where the file's say nothing, they are rebuilt from the merges or the
        ids.
        """
        path, n = self.vocab.path, self.n_vocab
        scores = number_list(metadata, "tokenizer.ggml.scores", n, path)
        normal = [i for i, kind in enumerate(self.vocab.types) if kind == TokenType.NORMAL]
        if scores is not None:
            if any(score != score for score in scores):
                raise TokenizerError(f"{path}: tokenizer.ggml.scores holds a value that is not a number")
            if len(normal) < 2 or len({scores[i] for i in normal}) > 1:
                return [float(score) for score in scores]
        key = "tokenizer.ggml.merges"
        if key in metadata:
            return scores_of_merges(string_list(metadata[key], key, path), self.vocab.ids())
        self.warnings.append(
            "tokenizer.ggml.scores ranks no token above another; the order of the ids is used instead, "
            "as in SentencePiece's own models. Convert the model again if words come out odd"
        )
        return [-float(i) for i in range(n)]

    @cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        pieces, types, scores = list(self.vocab.pieces), list(self.vocab.types), list(self._scores)
        unknown = [i for i, kind in enumerate(types) if kind == TokenType.UNKNOWN]
        for extra in unknown[1:]:
            types[extra] = int(TokenType.CONTROL)
        if (
            not unknown
        ):  # the library insists on one; its id is past the vocabulary and is replaced after encoding
            pieces, types, scores = [*pieces, "[UNKNOWN]"], [*types, int(TokenType.UNKNOWN)], [*scores, 0.0]
        fallback = len(self._byte_ids) == 256
        _make_loadable(pieces, types, fallback)
        try:
            proto = model_proto(pieces, scores, types, fallback, self.model_type)
            return sentencepiece.SentencePieceProcessor(model_proto=proto)
        except (RuntimeError, OSError, ValueError, OverflowError) as error:
            raise TokenizerError(
                f"{self.vocab.path}: the vocabulary is not a SentencePiece model: {error}; convert it again"
            ) from error

    @cached_property
    def _added_tokens(self) -> dict[str, int]:
        """The user-defined tokens that are cut out of the text as Hugging Face's added tokens are."""
        return {piece: token for piece, token in self.user_defined_tokens.items() if SPACE not in piece}

    def _presplit_tokens(self) -> dict[str, int]:
        return self._added_tokens

    def _starts_anew(self, ids: Sequence[int]) -> bool:
        return super()._starts_anew(ids) or self.vocab.pieces[ids[-1]] in self._added_tokens

    def _encode_plain(self, text: bytes, follows_special: bool) -> list[int]:
        spelled = text.decode("utf-8", "surrogateescape")
        if self._strip_spaces:
            spelled = re.sub(" +", " ", spelled.strip(" "))
        if self.add_space_prefix and follows_special and spelled:
            spelled = f" {spelled}"
        ids: list[int] = []
        end = 0
        for invalid in INVALID_UTF8.finditer(spelled):
            ids += self._encode_valid(spelled[end : invalid.start()])
            ids += (self._byte_id(ord(byte) - 0xDC00) for byte in invalid.group())
            end = invalid.end()
        return ids + self._encode_valid(spelled[end:])

    def _encode_valid(self, text: str) -> list[int]:
        if not text:
            return []
        ids: list[int] = self._processor.encode(text)
        if TokenType.UNKNOWN not in self.vocab.types and max(ids, default=0) >= self.n_vocab:
            ids = [self._unknown_id() if token >= self.n_vocab else token for token in ids]
        return ids

    @property
    def _keeps_all_bytes(self) -> bool:
        return len(self._byte_ids) == 256 and not self._strip_spaces

    def _byte_id(self, byte: int) -> int:
        token = self._byte_ids.get(byte)
        return self._unknown_id() if token is None else token

    def _unknown_id(self) -> int:
        if self.unk is None:
            raise TokenizerError(
                f"{self.vocab.path}: the text has a character that the vocabulary lacks, and there are no "
                "byte tokens and no unknown token to stand for it"
            )
        return self.unk

    def _piece_bytes(self, token: int) -> bytes:
        piece = self.vocab.pieces[token]
        if self.vocab.types[token] == TokenType.BYTE:
            return bytes((int(piece[3:5], 16),))
        return piece.replace(SPACE, " ").encode("utf-8", "surrogateescape")

    @property
    def strips_leading_space(self) -> bool:
        return self.add_space_prefix

    @cached_property
    def nl(self) -> int | None:
        return self._byte_ids.get(0x0A, self.vocab.pieces.id_of("\n"))


class UnigramTokenizer(SentencePieceTokenizer):
    """`kind` t5: the same vocabulary, of which the likeliest pieces are chosen that make up the text."""

    kind = "t5"
    model_type = UNIGRAM_MODEL


def scores_of_merges(merges: Sequence[str], ids: Mapping[str, int]) -> list[float]:
    """The score of each token: minus the rank of the first merge that makes it. Tokens that no merge makes
    come after all others, in the order of their ids.
    """
    ranks: dict[int, int] = {}
    for rank, merge in enumerate(merges):
        token = ids.get(merge.replace(" ", "", 1))
        if token is not None:
            ranks.setdefault(token, rank)
    return [-float(ranks.get(token, len(merges) + token)) for token in range(len(ids))]


def _make_loadable(pieces: list[str], types: list[int], byte_fallback: bool) -> None:
    """Changes, in place, what the library does not load. Tokens that it cannot have become control tokens
    under a name of their own, which no text turns into.
    """
    seen: set[str] = set()
    for i, kind in enumerate(types):
        if kind == TokenType.USER_DEFINED:
            pieces[i] = pieces[i].replace(" ", SPACE)
        if kind == TokenType.UNDEFINED:
            types[i] = int(TokenType.UNUSED)
        repeated = pieces[i] in seen
        if repeated or "\x00" in pieces[i] or not _is_text(pieces[i]):
            pieces[i] = f"[TOKEN_{i}]"
            kind = TokenType.CONTROL if kind != TokenType.UNKNOWN else kind
            types[i] = int(kind)
        elif kind == TokenType.BYTE and not byte_fallback:
            types[i] = int(TokenType.CONTROL)
        seen.add(pieces[i])


def _is_text(piece: str) -> bool:
    """Whether UTF-8 can write it (no lone surrogates)."""
    try:
        piece.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
