"""Answers that have run into a loop: a passage that repeats again and again, to the end."""

from __future__ import annotations

MAX_PERIOD = 256  # tokens of the longest passage that is looked for
_MIN_REPEATS = 4  # how often a passage stands there in full, at least
_MIN_LENGTH = 96  # tokens of all its repeats together, at least
_FIRST_LOOK = 8  # tokens that are compared before all are
_CHECK_EVERY = 16  # tokens; a check costs a few microseconds


class LoopDetector:
    """Takes an answer's tokens one by one, and says when its end is the same passage over and over.

    That is when the last tokens have a period of at most `MAX_PERIOD`, over four periods and at least 96
    tokens. A refrain, a table's rule or a list with numbers has no such end.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._n = 0

    def push(self, token: int) -> bool:
        """Add a token; True when the answer loops. Looked at only now and then, so it may be said late."""
        self._tokens.append(token)
        self._n += 1
        return self._n % _CHECK_EVERY == 0 and self.period() is not None

    def period(self) -> int | None:
        """Tokens of the passage that the answer ends with again and again; None without one."""
        tokens = self._tokens
        if len(tokens) > 2 * _MIN_REPEATS * MAX_PERIOD:
            del tokens[: -_MIN_REPEATS * MAX_PERIOD]
        if len(tokens) < _MIN_LENGTH:
            return None
        last, end = tokens[-1], tokens[-_FIRST_LOOK:]
        for period in range(1, min(MAX_PERIOD, len(tokens) // _MIN_REPEATS) + 1):
            if tokens[-1 - period] != last or tokens[-_FIRST_LOOK - period : -period] != end:
                continue
            length = max(_MIN_REPEATS * period, _MIN_LENGTH)
            if tokens[-length:-period] == tokens[period - length :]:
                return period
        return None
