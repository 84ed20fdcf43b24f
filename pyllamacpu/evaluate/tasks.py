"""Multiple-choice tasks: their files, and which of them are taken.

Formats and selection are llama-perplexity's (tools/perplexity/perplexity.cpp): HellaSwag as six lines a task,
Winogrande as comma-separated values, others in a binary format. When not all tasks are wanted, the same ones
are chosen as there, by the Mersenne twister with seed 1 (numpy's RandomState is that generator).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np

from pyllamacpu.errors import OptionError
from pyllamacpu.text import Tokenizer

HELLASWAG_LINES = 6  # a context, the number of the right ending, four endings
MAX_ANSWERS = 100
_SEED = 1
_TWO_32 = 1 << 32

Item = TypeVar("Item")


@dataclass(frozen=True)
class Task:
    """answers: tokens of question and answer, for each answer. begins: where each answer's scored tokens
    begin, None: where the answers differ. ends: tokens at the end that are not scored, for each.
    """

    answers: tuple[tuple[int, ...], ...]
    right: frozenset[int]
    begins: tuple[int, ...] | None = None
    unscored: tuple[int, ...] | None = None

    @property
    def shared(self) -> int:
        """Tokens that all answers begin with; at least one of each is left."""
        shortest = min(len(answer) for answer in self.answers)
        same = next((i for i in range(shortest) if len({a[i] for a in self.answers}) > 1), shortest)
        return min(same, shortest - 1)


# ---- HellaSwag ----


def hellaswag(content: bytes, tokenizer: Tokenizer, n_tasks: int = 0, source: str = "the file") -> list[Task]:
    """Tasks of six lines each; n_tasks of them, 0: all. Raises OptionError for a file of another form."""
    lines = [line.removesuffix(b"\r") for line in content.removesuffix(b"\n").split(b"\n")]
    if not content or len(lines) % HELLASWAG_LINES:
        raise OptionError(
            f"{source}: HellaSwag tasks have 6 lines each; {len(lines)} lines are not whole tasks"
        )
    groups = [lines[i : i + HELLASWAG_LINES] for i in range(0, len(lines), HELLASWAG_LINES)]
    return [_hellaswag_task(group, tokenizer, source) for group in _uniformly(groups, n_tasks)]


def _hellaswag_task(lines: Sequence[bytes], tokenizer: Tokenizer, source: str) -> Task:
    context, label, *endings = lines
    if not re.fullmatch(rb"\s*[0-3]\s*", label):
        shown = label.decode(errors="replace")[:40]
        raise OptionError(f"{source}: the number of the right ending is {shown!r}; it must be from 0 to 3")
    answers = tuple(tuple(tokenizer.encode(context + b" " + ending)) for ending in endings)
    return Task(answers, frozenset({int(label)}))


def _uniformly(items: Sequence[Item], n: int) -> list[Item]:
    """`n` of the items (0: all), each drawn from those that are left."""
    left, chosen = list(items), []
    twister = np.random.RandomState(_SEED)
    for _ in range(min(n, len(left)) if n else len(left)):
        chosen.append(left.pop(_below(twister, len(left))))
    return chosen


def _below(twister: np.random.RandomState, n: int) -> int:
    """A number below n as libstdc++'s uniform_int_distribution draws it (Lemire, arXiv 1805.10941)."""
    product = _word(twister) * n
    if product % _TWO_32 < n:
        while product % _TWO_32 < (_TWO_32 - n) % n:
            product = _word(twister) * n
    return product // _TWO_32


def _word(twister: np.random.RandomState) -> int:
    """The generator's next 32 bits."""
    return int(twister.randint(0, _TWO_32, dtype=np.uint32))


def _scaled(items: Sequence[Item], n: int) -> list[Item]:
    """`n` of the items (0: all, in their order), by a float32 factor; the last one takes a drawn one's
    place.
    """
    left = list(items)
    if not 0 < n < len(left):
        return left
    twister, chosen = np.random.RandomState(_SEED), []
    for _ in range(n):
        factor = np.float32(_word(twister)) * np.float32(2.0**-32)
        at = min(int(factor * np.float32(len(left))), len(left) - 1)
        chosen.append(left[at])
        left[at] = left[-1]
        left.pop()
    return chosen


# ---- Winogrande ----

TRAILING = 3  # with more tokens than this after the choice, the choice itself is not scored


