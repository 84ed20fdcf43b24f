"""Multiple choice: the answer whose tokens are likeliest on average is the model's choice.

All answers of a task begin with the same tokens, which are evaluated once: each answer goes on from a fork of
that sequence, whose pages are shared. Many tasks go through the model in the same steps. Because a token's
logits do not depend on what else is in a step, scores are those of each answer evaluated alone, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pyllamacpu.engine.engine import Engine, Entry, Wanted
from pyllamacpu.engine.pages import Sequence as KVSequence
from pyllamacpu.errors import ContextError
from pyllamacpu.evaluate.rows import Doubles, log_sums
from pyllamacpu.evaluate.statistics import Estimate, share, wilson
from pyllamacpu.evaluate.tasks import Task
from pyllamacpu.evaluate.windows import LOGIT_BYTES

STEPS_AHEAD = 4  # steps' worth of tokens whose tasks are under way at once


@dataclass(frozen=True)
class Answered:
    """scores: mean ln p of each answer's scored tokens. choice: the best, the first of equals."""

    scores: tuple[float, ...]
    choice: int
    right: frozenset[int]

    @property
    def correct(self) -> bool:
        return self.choice in self.right


@dataclass(frozen=True)
class Choices:
    """The answers to many tasks."""

    answered: tuple[Answered, ...]

    @property
    def n_correct(self) -> int:
        return sum(answered.correct for answered in self.answered)

    @property
    def accuracy(self) -> Estimate:
        return share(self.n_correct, len(self.answered))

    @property
    def interval(self) -> tuple[float, float]:
        """Where the accuracy lies with 95 % confidence (Wilson)."""
        return wilson(self.n_correct, len(self.answered))

    @property
    def chance(self) -> Estimate:
        """The accuracy of guessing, when each task has one right answer."""
        return share(len(self.answered), sum(len(answered.scores) for answered in self.answered))

    def row(self) -> dict[str, Any]:
        """What is reported as JSON; shares from 0 to 1."""
        return {
            "accuracy": self.accuracy.value,
            "accuracy_error": self.accuracy.error,
            "confidence_95": list(self.interval),
            "chance": self.chance.value,
            "n_correct": self.n_correct,
            "n_tasks": len(self.answered),
        }


def answer(
    engine: Engine, tasks: Sequence[Task], on_task: Callable[[int, Answered], None] | None = None
) -> Choices:
    """Answers all tasks. `on_task(number, answered)` follows each, counted from 1.

    Raises ContextError for a task that does not fit in the engine's context.
    """
    done: list[Answered] = []
    for group in _groups(engine, tasks):
        for task, log_probs in zip(group, _score(engine, group), strict=True):
            done.append(_choose(task, log_probs))
            if on_task:
                on_task(len(done), done[-1])
    return Choices(tuple(done))


def _choose(task: Task, log_probs: Sequence[Doubles]) -> Answered:
    scores = []
    for i, values in enumerate(log_probs):  # of the tokens from `first` on
        first = _first_scored(task)
        begin = max(task.begins[i] - first, 0) if task.begins else 0
        end = len(values) - (task.unscored[i] if task.unscored else 0)
        scores.append(float(values[begin : max(end, begin + 1)].mean()))
    return Answered(tuple(scores), int(np.argmax(scores)), task.right)


def _first_scored(task: Task) -> int:
    """The place of the first token whose probability is known: nothing stands before the very first."""
    return max(task.shared, 1)


def _groups(engine: Engine, tasks: Sequence[Task]) -> Iterator[list[Task]]:
    group: list[Task] = []
    size, room = 0, min(engine.n_ctx, engine.config.n_ctx_train)
    for number, task in enumerate(tasks, 1):
        longest = max(len(a) for a in task.answers)
        if longest > room:
            raise ContextError(
                f"task {number} has {longest} tokens, which do not fit in the context of {room}: "
                "take a larger -c"
            )
        if min(len(a) for a in task.answers) < 2:
            raise ContextError(f"task {number} has an answer of a single token: there is nothing to score")
        if size > STEPS_AHEAD * engine.n_batch:
            yield group
            group, size = [], 0
        group.append(task)
        size += task.shared + sum(len(answer) - task.shared for answer in task.answers)
    if group:
        yield group


