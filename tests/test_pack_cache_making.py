"""How files of packed weights are made: private, whole or not at all, by one process.

Covers model/pack_cache.py.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packing import bits, folder, model, no_waiting, packing_fails, panels
from tiny_model import write_model

from pyllamacpu.errors import ModelError, OptionError, OutputError
from pyllamacpu.files import PartialFile, lock_file
from pyllamacpu.model import pack_cache, panel_file
from pyllamacpu.native import lib

__all__ = ["folder", "model", "no_waiting"]

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="files have no owner and modes there, and none are kept"
)


def test_what_is_made_is_private(model: Path, folder: Path) -> None:
    old = os.umask(0)
    try:
        bits(model, folder)
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {".panels": 0o400, ".stamp": 0o600, ".lock": 0o600}
    assert all(pack_cache.is_ours(path.name) for path in folder.iterdir())


def test_a_folder_of_other_things_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").write_text("dear")
    (tmp_path / "letters").chmod(0o755)
    with pytest.raises(OptionError, match="holds other files"):
        bits(model, tmp_path / "letters")
    with pytest.raises(OptionError, match=r"packed weights .*tiny\.gguf"):
        bits(model, model)


def test_a_folder_on_a_disk_that_is_read_only(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is there is used, whatever its mode is; what is not there is not kept."""

    def read_only(*_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def opened(path: Any, flags: int, *more: Any, **named: Any) -> int:
        return read_only() or 0 if flags & (os.O_CREAT | os.O_RDWR) else real(path, flags, *more, **named)

    real, wanted = os.open, bits(model, folder)
    other = write_model(model.with_name("other.gguf"), seed=1)
    folder.chmod(0o755)
    for name in ("chmod", "utime", "unlink", "replace"):
        monkeypatch.setattr(os, name, read_only)
    monkeypatch.setattr(Path, "chmod", read_only)
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", opened)
        packing_fails(patched)
        assert bits(model, folder) == wanted and not caplog.text
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", opened)
        assert bits(other, folder) == bits(other, None)
    assert "other.gguf are not kept: Read-only file system" in caplog.text


@pytest.mark.parametrize("where", ["space", "write", "fsync", "rename"])
def test_a_disk_that_is_full_or_fails(
    where: str, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    targets: dict[str, tuple[Any, str]] = {"fsync": (os, "fsync"), "rename": (os, "replace")}
    wanted = bits(model, None)
    with monkeypatch.context() as patched:
        if where == "space":
            patched.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
        elif where == "write":
            patched.setattr(panel_file, "_BUFFER", panel_file.BLOCK)
            patched.setattr(PartialFile, "file", property(fail))
            patched.setattr(PartialFile, "write", raised(OutputError("x", "No space left on device")))
        else:
            patched.setattr(*targets[where], fail)
        assert bits(model, folder) == wanted
    assert "are not kept" in caplog.text
    assert not [path.name for path in folder.iterdir() if path.suffix in (".panels", ".part")]
    assert bits(model, folder) == wanted
    assert panels(folder)


class _NothingMapped:
    """The extension of a process whose addresses are used up."""

    pl_weight_arena_map = staticmethod(lambda *_: panel_file.ffi.NULL)

    def __getattr__(self, name: str) -> Any:
        return getattr(lib, name)


@pytest.mark.parametrize(
    ("lacks", "there"), [("addresses", False), ("addresses", True), ("descriptors", True)]
)
def test_what_this_process_lacks_is_no_fault_of_the_file(
    lacks: str,
    there: bool,
    model: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wanted = bits(model, folder if there else None)
    with monkeypatch.context() as patched:
        if lacks == "addresses":
            patched.setattr(panel_file, "lib", _NothingMapped())
        else:
            patched.setattr(
                panel_file, "open_regular", raised(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
            )
        assert bits(model, folder) == wanted
    assert caplog.text.count("are not kept") == 1 and "made anew" not in caplog.text
    packing_fails(monkeypatch)
    assert bits(model, folder) == wanted


def raised(error: Exception) -> Callable[..., None]:
    def fail(*_: Any) -> None:
        raise error

    return fail


def test_a_process_that_is_killed_in_the_middle(model: Path, folder: Path) -> None:
    code = """
        import os, signal, sys
        from pyllamacpu.engine.engine import Engine
        from pyllamacpu.model import pack_cache, panel_file
        pack_cache.FRESH = 0.0
        panel_file.PanelWriter.finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        Engine.open(sys.argv[1], n_ctx=64, n_threads=2, pack_cache=sys.argv[2])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(model), str(folder)]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
    assert [path.suffix for path in folder.iterdir()].count(".part") == 1
    assert bits(model, folder) == bits(model, None)
    assert sorted(path.suffix for path in folder.iterdir()) == [".lock", ".panels", ".stamp"]


def test_two_processes_at_once_make_one_file(model: Path, folder: Path) -> None:
    code = """
        import sys
        sys.path.insert(0, sys.argv[3])
        from pathlib import Path
        from test_pack_cache import bits, pack_cache, panel_file
        pack_cache.FRESH = 0.0
        made = []
        finish = panel_file.PanelWriter.finish
        def counted(*given):
            made.append(1)
            finish(*given)
        panel_file.PanelWriter.finish = counted
        digest = bits(Path(sys.argv[1]), Path(sys.argv[2])).hex()
        print(len(made), digest)
    """
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", textwrap.dedent(code), str(model), str(folder), here]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate(timeout=120)[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0, 0]
    assert sorted(int(n) for n, _ in answers) == [0, 0, 1]
    assert {digest for _, digest in answers} == {bits(model, None).hex()}


def test_one_that_makes_it_for_ever_is_not_waited_for(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bits(model, folder)
    (lock,) = folder.glob("*.lock")
    panels(folder).unlink()
    monkeypatch.setattr(pack_cache, "_PATIENCE", 0.0)
    with open(lock, "r+b") as file:
        lock_file(file)
        assert bits(model, folder) == bits(model, None)
    assert "making them for too long" in caplog.text


def test_a_damaged_model_is_the_error_that_it_is_without(model: Path, folder: Path, tmp_path: Path) -> None:
    short = write_model(tmp_path / "short.gguf", llama__feed_forward_length=80)
    for kept in (None, folder):
        with pytest.raises(ModelError, match="has shape"):
            bits(short, kept)
    assert not [path for path in folder.iterdir() if path.suffix != ".lock"]


def test_ctrl_c_leaves_nothing(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panel_file.PanelWriter, "finish", raised(KeyboardInterrupt()))  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        bits(model, folder)
    assert [path.suffix for path in folder.iterdir()] == [".lock"]


def test_matrices_of_many_buffers(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Panels lie where they belong when a matrix is written in several pieces, on and across blocks."""
    path = write_model(tmp_path / "wide.gguf", padding=33_333)
    monkeypatch.setattr(panel_file, "_BUFFER", panel_file.BLOCK)
    wanted = bits(path, None)
    assert [bits(path, folder) for _ in range(2)] == [wanted, wanted]
    assert panels(folder).stat().st_size > 4 * panel_file.BLOCK
