"""Text for measuring a model on: the user's, or the model's own.

A model's own samples need no file and look like what it was trained on. Each begins with a token drawn at
random, goes on greedily for a few and is sampled from then on, which keeps samples both different and sane
(LLM-QAT, arXiv 2305.17888).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyllamacpu.engine.engine import Engine, Entry
from pyllamacpu.errors import ModelError, OptionError
from pyllamacpu.evaluate import Windows, windows
from pyllamacpu.text import load_tokenizer

N_CTX = 256  # tokens of a window
_GREEDY = 4  # tokens after the first that are not sampled

Progress = Callable[[int, int], None]
Ints = npt.NDArray[np.int32]


def text_windows(metadata: Mapping[str, Any], path: Path, n_tokens: int, n_ctx: int = N_CTX) -> Windows:
    """Windows over the beginning of a text file, `n_tokens` at most.

    Raises ModelError for a model without a tokenizer, ContextError for a text shorter than one window.
    """
    tokenizer = load_tokenizer(metadata, str(path))
    if tokenizer is None:
        raise ModelError("the model has no tokenizer to read a text with; leave -f away")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"{path} is not UTF-8 text: {error}") from error
    ids = tokenizer.encode(text[: 64 * n_tokens])  # more characters than that are no `n_tokens` tokens
    bos = tokenizer.bos if tokenizer.add_bos else None
    return windows(ids, n_ctx, bos=bos, n_chunks=max(1, n_tokens // n_ctx))


def sampled_windows(
    engine: Engine, n_tokens: int, n_ctx: int = N_CTX, seed: int = 0, on_progress: Progress | None = None
) -> Windows:
    """Windows that the model writes itself; the same for the same seed."""
    n_ctx = min(n_ctx, engine.n_ctx, engine.config.n_ctx_train)
    n = max(1, min(n_tokens // n_ctx, engine.n_batch))
    tokens = np.empty((n, n_ctx), np.int32)
    bos = _bos(engine)
    start = 0 if bos is None else 1
    random = np.random.default_rng(seed)
    tokens[:, 0] = 0 if bos is None else bos
    tokens[:, start] = _beginnings(engine, n, random)
    sequences = [engine.sequence() for _ in range(n)]
    try:
        done = 0
        for place in range(start + 1, n_ctx):
            entries = [
                Entry(sequence, row.tolist(), "last")
                for sequence, row in zip(sequences, tokens[:, done:place], strict=True)
            ]
            logits = engine.step(entries)
            greedy = place - start <= _GREEDY
            tokens[:, place] = logits.argmax(axis=1) if greedy else draw(logits, random)
            done = place
            if on_progress:
                on_progress(place + 1, n_ctx)
    finally:
        for sequence in sequences:
            sequence.close()
    return Windows(tokens, n_ctx // 2, n_ctx - 1, bos)


def draw(logits: npt.NDArray[np.float32], random: np.random.Generator) -> Ints:
    """A token for each row of logits, with the probabilities that they say (the Gumbel trick)."""
    noise = -np.log(random.exponential(size=logits.shape))
    return np.asarray((logits + noise).argmax(axis=1), np.int32)


def _bos(engine: Engine) -> int | None:
    tokenizer = load_tokenizer(engine.file.metadata)
    return tokenizer.bos if tokenizer is not None and tokenizer.add_bos else None


def _beginnings(engine: Engine, n: int, random: np.random.Generator) -> Sequence[int] | Ints:
    """Tokens to begin with: any that are text."""
    types = engine.file.metadata.get("tokenizer.ggml.token_type")
    texts = np.arange(engine.n_vocab) if types is None else np.flatnonzero(np.asarray(types) == 1)
    texts = texts[texts < engine.n_vocab]
    return np.asarray(random.choice(texts if len(texts) else np.arange(engine.n_vocab), n), np.int32)
