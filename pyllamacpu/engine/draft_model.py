"""Drafts of a smaller model with the same vocabulary, which writes a few tokens ahead of the larger one.

Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding" (2023); but a drafted
token is only compared with the one that the larger model's sampler chooses, so that answers stay the same.
Drafts are chosen with the same random numbers, so that models that agree choose alike.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any

import numpy as np

from pyllamacpu.engine.batch import Entry, Floats
from pyllamacpu.engine.drafts import Draft, Evidence, Wish
from pyllamacpu.engine.engine import Engine
from pyllamacpu.engine.prefix_cache import PrefixCache
from pyllamacpu.errors import ContextError, NativeError
from pyllamacpu.sampling.sampler import Sampler

_BACKLOG = 32  # tokens; more are read apart
_CONTEXTS = 4  # that its cache holds, of running and earlier answers
_ROW_COST = 0.1  # of a step, that verifying one more token costs at the least
_FIRST_WORTH = 0.4  # chance of a token that is worth drafting, before times are known
_FOLLOW = 0.2  # of a new measurement's difference

# Tokens are of one kind whose probability, as the draft model has it, lies in the same range.
_LEAST = (0.0, 0.3, 0.5, 0.7, 0.85, 0.95, 0.99)
_PRIORS = (0.2, 0.4, 0.55, 0.7, 0.8, 0.9, 0.95)
_EVIDENCE = [Evidence(f"model, {least:g}", prior) for least, prior in zip(_LEAST, _PRIORS, strict=True)]


class _ModelDrafter:
    """The draft model's own sequence for one answer."""

    def __init__(self, engine: Engine, prefixes: PrefixCache) -> None:
        self.sequence = engine.sequence()
        self._prefixes = prefixes
        self._guesser: Sampler | None = None
        self._n_seen = 0  # tokens that the guesser knows of
        self._n_same = 0  # tokens that the sequence is known to have in common with the answer

    def follow(self, history: Sequence[int]) -> None:
        """Takes back what the answer did not take over. The last token is always read (again)."""
        if not len(self.sequence):
            self._prefixes.extend(self.sequence, history[:-1])
        tokens, n = self.sequence.tokens, min(self._n_same, len(self.sequence))
        while n < min(len(tokens), len(history) - 1) and tokens[n] == history[n]:
            n += 1
        self._n_same = self.sequence.reusable(n)
        self.sequence.truncate(self._n_same)

    def follow_sampler(self, wish: Wish) -> None:
        """Has the next draft chosen as the answer's own sampler would choose it."""
        if wish.sampler is None:
            return
        if self._guesser is None:
            self._guesser = wish.sampler.guesser()
        else:
            self._guesser.accept_prompt(wish.history[self._n_seen :])
        self._n_seen = len(wish.history)
        self._guesser.take_numbers_of(wish.sampler)

    def choose(self, row: Floats) -> tuple[int, Evidence]:
        """A token for a row of the draft model's logits, and what its probability there says."""
        token = int(row.argmax())
        if self._guesser is not None and self._guesser.n_vocab == len(row):
            with suppress(NativeError):  # a row that nothing can be chosen from
                token = self._guesser.sample(row)
        probability = float(np.exp(row[token] - row.max()) / np.exp(row - row.max()).sum())
        kind = sum(probability >= least for least in _LEAST) - 1
        return token, _EVIDENCE[max(kind, 0)]

    def close(self) -> None:
        self._prefixes.insert(self.sequence)
        self.sequence.close()


class ModelDrafts:
    """Drafts of a model, for many answers in one step of it. Made for one thread at a time.

    A token is drafted as long as its chance to come true is worth the time of a step.
    """

    is_free = False

    def __init__(self, engine: Engine) -> None:
        """Owns `engine` from now on."""
        self._engine = engine
        engine.cache.limit_bytes = _CONTEXTS * engine.cache.context_bytes(engine.n_ctx, engine.n_batch)
        self._prefixes = PrefixCache(engine.cache)
        self._logits = engine.logits_buffer(1)
        self._seconds = 0.0  # of a step with a token for each answer

    @property
    def weight_bytes(self) -> int:
        return self._engine.weight_bytes

    def start(self) -> _ModelDrafter:
        return _ModelDrafter(self._engine, self._prefixes)

    def close(self) -> None:
        self._prefixes.clear()
        self._engine.close()

    def catch_up(self, wishes: Sequence[Wish]) -> None:
        """Reads prompts."""
        for wish in wishes:
            sequence, end = wish.drafter.sequence, len(wish.history) - 1
            if end >= self._engine.n_ctx:
                continue
            wish.drafter.follow(wish.history)
            if end - len(sequence) > _BACKLOG:
                try:
                    self._engine.eval(sequence, wish.history[len(sequence) : end], logits="none")
                except ContextError:  # its cache is full
                    sequence.truncate(0)

    def propose(self, wishes: Sequence[Wish], step_seconds: float) -> list[Draft]:
        drafts = [Draft([], []) for _ in wishes]
        chances = [1.0] * len(wishes)
        active = [i for i, wish in enumerate(wishes) if self._is_ready(wish)]
        for i in active:
            wishes[i].drafter.follow_sampler(wishes[i])
        worth = _ROW_COST + self._seconds / step_seconds if self._seconds and step_seconds else _FIRST_WORTH
        while active:
            rows = self._step([(wishes[i], drafts[i].tokens) for i in active])
            if rows is None:
                break
            for i, row in zip(list(active), rows, strict=True):
                token, evidence = wishes[i].drafter.choose(row)
                chances[i] *= wishes[i].probability(evidence)
                drafts[i].tokens.append(token)
                drafts[i].evidence.append(evidence)
                full = len(wishes[i].history) + len(drafts[i].tokens) > self._engine.n_ctx
                if chances[i] < worth or len(drafts[i].tokens) == wishes[i].n or full:
                    active.remove(i)
        return drafts

    def _is_ready(self, wish: Wish) -> bool:
        n, read = len(wish.history), len(wish.drafter.sequence)
        return n <= self._engine.n_ctx and n - read <= _BACKLOG + 1

    def _step(self, work: Sequence[tuple[Wish, list[int]]]) -> Floats | None:
        """The logits (n, n_vocab) behind each history and its draft so far; None when there is no room."""
        entries = []
        for wish, drafted in work:
            sequence = wish.drafter.sequence
            new = [*wish.history[len(sequence) :], *drafted]
            entries.append(Entry(sequence, new[max(0, len(sequence) - len(wish.history)) :]))
        if sum(len(entry.tokens) for entry in entries) > self._engine.n_batch:
            return None
        if len(self._logits) < len(entries):
            self._logits = self._engine.logits_buffer(len(entries))
        started = time.perf_counter()
        try:
            rows = self._engine.step(entries, self._logits)
        except ContextError:
            return None
        seconds = time.perf_counter() - started
        self._seconds += (seconds - self._seconds) * (_FOLLOW if self._seconds else 1.0)
        return rows


def vocabulary_difference(draft: Mapping[str, Any], model: Mapping[str, Any]) -> str | None:
    """How a draft model's vocabulary differs from the model's, by the metadata of their files; None: not at
    all.
    """
    theirs, ours = (data.get("tokenizer.ggml.tokens") for data in (draft, model))
    if theirs is None or ours is None:
        return "it has no vocabulary" if theirs is None else "the model has no vocabulary"
    for i, (there, here) in enumerate(zip_longest(theirs, ours)):
        if there is None or here is None:
            return f"it has {len(theirs)} tokens, the model {len(ours)}"
        if there != here:
            return f"its token {i} is {there!r:.40}, the model's is {here!r:.40}"
    return None
