"""The vocabulary as a GGUF file states it: pieces, their types, and which ids have a special meaning.

Keys are those of the GGUF specification (`tokenizer.ggml.*`); the defaults for keys that are missing are
those that llama.cpp applies, because the files in the wild were made for it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from pyllamacpu.errors import TokenizerError
from pyllamacpu.gguf.strings import StringArray
from pyllamacpu.text.pieces import Pieces


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`; the numbers are SentencePiece's own."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Spellings that mean "the answer is over", whatever the file says. Those in the second set are also ordinary
# words in some vocabularies, so they count only when the file does not call them normal.
END_NAMES = frozenset(
    [
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|eom_id|>",
        "<|end_of_text|>",
        "<|eot|>",
        "<|eom|>",
        "<end_of_utterance>",
        "<｜end▁of▁sentence｜>",
    ]
)
END_NAMES_IF_SPECIAL = frozenset(["</s>", "<EOT>", "_<EOT>", "▁<EOT>", "[EOT]", "[EOS]", "<eos>"])
# Spellings that open a turn: control tokens even when a converter forgot to say so, so that no user can
# write one.
START_NAMES = frozenset(
    [
        "<|im_start|>",
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|header_start|>",
        "<|header_end|>",
        "<|python_tag|>",
        "<start_of_turn>",
    ]
)
TURN_ENDS = (
    "<|eot_id|>",
    "<|eot|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "▁<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
)
MESSAGE_ENDS = ("<|eom_id|>", "<|eom|>")

# role → (metadata keys, the newest first; spellings to look for when no key is there)
FILL_IN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pre": (
        ("fim_pre_token_id", "prefix_token_id"),
        (
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
        ),
    ),
    "suf": (
        ("fim_suf_token_id", "suffix_token_id"),
        (
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
        ),
    ),
    "mid": (
        ("fim_mid_token_id", "middle_token_id"),
        (
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
        ),
    ),
    "pad": (("fim_pad_token_id",), ("<|fim_pad|>", "<fim-pad>", "<fim_pad>")),
    "rep": (("fim_rep_token_id",), ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>")),
    "sep": (("fim_sep_token_id",), ("<|file_sep|>",)),
}


@dataclass(frozen=True)
class Vocabulary:
    """Pieces and special ids. `pieces[id]` is the spelling in the file's own alphabet (▁ or byte letters),
    `types[id]` one of `TokenType`.
    """

    path: str
    pieces: Pieces
    types: bytearray
    bos: int | None
    eos: int | None
    eot: int | None
    eom: int | None
    unk: int | None
    pad: int | None
    sep: int | None
    fim: dict[str, int] = field(default_factory=dict)
    eog: frozenset[int] = frozenset()
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pieces)

    def ids(self) -> dict[str, int]:
        """Spelling → id of all tokens, made anew each time: for one, `pieces.id_of` is what to ask."""
        return {piece: i for i, piece in enumerate(self.pieces)}

    def of_type(self, *types: TokenType) -> dict[str, int]:
        """Spelling → id of all tokens of these types."""
        wanted = set(map(int, types))
        if wanted.isdisjoint(self.types):
            return {}
        return {self.pieces[i]: i for i, kind in enumerate(self.types) if kind in wanted}


def read_vocabulary(metadata: Mapping[str, Any], path: str, sentencepiece: bool) -> Vocabulary:
    """The vocabulary in `metadata`. Raises TokenizerError when a list is missing, too short or of the wrong
    kind, and for ids outside the vocabulary, but for those that a model runs without (padding, separator and
    filling in), which are left out with a warning.
    """
    pieces = _pieces(metadata, path)
    types = _types(metadata, len(pieces), path)
    ids = dict(zip(pieces, range(len(pieces)), strict=True))
    _override_types(ids, types)

    def special(*keys: str, default: int | None = None) -> int | None:
        return _special_id(metadata, keys, len(pieces), default, path)

    bos = special("bos_token_id", default=1 if sentencepiece else None)
    eos = special("eos_token_id", default=2 if sentencepiece else None)
    unk = special("unknown_token_id", default=0 if sentencepiece else None)
    eot = special("eot_token_id")
    eom = special("eom_token_id")
    eot = _first(ids, TURN_ENDS) if eot is None else eot
    eom = _first(ids, MESSAGE_ENDS) if eom is None else eom
    warnings: list[str] = []
    fim = _fill_in(metadata, ids, len(pieces), path, warnings)
    for role in fim.values():
        if types[role] == TokenType.NORMAL:
            types[role] = int(TokenType.CONTROL)
    return Vocabulary(
        path=path,
        pieces=Pieces(pieces),
        types=bytearray(map(int, types)),
        bos=bos,
        eos=eos,
        eot=eot,
        eom=eom,
        unk=unk,
        pad=_spare_id(metadata, ("padding_token_id",), len(pieces), path, warnings),
        sep=_spare_id(metadata, ("seperator_token_id", "separator_token_id"), len(pieces), path, warnings),
        fim=fim,
        eog=_end_ids(ids, types, [eos, eot, eom, fim.get("pad"), fim.get("rep"), fim.get("sep")]),
        warnings=tuple(warnings),
    )


def string_list(value: Any, key: str, path: str) -> list[str]:
    """A metadata array of strings as a list. Raises TokenizerError when it is anything else."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise TokenizerError(f"{path}: {key} is not a list of strings; convert the model again")
    texts = list(value)
    if not set(map(type, texts)) <= {str}:
        raise TokenizerError(f"{path}: {key} holds something other than strings; convert the model again")
    return texts


