"""engine/page_files.py: pages of a folder are whole, private and within a size, whatever the disk does."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pyllamacpu.engine.page_files import PageFiles, open_page_files
from pyllamacpu.errors import OptionError

SIZES = (3000, 5000)  # bytes of a page in two spaces
KEYS = [hashlib.sha256(bytes([i])).digest() for i in range(64)]
posix = pytest.mark.skipif(os.name == "nt", reason="modes and limits of POSIX")


def content(key: bytes) -> list[bytes]:
    return [random.Random(key + bytes([i])).randbytes(size) for i, size in enumerate(SIZES)]


def write(files: PageFiles, key: bytes, used: int | None = None) -> bool:
    return files.write(key, 0b11, content(key), time.time_ns() if used is None else used)


def read(files: PageFiles, key: bytes) -> list[bytes] | None:
    """The page, as far as it was found."""
    buffers = [bytearray(size) for size in SIZES]
    return [bytes(b) for b in buffers] if files.read(key, lambda spaces: buffers) else None


def pages_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.kv"))


def test_a_page_comes_back(tmp_path: Path) -> None:
    files = PageFiles(tmp_path / "new" / "folder")
    assert read(files, KEYS[0]) is None
    assert not files.has(KEYS[0])
    assert not files.touch(KEYS[0], 1)
    assert write(files, KEYS[0])
    assert files.has(KEYS[0])
    assert read(PageFiles(files.folder), KEYS[0]) == content(KEYS[0])
    seen: list[int] = []
    files.write(KEYS[1], 0b10, content(KEYS[1])[1:], 1)
    assert not files.read(KEYS[1], seen.append)  # type: ignore[func-returns-value]
    assert seen == [0b10]  # without room nothing is read, and the page stays
    assert files.has(KEYS[1])
    assert files.counts.n_rejected == files.counts.n_failures == 0


@posix
def test_only_its_user_can_look_into_it(tmp_path: Path) -> None:
    folder = tmp_path / "pages"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    files = PageFiles(folder)
    write(files, KEYS[0])
    files.write_fact(KEYS[1], KEYS[2])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


@posix
def test_a_folder_that_is_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    tmp_path.chmod(0o755)
    with pytest.raises(OptionError, match="open to other users"):
        PageFiles(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    with pytest.raises(OptionError, match="File exists"):
        PageFiles(tmp_path / "file")
    with pytest.raises(OptionError, match="positive"):
        PageFiles(tmp_path / "pages", 0)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(OptionError, match="another user"):
        PageFiles(tmp_path / "pages")
    assert open_page_files(None) is None


def damaged(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data))
    flipped = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    zeroed = data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
    return chance.choice([flipped, flipped, flipped, data[:at], data + b"\0", zeroed])


def test_a_damaged_page_is_never_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files, chance = PageFiles(tmp_path / "pages"), random.Random(1)
    for i in range(100):
        write(files, KEYS[0])
        (path,) = pages_of(files.folder)
        path.write_bytes(damaged(path.read_bytes(), chance))
        assert read(files, KEYS[0]) is None
        assert not path.exists()
        assert files.counts.n_rejected == i + 1
    write(files, KEYS[0])
    path.rename(path.with_name(f"{KEYS[1].hex()}.kv"))  # whole, and another's
    assert read(files, KEYS[1]) is None
    assert len(caplog.records) == 1


def test_the_least_recently_used_go(tmp_path: Path) -> None:
    limit = 10 * 8192  # a page takes two blocks
    files = PageFiles(tmp_path / "pages", limit)
    other = PageFiles(tmp_path / "pages", limit)
    (files.folder / "mine.txt").write_text("not a page")
    files.write_fact(KEYS[63], KEYS[63])
    for i, key in enumerate(KEYS[:60]):
        assert write(files if i % 2 else other, key, 1000 * i)
        assert files.touch(KEYS[0], 1000 * i)
        assert len(pages_of(files.folder)) <= 10
    left = {path.stem for path in pages_of(files.folder)}
    expected = {key.hex() for key in (KEYS[0], *KEYS[60 - len(left) + 1 : 60])}
    assert left == expected
    assert len(left) >= 8
    assert files.counts.n_evicted + other.counts.n_evicted == 60 - len(left)
    assert (files.folder / "mine.txt").exists()
    assert files.read_fact(KEYS[63]) == KEYS[63]  # the smallest go last


def test_a_page_over_the_limit_is_not_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = PageFiles(tmp_path / "pages", 5000)
    assert not write(files, KEYS[0])
    assert not write(files, KEYS[1])
    assert "more than the limit" in caplog.text
    assert len(caplog.records) == 1
    assert pages_of(files.folder) == []


def test_the_folder_may_go_at_any_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = PageFiles(tmp_path / "pages")
    write(files, KEYS[0])
    for path in files.folder.iterdir():
        path.unlink()
    files.folder.rmdir()
    assert read(files, KEYS[0]) is None
    assert write(files, KEYS[1])
    assert read(files, KEYS[1]) == content(KEYS[1])
    assert files.n_bytes == 8192
    assert not caplog.records


@posix
def test_a_full_disk_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = PageFiles(tmp_path / "pages")
    assert write(files, KEYS[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # a page is cut off in the middle
        assert not any(map(write, [files] * 7, KEYS[1:8]))
        assert files.is_resting
        monkeypatch.setattr("pyllamacpu.engine.page_files._REST", 0.0)
        files._rest_until = 0.0
        assert not any(map(write, [files] * 7, KEYS[1:8]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert files.counts.n_dropped == 14
    assert len(list(files.folder.iterdir())) == 1  # nothing half-written
    assert read(files, KEYS[0]) == content(KEYS[0])
    assert write(files, KEYS[1])  # room again


def test_a_disk_that_cannot_be_read_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = PageFiles(tmp_path / "pages")
    for key in KEYS[:3]:
        (files.folder / f"{key.hex()}.kv").mkdir()
        assert read(files, key) is None
    assert files.counts.n_failures == 3
    assert len(caplog.records) == 1


WRITER = """
import hashlib, random, sys, time
from pyllamacpu.engine.page_files import PageFiles
files = PageFiles(sys.argv[1], 40 * 8192)
print("ready", flush=True)
while True:
    for i in range(64):
        key = hashlib.sha256(bytes([i])).digest()
        page = [random.Random(key + bytes([i])).randbytes(size) for i, size in enumerate((3000, 5000))]
        files.write(key, 0b11, page, time.time_ns())
