"""Ends of an answer by its lines: an editor wants what fills a place soon, and of the same block of code."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyllamacpu.text import StreamDecoder, Tokenizer


@dataclass
class LineLimits:
    """For one answer. seconds: when it ends if it has a line; None: never. n_indent: it ends before a line,
    not its first, that begins with fewer blanks than these. ended: whether one of the two has ended it.
    """

    seconds: float | None = None
    n_indent: int = 0
    ended: bool = field(default=False, init=False)

    def criterion(self, tokenizer: Tokenizer, n_prompt: int) -> Callable[[Any, Any], bool]:
        """For the engine, which calls it before each token of the answer behind `n_prompt` tokens."""
        decoder, text, n_seen, start = StreamDecoder(tokenizer), "", n_prompt, time.monotonic()

        def ends(ids: Any, logits: Any) -> bool:
            nonlocal text, n_seen, start
            if len(ids) == n_prompt:
                start = time.monotonic()  # the prompt is read
            text += "".join(decoder.push(int(token)) for token in ids[n_seen:])
            n_seen = len(ids)
            late = self.seconds is not None and time.monotonic() - start > self.seconds
            self.ended = (late and "\n" in text) or self.within(text) != text
            return self.ended

        return ends

    def within(self, text: str) -> str:
        """`text` without what stands behind the place: a line that is indented less, and all after it."""
        end = text.find("\n") + 1 if self.n_indent else 0
        while end:
            line = text[end:].split("\n", 1)[0]
            n_blanks = len(line) - len(line.lstrip(" \t"))
            if n_blanks < min(self.n_indent, len(line)):
                return text[:end]
            end = text.find("\n", end) + 1
        return text