def string_lines(value: Any, key: str, path: str) -> bytes:
    """A metadata array of strings, each followed by a line end; one that holds a line end is left empty.
    Raises TokenizerError when it is anything else.
    """
    if isinstance(value, StringArray):
        return value.lines()
    return joined_lines(string_list(value, key, path))


def joined_lines(texts: Iterable[str]) -> bytes:
    """Each text followed by a line end; one that holds a line end is left empty."""
    texts = list(texts)
    joined = "\n".join([*texts, ""])
    if joined.count("\n") != len(texts):
        joined = "\n".join(["" if "\n" in text else text for text in texts] + [""])
    return joined.encode("utf-8", "surrogateescape")


def number_list(metadata: Mapping[str, Any], key: str, n_tokens: int, path: str) -> list[Any] | None:
    """A metadata array of at least `n_tokens` numbers, or None when the file has none."""
    value = metadata.get(key)
    if value is None:
        return None
    values = (
        value.tolist() if hasattr(value, "tolist") else list(value) if isinstance(value, Sequence) else []
    )
    if len(values) < n_tokens:
        raise TokenizerError(
            f"{path}: {key} has {len(values)} entries for {n_tokens} tokens; convert the model again"
        )
    if not set(map(type, values)) <= {int, float, bool}:
        raise TokenizerError(f"{path}: {key} holds something other than numbers; convert the model again")
    return values[:n_tokens]


def flag(metadata: Mapping[str, Any], key: str, default: bool, path: str) -> bool:
    """A boolean key under `tokenizer.ggml.`. Raises TokenizerError for anything but a number."""
    value = metadata.get(f"tokenizer.ggml.{key}")
    if value is None:
        return default
    if not isinstance(value, (bool, int)):
        raise TokenizerError(f"{path}: tokenizer.ggml.{key} is neither true nor false; convert it again")
    return bool(value)


def _pieces(metadata: Mapping[str, Any], path: str) -> list[str]:
    key = "tokenizer.ggml.tokens"
    if key not in metadata:
        raise TokenizerError(
            f"{path}: {key} is missing, so text cannot be tokenized (tokenizer.ggml.model is "
            f"{metadata.get('tokenizer.ggml.model')!r}); convert the model again"
        )
    pieces = string_list(metadata[key], key, path)
    if not pieces:
        raise TokenizerError(f"{path}: {key} is empty; convert the model again")
    seen: set[str] = set()
    if "" in pieces or len(set(pieces)) != len(pieces):
        # Padding rows of the embedding are sometimes written as empty or repeated names: keep every id, make
        # each unique.
        for i, piece in enumerate(pieces):
            name = piece or f"[EMPTY_{i}]"
            while name in seen:
                name = f"{name}[REPEATED_{i}]"
            seen.add(name)
            pieces[i] = name
    return pieces


def _types(metadata: Mapping[str, Any], n_tokens: int, path: str) -> list[int]:
    types = number_list(metadata, "tokenizer.ggml.token_type", n_tokens, path)
    if types is None:
        return [int(TokenType.NORMAL)] * n_tokens
    known = {int(kind) for kind in TokenType}
    return (
        types if known.issuperset(types) else [t if t in known else int(TokenType.UNDEFINED) for t in types]
    )


