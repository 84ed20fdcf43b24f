"""engine/disk_cache.py: answers from the disk have the bits of computing, and nothing waits for the disk.

Covers engine/admission.py.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_model import write_model

from pyllamacpu import Llama
from pyllamacpu.api.loading import make_scheduler
from pyllamacpu.engine.disk_cache import DiskCache, Reading
from pyllamacpu.engine.engine import Engine
from pyllamacpu.engine.generate import Request
from pyllamacpu.engine.handle import Handle
from pyllamacpu.engine.page_files import PageFiles
from pyllamacpu.engine.pages import PAGE, KVCache
from pyllamacpu.engine.pages import Sequence as KVSequence
from pyllamacpu.engine.prefix_cache import PrefixCache
from pyllamacpu.engine.scheduler import Scheduler
from pyllamacpu.errors import OptionError
from pyllamacpu.model.kv_space import KVSpace
from pyllamacpu.model.lora import Adapter
from pyllamacpu.sampling.sampler import SamplingOptions

N_ANSWER = 4
GREEDY = SamplingOptions(temperature=0.0)
Answer = tuple[list[int], list[bytes]]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    found = Engine.open(write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf"), n_threads=1)
    yield found
    found.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "pages"


class Server:
    """A scheduler over a folder: what a process has, from its start to its end."""

    def __init__(self, engine: Engine, folder: Path | None, limit: int = 1 << 30) -> None:
        self.files = None if folder is None else PageFiles(folder, limit)
        self.scheduler = make_scheduler(engine, None, self.files)
        self.rows: dict[Handle, list[bytes]] = {}
        self.tokens: dict[Handle, list[int]] = {}

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.scheduler.close()

    def submit(self, prompt: Sequence[int]) -> Handle:
        rows: list[bytes] = []

        def see(ids: Any, logits: np.ndarray) -> np.ndarray:
            rows.append(logits.tobytes())
            return logits

        handle = self.scheduler.submit(Request(prompt, GREEDY, N_ANSWER, processors=(see,)))
        self.rows[handle], self.tokens[handle] = rows, []
        return handle

    def run(self, *handles: Handle) -> None:
        end = time.monotonic() + 60
        while not all(handle.is_finished for handle in handles):
            assert time.monotonic() < end
            for event in self.scheduler.step():
                assert event.error is None
                if event.text is not None:
                    self.tokens[event.handle] += event.text.tokens

    def answer(self, prompt: Sequence[int]) -> tuple[Answer, int]:
        """Tokens and logits, and how many tokens of the prompt were not computed."""
        handle = self.submit(prompt)
        self.run(handle)
        return (self.tokens[handle], self.rows[handle]), handle.n_cached

    def flush(self) -> None:
        disk = self.scheduler.disk
        assert disk is not None
        assert disk.flush(60)


def prompt_of(seed: int, n: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(6, 262) for _ in range(n)]


def alone(engine: Engine, prompt: Sequence[int]) -> Answer:
    with Server(engine, None) as server:
        return server.answer(prompt)[0]


def pages_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.kv"))


def test_a_restart_goes_on_where_it_was(engine: Engine, folder: Path) -> None:
    prompt = prompt_of(1, 5 * PAGE + 7)
    expected = alone(engine, prompt)
    for n_cached in (0, 5 * PAGE):
        with Server(engine, folder) as server:
            assert server.answer(prompt) == (expected, n_cached)
    with Server(engine, folder) as server:  # a part of it, and something else behind
        other = [*prompt[: 3 * PAGE + 9], *prompt_of(2, 40)]
        assert server.answer(other) == (alone(engine, other), 3 * PAGE)
        assert server.answer(prompt[: 2 * PAGE]) == (alone(engine, prompt[: 2 * PAGE]), 2 * PAGE - 1)
        assert server.files is not None
        assert server.files.counts.n_read == 3
    assert len(pages_of(folder)) == 6  # five, and one behind `other`


def test_answers_go_to_the_disk_too(engine: Engine, folder: Path) -> None:
    prompt = prompt_of(1, 2 * PAGE - 2)
    with Server(engine, folder) as server:
        (tokens, _), _ = server.answer(prompt)
    with Server(engine, folder) as server:
        assert server.answer([*prompt, *tokens, 9])[1] == 2 * PAGE


def test_what_memory_lets_go_of_comes_back(engine: Engine, folder: Path) -> None:
    prompts = [prompt_of(i, 4 * PAGE + 1) for i in range(4)]
    expected = [alone(engine, prompt) for prompt in prompts]
    try:
        engine.cache.limit_bytes = 7 * engine.cache.page_bytes
        with Server(engine, folder) as server:
            for n_cached in (0, 4 * PAGE, 4 * PAGE):
                for prompt, answer in zip(prompts, expected, strict=True):
                    assert server.answer(prompt) == (answer, n_cached)
                    server.flush()
    finally:
        engine.cache.limit_bytes = None


def test_a_memory_too_small_for_the_disk(engine: Engine, folder: Path) -> None:
    """Pages that do not fit are not read; the request runs with those that do, or waits as ever."""
    long, short = prompt_of(1, 6 * PAGE), prompt_of(2, 2 * PAGE + 1)
    expected = [alone(engine, long), alone(engine, short)]
    with Server(engine, folder) as server:
        server.answer(long)
        server.answer(short)
    try:
        engine.cache.limit_bytes = 7 * engine.cache.page_bytes
        with Server(engine, folder) as server:
            handles = [server.submit(long), server.submit(short), server.submit(long)]
            server.run(*handles)
            answers = [(server.tokens[h], server.rows[h]) for h in handles]
            assert answers == [expected[0], expected[1], expected[0]]
    finally:
        engine.cache.limit_bytes = None


def test_pages_are_used_up_to_a_damaged_one(engine: Engine, folder: Path) -> None:
    prompt = prompt_of(1, 6 * PAGE + 1)
    expected = alone(engine, prompt)
    with Server(engine, folder) as server:
        server.answer(prompt)
    chain = sorted(pages_of(folder), key=lambda path: -path.stat().st_mtime_ns)  # parents are newer
    data = bytearray(chain[3].read_bytes())
    data[-1] ^= 64
    chain[3].write_bytes(data)
    with Server(engine, folder) as server:
        assert server.answer(prompt) == (expected, 3 * PAGE)
    with Server(engine, folder) as server:  # it was written again
        assert server.answer(prompt) == (expected, 6 * PAGE)


def test_leaves_leave_the_disk_first(engine: Engine, folder: Path) -> None:
    prompt = prompt_of(1, 8 * PAGE - 8)
    with Server(engine, folder) as server:
        server.answer(prompt)
    size = -(-pages_of(folder)[0].stat().st_size // 4096) * 4096
    with Server(engine, folder, limit=6 * size) as server:
        server.answer(prompt_of(2, PAGE + 1))
    with Server(engine, folder) as server:
        n_cached = server.answer(prompt)[1]
        assert n_cached in range(3 * PAGE, 6 * PAGE, PAGE)
        assert server.answer(prompt_of(2, PAGE + 1))[1] == PAGE


def test_other_kv_types_are_not_found(engine: Engine, folder: Path) -> None:
    prompt = prompt_of(1, 3 * PAGE)
    with Server(engine, folder) as server:
        server.answer(prompt)
    other = Engine.open(engine.file.paths[0], n_threads=1, type_k="q8_0")
    with Server(other, folder) as server:
        assert server.answer(prompt)[1] == 0
    other.close()


class Slow:
    """Holds reads of the folder until they are let go."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.may_go = threading.Event(), threading.Event()
        plain = server.files.read  # type: ignore[union-attr]

        def read(*arguments: Any) -> bool:
            self.began.set()
            assert self.may_go.wait(60)
            return plain(*arguments)

        monkeypatch.setattr(server.files, "read", read)


