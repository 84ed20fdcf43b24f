"""Multiple choice: files, which tasks are taken, and scores that are those of each answer alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from tiny_model import PIECES, write_model

from pyllamacpu.engine.engine import Engine
from pyllamacpu.errors import ContextError, OptionError
from pyllamacpu.evaluate.choices import Choices, answer
from pyllamacpu.evaluate.rows import log_sums
from pyllamacpu.evaluate.tasks import (
    Task,
    _below,
    _scaled,
    _uniformly,
    _word,
    hellaswag,
    multiple_choice,
    winogrande,
)
from pyllamacpu.text import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path = write_model(tmp_path_factory.mktemp("choices") / "tiny.gguf")
    engine = Engine.open(path, n_ctx=256, n_batch=48, n_threads=2)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def tokenizer(engine: Engine) -> Tokenizer:
    found = load_tokenizer(engine.file.metadata)
    assert found is not None and found.add_bos
    return found


def alone(engine: Engine, tokens: Sequence[int], begin: int, end: int) -> float:
    """The mean ln p of tokens [begin, end), with nothing else in the engine."""
    sequence = engine.sequence()
    logits = engine.eval(sequence, tokens, logits="all")[begin - 1 : end - 1].copy()
    sequence.close()
    sums, _ = log_sums(engine.pool, logits)
    picked = logits[np.arange(end - begin), list(tokens[begin:end])].astype(np.float64)
    return float((picked - sums).mean())


def random_tasks(n: int, seed: int = 0, shared: bool = True) -> list[Task]:
    random = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(random.integers(6, len(PIECES), random.integers(low, high)).tolist())

    tasks = []
    for _ in range(n):
        prefix = tokens(1, 90) if shared else ()
        answers = tuple((*prefix, 10 + i, *tokens(1, 40)) for i in range(random.integers(2, 6)))
        tasks.append(Task(answers, frozenset({0})))
    return tasks


@pytest.mark.parametrize("shared", [True, False])
def test_scores_are_those_of_each_answer_alone(engine: Engine, shared: bool) -> None:
    """Equality, not closeness: a token's logits do not depend on what is in the batch."""
    tasks = random_tasks(25, shared=shared)
    before = engine.cache.pages_in_use
    result = answer(engine, tasks)
    assert engine.cache.pages_in_use == before
    for task, answered in zip(tasks, result.answered, strict=True):
        begin = max(task.shared, 1)
        want = [alone(engine, tokens, begin, len(tokens)) for tokens in task.answers]
        assert list(answered.scores) == want
        assert answered.choice == int(np.argmax(want))


def test_scored_parts_of_answers(engine: Engine) -> None:
    a, b = (7, 8, 9, 20, 30, 40, 50), (7, 8, 9, 21, 30, 40)
    task = Task((a, b), frozenset({1}), begins=(5, 4), unscored=(1, 0))
    (answered,) = answer(engine, [task]).answered
    assert list(answered.scores) == [alone(engine, a, 5, 6), alone(engine, b, 4, 6)]


def test_an_answer_that_begins_another_one_is_scored_by_its_last_token(engine: Engine) -> None:
    a, b = (7, 8, 9), (7, 8, 9, 10, 11)
    task = Task((a, b), frozenset({0}))
    assert task.shared == 2
    (answered,) = answer(engine, [task]).answered
    assert list(answered.scores) == [alone(engine, a, 2, 3), alone(engine, b, 2, 5)]


def test_tasks_that_do_not_fit_are_named(engine: Engine) -> None:
    short, long = Task(((7, 8), (7, 9)), frozenset({0})), Task(((7,) * 300, (7, 9)), frozenset({0}))
    with pytest.raises(ContextError, match=r"task 2 has 300 tokens.* 256"):
        answer(engine, [short, long])
    with pytest.raises(ContextError, match="single token"):
        answer(engine, [Task(((7,), (8, 9)), frozenset({0}))])


def test_what_is_told(engine: Engine) -> None:
    seen: list[int] = []
    result = answer(engine, random_tasks(9), lambda done, _: seen.append(done))
    assert seen == list(range(1, 10))
    row = json.loads(json.dumps(result.row()))
    assert row["n_tasks"] == 9 and row["accuracy"] == result.n_correct / 9
    assert row["confidence_95"][0] <= row["accuracy"] <= row["confidence_95"][1]
    n_answers = sum(len(task.answers) for task in random_tasks(9))
    assert row["chance"] == 9 / n_answers
    assert Choices(()).row()["n_tasks"] == 0


# Which tasks are taken


def test_the_twister_is_the_standard_one() -> None:
    """The 10000th number after the seed 5489 is in the C++ standard."""
    twister = np.random.RandomState(5489)
    assert [_word(twister) for _ in range(10000)][-1] == 4123659995


def test_draws_are_libstdcxxs() -> None:
    """From a C++ program: mt19937(1) with uniform_int_distribution(0, n - 1), n counting down from 20."""
    twister = np.random.RandomState(1)
    assert [_below(twister, n) for n in range(20, 8, -1)] == UNIFORM
    assert _scaled(list(range(20)), 12) == SCALED
    assert _uniformly(list("abc"), 0) == ["b", "c", "a"]


