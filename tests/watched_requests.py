"""Requests for a scheduler whose logits are written down, to be compared with what they get alone."""

from __future__ import annotations

import numpy as np

from pyllamacpu.engine.generate import Request
from pyllamacpu.engine.handle import Event
from pyllamacpu.engine.scheduler import Scheduler
from pyllamacpu.sampling.sampler import SamplingOptions

GREEDY = SamplingOptions(temperature=0.0)
Row = np.ndarray
Answer = tuple[list[int], list[bytes], str | None]


class Watched:
    """A request whose logits are written down, as each token's processor sees them."""

    def __init__(self, prompt: list[int], n: int, seed: int) -> None:
        self.rows: list[bytes] = []
        self.tokens: list[int] = []
        self.reason: str | None = None
        self.prompt, self.n, self.seed = prompt, n, seed

    def request(self) -> Request:
        hot = SamplingOptions(seed=self.seed, temperature=1.5, top_k=0, min_p=0.0, repeat_penalty=1.1)
        return Request(self.prompt, hot, self.n, processors=(self._see,))

    def _see(self, ids: Row, logits: Row) -> Row:
        self.rows.append(logits.tobytes())
        return logits

    def take(self, event: Event) -> None:
        assert event.text is not None, event.error
        self.tokens += event.text.tokens
        self.reason = event.text.finish_reason

    @property
    def answer(self) -> Answer:
        return self.tokens, self.rows, self.reason

    def alone(self, scheduler: Scheduler) -> Answer:
        """What the request gets when nothing else runs and nothing is cached."""
        other = Watched(self.prompt, self.n, self.seed)
        scheduler.submit(other.request())
        while other.reason is None:
            for event in scheduler.step():
                other.take(event)
        scheduler.prefixes.clear()
        return other.answer


def prompt(n: int, first: int = 7) -> list[int]:
    return [first, *[9] * (n - 1)]


def finish(scheduler: Scheduler) -> list[Event]:
    events = []
    while scheduler.has_work:
        events += scheduler.step()
    return events
