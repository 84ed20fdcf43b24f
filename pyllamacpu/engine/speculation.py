"""Speculative decoding: how many drafted tokens of which answers a step verifies beside its own.

A step with more rows takes longer, so a row has to be worth its time: the number is chosen that makes the
most tokens per second, by what steps cost (`cost_model.RowCosts`) and how often drafted tokens came true.
That is counted for every draft, also those that were not verified: the answer shows what they were worth.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyllamacpu.engine.cost_model import ROW_COST, RowCosts
from pyllamacpu.engine.drafts import MAX_DRAFT, NO_DRAFT, Draft, Drafter, DraftSource, Evidence, Wish
from pyllamacpu.sampling.sampler import Sampler

_FORGET = 0.98  # of a count's weight with each new observation of its kind
_PRIOR_WEIGHT = 6.0  # observations that the prior stands for
_SHARED_WEIGHT = 4.0  # observations of the same answer that all answers' together stand for
_HARDLY = 0.1  # a chance that is never worth a row
_MIN_GAIN = 1.03  # expected, for a draft to be verified: estimates have errors
_MAX_LOSS = 1.5  # steps that drafts may have cost on the whole before they pause
_ACCOUNT = 0.99  # of gains and losses that are remembered from step to step
_FIRST_LOSS = 0.5  # tokens' time that the drafts of one answer may have cost on the whole
_LOSS_PER_TOKEN = 0.01  # and more for each token that came
_MOST_LOSS, _MOST_GAIN = 3.0, 1.0  # tokens' time that is remembered
_FORGIVEN = 0.02  # of a loss, in each step without a draft
_LIKELY = 0.45  # chance of a token that would have been verified
_PAUSE = 32  # steps; twice as many each time, until drafts win again
_MAX_PAUSE = 1024

_NONE = (0.0, 0.0)


class Acceptance:
    """How often drafted tokens came true, by the kind of their evidence."""

    def __init__(self, shared: Acceptance | None = None) -> None:
        self._shared = shared
        self._counts: dict[str, tuple[float, float]] = {}  # those that came true, all

    def observe(self, evidence: Evidence, came_true: bool) -> None:
        hits, n = self._counts.get(evidence.kind, _NONE)
        self._counts[evidence.kind] = _FORGET * hits + came_true, _FORGET * n + 1
        if self._shared is not None:
            self._shared.observe(evidence, came_true)

    def probability(self, evidence: Evidence) -> float:
        hits, n = self._counts.get(evidence.kind, _NONE)
        if self._shared is None:
            return (hits + _PRIOR_WEIGHT * evidence.prior) / (n + _PRIOR_WEIGHT)
        return (hits + _SHARED_WEIGHT * self._shared.probability(evidence)) / (n + _SHARED_WEIGHT)


@dataclass
class DraftedAnswer:
    """The drafts of one answer. `draft` is what the step at hand verifies."""

    drafter: Drafter
    acceptance: Acceptance
    history: Sequence[int]  # the prompt and the tokens chosen so far: it grows
    sampler: Sampler | None = None  # that chooses them
    room: int = 0  # tokens of a draft at most
    draft: list[int] = field(default_factory=list)
    error: Exception | None = None  # of who makes its drafts: the answer ends with it
    proposal: Draft = NO_DRAFT  # for the tokens from position `start` on
    start: int = 0
    n_first: int = 0  # tokens of the prompt
    was_verified: bool = False  # a part of the proposal
    balance: float = 0.0  # tokens' time that drafts have saved, or cost
    n_true: int = 0  # tokens of `draft` that came true
    n_drafted: int = 0  # tokens that were verified
    n_accepted: int = 0  # of those, tokens that the answer has

    def learn(self) -> None:
        """Compares the last proposal with what came since; what was not verified counts as if its first token
        had been.
        """
        if self.proposal.tokens and not self.was_verified and len(self.history) > self.start:
            is_likely = self.acceptance.probability(self.proposal.evidence[0]) >= _LIKELY
            if is_likely:
                self.settle((self.proposal.tokens[0] == self.history[self.start]) - ROW_COST)
        for token, evidence, came in zip(*self.proposal, self.history[self.start :], strict=False):
            self.acceptance.observe(evidence, token == came)
            if token != came:
                break
        self.proposal = NO_DRAFT

    def settle(self, gain: float) -> None:
        """Drafts have saved the time of so many tokens, or cost it."""
        self.balance = max(-_MOST_LOSS, min(_MOST_GAIN, self.balance + gain))

    @property
    def is_losing(self) -> bool:
        """Whether drafts have cost more than they may."""
        return self.balance < -_FIRST_LOSS - _LOSS_PER_TOKEN * (len(self.history) - self.n_first)

    def chances(self) -> list[float]:
        """How likely each token of the proposal is to come true, with all before it, up to those that hardly
        are.
        """
        chance, found = 1.0, []
        for evidence in self.proposal.evidence:
            chance *= self.acceptance.probability(evidence)
            if chance < _HARDLY:
                break
            found.append(chance)
        return found


class Speculation:
    """Chooses the drafts that each step verifies."""

    def __init__(self, source: DraftSource, costs: RowCosts) -> None:
        self._source = source
        self._costs = costs
        self._acceptance = Acceptance()
        self._drafting = 0.0  # seconds that the drafts of the step at hand took
        self._account = 0.0  # steps that drafts have saved, or cost
        self._paused = 0  # steps for which nothing is verified
        self._pause = _PAUSE

    def start(self, history: Sequence[int], sampler: Sampler | None = None) -> DraftedAnswer:
        """For a new answer, whose prompt and tokens are `history`."""
        return DraftedAnswer(
            self._source.start(), Acceptance(self._acceptance), history, sampler, n_first=len(history)
        )

    def plan(self, answers: Sequence[DraftedAnswer], n_others: int, n_rows: int) -> None:
        """Sets the `draft` of each answer, for a step with `n_others` rows beside and at most `n_rows`."""
        for answer in answers:
            answer.learn()
            answer.was_verified = False
        self._drafting, pausing = 0.0, self._paused > 0
        self._paused = max(0, self._paused - 1)
        if pausing and not self._source.is_free:
            return
        asking = [answer for answer in answers if answer.room > 0 and self._may_ask(answer)]
        wishes = [Wish(a.drafter, a.history, a.room, a.acceptance.probability, a.sampler) for a in asking]
        self._source.catch_up(wishes)
        started = time.perf_counter()
        drafts = self._proposals(asking, wishes, self._costs.seconds(len(answers) + n_others))
        self._drafting = 0.0 if self._source.is_free else time.perf_counter() - started
        for answer, draft in zip(asking, drafts, strict=True):
            answer.proposal, answer.start = draft, len(answer.history)
        if not pausing:
            self.choose(answers, n_others, n_rows)

    def _proposals(
        self, asking: Sequence[DraftedAnswer], wishes: Sequence[Wish], step_seconds: float
    ) -> list[Draft]:
        """A draft for each; when one fails, that is the error of its answer alone."""
        try:
            return self._source.propose(wishes, step_seconds)
        except Exception:
            found = []
            for answer, wish in zip(asking, wishes, strict=True):
                try:
                    found += self._source.propose([wish], step_seconds)
                except Exception as error:
                    answer.error = error
                    found.append(NO_DRAFT)
            return found

    def _may_ask(self, answer: DraftedAnswer) -> bool:
        """Whether a draft is made. One that takes time is not while it loses, and tried again later."""
        if self._source.is_free or not answer.is_losing:
            return True
        answer.settle(_FORGIVEN)
        return False

    def choose(self, answers: Sequence[DraftedAnswer], n_others: int, n_rows: int) -> None:
        """Sets the `draft` of each answer, whose proposals are made."""
        n = len(answers) + n_others
        # Chances fall along a draft, so the best rows are always beginnings of drafts.
        rows = [
            (chance, i)
            for i, answer in enumerate(answers)
            for chance in ([] if answer.is_losing else answer.chances())
        ]
        rows.sort(key=lambda row: -row[0])
        best, best_rate, tokens = 0, _MIN_GAIN * n / self._costs.ratio(n), float(n)
        for k, (chance, _) in enumerate(rows[: max(0, n_rows - n)], 1):
            tokens += chance
            if (rate := tokens / self._costs.ratio(n + k)) > best_rate:
                best, best_rate = k, rate
        for _, i in rows[:best]:
            answers[i].was_verified = True
            answers[i].draft.append(answers[i].proposal.tokens[len(answers[i].draft)])

    def verified(self, n: int, answers: Sequence[DraftedAnswer]) -> None:
        """A step for `n` answers is over, which verified the drafts of some of them."""
        if not answers and self._drafting == 0.0:
            return
        n_drafted, n_accepted = sum(len(a.draft) for a in answers), sum(a.n_true for a in answers)
        alone, together = self._costs.ratio(n), self._costs.ratio(n + n_drafted)
        for answer in answers:
            answer.n_drafted += len(answer.draft)
            answer.n_accepted += answer.n_true
            answer.settle(answer.n_true - (together / alone - 1) * n * len(answer.draft) / n_drafted)
        self._account = _ACCOUNT * self._account + (n + n_accepted) / n - together / alone
        if (seconds := self._costs.seconds(n)) > 0:
            self._account -= self._drafting / seconds
        self._account = min(self._account, _MAX_LOSS)  # what was won long ago does not pay for losses now
        if self._account > 0:
            self._pause = _PAUSE
        elif self._account < -_MAX_LOSS:
            self._account, self._paused = 0.0, self._pause
            self._pause = min(2 * self._pause, _MAX_PAUSE)


def most_drafted(n_left: int | None, n_room: int) -> int:
    """Tokens that are worth drafting when `n_left` may still come (None: any number) and `n_room` fit."""
    most = MAX_DRAFT if n_left is None else min(MAX_DRAFT, n_left - 1)
    return max(0, min(most, n_room))
