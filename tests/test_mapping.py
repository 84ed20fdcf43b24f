"""Files that are cut short while they are mapped: a typed error, no signal (platform/mapping.c)."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tiny_model import write_model

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="mapped files cannot be cut short there")


def run(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_a_model_cut_short_while_it_generates_is_an_error(tmp_path: Path) -> None:
    code = """
        import os, sys
        from pyllamacpu.engine.engine import Engine, Entry
        from pyllamacpu.errors import GGUFError
        engine = Engine.open(sys.argv[1], n_ctx=64, n_threads=2)
        sequence = engine.sequence()
        engine.eval(sequence, [1, 2, 3])
        os.truncate(sys.argv[1], 4096)
        for _ in range(2):
            try:
                engine.eval(sequence, [279, 280])
            except GGUFError as error:
                assert "cut short" in str(error) and sys.argv[1] in str(error)
                assert len(sequence) == 3
            else:
                sys.exit("no error")
        print("told")
    """
    done = run(code, write_model(tmp_path / "tiny.gguf"))
    assert (done.returncode, done.stdout.strip()) == (0, "told"), done.stderr


@pytest.mark.parametrize("handler", ["none", "faulthandler"])
def test_lost_pages_read_as_zeros_and_are_counted(tmp_path: Path, handler: str) -> None:
    path = tmp_path / "tiny.gguf"
    write_model(path)
    with open(path, "ab") as file:
        file.write(bytes([7]) * 3 * 65536)
    code = f"""
        import os, sys
        if {handler!r} == "faulthandler":
            import faulthandler
            faulthandler.enable()
        from pyllamacpu.errors import GGUFError
        from pyllamacpu.gguf.reader import GGUFFile
        with GGUFFile.open(sys.argv[1]) as file:
            data = file._sources[0].bytes
            assert data[-1] == 7
            file.check_intact()
            os.truncate(sys.argv[1], len(data) - 2 * 65536)
            assert data[-1] == 0 and data[-65537] == 0 and data[-2 * 65536 - 1] == 7
            os.truncate(sys.argv[1], len(data))  # as long as before, and yet not whole
            try:
                file.check_intact()
            except GGUFError:
                print("told")
    """
    done = run(code, path)
    assert (done.returncode, done.stdout.strip()) == (0, "told"), done.stderr


@pytest.mark.parametrize("enabled", ["before", "after", "never"])
def test_a_fault_elsewhere_still_ends_the_process(tmp_path: Path, enabled: str) -> None:
    write_model(tmp_path / "tiny.gguf")
    code = f"""
        import faulthandler, mmap, os, sys
        from pyllamacpu.gguf.reader import GGUFFile
        if {enabled!r} == "before":
            faulthandler.enable()
        with GGUFFile.open(sys.argv[1]):
            if {enabled!r} == "after":
                faulthandler.enable()
            with GGUFFile.open(sys.argv[1]), open(sys.argv[1] + ".other", "w+b") as other:
                other.write(bytes(65536))
                other.flush()
                mapped = mmap.mmap(other.fileno(), 65536)
                os.truncate(other.fileno(), 0)
                print(mapped[40000])
    """
    done = run(code, tmp_path / "tiny.gguf")
    assert done.returncode == -7 or (os.uname().sysname == "Darwin" and done.returncode < 0), done
    assert done.stdout == ""
    assert ("Fatal Python error: Bus error" in done.stderr) == (enabled != "never")
    assert done.stderr.count("Fatal Python error") <= 1


def test_a_closed_file_guards_nothing(tmp_path: Path) -> None:
    """What is mapped at its place next has another owner, also while the closed file is still held."""
    code = """
        import sys
        from pyllamacpu.gguf.source import Source
        from pyllamacpu.native import ffi, lib
        source = Source(sys.argv[1])
        source.close()
        data = ffi.new("char[1]")
        guards = [lib.pl_mapping_guard(data, 1) for _ in range(4)]  # unused ones come first
        print(source._guard in guards)
    """
    done = run(code, write_model(tmp_path / "tiny.gguf"))
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
