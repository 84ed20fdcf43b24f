"""Several models of one server: loaded when asked for, turns in little memory.

Covers server/models.py, server/served_files.py.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving import PATIENCE, Running, head, hold, serving, tiny_path, wait_until
from tiny_model import write_model

import pyllamacpu.server.app
import pyllamacpu.server.models
import pyllamacpu.server.run
from pyllamacpu.cli.serve import pool_options, serve
from pyllamacpu.errors import OptionError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.server.app import ServeOptions
from pyllamacpu.server.models import ModelPool, PoolOptions
from pyllamacpu.server.served_files import ServedAdapter, ServedFile, check_names

CONTEXT = 1 << 16  # so that held streams do not end by themselves: fast machines make 4000 tokens in a second

path = tiny_path(n_ctx=CONTEXT)


def test_models_are_loaded_when_asked_for_and_unloaded_when_idle(path: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other.gguf", seed=5)
    with serving(("one", path), ("two", other), keep_alive=0.1) as running:
        service = running.server.service
        assert service is not None
        arguments: dict[str, Any] = {"prompt": "hello", "max_tokens": 6, "temperature": 0}
        first = running.post("/v1/completions", model="one", **arguments).json()
        second = running.post("/v1/completions", model="two", **arguments).json()
        assert (first["model"], second["model"]) == ("one", "two")
        assert first["choices"][0]["text"] != second["choices"][0]["text"]
        wait_until(lambda: not service.models.loaded)
        again = running.post("/v1/completions", model="TWO.gguf", **arguments).json()
        assert again["choices"] == second["choices"]


@contextmanager
def in_turns(path: Path, folder: Path) -> Iterator[Running]:
    """A server of "one", which is loaded, and of "two", with memory for one of them."""
    other = write_model(folder / "other.gguf", n_ctx=512, seed=7)
    with serving(("one", path), ("two", other), n_ctx=CONTEXT, memory=path.stat().st_size + 1000) as running:
        wait_until(lambda: running.get("/health").status_code == 200)
        yield running


def test_models_that_do_not_fit_together_have_turns(path: Path, tmp_path: Path) -> None:
    """Also while one of them is never idle."""
    with in_turns(path, tmp_path) as running:
        over = threading.Event()
        statuses: list[int] = []

        def ask(model: str) -> None:
            while not over.is_set():
                body = {"prompt": "x", "model": model, "max_tokens": 20, "ignore_eos": True}
                statuses.append(running.post("/v1/completions", **body).status_code)

        threads = [threading.Thread(target=ask, args=("one",)) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(2):
                answer = running.post("/v1/completions", prompt="x", model="two", max_tokens=2)
                assert answer.status_code == 200, answer.text
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert set(statuses) == {200}


def test_a_model_waits_only_so_long_for_another_ones_place(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyllamacpu.server.models, "ROOM_SECONDS", 0.2)
    with in_turns(path, tmp_path) as running:
        held = hold(running, 1, CONTEXT - 100)
        try:
            answer = running.post("/v1/completions", prompt="x", model="two")
            assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
            assert running.post("/v1/completions", prompt="x", max_tokens=2).status_code == 200
        finally:
            held[0].close()


def test_a_model_waits_as_long_as_users_of_the_other_one_go(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long queue of a slow machine is no reason for a 503."""
    monkeypatch.setattr(pyllamacpu.server.models, "ROOM_SECONDS", 0.6)
    with in_turns(path, tmp_path) as running:
        held = hold(running, 4, CONTEXT - 100)
        leave = [threading.Timer(0.3 * (i + 1), connection.close) for i, connection in enumerate(held)]
        for timer in leave:
            timer.start()
        assert running.post("/v1/completions", prompt="x", model="two", max_tokens=2).status_code == 200
        assert not any(timer.is_alive() for timer in leave)


def test_models_take_turns_in_little_memory(path: Path, tmp_path: Path) -> None:
    with in_turns(path, tmp_path) as running:
        service = running.server.service
        assert service is not None
        statuses: list[int] = []

        def ask(model: str) -> None:
            statuses.append(running.post("/v1/completions", prompt="x", model=model).status_code)

        threads = [threading.Thread(target=ask, args=(model,)) for model in ("one", "two")]
        for model in ("one", "two", "one"):
            assert running.post("/v1/completions", prompt="x", model=model).status_code == 200
            assert list(service.models.loaded) == [model]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert statuses == [200, 200]


