"""Forked children: thread pools (platform/threads.c), locks (forks.py), and whole models in them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from text_oracle import VOCABULARIES, load
from tiny_model import write_model

from pyllamacpu.forks import fork_safe_lock
from pyllamacpu.text import many_cores

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning"),
]


def child(run: Callable[[], bool], seconds: float = 20.0) -> int:
    """Forks; the child's exit code: 0 when `run()` was true, -9 when it had to be killed."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if run() else 1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_lock_of_another_thread_is_free_in_the_child() -> None:
    lock, held, done = fork_safe_lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        assert child(lambda: bool(lock.acquire(timeout=5.0))) == 0
        assert not lock.acquire(blocking=False)  # here it is still held
    finally:
        done.set()
        thread.join()


def test_a_lock_of_the_forking_thread_stays_its_own() -> None:
    lock = fork_safe_lock()

    def run() -> bool:
        taken: list[bool] = []
        thread = threading.Thread(target=lambda: taken.append(lock.acquire(blocking=False)))
        thread.start()
        thread.join()
        lock.release()
        return taken == [False] and bool(lock.acquire(blocking=False))

    with lock:
        assert child(run) == 0


PROGRAM = """
    import os, sys, threading, time
    from pyllamacpu import Llama
    prompt, greedy = "hello the", dict(max_tokens=8, temperature=0.0)
    llm = Llama(sys.argv[1], n_ctx=128, n_threads=3, kv_type="f32")
    text = llm(prompt, **greedy)["choices"][0]["text"]
    busy = sys.argv[2] == "busy"
    def compute():
        while True:
            llm("a " * 40, max_tokens=40, temperature=0.0)
    if busy:
        threading.Thread(target=compute, daemon=True).start()
        time.sleep(0.3)
    for attempt in range(20 if busy else 3):
        pid = os.fork()
        if pid == 0:
            if attempt % 3 == 0:
                for _ in range(2):
                    assert llm(prompt, **greedy)["choices"][0]["text"] == text
                llm.close()
            elif attempt % 3 == 1:
                llm.close()
            else:
                del llm
            sys.exit(7) if not busy else os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7, attempt
    assert llm(prompt, **greedy)["choices"][0]["text"] == text
    print("whole", flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_a_child_generates_closes_and_ends(tmp_path: Path, state: str) -> None:
    model = write_model(tmp_path / "tiny.gguf")
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(PROGRAM)]
    done = subprocess.run(
        [*command, str(model), state], check=False, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout.strip()) == (0, "whole"), done.stderr


def test_a_child_goes_on_without_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is forked while pages are read for another thread."""
    from pyllamacpu import Llama
    from pyllamacpu.engine.page_files import PageFiles

    path, prompt = write_model(tmp_path / "tiny.gguf"), "hello the world " * 12
    options: dict[str, Any] = {"n_ctx": 256, "n_threads": 1, "cache_disk": tmp_path / "pages"}

    def answer(llm: Llama) -> Any:
        return llm(prompt, max_tokens=8, temperature=0)["choices"]

    with Llama(str(path), **options) as llm:
        expected = answer(llm)
    began, may_go, plain = threading.Event(), threading.Event(), PageFiles.read

    def read(*arguments: Any) -> bool:
        began.set()
        assert may_go.wait(60)
        return plain(*arguments)

    monkeypatch.setattr(PageFiles, "read", read)
    with Llama(str(path), **options) as llm:
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(answer(llm)))
        thread.start()
        try:
            assert began.wait(60)
            assert child(lambda: answer(llm) == expected) == 0
        finally:
            may_go.set()
            thread.join(60)
        assert found == [expected]


def test_texts_are_tokenized_by_threads_of_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool that tokenizes long texts has threads in the process only that made it."""
    monkeypatch.setattr(many_cores, "cpus_usable", lambda: 3)
    monkeypatch.setattr(many_cores, "MIN_PART", 8)
    tokenizer, text = load(VOCABULARIES[0]), "a line\nof text " * 20
    ids = tokenizer.encode(text)
    assert len(many_cores.parts_of(text.encode())) > 1
    assert child(lambda: tokenizer.encode(text) == ids) == 0
