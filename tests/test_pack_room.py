"""The limit of a folder of packed weights: what was not used for longest goes, never what is in use.

Covers model/pack_room.py, model/pack_cache.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from packing import bits, folder, no_waiting
from tiny_model import write_model

from pyllamacpu.engine.engine import Engine
from pyllamacpu.files import lock_file
from pyllamacpu.model import pack_cache, pack_room, panel_file
from pyllamacpu.store.paths import PackFolder

__all__ = ["folder", "no_waiting"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="locks folders, which cannot be opened there")


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [write_model(tmp_path / f"{name}.gguf", seed=i) for i, name in enumerate("abcd")]


@pytest.fixture
def size(models: list[Path], tmp_path: Path) -> int:
    """Of the panels of each of the models."""
    bits(models[0], tmp_path / "measured")
    (found,) = (tmp_path / "measured").glob("*.panels")
    return found.stat().st_size


def kept(folder: Path) -> list[str]:
    return sorted(path.name.split(".")[0] for path in folder.glob("*.panels"))


def used(folder: Path, name: str, ago: float) -> None:
    """Notes that the last use was so many seconds ago."""
    (stamp,) = folder.glob(f"{name}.*.stamp")
    os.utime(stamp, (time.time() - ago, time.time() - ago))


def test_what_was_not_used_for_longest_goes(models: list[Path], folder: Path, size: int) -> None:
    limited = PackFolder(folder, 3 * size + size // 2)
    wanted = [bits(path, None) for path in models]
    assert [bits(path, limited) for path in models[:3]] == wanted[:3]
    for name, ago in (("a", 300), ("b", 200), ("c", 100)):
        used(folder, name, ago)
    assert bits(models[0], limited) == wanted[0]  # used again
    assert bits(models[3], limited) == wanted[3]
    assert kept(folder) == ["a", "c", "d"]
    assert all(path.name[0] in "acd" for path in folder.iterdir())  # the stamps of what went, too
    assert [bits(path, limited) for path in models] == wanted


def test_exactly_the_limit_fits_and_a_byte_less_does_not(
    models: list[Path], folder: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = bits(models[0], None)
    assert bits(models[0], PackFolder(folder, size - 1)) == wanted
    assert kept(folder) == [] and "more than the limit" in caplog.text
    caplog.clear()
    assert bits(models[0], PackFolder(folder, size)) == wanted
    assert kept(folder) == ["a"] and not caplog.text


@pytest.mark.parametrize("whose", ["this process", "another process"])
def test_what_is_in_use_stays(
    whose: str, models: list[Path], folder: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Even if it is the oldest. With nothing else to remove the new one is not kept, and all stays."""
    limited = PackFolder(folder, 2 * size)
    for path in models[:2]:
        bits(path, limited)
    used(folder, "a", 1000)
    user = used_elsewhere(models[0], folder) if whose == "another process" else opened(models[0], folder)
    used(folder, "a", 1000)
    assert bits(models[2], limited) == bits(models[2], None)
    assert kept(folder) == ["a", "c"]
    other = opened(models[2], folder)
    assert bits(models[3], limited) == bits(models[3], None)
    assert kept(folder) == ["a", "c"]
    assert "with those in use they take" in caplog.text
    other.close()
    end(user)
    used(folder, "a", 1000)
    bits(models[3], limited)
    assert kept(folder) == ["c", "d"]


def opened(path: Path, folder: Path) -> Engine:
    return Engine.open(path, n_ctx=64, n_threads=1, pack_cache=folder)


def used_elsewhere(path: Path, folder: Path) -> subprocess.Popen[str]:
    code = """
        import sys
        from pyllamacpu.engine.engine import Engine
        engine = Engine.open(sys.argv[1], n_ctx=64, n_threads=1, pack_cache=sys.argv[2])
        print("ready", flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path), str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def end(user: Engine | subprocess.Popen[str]) -> None:
    if isinstance(user, Engine):
        user.close()
        return
    user.kill()  # the system unlocks what a killed process used
    user.communicate()


def test_processes_that_make_files_at_once_keep_the_limit_together(
    models: list[Path], folder: Path, size: int
) -> None:
    """Each looks at the folder while it makes its own: two of the four are there at most."""
    code = """
        import sys, time
        sys.path.insert(0, sys.argv[3])
        from pathlib import Path
        from test_pack_cache import bits, pack_cache, panel_file
        from pyllamacpu.store.paths import PackFolder
        pack_cache.FRESH = 0.0
        folder, limit = Path(sys.argv[2]), int(sys.argv[4])
        finish = panel_file.PanelWriter.finish
        def watched(*given):
            for _ in range(20):
                with pack_cache.locked_folder(folder):
                    found = [p for p in folder.iterdir() if ".panels" in p.name]
                    assert sum(p.stat().st_size for p in found) <= limit, found
                time.sleep(0.01)
            finish(*given)
        panel_file.PanelWriter.finish = watched
        print(bits(Path(sys.argv[1]), PackFolder(folder, limit)).hex())
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    more = [str(folder), str(Path(__file__).parent), str(2 * size)]
    started = [
        subprocess.Popen([*command, str(path), *more], stdout=subprocess.PIPE, text=True) for path in models
    ]
    found = [process.communicate(timeout=120)[0].strip() for process in started]
    assert [process.returncode for process in started] == [0] * 4
    assert found == [bits(path, None).hex() for path in models]
    assert len(kept(folder)) <= 2 and not list(folder.glob(".*.part"))


def test_files_of_others_are_neither_counted_nor_removed(
    models: list[Path], folder: Path, size: int, tmp_path: Path
) -> None:
    folder.mkdir(mode=0o700)
    (folder / "letter.panels").write_bytes(bytes(2 * size))
    (folder / f"linked.{'0' * 16}.panels").symlink_to(folder / "letter.panels")
    limited = PackFolder(folder, size)
    for path in models[:2]:
        bits(path, limited)
    assert kept(folder) == ["b", "letter", "linked"]


def test_a_folder_that_is_locked_for_ever_is_not_waited_for(
    models: list[Path], folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pack_room, "_PATIENCE", 0.0)
    folder.mkdir(mode=0o700)
    descriptor = os.open(folder, os.O_RDONLY)
    lock_file(descriptor)
    try:
        assert bits(models[0], folder) == bits(models[0], None)
    finally:
        os.close(descriptor)
    assert "making room for too long" in caplog.text
    assert kept(folder) == []


def test_a_disk_without_locks_has_a_limit_too(
    models: list[Path], folder: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There what is in use may be removed; who uses it keeps it."""
    monkeypatch.setattr(pack_room, "lock_file", lambda *_: None)
    wanted = bits(models[0], None)
    engine = opened(models[0], folder)
    bits(models[1], PackFolder(folder, size))
    assert kept(folder) == ["b"]
    engine.close()
    assert bits(models[0], PackFolder(folder, size)) == wanted


def test_a_new_file_has_its_size_from_the_first(
    models: list[Path], folder: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is packed into it."""
    seen: list[int] = []
    made = pack_cache.PanelWriter.__init__

    def noted(self: panel_file.PanelWriter, part: Any, *more: Any) -> None:
        seen.append(os.fstat(part.file.fileno()).st_size)
        made(self, part, *more)

    monkeypatch.setattr(panel_file.PanelWriter, "__init__", noted)
    bits(models[0], folder)
    assert seen == [size]
