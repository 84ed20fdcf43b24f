"""A table of tokens on its way into a GGUF file: what all kinds of tokenizer files are read into."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pyllamacpu.errors import CheckpointError
from pyllamacpu.gguf.keys import KeyValue
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.text.vocab import TokenType

PAD_SCORE, ADDED_SCORE = -10000.0, -1000.0
_SPACE = "▁"
_MAX_UNNAMED = 1 << 17  # rows without a token, besides three for each token
_CONTROL_NAMES = frozenset(("<pad>", "<mask>", "<2mass>", "[@BOS@]"))


def check_ids(path: Path, n_rows: int, n_known: int) -> None:
    """Raises CheckpointError when so many rows hardly belong to so many known tokens: each gets a name."""
    if n_rows > 4 * n_known + _MAX_UNNAMED:
        raise CheckpointError(path, f"token ids go up to {n_rows - 1}, and only {n_known} have a token")


class AddedToken(NamedTuple):
    """A token that a tokenizer cuts out of the text before anything else."""

    id: int
    text: str
    special: bool


@dataclass
class TokenTable:
    """`kind` is tokenizer.ggml.model, `pre` tokenizer.ggml.pre. `texts[i]` and `types[i]` belong to token i;
    `scores` are SentencePiece's, `merges` byte-level BPE's ("left right"). `special` holds ids by role (bos,
    eos, unk, pad …) as far as the file itself states them; `flags` booleans such as add_bos_token.
    """

    path: Path
    kind: str
    pre: str
    texts: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    special: dict[str, int] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    def add(self, tokens: Iterable[AddedToken], n_rows: int, drop_extra: bool) -> None:
        """Puts added tokens into the table. Raises CheckpointError for ids beyond `n_rows`."""
        extra: list[AddedToken] = []
        for token in sorted(tokens):
            if token.id >= n_rows:
                extra.append(token)
            elif token.id >= 0:
                self._grow(token.id + 1)
                self._set(token)
        if not extra:
            return
        shown = ", ".join(f"{token.text!r} {token.id}" for token in extra[:3])
        shown += f" and {len(extra) - 3} more" if len(extra) > 3 else ""
        if not drop_extra:
            raise CheckpointError(
                self.path,
                f"tokens beyond the model's {n_rows} rows: {shown}; if the model is meant to do without "
                f"them, "
                "convert with --drop-extra-tokens",
            )
        self.notes.append(f"left out tokens beyond the model's {n_rows} rows: {shown}")

    def pad_to(self, n_rows: int) -> None:
        """Names for rows without a token. Raises CheckpointError when there are more tokens than rows."""
        if len(self) > n_rows:
            raise CheckpointError(
                self.path,
                f"the tokenizer has {len(self)} tokens, the model's embedding only {n_rows} rows; they do "
                f"not belong "
                "together",
            )
        missing = self.types.count(TokenType.UNUSED) if self.kind == "gpt2" else 0
        if len(self) < n_rows:
            missing += n_rows - len(self)
            self._grow(n_rows)
        if missing:
            self.notes.append(f"{missing} rows of the embedding have no token and are named [PADn]")

    def keys(self) -> list[KeyValue]:
        """tokenizer.ggml.* metadata of the table itself. Raises CheckpointError for what is not text."""
        for i, text in enumerate(self.texts if not _is_text("".join(self.texts)) else ()):
            if not _is_text(text):
                raise CheckpointError(self.path, f"token {i} is {text!r:.80}, which is not text")
        found = [
            KeyValue("model", self.kind),
            KeyValue("pre", self.pre),
            KeyValue("tokens", self.texts, ValueType.STRING),
        ]
        if self.scores is not None:
            found.append(KeyValue("scores", self.scores, ValueType.FLOAT32))
        found.append(KeyValue("token_type", self.types, ValueType.INT32))
        if self.merges is not None:
            found.append(KeyValue("merges", self.merges, ValueType.STRING))
        return [KeyValue(f"tokenizer.ggml.{name}", value, kind) for name, value, kind in found]

    def _grow(self, n: int) -> None:
        for i in range(len(self), n):
            self.texts.append(f"[PAD{i}]")
            self.types.append(int(TokenType.UNUSED))
            if self.scores is not None:
                self.scores.append(PAD_SCORE)

    def _set(self, token: AddedToken) -> None:
        """Tokens that are text are spelled with real spaces, as they are matched in the text itself."""
        old_text, old_type = self.texts[token.id], self.types[token.id]
        control = token.special or looks_special(token.text)
        if old_type in (TokenType.UNKNOWN, TokenType.CONTROL) and old_text == token.text:
            return
        if old_type not in (TokenType.UNUSED, TokenType.BYTE) and old_text not in (
            token.text,
            f"[PAD{token.id}]",
        ):
            self.notes.append(f"token {token.id} is {token.text!r} and no longer {old_text!r}")
        self.texts[token.id] = token.text if control else token.text.replace(_SPACE, " ")
        self.types[token.id] = int(TokenType.CONTROL if control else TokenType.USER_DEFINED)
        if self.scores is not None:
            self.scores[token.id] = ADDED_SCORE


def _is_text(text: str) -> bool:
    """Whether UTF-8 can write it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def looks_special(text: str) -> bool:
    """Spellings that are control tokens even where a tokenizer forgot to say so."""
    if text in _CONTROL_NAMES:
        return True
    return any(
        text.startswith(a) and text.endswith(b) for a, b in (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    )
