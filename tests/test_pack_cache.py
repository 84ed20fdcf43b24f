"""Packed weights that are kept in files: the bits of packing, whatever happens to the files.

Covers model/pack_cache.py, model/panel_file.py, csrc/types/panel_file.c.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deberta_models import converted as converted_deberta
from deberta_models import token_ids, write_checkpoint
from llama4_models import llama4
from packing import TOKENS, bits, damage, folder, made, model, no_waiting, packing_fails, panels, run
from test_batch_invariance import LOGITS
from test_engine_adapters import write_adapter
from tiny_model import write_model

from pyllamacpu.engine.encoder import Encoder
from pyllamacpu.engine.engine import Engine
from pyllamacpu.model import pack_cache, panel_file
from pyllamacpu.native import isa_names

__all__ = ["folder", "llama4", "model", "no_waiting"]
NAMES = sorted(path.stem for path in LOGITS.glob("*.gguf"))

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="files have no owner and modes there, and none are kept"
)


def test_the_second_load_packs_nothing_and_has_the_same_bits(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = bits(model, None)
    assert bits(model, folder) == wanted
    packing_fails(monkeypatch)
    assert bits(model, folder) == wanted


@pytest.mark.parametrize("name", NAMES)
def test_every_type_and_shape(name: str, folder: Path) -> None:
    path = LOGITS / f"{name}.gguf"
    wanted = bits(path, None)
    assert [bits(path, folder) for _ in range(2)] == [wanted, wanted]
    assert panels(folder).stat().st_size


def test_a_classifier(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = converted_deberta(write_checkpoint(tmp_path / "checkpoint"), tmp_path / "model.gguf")
    found = []
    for kept in (None, folder, folder):
        if len(found) == 2:
            packing_fails(monkeypatch)
        model = Encoder.open(path, n_threads=2, pack_cache=kept)
        found.append(model.logits(token_ids()).tobytes())
        model.close()
    assert found == [found[0]] * 3


@pytest.mark.parametrize("kind", ["scout", "maverick"])
def test_experts(kind: str, llama4: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the small matrices that are float32 whatever the file's type."""
    wanted = bits(llama4[kind], None)
    assert bits(llama4[kind], folder) == wanted
    packing_fails(monkeypatch)
    assert bits(llama4[kind], folder) == wanted


