"""Checks of token ids, and what they have in common. Ids below zero stand for rows of images (images.py)."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Protocol

from pyllamacpu.errors import ContextError, TokenizerError


class ImageIds(Protocol):
    """What an engine knows of ids that stand for images: `images.ImageCache`."""

    image_token: int | None

    def check_ids(self, tokens: Iterable[int], n_vocab: int) -> list[int]: ...
    def visible(self, tokens: Sequence[int]) -> list[int]: ...
    def key_parts(self, tokens: Sequence[int]) -> list[bytes]: ...
    def saved_ranges(self, tokens: Sequence[int]) -> bytes: ...
    def renumbered(self, tokens: Sequence[int], ranges: bytes) -> list[int]: ...


def check_tokens(tokens: Iterable[int], n_vocab: int, image_token: int | None = None) -> list[int]:
    """`tokens` as ints, each inside the vocabulary. Raises TokenizerError for any that is not; `image_token`
    is one that is outside because it stands for images.
    """
    if isinstance(tokens, (str, bytes, bytearray, memoryview)):
        kind = type(tokens).__name__
        raise TokenizerError(
            f"token ids are a list of whole numbers, not {kind}: tokenize() makes them of text"
        )
    try:
        ids = list(map(operator.index, tokens))
    except TypeError:
        raise TokenizerError("token ids must be whole numbers") from None
    if ids and not (min(ids) >= 0 and max(ids) < n_vocab):
        wrong = next(token for token in ids if not 0 <= token < n_vocab)
        if wrong == image_token:
            raise TokenizerError(
                f"token id {wrong} stands for an image, and no image is given: give one with the prompt, or "
                "leave the token out"
            )
        raise TokenizerError(f"token id {wrong} is outside the vocabulary of {n_vocab} (0 to {n_vocab - 1})")
    return ids


def check_ids(tokens: Iterable[int], n_vocab: int, images: ImageIds | None) -> list[int]:
    """As `check_tokens`, for ids some of which may stand for rows of images."""
    return check_tokens(tokens, n_vocab) if images is None else images.check_ids(tokens, n_vocab)


def text_tokens(tokens: Sequence[int]) -> list[int]:
    """Those that are not rows of images."""
    return [token for token in tokens if token >= 0]


def stand_for_images(tokens: Sequence[int]) -> bool:
    """Whether rows of images are among them."""
    return any(token < 0 for token in tokens)


def check_length(n_tokens: int, n_ctx: int, where: str = "") -> None:
    """Raises ContextError when `n_tokens` do not fit in the context. `where`: the text."""
    if n_tokens > n_ctx:
        said = (
            f"{n_tokens} tokens do not fit in the context of {n_ctx}: shorten the prompt or raise n_ctx (-c)"
        )
        raise ContextError(f"{where}: {said}" if where else said)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens `a` and `b` have in common from the start."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])
