"""engine/page_keys.py: whatever changes a page's bits changes its name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_model import write_model

from pyllamacpu.engine import page_keys
from pyllamacpu.engine.engine import Engine
from pyllamacpu.engine.page_files import PageFiles
from pyllamacpu.engine.page_keys import base_key, content_hash, next_key, root_key
from pyllamacpu.engine.prefix_cache import Root
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.model.lora import Adapter


@pytest.fixture
def files(tmp_path: Path) -> PageFiles:
    return PageFiles(tmp_path / "pages")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny.gguf")


def key_of(path: Path, files: PageFiles, **options: object) -> bytes:
    engine = Engine.open(path, **{"n_threads": 1, **options})
    try:
        return base_key(engine.file, engine.plan, engine.cache, files)
    finally:
        engine.close()


def test_keys_are_chained() -> None:
    base = bytes(32)
    first = next_key(base, range(32))
    assert next_key(base, range(32)) == first
    others = [next_key(base, range(1, 33)), next_key(first, range(32)), next_key(bytes([1]) * 32, range(32))]
    assert len({first, *others}) == 4


def test_what_else_decides_them() -> None:
    base = bytes(32)

    def adapter(name: str, alpha: float, digest: str) -> Adapter:
        return Adapter(name, Path(name), {}, alpha, digest)

    used = [((adapter("a", alpha, d), scale),) for alpha in (1.0, 2.0) for d in "xy" for scale in (1.0, 0.5)]
    roots: list[Root] = [((), None), *((scales, None) for scales in used)]
    roots += [((), b"image 1"), ((), b"image 2"), (used[0], b"image 1"), (used[0] + used[2], None)]
    keys = {root_key(base, root) for root in roots}
    assert len(keys) == len(roots)
    assert None not in keys
    renamed = (adapter("b", 1.0, "x"), 1.0)
    assert root_key(base, ((renamed,), None)) == root_key(base, (used[0], None))
    for of_this_process in (1, "image", (b"image", 1.0), object()):
        assert root_key(base, ((), of_this_process)) is None


def test_the_same_computation_has_the_same_key(path: Path, files: PageFiles) -> None:
    """Threads, the size of a step and of the context change no bit."""
    assert key_of(path, files) == key_of(path, files, n_threads=2, n_batch=32, n_ctx=64)


def other_keys(path: Path, files: PageFiles, monkeypatch: pytest.MonkeyPatch) -> Iterator[bytes]:
    for options in (
        {"type_k": "f32"},
        {"type_v": "q8_0"},
        {"rope_freq_base": 10001.0},
        {"rope_freq_scale": 0.5},
    ):
        yield key_of(path, files, **options)
    for name, value in (
        ("isa_selected", "another"),
        ("extension_content", b"another"),
        ("_machine_facts", ["another"]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(page_keys, name, lambda value=value: value)
            yield key_of(path, files)
    yield key_of(write_model(path.with_name("other.gguf"), seed=1), files)
    yield key_of(write_model(path.with_name("epsilon.gguf"), llama__rope__freq_base=9999.0), files)


def test_any_difference_is_another_key(path: Path, files: PageFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [key_of(path, files), *other_keys(path, files, monkeypatch)]
    assert len(set(keys)) == len(keys) == 10


def test_a_changed_file_is_another_model(path: Path, files: PageFiles) -> None:
    """Also one whose size and time stay what they were."""
    before, status = key_of(path, files), path.stat()
    data = bytearray(path.read_bytes())
    data[-100] ^= 1  # of the last matrix
    with open(path, "r+b") as file:
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert key_of(path, files) != before


def test_content_is_hashed_once(path: Path, files: PageFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    with GGUFFile.open(path) as file:
        expected = content_hash(file, files)
        assert not list(files.folder.iterdir())  # just written: it could change again at the same time
        monkeypatch.setattr(page_keys, "_FRESH", -60.0)
        assert content_hash(file, files) == expected
        monkeypatch.delattr(GGUFFile, "content")
        assert content_hash(file, PageFiles(files.folder)) == expected


def test_what_was_replaced_meanwhile_is_not_noted(
    path: Path, files: PageFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_keys, "_FRESH", -60.0)
    with GGUFFile.open(path) as file:
        other = write_model(path.with_name("other.gguf"), seed=1)
        os.replace(other, path)
        content_hash(file, files)
    assert not list(files.folder.iterdir())