def test_experts_that_stay_in_the_file_leave_it_out(
    llama4: dict[str, Path], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = bits(llama4["scout"], None)
    assert bits(llama4["scout"], folder, expert_memory=1 << 24) == wanted
    assert "its experts stay in the file" in caplog.text
    assert not list(folder.glob("*.panels"))


def test_adapters_are_packed_beside_it(model: Path, folder: Path, tmp_path: Path) -> None:
    found = []
    for kept in (None, folder, folder):
        engine = Engine.open(model, n_ctx=64, n_threads=2, pack_cache=kept)
        adapter = write_adapter(tmp_path / "adapter.gguf", engine, 4, 1)
        engine.load_adapters([(adapter, 1.0)])
        found.append(engine.eval(engine.sequence(), [5, 6, 7], logits="all").tobytes())
        engine.close()
    assert found == [found[0]] * 3


# What decides whether a file is used


def test_another_model_of_the_same_size_in_its_place(model: Path, folder: Path) -> None:
    first = bits(model, folder)
    old = model.stat()
    other = write_model(model.with_name("other.gguf"), seed=1)
    assert other.stat().st_size == old.st_size
    os.utime(other, ns=(old.st_atime_ns, old.st_mtime_ns))
    os.replace(other, model)
    wanted = bits(model, None)
    assert wanted != first
    assert [bits(model, folder) for _ in range(2)] == [wanted, wanted]
    assert panels(folder)  # the one of before is gone


def test_a_model_that_was_written_to_in_place(model: Path, folder: Path) -> None:
    bits(model, folder)
    old, before = model.stat(), made(folder)
    data = write_model(model.with_name("other.gguf"), seed=1).read_bytes()
    with open(model, "r+b") as file:
        file.write(data)
    os.utime(model, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert bits(model, folder) == bits(model, None)
    assert made(folder) != before


def test_another_build(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a file of its own, so that two which share a folder do not take turns in making one."""
    wanted, build = bits(model, folder), pack_cache.build_digest
    monkeypatch.setattr(pack_cache, "build_digest", lambda: bytes(32))
    assert bits(model, folder) == wanted
    assert len(list(folder.glob("*.panels"))) == 2
    packing_fails(monkeypatch)
    for digest in (build, lambda: bytes(32)):
        monkeypatch.setattr(pack_cache, "build_digest", digest)
        assert bits(model, folder) == wanted


def test_what_other_builds_left_goes_when_it_was_not_used_for_a_week(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept_by(number: int, path: Path = model) -> Path:
        """The file that a build makes of a model."""
        before = set(folder.glob("*.panels"))
        monkeypatch.setattr(pack_cache, "build_digest", lambda: bytes([number] * 32))
        bits(path, folder)
        (found,) = set(folder.glob("*.panels")) - before
        return found

    def not_used_for(days: float, path: Path) -> None:
        used = time.time() - days * 86400
        os.utime(path.with_suffix(".stamp"), (used, used))

    others = kept_by(1, write_model(model.with_name("other.gguf"), seed=1))
    old, recent, mapped = (kept_by(number) for number in (1, 2, 3))
    for days, path in ((8, others), (8, old), (6, recent), (8, mapped)):
        not_used_for(days, path)
    held = panel_file.PanelFile(mapped)
    new = kept_by(4)
    held.close()
    assert set(folder.glob("*.panels")) == {others, recent, mapped, new}
    assert not old.with_suffix(".stamp").exists()


@pytest.mark.skipif(len(isa_names()) < 2, reason="this CPU has one tier only")
def test_each_tier_has_its_own(model: Path, folder: Path) -> None:
    code = """
        import sys
        sys.path.insert(0, sys.argv[3])
        from pathlib import Path
        from test_pack_cache import bits, pack_cache
        pack_cache.FRESH = 0.0
        found = [bits(Path(sys.argv[1]), kept) for kept in (None, Path(sys.argv[2]), Path(sys.argv[2]))]
        assert found == [found[0]] * 3
    """
    for tier in ("scalar", isa_names()[-1]):
        run(code, model, folder, PYLLAMACPU_ISA=tier)
    assert len(list(folder.glob("*.panels"))) == 2


def test_a_model_that_changed_just_now_is_waited_for(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_cache, "FRESH", 2.0)
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert bits(model, folder) == bits(model, None)
    assert slept and 0 < max(slept) <= 2.0
    assert not list(folder.glob("*.panels"))  # the clock says that it is still new
    monkeypatch.setattr(time, "time", lambda: model.stat().st_ctime + 2.0)
    bits(model, folder)
    assert panels(folder)


def test_a_model_that_changes_while_it_is_packed_is_not_kept(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finish = panel_file.PanelWriter.finish

    def touched(*given: Any) -> None:
        os.utime(model)
        finish(*given)

    monkeypatch.setattr(panel_file.PanelWriter, "finish", touched)
    bits(model, folder)
    assert "changed while it was read" in caplog.text
    assert not [path for path in folder.iterdir() if "panels" in path.name]


# Damage


@pytest.mark.parametrize("keep_times", [True, False])
@pytest.mark.parametrize("at", [0, 8, 45, 60, 200, panel_file.BLOCK, -1])
def test_a_changed_byte_anywhere(
    at: int, keep_times: bool, model: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the magic, the key, the sizes, the facts, the panels: it is seen, and all is made anew."""
    wanted = bits(model, folder)
    before = made(folder)
    damage(panels(folder), at, keep_times)
    assert bits(model, folder) == wanted
    assert "made anew" in caplog.text
    assert made(folder) != before
    caplog.clear()
    assert bits(model, folder) == wanted
    assert not caplog.text


def test_damage_that_the_disk_made_is_seen_when_it_is_read_from_there(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The system knows of no change then: the stamp is true."""
    wanted = bits(model, folder)
    damage(panels(folder), -1)
    monkeypatch.setattr(pack_cache, "_stamp", lambda _: bytes(32))
    panels(folder).with_suffix(".stamp").write_bytes(bytes(32))
    with open(panels(folder), "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if not drops_pages(panels(folder)):
        pytest.skip("the system keeps the file's pages")
    assert bits(model, folder) == wanted
    assert "its panels are damaged" in caplog.text


def drops_pages(path: Path) -> bool:
    """Whether the last page of a file is not in memory."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        data, there = np.frombuffer(mapped, np.uint8), ctypes.create_string_buffer(1)
        last = data.ctypes.data + (len(data) - 1) // mmap.PAGESIZE * mmap.PAGESIZE
        code = ctypes.CDLL(None).mincore(ctypes.c_void_p(last), ctypes.c_size_t(1), there)
        del data
        return code == 0 and not there.raw[0] & 1


@pytest.mark.parametrize("n_bytes", [0, 7, 100, panel_file.BLOCK, -1])
def test_a_file_that_was_cut_short(n_bytes: int, model: Path, folder: Path) -> None:
    wanted, path = bits(model, folder), panels(folder)
    path.chmod(0o600)
    os.truncate(path, n_bytes if n_bytes >= 0 else path.stat().st_size + n_bytes)
    path.chmod(0o400)
    assert bits(model, folder) == wanted
    assert path.stat().st_size > panel_file.BLOCK


@pytest.mark.parametrize("what", ["link", "folder", "pipe", "open to others"])
def test_what_is_not_ours_in_its_place(what: str, model: Path, folder: Path, tmp_path: Path) -> None:
    wanted, path = bits(model, folder), panels(folder)
    if what == "open to others":
        path.chmod(0o666)
    else:
        moved = path.rename(tmp_path / "elsewhere")
        {"link": lambda: path.symlink_to(moved), "pipe": lambda: os.mkfifo(path), "folder": path.mkdir}[
            what
        ]()
    assert bits(model, folder) == wanted
    if what != "folder":
        assert not path.is_symlink()
        assert stat.S_IMODE(path.stat().st_mode) == 0o400


@pytest.mark.parametrize("what", ["link to itself", "folder", "pipe", "very large"])
def test_a_stamp_that_is_none_has_the_panels_checked(
    what: str, model: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted, first = bits(model, folder), made(folder)
    stamp = panels(folder).with_suffix(".stamp")
    stamp.unlink()
    if what == "very large":
        stamp.touch()
        os.truncate(stamp, 1 << 40)
    else:
        {
            "link to itself": lambda: stamp.symlink_to(stamp),
            "pipe": lambda: os.mkfifo(stamp),
            "folder": stamp.mkdir,
        }[what]()
    assert bits(model, folder) == wanted
    assert made(folder) == first and not caplog.records


@pytest.mark.parametrize("how", ["cut short", "written to"])
def test_a_file_that_is_changed_while_it_is_in_use_is_an_error(how: str, model: Path, folder: Path) -> None:
    wanted = bits(model, folder)
    code = """
        import os, sys
        from pyllamacpu.engine.engine import Engine
        from pyllamacpu.errors import ModelError
        engine = Engine.open(sys.argv[1], n_ctx=64, n_threads=2, pack_cache=os.path.dirname(sys.argv[2]))
        sequence = engine.sequence()
        engine.eval(sequence, [1, 2, 3])
        os.chmod(sys.argv[2], 0o600)
        if sys.argv[3] == "cut short":
            os.truncate(sys.argv[2], 4096)
        else:
            with open(sys.argv[2], "r+b") as file:
                file.seek(-8, os.SEEK_END)
                file.write(bytes([7] * 8))
        for _ in range(2):
            try:
                engine.eval(sequence, [279, 280])
            except ModelError as error:
                assert "changed while it was in use" in str(error) and sys.argv[2] in str(error)
                assert len(sequence) == 3
            else:
                sys.exit("no error")
    """
    run(code, model, panels(folder), Path(how))
    assert not list(folder.glob("*.panels"))
    assert bits(model, folder) == wanted


def test_it_may_be_deleted_at_any_time(model: Path, folder: Path) -> None:
    wanted = bits(model, folder)
    engine = Engine.open(model, n_ctx=64, n_threads=2, pack_cache=folder)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    ids = [token % engine.n_vocab for token in TOKENS]
    assert engine.eval(engine.sequence(), ids, logits="all").tobytes() == wanted
    engine.close()
    assert bits(model, folder) == wanted


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_share_its_pages(model: Path, folder: Path) -> None:
    """What is mapped is the file itself, which no process can write to."""
    bits(model, folder)
    engine = Engine.open(model, n_ctx=64, n_threads=2, pack_cache=folder)
    lines = Path("/proc/self/maps").read_text().splitlines()
    (mapped,) = (line.split() for line in lines if line.endswith(str(panels(folder))))
    assert mapped[1] == "r--s" and int(mapped[4]) == panels(folder).stat().st_ino
    engine.close()
    assert str(panels(folder)) not in Path("/proc/self/maps").read_text()
