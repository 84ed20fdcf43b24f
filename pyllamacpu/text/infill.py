"""Prompts with a hole: models that were trained to fill in the middle write what belongs between two texts.

The tokens and both orders are those of the Code Llama paper (arXiv 2308.12950, section 2.3) and of Meta's
reference code; StarCoder's and others' vocabularies have the same three tokens by other names.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyllamacpu.errors import TokenizerError
from pyllamacpu.text.tokenizer import Tokenizer, to_bytes

HOLE = "<FILL_ME>"
"""Where the hole is in a prompt that is one text, as Hugging Face's tokenizer of Code Llama writes it."""


def can_fill_in(tokenizer: Tokenizer) -> bool:
    """Whether the vocabulary has the tokens that mark prefix, suffix and middle."""
    return {"pre", "suf", "mid"} <= tokenizer.fim.keys()


def fills_in(tokenizer: Tokenizer, prompt: str | Sequence[int], suffix: str | None) -> bool:
    """Whether a completion of these is written into a hole, so that its tokens are not those of `prompt`."""
    has_hole = suffix is not None or (isinstance(prompt, str) and HOLE in prompt)
    return has_hole and can_fill_in(tokenizer)


def infill_prompt(
    tokenizer: Tokenizer, prefix: str | bytes | Sequence[int], suffix: str | bytes, suffix_first: bool = False
) -> list[int] | None:
    """Ids that ask for the text between two others; None for a model that was not trained to fill in.

    Prefix, suffix, middle: `BOS PRE prefix SUF suffix MID`; with `suffix_first`: `BOS PRE SUF suffix MID
    prefix`, where the answer goes on in the middle of the last word of the prefix.
    """
    if not can_fill_in(tokenizer):
        return None
    pre, suf, mid = (tokenizer.fim[role] for role in ("pre", "suf", "mid"))
    before = tokenizer.encode(prefix, add_special=False) if isinstance(prefix, (str, bytes)) else list(prefix)
    after = _continuation(tokenizer, suffix)
    body = [pre, suf, *after, mid, *before] if suffix_first else [pre, *before, suf, *after, mid]
    bos = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
    return [*bos, *body]


def prompt_with_hole(
    tokenizer: Tokenizer, prompt: str | bytes, suffix_first: bool = False
) -> list[int] | None:
    """Ids of a text with one HOLE in it; None for a text without, and for a model that does not fill in.

    Raises TokenizerError for several holes.
    """
    text, hole = to_bytes(prompt), HOLE.encode()
    n_holes = text.count(hole)
    if not n_holes or not can_fill_in(tokenizer):
        return None
    if n_holes > 1:
        raise TokenizerError(f"the prompt has {n_holes} times {HOLE}: a model fills in one hole at a time")
    prefix, _, suffix = text.partition(hole)
    return infill_prompt(tokenizer, prefix, suffix, suffix_first)


def _continuation(tokenizer: Tokenizer, text: str | bytes) -> list[int]:
    """Ids of `text` without the space that SentencePiece puts before a first word, as in training."""
    sign = "☺".encode()
    mark = tokenizer.encode(sign, add_special=False)
    ids = tokenizer.encode(sign + to_bytes(text), add_special=False)
    return ids[len(mark) :] if ids[: len(mark)] == mark else tokenizer.encode(text, add_special=False)
