"""DRY's sequence breakers, as token sequences: a breaker need not begin or end with a token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

MAX_BREAKER_BYTES = 40  # longer ones are cut
MAX_TAIL_TOKENS = 20

DryBreakers = tuple[tuple[int, ...], ...]
"""Each a token that contains the breaker, or one that ends with its beginning and the tokens of its rest."""


def _overlaps(piece: bytes, text: bytes) -> Iterator[int]:
    """How many bytes of `text` a proper beginning of it and the end of `piece` share, for each that fits."""
    start = piece.find(text[:1])
    while start >= 0:
        shared = len(piece) - start
        if shared < len(text) and piece.endswith(text[:shared]):
            yield shared
        start = piece.find(text[:1], start + 1)


def _breakers_of(
    text: bytes, token: int, piece: bytes, tokenize: Callable[[bytes], Sequence[int]] | None
) -> Iterator[tuple[int, ...]]:
    if text in piece:
        yield (token,)
    elif len(text) > 1 and tokenize is not None:
        for shared in _overlaps(piece, text):
            tail = tokenize(text[shared:])
            if tail:
                yield (token, *tail[:MAX_TAIL_TOKENS])


def find_breakers(
    strings: Sequence[str],
    n_vocab: int,
    token_bytes: Sequence[bytes] | Callable[[int], bytes],
    tokenize: Callable[[bytes], Sequence[int]] | None,
) -> DryBreakers:
    """The breakers of a vocabulary, each once; without `tokenize` only those inside one token.

    One pass over the vocabulary per string, tens of milliseconds for 128K tokens: share the result.
    """
    get = token_bytes if callable(token_bytes) else token_bytes.__getitem__
    pieces = [bytes(get(token)) for token in range(n_vocab)]
    found: dict[tuple[int, ...], None] = {}
    for string in strings:
        text = string.encode("utf-8", "surrogatepass")[:MAX_BREAKER_BYTES]
        first = text[:1]
        for token, piece in enumerate(pieces):
            if first in piece:
                found.update(dict.fromkeys(_breakers_of(text, token, piece, tokenize)))
    return tuple(found)