@dataclass
class _Job:
    """Tokens that go on in `sequence`. wanted: for each of the last tokens, which ones may follow."""

    sequence: KVSequence
    tokens: Sequence[int]
    wanted: list[Sequence[int]]
    done: int = 0
    found: list[Doubles] = field(default_factory=list)

    @property
    def left(self) -> int:
        return len(self.tokens) - self.done

    def next_part(self, n_tokens: int, n_rows: int) -> tuple[int, Wanted]:
        """How many tokens it takes in a step with so much room, and which logits it wants of them."""
        if len(self.wanted) == 1:
            n = min(self.left, n_tokens)
            if n < self.left:
                return n, "none"
            return (n, "last") if n_rows else (0, "none")
        unscored = self.left - (len(self.wanted) - len(self.found))
        if unscored > 0:
            return min(unscored, n_tokens), "none"
        return min(self.left, n_tokens, n_rows), "all"


def _score(engine: Engine, tasks: Sequence[Task]) -> list[list[Doubles]]:
    """ln p of each answer's tokens from the first scored place on, task after task."""
    prefixes, answers = [], []
    try:
        for task in tasks:
            n = _first_scored(task)
            # with nothing shared, the first token of each answer stands alone before what is scored
            heads = [task.answers[0][:n]] if task.shared else [a[:1] for a in task.answers]
            follow = [[a[n] for a in task.answers]] if task.shared else [[a[1]] for a in task.answers]
            prefixes.append([_Job(engine.sequence(), h, [f]) for h, f in zip(heads, follow, strict=True)])
        _run(engine, [job for jobs in prefixes for job in jobs])
        for task, jobs in zip(tasks, prefixes, strict=True):
            answers.append([_continued(task, jobs, i) for i in range(len(task.answers))])
        _run(engine, [job for jobs in answers for job in jobs])
        return [_collected(*both) for both in zip(prefixes, answers, strict=True)]
    finally:
        for job in (job for jobs in (*prefixes, *answers) for job in jobs):
            job.sequence.close()


def _continued(task: Task, prefixes: Sequence[_Job], i: int) -> _Job:
    """Answer `i` after its prefix; its last token predicts nothing and is not evaluated."""
    tokens = task.answers[i][_first_scored(task) : -1]
    follow = task.answers[i][_first_scored(task) + 1 :]
    prefix = prefixes[i if len(prefixes) > 1 else 0]
    return _Job(prefix.sequence.fork(), tokens, [[token] for token in follow])


def _collected(prefixes: Sequence[_Job], answers: Sequence[_Job]) -> list[Doubles]:
    if len(prefixes) > 1:
        firsts = [prefix.found[0] for prefix in prefixes]
    else:
        firsts = [prefixes[0].found[0][i : i + 1] for i in range(len(answers))]
    return [np.concatenate([first, *job.found]) for first, job in zip(firsts, answers, strict=True)]


def _run(engine: Engine, jobs: Sequence[_Job]) -> None:
    """Runs the jobs to their ends, as many as fit in each step."""
    n_rows = max(1, min(LOGIT_BYTES // (4 * engine.n_vocab), engine.n_batch))
    buffer = engine.logits_buffer(n_rows)
    waiting = [job for job in jobs if job.left]
    while waiting:
        tokens, rows, parts = engine.n_batch, n_rows, []
        for job in waiting:
            n, wanted = job.next_part(tokens, rows)
            if n:
                parts.append((job, n, wanted))
                tokens -= n
                rows -= {"none": 0, "last": 1, "all": n}[wanted]
            if not tokens:
                break
        entries = [Entry(job.sequence, list(job.tokens[job.done : job.done + n]), w) for job, n, w in parts]
        _note(engine, parts, engine.step(entries, buffer))
        waiting = [job for job in waiting if job.left]


def _note(engine: Engine, parts: Sequence[tuple[_Job, int, Wanted]], logits: Any) -> None:
    sums = log_sums(engine.pool, logits)[0]
    at = 0
    for job, n, wanted in parts:
        job.done += n
        for _ in range({"none": 0, "last": 1, "all": n}[wanted]):
            tokens = np.asarray(job.wanted[len(job.found)])
            job.found.append(logits[at, tokens].astype(np.float64) - sums[at])
            at += 1
