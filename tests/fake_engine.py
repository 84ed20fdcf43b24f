"""An engine on real pages whose logits are a function of the whole history: to test what stands above it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from tiny_model import EOS, PIECES

from pyllamacpu.engine.batch import Entry
from pyllamacpu.engine.engine import Outputs
from pyllamacpu.engine.pages import KVCache
from pyllamacpu.engine.pages import Sequence as KVSequence
from pyllamacpu.errors import OptionError
from pyllamacpu.model.kv_space import KVSpace

N_VOCAB = len(PIECES)


class FakeEngine:
    """Wants the tokens of `script` one after the other behind any prompt, and counts what it evaluates."""

    n_vocab = N_VOCAB
    pool = None

    def __init__(
        self, script: Sequence[int] = (), n_prompt: int = 0, n_ctx: int = 64, n_batch: int = 512
    ) -> None:
        self.n_ctx, self.n_batch = n_ctx, n_batch
        self.script, self.n_prompt = list(script), n_prompt
        self.evaluated: list[list[int]] = []  # each entry of each step
        self.steps: list[list[int]] = []  # the number of tokens of each entry
        self.interrupt_at: int | None = None  # the length of the sequence whose next token is not reached
        self.broken: int | None = None  # a step that has this token in it fails
        self.cache = KVCache((KVSpace("text", 1, 1, 16, 16),), "f32", "f32")

    def sequence(self) -> KVSequence:
        return KVSequence(self.cache)

    def exclusive(self) -> AbstractContextManager[object]:
        return nullcontext()

    def logits_buffer(self, n_rows: int) -> np.ndarray:
        return np.empty((n_rows, N_VOCAB), np.float32)

    def row(self, history: Sequence[int]) -> np.ndarray:
        row = np.random.default_rng([len(history), *history]).normal(size=N_VOCAB).astype(np.float32)
        if self.script:
            step = len(history) - self.n_prompt
            row[self.script[step] if 0 <= step < len(self.script) else EOS] += 20
        return row

    def step(self, entries: Sequence[Entry], buffer: np.ndarray) -> np.ndarray:
        assert sum(len(entry.tokens) for entry in entries) <= self.n_batch
        assert len({id(entry.sequence) for entry in entries}) == len(entries)
        if any(self.broken in entry.tokens for entry in entries):
            raise OptionError("this step is broken")
        for entry in entries:
            start = len(entry.sequence)
            if self.interrupt_at is not None and start <= self.interrupt_at < start + len(entry.tokens):
                raise KeyboardInterrupt
        at = 0
        self.steps.append([len(entry.tokens) for entry in entries])
        for entry in entries:
            entry.sequence.prepare(len(entry.tokens))
            self.evaluated.append(list(entry.tokens))
            for i, token in enumerate(entry.tokens, 1):
                entry.sequence.tokens.append(token)
                if entry.logits == "all" or (entry.logits == "last" and i == len(entry.tokens)):
                    buffer[at] = self.row(entry.sequence.tokens)
                    at += 1
        return buffer[:at]

    def outputs(self, entries: Sequence[Entry], buffer: np.ndarray) -> Outputs:
        logits = self.step(entries, buffer)
        tokens = [token for entry in entries if entry.hidden == "all" for token in entry.tokens]
        return Outputs(logits, np.array(tokens, np.float32)[:, None])

    def eval(
        self, sequence: KVSequence, tokens: list[int], *, logits: str = "last", on_progress: Any = None
    ) -> np.ndarray:
        rows = []
        for done, token in enumerate(tokens, 1):
            if on_progress:
                on_progress(done, len(tokens))
            rows.append(self.step([Entry(sequence, [token], "all")], self.logits_buffer(1)))
        found = np.concatenate(rows)
        return found if logits == "all" else found[-1:]