def winogrande(
    content: bytes, tokenizer: Tokenizer, n_tasks: int = 0, source: str = "the file"
) -> tuple[list[Task], list[str]]:
    """Tasks of lines `index,sentence with _,choice 1,choice 2,answer`, and what is wrong with other lines.

    Raises OptionError when no line is a task.
    """
    found, warnings = [], []
    for number, line in enumerate(content.split(b"\n"), 1):
        line = line.removesuffix(b"\r")
        fields = _fields(line)
        if len(fields) == 5 and b"_" in fields[1] and fields[4].strip() in (b"1", b"2"):
            found.append(fields)
        elif line:
            shown = line.decode(errors="replace")[:60]
            warnings.append(f"{source}: line {number} is not a Winogrande task and is left out: {shown}")
    if not found:
        raise OptionError(f"{source}: no line is a task: index,sentence with _,choice 1,choice 2,answer")
    return [_winogrande_task(fields, tokenizer) for fields in _scaled(found, n_tasks)], warnings


def _fields(line: bytes) -> list[bytes]:
    """The line at its first four commas that are not inside quotes; the sentence without its quotes."""
    commas: list[int] = []
    quoted = False
    for i, byte in enumerate(line):
        quoted ^= byte == ord('"')
        if byte == ord(",") and not quoted and len(commas) < 4:
            commas.append(i)
    bounds = [-1, *commas, len(line)]
    fields = [line[a + 1 : b] for a, b in pairwise(bounds)]
    if len(fields) > 1 and fields[1].startswith(b'"'):
        fields[1] = fields[1][1:-1]
    return fields


def _winogrande_task(fields: Sequence[bytes], tokenizer: Tokenizer) -> Task:
    before, _, after = fields[1].partition(b"_")
    choices = [before + choice for choice in fields[2:4]]
    answers = tuple(tuple(tokenizer.encode(choice + after)) for choice in choices)
    task = Task(answers, frozenset({int(fields[4]) - 1}))
    begins = [task.shared, task.shared]
    if all(len(answer) - task.shared > TRAILING for answer in answers):
        begins = [len(tokenizer.encode(choice)) for choice in choices]
    lengths = [len(answer) for answer in answers]
    begins = [max(task.shared, min(b, n - 1)) for b, n in zip(begins, lengths, strict=True)]
    unscored = tuple(int(n - b > 1) for b, n in zip(begins, lengths, strict=True))
    return Task(answers, task.right, tuple(begins), unscored)


# ---- the binary format ----


def multiple_choice(
    content: bytes, tokenizer: Tokenizer, n_tasks: int = 0, source: str = "the file"
) -> list[Task]:
    """Tasks of llama.cpp's binary format: their number (uint32), the place of each, then the tasks.

    A text is its length (uint32) and its bytes. A task is a question and two lists of answers (number,
    texts, then a label for each, int32); the first list is used. Raises OptionError for damaged files.
    """
    reader = _Reader(content, source)
    n = reader.number("the number of tasks")
    if not n:
        raise OptionError(f"{source}: there are no tasks in it")
    places = struct.unpack(f"<{n}I", reader.take(4 * n, "the places of the tasks"))
    return [_stored_task(reader, place, tokenizer) for place in _scaled(places, n_tasks)]


class _Reader:
    """Bytes read one after another; what would pass their end is an OptionError."""

    def __init__(self, content: bytes, source: str) -> None:
        self.content, self.source, self.at = content, source, 0

    def take(self, n: int, what: str) -> bytes:
        if n > len(self.content) - self.at or self.at > len(self.content):
            raise OptionError(
                f"{self.source}: no file of multiple-choice tasks, or a damaged one: {what} needs {n} bytes "
                f"at byte {self.at}, and it has {len(self.content)}"
            )
        self.at += n
        return self.content[self.at - n : self.at]

    def number(self, what: str) -> int:
        return int(struct.unpack("<I", self.take(4, what))[0])

    def text(self, what: str) -> bytes:
        return self.take(self.number(what), what)


def _stored_task(reader: _Reader, place: int, tokenizer: Tokenizer) -> Task:
    reader.at = place
    question = reader.text("a question")
    n = reader.number("the number of answers")
    if not 1 <= n <= MAX_ANSWERS:
        raise OptionError(
            f"{reader.source}: the task at byte {place} has {n} answers, not 1 to {MAX_ANSWERS}"
        )
    texts = [reader.text("an answer") for _ in range(n)]
    labels = struct.unpack(f"<{n}i", reader.take(4 * n, "the labels of the answers"))
    if not question or not all(texts):
        raise OptionError(f"{reader.source}: the task at byte {place} has an empty question or answer")
    answers = tuple(tuple(tokenizer.encode(question + b" " + text)) for text in texts)
    return Task(answers, frozenset(i for i, label in enumerate(labels) if label == 1))