UNIFORM = [8, 18, 12, 15, 0, 1, 4, 12, 1, 2, 0, 3]
SCALED = [8, 18, 12, 15, 0, 1, 4, 17, 14, 2, 16, 3]


def test_all_tasks_when_as_many_are_wanted() -> None:
    assert _scaled([1, 2, 3], 0) == _scaled([1, 2, 3], 3) == _scaled([1, 2, 3], 7) == [1, 2, 3]
    assert sorted(_uniformly([1, 2, 3], 7)) == [1, 2, 3]


# Files

HELLASWAG = b"the hello\n2\nworld\na the\nhello a\nthe the\nA task: more\n0\nx\ny\nz\nw\n"


def test_hellaswag_files(tokenizer: Tokenizer) -> None:
    tasks = hellaswag(HELLASWAG, tokenizer)
    assert sorted(min(task.right) for task in tasks) == [0, 2]
    first = next(task for task in tasks if 2 in task.right)
    assert first.answers[1] == tuple(tokenizer.encode("the hello a the"))
    assert hellaswag(HELLASWAG.replace(b"\n", b"\r\n"), tokenizer) == tasks
    assert len(hellaswag(HELLASWAG, tokenizer, 1)) == 1


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "6 lines"),
        (HELLASWAG + b"one more\n", "13 lines"),
        (HELLASWAG.replace(b"2\n", b"4\n"), "from 0 to 3"),
        (HELLASWAG.replace(b"2\n", b"two\n"), "'two'"),
    ],
)
def test_files_that_are_not_hellaswag(tokenizer: Tokenizer, content: bytes, says: str) -> None:
    with pytest.raises(OptionError, match=f"tasks.txt.*{says}"):
        hellaswag(content, tokenizer, source="tasks.txt")


def test_winogrande_files(tokenizer: Tokenizer) -> None:
    lines = [
        b"0,the _ is hello to the world and the end.,hello,world,2",
        b'1,"a, the _ the a",one,two,1',
        b"index,sentence,option1,option2,answer",
        b"3,no gap,a,b,1",
        b"",
        b"4,the _ a,the,a,3",
    ]
    tasks, warnings = winogrande(b"\n".join(lines), tokenizer, source="w.csv")
    assert [min(task.right) for task in tasks] == [1, 0]
    assert tasks[0].answers[0] == tuple(tokenizer.encode("the hello is hello to the world and the end."))
    assert tasks[1].answers[1] == tuple(tokenizer.encode("a, the two the a"))
    assert [f"line {n}" in text for n, text in zip((3, 4, 6), warnings, strict=True)] == [True] * 3
    # behind the choice, without the last token
    begin = len(tokenizer.encode("the hello"))
    assert tasks[0].begins is not None and tasks[0].begins[0] == begin
    assert tasks[0].unscored == (1, 1)
    with pytest.raises(OptionError, match=r"w\.csv: no line is a task"):
        winogrande(lines[2], tokenizer, source="w.csv")


def test_short_endings_include_the_choice(tokenizer: Tokenizer) -> None:
    ((task,), _) = winogrande(b"0,the _,hello,world,1", tokenizer)
    assert task.begins == (task.shared, task.shared)


def binary(tasks: Sequence[tuple[bytes, list[bytes], list[int]]]) -> bytes:
    """Tasks in the binary format, with an empty second list of answers."""

    def text(value: bytes) -> bytes:
        return struct.pack("<I", len(value)) + value

    bodies = [
        text(question)
        + struct.pack("<I", len(answers))
        + b"".join(map(text, answers))
        + struct.pack(f"<{len(labels)}i", *labels)
        + struct.pack("<I", 0)
        for question, answers, labels in tasks
    ]
    places = np.cumsum([4 + 4 * len(bodies), *map(len, bodies)])[:-1]
    return struct.pack(f"<I{len(bodies)}I", len(bodies), *places.tolist()) + b"".join(bodies)


TASKS: list[tuple[bytes, list[bytes], list[int]]] = [
    (b"the hello", [b"world", b"a"], [0, 1]),
    (b"a", [b"the", b"hello", b"a the"], [1, 0, 1]),
]


def test_binary_files(tokenizer: Tokenizer) -> None:
    tasks = multiple_choice(binary(TASKS), tokenizer)
    assert [task.right for task in tasks] == [{1}, {0, 2}]
    assert tasks[1].answers[2] == tuple(tokenizer.encode("a a the"))
    assert len(multiple_choice(binary(TASKS * 10), tokenizer, 7)) == 7


def test_damaged_binary_files(tokenizer: Tokenizer) -> None:
    whole = binary(TASKS)
    for cut in range(len(whole) - 4):  # the second list of the last task is not read
        with pytest.raises(OptionError, match=r"mc\.bin"):
            multiple_choice(whole[:cut], tokenizer, source="mc.bin")
    for at in range(0, len(whole) - 4, 4):
        broken = whole[:at] + b"\xff\xff\xff\xff" + whole[at + 4 :]
        try:
            multiple_choice(broken, tokenizer, source="mc.bin")
        except OptionError as error:
            assert "mc.bin" in str(error)
    with pytest.raises(OptionError, match="no tasks"):
        multiple_choice(bytes(4), tokenizer)
    with pytest.raises(OptionError, match="empty"):
        multiple_choice(binary([(b"", [b"a"], [1])]), tokenizer)