def slow_loads(monkeypatch: pytest.MonkeyPatch, name: str) -> tuple[threading.Event, threading.Event]:
    """Loads of the model `name` set the first event, and wait for the second."""
    begun, go = threading.Event(), threading.Event()
    load = ModelPool._load

    def slow(pool: ModelPool, source: ServedFile) -> Any:
        if source.name == name:
            begun.set()
            assert go.wait(PATIENCE)
        return load(pool, source)

    monkeypatch.setattr(ModelPool, "_load", slow)
    return begun, go


def test_a_client_that_leaves_while_its_model_is_loaded(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The next one gets that model; it was loaded twice, and the second, closed, was used: no answer came."""
    other = write_model(tmp_path / "other.gguf", seed=5)
    begun, go = slow_loads(monkeypatch, "two")
    caplog.set_level(logging.INFO)
    with serving(("one", path), ("two", other)) as running:
        pool = running.server.service.models  # type: ignore[union-attr]
        body = b'{"model":"two","prompt":"x","max_tokens":2}'
        request = (
            head("Host: localhost", f"Content-Length: {len(body)}", path="/v1/completions", method="POST")
            + body
        )
        with socket.create_connection(("127.0.0.1", running.port)) as leaving:
            leaving.sendall(request)
            assert begun.wait(PATIENCE)
        wait_until(lambda: pool._late is not None)
        threading.Timer(0.2, go.set).start()
        for _ in range(2):
            answer = running.post("/v1/completions", model="two", prompt="x", max_tokens=2)
            assert answer.status_code == 200, answer.text
        assert caplog.text.count(f"loading {other}") == 1 and set(pool.loaded) == {"one", "two"}


def test_a_model_that_was_made_anew_while_it_was_loaded(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next request gets the new one."""
    old, new = (ServedFile("two", write_model(tmp_path / f"{seed}.gguf", seed=seed)) for seed in (5, 6))
    begun, go = slow_loads(monkeypatch, "two")
    with serving(("one", path)) as running:
        pool = running.server.service.models  # type: ignore[union-attr]
        known = [old]
        monkeypatch.setattr(pool, "files", lambda: [*pool.configured, *known])
        body = {"model": "two", "prompt": "x", "max_tokens": 2}
        first = threading.Thread(target=running.post, args=("/v1/completions",), kwargs=body)
        first.start()
        assert begun.wait(PATIENCE)
        known[:] = [new]
        asyncio.run_coroutine_threadsafe(pool.forget("two"), pool.thread._loop).result(PATIENCE)
        go.set()
        first.join()
        assert running.post("/v1/completions", **body).status_code == 200
        assert pool.loaded["two"].source == new


def test_an_idle_model_that_is_wanted_again_while_another_one_is_freed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_model(tmp_path / "other.gguf", seed=5, n_ctx=CONTEXT)
    begun, go = threading.Event(), asyncio.Event()
    free = ModelPool._free

    async def slow(pool: ModelPool, model: Any) -> None:
        begun.set()
        await go.wait()
        await free(pool, model)

    with serving(("one", path), ("two", other), n_ctx=CONTEXT) as running:
        pool = running.server.service.models  # type: ignore[union-attr]
        for name in ("one", "two"):
            assert running.post("/v1/completions", model=name, prompt="x", max_tokens=1).status_code == 200
        monkeypatch.setattr(ModelPool, "_free", slow)
        for model in pool.loaded.values():
            model.keep_alive = 0.0
        assert begun.wait(PATIENCE)
        last = next(iter(pool.loaded))
        held = hold(running, 1, CONTEXT - 100, model=last)
        pool.thread._loop.call_soon_threadsafe(go.set)
        try:
            wait_until(lambda: len(pool.loaded) == 1)
            running.get("/health")
            assert last in pool.loaded and pool.loaded[last].n_users == 1
        finally:
            held[0].close()


@pytest.mark.parametrize("expert_memory", [None, 1 << 20])
def test_a_server_whose_only_model_cannot_be_loaded_ends(tmp_path: Path, expert_memory: int | None) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF nonsense")
    with serving(("broken", broken), expert_memory=expert_memory) as running:
        running.wait_end()
        assert "broken.gguf" in str(running.server.failure)


def test_a_command_whose_only_model_cannot_be_loaded_ends_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF nonsense")
    command = [sys.executable, "-m", "pyllamacpu", "serve", "-m", "broken.gguf", "--port", "0"]
    found = subprocess.run(
        command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
    )
    assert found.returncode == 1
    *before, last = found.stderr.splitlines()
    assert last.startswith("error: broken.gguf: ")
    assert not any("serving" in line or last.removeprefix("error: ") in line for line in before)


def test_a_command_serves_when_its_model_is_loaded(path: Path, tmp_path: Path) -> None:
    """And says which one, where the first cannot be loaded."""
    (tmp_path / "broken.gguf").write_bytes(b"GGUF nonsense")
    command = [sys.executable, "-m", "pyllamacpu", "serve", "-m", "broken.gguf", "-m", f"tiny={path}"]
    with subprocess.Popen(
        [*command, "--port", "0"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("serving tiny at http://127.0.0.1:"):
                break
        process.terminate()
        told = "".join(lines)
        assert told.index("listening at") < told.index("serving tiny")
        assert told.index("ERROR broken.gguf") < told.index("serving tiny")
        assert process.wait(PATIENCE) == 0


def test_a_default_model_that_cannot_be_loaded_beside_another(path: Path, tmp_path: Path) -> None:
    """The other is served; the first is tried again when it is asked for."""
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF nonsense")
    with serving(("broken", broken), ("tiny", path)) as running:
        wait_until(lambda: running.get("/health").json()["status"] == "model failed to load")
        assert running.get("/health").status_code == 503
        assert running.post("/v1/completions", prompt="x").status_code == 500
        assert running.post("/v1/completions", prompt="x", model="tiny").status_code == 200
        broken.write_bytes(path.read_bytes())
        assert running.post("/v1/completions", prompt="x").status_code == 200
        assert running.get("/health").json() == {"status": "ok"} and running.server.failure is None


def test_pages_of_the_models_file_are_let_go(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released: list[GGUFFile] = []
    monkeypatch.setattr(pyllamacpu.server.app, "RELEASE_SECONDS", 0.05)
    with serving(("tiny", path)) as running:
        wait_until(lambda: running.get("/health").status_code == 200)
        service = running.server.service
        assert service is not None
        file = service.models.loaded["tiny"].engine.file
        monkeypatch.setattr(file, "release_all", lambda: released.append(file))
        wait_until(lambda: len(released) > 1)


def test_a_model_whose_loading_fails_by_a_fault_of_the_program(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("pyllamacpu.server.models.open_model", fail)
    with serving(("tiny", path)) as running:
        running.wait_end()
        assert "internal error (RuntimeError)" in str(running.server.failure)


def test_the_size_of_a_model_is_that_of_all_its_files(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-{i:05}-of-00002.gguf" for i in (1, 2)]
    for part, n_bytes in zip(parts, (10, 20), strict=True):
        part.write_bytes(bytes(n_bytes))
    assert ServedFile("m", parts[0]).weight_bytes() == 30
    parts[1].unlink()
    assert ServedFile("m", parts[0]).weight_bytes() == 0


def test_adapters_count_beside_experts_in_the_file(path: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.gguf"
    adapter.write_bytes(bytes(1000))
    alone = ServedFile("m", path)
    both = replace(alone, adapters=(ServedAdapter("a", adapter, 1.0),))
    for limit in (None, 1 << 20):
        assert both.weight_bytes(limit) == alone.weight_bytes(limit) + 1000 > 1000


def test_expert_memory_of_a_model_without_experts_is_told(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), serving(("tiny", path), expert_memory=1 << 20) as running:
        wait_until(lambda: running.get("/health").status_code == 200)
    assert "tiny has no experts: --expert-memory does nothing for it" in caplog.text


def test_a_name_is_one_models() -> None:
    check_names([ServedFile("a", Path("x")), ServedFile("b", Path("x"))])
    with pytest.raises(OptionError, match="two models or adapters are called a: "):
        check_names([ServedFile("a", Path("x")), ServedFile("A.gguf", Path("y"))])


def test_a_chat_template_in_place_of_the_models(path: Path) -> None:
    """--chat-template of the command; for every model that was not created with one of its own."""
    for given, shown in (("vicuna", "USER: hello"), ("{{ messages[0].content }}!", "hello!")):
        parameters = serve.make_context("serve", ["-m", "one", "--chat-template", given]).params
        load = replace(pool_options(parameters).load, n_ctx=256, n_threads=1)
        options = ServeOptions((ServedFile("one", path),), PoolOptions(load))
        running = Running(options)
        try:
            question = [{"role": "user", "content": "hello"}]
            prompt = running.post("/apply-template", messages=question).json()["prompt"]
            assert shown in prompt
            answer = running.post("/v1/chat/completions", messages=question, max_tokens=1)
            assert answer.status_code == 200
        finally:
            running.stop()