"""


@posix
def test_a_kill_leaves_nothing_wrong(tmp_path: Path) -> None:
    """Two processes write, and one of them is killed in the middle, again and again."""
    arguments = [sys.executable, "-c", WRITER, str(tmp_path / "pages")]

    def start() -> Any:
        child = subprocess.Popen(arguments, stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        return child

    steady, n_found = start(), 0
    try:
        for _ in range(3):
            child = start()
            time.sleep(0.05)
            child.send_signal(signal.SIGKILL)
            child.communicate()
            files = PageFiles(tmp_path / "pages")
            for key in KEYS:
                found = read(files, key)
                assert found is None or found == content(key)
                n_found += found is not None
            assert files.counts.n_rejected == 0
    finally:
        steady.kill()
        steady.communicate()
    assert n_found > 0
    PageFiles(tmp_path / "pages")
    assert not list((tmp_path / "pages").glob(".*"))


def test_facts(tmp_path: Path) -> None:
    files = PageFiles(tmp_path / "pages")
    assert files.read_fact(KEYS[0]) is None
    files.write_fact(KEYS[0], KEYS[1])
    assert PageFiles(files.folder).read_fact(KEYS[0]) == KEYS[1]
    (path,) = files.folder.iterdir()
    path.write_bytes(path.read_bytes()[:40] + bytes(24))
    assert files.read_fact(KEYS[0]) is None


@posix
def test_a_pipe_in_a_file_s_place_is_not_waited_for(tmp_path: Path) -> None:
    files = PageFiles(tmp_path / "pages")
    write(files, KEYS[0])
    files.write_fact(KEYS[0], KEYS[1])
    for path in list(files.folder.iterdir()):
        path.unlink()
        os.mkfifo(path)
    assert files.spaces(KEYS[0]) == 0 and files.read_fact(KEYS[0]) is None
    assert read(files, KEYS[0]) is None
    assert write(files, KEYS[0])
    assert read(files, KEYS[0]) == content(KEYS[0])