def test_others_go_on_while_pages_are_read(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, other = prompt_of(1, 3 * PAGE + 1), prompt_of(2, 3 * PAGE)
    with Server(engine, folder) as server:
        server.answer(prompt)
    with Server(engine, folder) as server:
        slow = Slow(server, monkeypatch)
        woken = threading.Event()
        server.scheduler.on_loaded = woken.set
        first, second = server.submit(prompt), server.submit(other)
        server.run(second)
        assert slow.began.wait(60)
        assert not first.is_finished
        assert not server.scheduler.has_work  # whoever steps may sleep
        slow.may_go.set()
        assert woken.wait(60)
        assert server.scheduler.has_work
        server.run(first)
        assert first.n_cached == 3 * PAGE
        assert server.tokens[first] == alone(engine, prompt)[0]


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_a_request_ends_while_its_pages_are_read(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    prompt = prompt_of(1, 3 * PAGE + 1)
    with Server(engine, folder) as server:
        server.answer(prompt)
    with Server(engine, folder) as server:
        slow = Slow(server, monkeypatch)
        handle = server.submit(prompt)
        server.scheduler.step()
        assert slow.began.wait(60)
        threading.Timer(0.05, slow.may_go.set).start()
        if end == "close":
            server.scheduler.close()
        else:
            server.scheduler.cancel(handle)
            server.scheduler.step()
        assert handle.is_finished
        if end == "cancel":
            assert server.answer(prompt)[0] == alone(engine, prompt)
    assert engine.cache.pages_in_use == 0


def test_a_disk_slower_than_computing_is_given_up(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = prompt_of(1, 7 * PAGE)
    with Server(engine, folder) as server:
        server.answer(prompt)
    with Server(engine, folder) as server:
        plain = server.files.read  # type: ignore[union-attr]

        def read(*arguments: Any) -> bool:
            time.sleep(0.2)
            return plain(*arguments)

        monkeypatch.setattr(server.files, "read", read)
        answer, n_cached = server.answer(prompt)
        assert answer == alone(engine, prompt)
        assert n_cached in (PAGE, 2 * PAGE)


def test_a_failing_disk_fails_no_request(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with Server(engine, folder) as server:
        monkeypatch.setattr("pyllamacpu.engine.page_files._write_whole", fail)
        for seed in range(3):
            prompt = prompt_of(seed, 3 * PAGE)
            assert server.answer(prompt)[0] == alone(engine, prompt)
            server.flush()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "No space left" in caplog.text
    assert not pages_of(folder)


def test_storm_over_a_folder(engine: Engine, folder: Path) -> None:
    """Several lives of a process, many requests at once, in memory for a few, while files go or are damaged:
    every answer has the bits of being computed alone.
    """
    chance = random.Random(7)
    stems = [prompt_of(i, 4 * PAGE) for i in range(3)]
    prompts = [[*chance.choice(stems)[: chance.randrange(128)], *prompt_of(i, 40)] for i in range(9)]
    expected = [alone(engine, prompt) for prompt in prompts]
    n_cached = 0
    try:
        engine.cache.limit_bytes = 24 * engine.cache.page_bytes
        for _ in range(4):
            with Server(engine, folder, limit=1 << 20) as server:
                handles = [server.submit(prompt) for prompt in prompts * 2]
                for path in chance.sample(pages_of(folder), k=len(pages_of(folder)) // 3):
                    path.unlink() if chance.random() < 0.5 else path.write_bytes(path.read_bytes()[:-1])
                server.run(*handles)
                answers = [(server.tokens[h], server.rows[h]) for h in handles]
                assert answers == expected * 2
                n_cached += server.files.counts.n_read  # type: ignore[union-attr]
    finally:
        engine.cache.limit_bytes = None
    assert n_cached > 0


def test_pages_that_lack_a_past_chunk_are_completed(folder: Path) -> None:
    """What a long sequence left behind has no keys of past chunks; a shorter one that computes them adds
    them on the disk as well.
    """
    spaces = (KVSpace("all", 1, 1, 16, 16), KVSpace("local", 1, 1, 16, 16, "chunked", 2 * PAGE))
    cache = KVCache(spaces, "f32", "f32")
    files, tokens = PageFiles(folder), prompt_of(1, 3 * PAGE)

    def lifetime(first: int, drop: bool) -> int:
        """Looks for the first tokens, computes the rest; how many were found."""
        prefixes = PrefixCache(cache)
        disk, done = DiskCache(prefixes, cache, files, bytes(32)), threading.Event()
        if disk.read(Reading(tokens[:first], ((), None), 1.0, lambda: True, done.set)):
            assert done.wait(60)
        sequence = KVSequence(cache)
        found = prefixes.extend(sequence, tokens[:first])
        sequence.prepare(first - found)
        sequence.tokens.extend(tokens[found:first])
        if drop:
            sequence.drop_past_chunks()
        prefixes.insert(sequence)
        sequence.close()
        disk.close()
        prefixes.clear()
        return found

    assert lifetime(3 * PAGE, drop=True) == 0
    assert lifetime(3 * PAGE, drop=True) == 3 * PAGE
    assert lifetime(PAGE, drop=False) == 0
    assert lifetime(PAGE, drop=False) == PAGE
    assert files.counts.n_written == 4


def test_adapters_have_pages_of_their_own(engine: Engine, folder: Path) -> None:
    prompt = prompt_of(1, 2 * PAGE + 1)
    other = (Adapter("a", Path("a"), {}, 1.0, "digest"), 1.0)
    with Server(engine, folder) as server:
        server.answer(prompt)
    with Server(engine, folder) as server:
        disk = server.scheduler.disk
        assert disk is not None
        assert not disk.read(Reading(prompt, ((other,), None), 1.0, lambda: True, lambda: None))
        assert server.answer(prompt)[1] == 2 * PAGE


def test_from_python(engine: Engine, folder: Path) -> None:
    path = engine.file.paths[0]
    texts = []
    for _ in range(2):
        with Llama(str(path), n_ctx=256, n_threads=1, cache_disk=folder, cache_disk_limit=1 << 20) as llm:
            answer: Any = llm("hello the world " * 12, max_tokens=9, temperature=0)
            texts.append(answer["choices"][0]["text"])
            n_evaluated = llm._driver.n_evaluated
    assert texts[0] == texts[1]
    assert n_evaluated < PAGE + 9
    with Llama(str(path), n_ctx=256, n_threads=1) as llm:
        plain: Any = llm("hello the world " * 12, max_tokens=9, temperature=0)
        assert plain["choices"][0]["text"] == texts[0]
    wrong: Any
    for wrong in (
        {"cache_disk": 3},
        {"cache_disk_limit": 5},
        {"cache_disk": folder, "cache_disk_limit": "x"},
    ):
        with pytest.raises(OptionError, match="cache_disk"):
            Llama(str(path), **wrong)


def test_nested_requests_need_no_disk(engine: Engine, folder: Path) -> None:
    with Server(engine, folder) as server:
        assert isinstance(server.scheduler.nested(), Scheduler)
        assert server.scheduler.nested().disk is None
