"""What loaded models hold counts against memory: engine/memory.py, and the server's limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from llama4_vision_models import expected, llama4_vision, opened
from serving import serving, wait_until
from test_engine_adapters import write_adapter
from tiny_model import write_model

from pyllamacpu.api.loading import LoadOptions, open_model
from pyllamacpu.engine import memory
from pyllamacpu.engine.engine import Engine
from pyllamacpu.errors import AdapterError, ContextError, ModelError

__all__ = ["llama4_vision"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny.gguf")


def leave(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    """Memory is so large that `n_bytes` are left."""
    usable = memory.held_bytes() + n_bytes
    monkeypatch.setattr(memory, "memory_usable", lambda: usable)


def test_a_second_model_is_refused_where_the_first_leaves_no_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Engine.open(path, n_ctx=64, n_threads=1)
    weights = sum(info.n_bytes for info in first.file.tensors.values())
    pages = first.cache.context_bytes(64, 64)
    leave(monkeypatch, weights // 2)
    with pytest.raises(ModelError, match="beside the models that it has loaded"):
        Engine.open(path, n_ctx=64, n_threads=1)
    leave(monkeypatch, weights + pages // 2)
    with pytest.raises(ContextError, match="beside the models"):
        Engine.open(path, n_ctx=64, n_threads=1)
    leave(monkeypatch, weights // 2 + pages)
    first.close()
    Engine.open(path, n_ctx=64, n_threads=1).close()


def test_keys_and_values_count_and_a_model_that_nobody_has_does_not(path: Path) -> None:
    before = memory.held_bytes()
    engine = Engine.open(path, n_ctx=64, n_threads=1)
    sequence = engine.sequence()
    engine.eval(sequence, [1, 2, 3])
    assert memory.held_bytes() == before + engine.weight_bytes + engine.cache.bytes_in_use
    assert engine.cache.bytes_in_use > 0
    del engine, sequence
    left = memory.memory_left(1 << 62)
    assert left is not None and memory.held_bytes() <= before


def test_adapters_need_room(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine.open(path, n_ctx=64, n_threads=1)
    adapter = write_adapter(tmp_path / "a.gguf", engine, 4, 0, 1)
    leave(monkeypatch, adapter.stat().st_size - 1)
    with pytest.raises(AdapterError, match="do not fit"):
        engine.load_adapters([(adapter, 1.0)])
    assert not len(engine.adapters)
    leave(monkeypatch, adapter.stat().st_size)
    engine.load_adapters([(adapter, 1.0)])
    engine.close()


def test_a_vision_tower_needs_room(llama4_vision: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(llama4_vision, mmproj=False) as text, opened(llama4_vision) as llm:
        size = sum(info.n_bytes for info in llm.vision.opened.file.tensors.values())
        leave(monkeypatch, size - 1)
        with pytest.raises(ModelError, match=r"a vision tower of .* does not fit"):
            llm.image_features(expected()["pixels"])
        assert text.logits([1, 2]).size and llm.logits([1, 2]).size
        leave(monkeypatch, size)
        before = memory.held_bytes()
        llm.image_features(expected()["pixels"])
        assert memory.held_bytes() >= before + llm.vision.tower.weights.n_bytes > before
        loaded = memory.held_bytes()
        llm.vision.close()
        assert memory.held_bytes() < loaded


def test_a_draft_model_and_adapters_are_part_of_a_model(path: Path, tmp_path: Path) -> None:
    options = LoadOptions(n_ctx=64, n_threads=1)
    plain = open_model(str(path), options)
    assert plain.engine is not None
    weights = plain.weight_bytes
    adapter = write_adapter(tmp_path / "a.gguf", plain.engine, 4, 0, 1)
    plain.close()
    both = open_model(str(path), replace(options, draft=str(path), adapters=((str(adapter), 1.0),)))
    assert both.weight_bytes > 2 * weights
    both.close()


def test_a_guard_model_takes_its_share_of_the_servers_limit(path: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other.gguf", n_ctx=512, seed=7)
    both = path.stat().st_size + other.stat().st_size
    with serving(("one", path), ("two", other), memory=both) as running:
        wait_until(lambda: running.get("/health").status_code == 200)
        assert running.server.service is not None
        pool = running.server.service.models

        def ask(model: str) -> set[str]:
            answer = running.post("/v1/completions", prompt="x", model=model, max_tokens=2)
            assert answer.status_code == 200
            return {*pool.loaded}

        assert ask("two") == {"one", "two"}
        pool.loaded["two"].stays_until = 0.0
        running.post("/api/generate", model="two", keep_alive=0)
        wait_until(lambda: {*pool.loaded} == {"one"})
        pool.bytes_beside = path.stat().st_size
        assert ask("two") == {"two"}