def _override_types(ids: dict[str, int], types: list[int]) -> None:
    """Tokens that steer a chat are control tokens even where a converter called them something else."""
    for name in END_NAMES | START_NAMES:
        token = ids.get(name)
        if token is not None and types[token] != TokenType.UNKNOWN:
            types[token] = int(TokenType.CONTROL)


def _special_id(
    metadata: Mapping[str, Any], keys: Sequence[str], n_tokens: int, default: int | None, path: str
) -> int | None:
    for key in keys:
        value = metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            continue
        try:
            token = operator.index(value)
        except TypeError:
            token = None
        if token is None or isinstance(value, bool):
            raise TokenizerError(f"{path}: tokenizer.ggml.{key} is not a token id; convert the model again")
        if token in (-1, 0xFFFFFFFF):  # two spellings of "none"
            return None
        if not 0 <= token < n_tokens:
            raise _OutsideError(
                f"{path}: tokenizer.ggml.{key} is {token}, outside the vocabulary of {n_tokens} tokens; "
                "convert the model again"
            )
        return token
    return default if default is not None and default < n_tokens else None


class _OutsideError(TokenizerError):
    """An id that no token has."""


def _spare_id(
    metadata: Mapping[str, Any], keys: Sequence[str], n_tokens: int, path: str, warnings: list[str]
) -> int | None:
    """The id of a token that a model runs without: one outside the vocabulary is a warning."""
    try:
        return _special_id(metadata, keys, n_tokens, None, path)
    except _OutsideError as error:
        fault = str(error).removeprefix(f"{path}: ")  # whoever shows warnings says of which file they are
        warnings.append(f"{fault}; until then the file counts as having no such token")
        return None


def _first(ids: dict[str, int], names: Sequence[str]) -> int | None:
    return next((ids[name] for name in names if name in ids), None)


def _fill_in(
    metadata: Mapping[str, Any], ids: dict[str, int], n_tokens: int, path: str, warnings: list[str]
) -> dict[str, int]:
    found = {}
    for role, (keys, names) in FILL_IN.items():
        token = _spare_id(metadata, keys, n_tokens, path, warnings)
        token = _first(ids, names) if token is None else token
        if token is not None:
            found[role] = token
    return found


def _end_ids(ids: dict[str, int], types: list[int], stated: Sequence[int | None]) -> frozenset[int]:
    """Ids that end a generation: what the file states, and the names known to mean it."""
    ends = {token for token in stated if token is not None}
    ends.update(ids[name] for name in END_NAMES if name in ids)
    special = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    ends.update(ids[name] for name in END_NAMES_IF_SPECIAL if name in ids and types[ids[name]] in special)
    # Harmony and Solar vocabularies end messages, not answers, with <|end|>.
    names = {name for name in ("<|return|>", "<|call|>", "<|calls|>", "<|flush|>") if name in ids}
    if "<|end|>" in ids and (names >= {"<|return|>", "<|call|>"} or names >= {"<|calls|>", "<|flush|>"}):
        ends.discard(ids["<|end|>"])
    return frozenset(ends)


ADDS_EOS = (
    "tokenizer.ggml.add_eos_token is set: an end token is put behind every text, so that completions go on "
    "after the end; set it to false if the model was not trained like that"
)


def word_tokens(pieces: Sequence[str], types: Sequence[int]) -> list[str]:
    """User-defined tokens that begin and end with a letter (that has a case), and are found inside words."""
    if TokenType.USER_DEFINED not in types:
        return []
    kinds = zip(pieces, types, strict=True)
    return [piece for piece, kind in kinds if kind == TokenType.USER_DEFINED and _is_word(piece)]


def _is_word(piece: str) -> bool:
    return all(letter.lower() != letter.upper() for letter in (piece[:1], piece[-1:]))


def found_in_words(pieces: Sequence[str]) -> str:
    """A warning about such tokens."""
    shown = ", ".join(map(repr, pieces[:3])) + (f" and {len(pieces) - 3} more" if len(pieces) > 3 else "")
    are = "are added tokens that are" if len(pieces) > 1 else "is an added token that is"
    return f"{shown} {are} found inside words too, which are cut there: such words may be read badly"
