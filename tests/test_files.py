"""Output files: whole or not at all, leftovers of the dead only, and nothing that must stay is replaced."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyllamacpu.cli.saved_chat import read_saved
from pyllamacpu.convert.formats.json_file import read_json
from pyllamacpu.errors import CheckpointError, OutputError, PyllamacpuError
from pyllamacpu.evaluate.logits_file import LogitsFile
from pyllamacpu.files import (
    GGUF_FILE,
    InputFiles,
    PartialFile,
    check_output,
    kept,
    picture_kind,
    publish_all,
    remove_leftovers,
    write_whole,
)
from pyllamacpu.gguf import GGUFFile
from pyllamacpu.quantize.imatrix import is_imatrix, read_imatrix
from pyllamacpu.store.created import card_of


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), PartialFile(target) as part:
        part.write(b"half")
        assert len(names(tmp_path)) == 2
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old" and names(tmp_path) == ["x"]
    with PartialFile(target) as part:
        part.write(b"new, ")
        part.write(memoryview(b"and more"))
        part.write(b"N", 0)
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"New, and more" and names(tmp_path) == ["x"]
    write_whole(target, "text ü")
    assert target.read_text("utf-8") == "text ü"


def test_writers_of_one_target_do_not_meet(tmp_path: Path) -> None:
    with PartialFile(tmp_path / "x") as first, PartialFile(tmp_path / "x") as second:
        first.write(b"first")
        second.write(b"second")
        assert len(names(tmp_path)) == 2
    assert (tmp_path / "x").read_bytes() == b"first"  # whose block ended last


def test_names_cannot_be_foreseen(tmp_path: Path) -> None:
    """So that nobody can put a link there; and one that is there is not followed."""
    seen = set()
    for _ in range(8):
        part = PartialFile(tmp_path / "x")
        seen |= {*names(tmp_path)}
        part.discard()
    assert len(seen) == 8 and not names(tmp_path)


def test_a_name_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / ".x.00000000.part").symlink_to(tmp_path / "other")
    (tmp_path / ".x.11111111.part").write_bytes(b"")
    holder = open(tmp_path / ".x.11111111.part", "r+b")  # noqa: SIM115
    tokens = iter(["00000000", "22222222"])
    monkeypatch.setattr("pyllamacpu.files._random_hex", lambda: next(tokens))
    monkeypatch.setattr("pyllamacpu.files.remove_leftovers", lambda *_: None)
    with PartialFile(tmp_path / "x") as part:
        part.write(b"mine")
    holder.close()
    assert (tmp_path / "x").read_bytes() == b"mine" and (tmp_path / "other").read_bytes() == b"other"


def test_all_are_finished_before_the_first_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(b"good")
    parts = [PartialFile(tmp_path / name) for name in "abc"]
    fsync, calls = os.fsync, []

    def failing(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr("pyllamacpu.files.os.fsync", failing)
    with pytest.raises(OutputError, match="c: cannot be written: No space"):
        publish_all(parts)
    for part in parts:
        part.discard()
    assert names(tmp_path) == ["a", "b", "c"] and (tmp_path / "a").read_bytes() == b"good"


@pytest.mark.parametrize("there", ["", "a", "abc"])
@pytest.mark.parametrize("links", [True, False])
def test_all_get_their_names_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str, links: bool
) -> None:
    """What cannot be given back without hard links is only what was there."""
    for name in there:
        (tmp_path / name).write_bytes(b"old")
    parts = [PartialFile(tmp_path / name) for name in "abc"]
    for part in parts:
        part.write(b"new")
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if Path(target).name == "c":
            raise OSError(1, "Operation not permitted")
        replace(source, target)

    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("pyllamacpu.files.os.replace", failing)
    if not links:
        monkeypatch.setattr("pyllamacpu.files.os.link", no_links)
    with pytest.raises(OutputError, match="c: cannot be written: Operation not permitted"):
        publish_all(parts)
    for part in parts:
        part.discard()
    if links or not there:
        assert names(tmp_path) == list(there)
        assert all((tmp_path / name).read_bytes() == b"old" for name in there)
    monkeypatch.undo()
    parts = [PartialFile(tmp_path / name) for name in "abc"]
    publish_all(parts)
    assert names(tmp_path) == ["a", "b", "c"] and not any(map(os.path.getsize, map(tmp_path.joinpath, "abc")))


CHILD = """
import sys, time
from pathlib import Path
from pyllamacpu.files import PartialFile
part = PartialFile(Path(sys.argv[1]))
part.write(b"half")
part.finish()
print("ready", flush=True)
sys.stdin.read()
part.publish()
"""


def start_writer(target: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(target)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def test_leftovers_of_killed_processes_go_and_running_ones_stay(tmp_path: Path) -> None:
    living, dead = start_writer(tmp_path / "a"), start_writer(tmp_path / "b")
    dead.kill()
    dead.communicate()
    (tmp_path / ".old.123.part").write_bytes(b"not as ours are named")
    (tmp_path / "user.part").write_bytes(b"not ours")
    (tmp_path / ".link.01234567.part").symlink_to(tmp_path / "user.part")
    os.mkfifo(tmp_path / ".pipe.01234567.part")
    assert len(names(tmp_path)) == 6
    with PartialFile(tmp_path / "c") as part:  # whatever is written next in the folder sweeps it
        part.write(b"mine")
        assert len(names(tmp_path)) == 6 and not list(tmp_path.glob(".b.*.part"))
    for name in ("c", ".old.123.part", ".link.01234567.part", ".pipe.01234567.part"):
        (tmp_path / name).unlink()
    assert (tmp_path / "user.part").read_bytes() == b"not ours"
    with PartialFile(tmp_path / "a") as part:
        part.write(b"mine")
    assert (tmp_path / "a").read_bytes() == b"mine"
    living.communicate("go on")
    assert living.returncode == 0 and (tmp_path / "a").read_bytes() == b"half"
    assert names(tmp_path) == ["a", "user.part"]


def test_a_temporary_file_is_kept_while_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / ".x.01234567.part"
    path.write_bytes(b"scratch")
    with pytest.raises(RuntimeError), kept(path):
        remove_leftovers(tmp_path)
        assert path.read_bytes() == b"scratch"
        raise RuntimeError
    assert not path.exists()


def test_inputs_that_changed(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(b"12345678")
    os.utime(paths[0], ns=(1, 1))
    for change in (
        paths[1].unlink,
        lambda: os.truncate(paths[0], 3),
        lambda: paths[0].write_bytes(b"87654321"),
        lambda: os.replace(paths[1], paths[0]),
    ):
        paths[1].write_bytes(b"12345678")
        inputs = InputFiles(paths)
        inputs.check()
        change()
        with pytest.raises(CheckpointError, match="has changed"):
            inputs.check()


def test_a_long_name_that_the_system_takes_is_taken(tmp_path: Path) -> None:
    for name in ("n" * 255, "ä" * 127):
        write_whole(tmp_path / name, b"whole")
        assert names(tmp_path) == [name] and (tmp_path / name).read_bytes() == b"whole"
        (tmp_path / name).unlink()
    for bad in ("n" * 256, "a\0b"):
        with pytest.raises(OutputError, match="cannot be written"):
            write_whole(tmp_path / bad, b"")


def test_a_mode_for_what_is_private(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    (tmp_path / "x").chmod(0o644)
    write_whole(tmp_path / "x", b"secret", mode=0o600)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o600


def test_pictures_of_matplotlib_only(tmp_path: Path) -> None:
    kind = picture_kind(".png")
    (tmp_path / "ours").write_bytes(b"\x89PNG....Software Matplotlib version3")
    (tmp_path / "photo").write_bytes(b"\x89PNG....Software A camera")
    check_output(tmp_path / "ours", kind=kind)
    with pytest.raises(OutputError, match=r"is not a \.png file drawn here"):
        check_output(tmp_path / "photo", kind=kind)


def test_a_file_system_that_ignores_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system says what is the same file, not the spelling of a name."""
    (tmp_path / "model").write_bytes(b"GGUF")
    (tmp_path / "MODEL").symlink_to("model")  # as good as such a system
    monkeypatch.chdir(tmp_path)
    for path in (Path("MODEL"), Path("..") / tmp_path.name / "MODEL", tmp_path / "MODEL"):
        with pytest.raises(OutputError, match="is an input too"):
            check_output(path, [Path("model")], force=True)


@pytest.mark.parametrize("kind", [None, GGUF_FILE])
def test_inputs_are_never_written_to(tmp_path: Path, kind: object) -> None:
    source = tmp_path / "in.gguf"
    source.write_bytes(b"GGUF")
    os.link(source, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(source)
    for name in ("in.gguf", "hard", "soft"):
        for force in (False, True):
            with pytest.raises(OutputError, match="is an input too"):
                check_output(tmp_path / name, [tmp_path / "another", source], kind, force)  # type: ignore[arg-type]
    check_output(tmp_path / "new", [source], GGUF_FILE)


def test_files_of_another_kind_only_when_that_is_asked_for(tmp_path: Path) -> None:
    for name, content in (("notes.txt", b"dear diary"), ("model.gguf", b"GGUF...."), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(OutputError, match=r"notes\.txt: is there already and is not a GGUF file"):
        check_output(tmp_path / "notes.txt", kind=GGUF_FILE)
    check_output(tmp_path / "notes.txt", kind=GGUF_FILE, force=True)
    check_output(tmp_path / "notes.txt")
    check_output(tmp_path / "model.gguf", kind=GGUF_FILE)
    check_output(tmp_path / "empty", kind=GGUF_FILE)


def test_what_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path, says in (
        (tmp_path / "folder", "is a folder"),
        (tmp_path / "pipe", "not a regular file"),
        (Path(os.devnull), "not a regular file"),
        (tmp_path / "no" / "x", "no such folder"),
        (tmp_path / "folder" / ("n" * 300), "cannot be written"),
    ):
        with pytest.raises(OutputError, match=says):
            PartialFile(path)
    assert names(tmp_path) == ["folder", "pipe"]


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known before the work; a file that is written to in place needs no leave of its folder."""
    (tmp_path / "log").write_bytes(b"old")
    access, allowed = os.access, False

    def read_only(path: os.PathLike[str], mode: int) -> bool:  # permissions do not stop root
        wanted = allowed if Path(path) == tmp_path / "log" else Path(path) != tmp_path
        return access(path, mode) and (wanted or not mode & os.W_OK)

    monkeypatch.setattr("pyllamacpu.files.os.access", read_only)
    for name in ("new", "log"):
        with pytest.raises(OutputError, match=f"{name}: cannot be written: its folder's permissions"):
            check_output(tmp_path / name)
    for name, says in (("new", "its folder's permissions"), ("log", "its permissions")):
        with pytest.raises(OutputError, match=f"{name}: cannot be written: {says}"):
            check_output(tmp_path / name, in_place=True)
    allowed = True
    check_output(tmp_path / "log", in_place=True)


READERS = {
    "a card": lambda path: card_of(path.with_name("x.gguf")),
    "a config": read_json,
    "an importance matrix": read_imatrix,
    "logits": LogitsFile.open,
    "a model": GGUFFile.open,
    "a saved chat": read_saved,
    "an importance matrix, perhaps": lambda path: is_imatrix(path) or read_imatrix(path),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("reader", READERS.values(), ids=list(READERS))
@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "folder"])
def test_what_is_no_file_is_an_error_at_once(
    reader: Callable[[Path], object], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody will ever write to the pipe, and the device has no end."""
    monkeypatch.setenv("PYLLAMACPU_HOME", str(tmp_path))
    path = tmp_path / "created" / "0123456789abcdef" / "card.json"
    path.parent.mkdir(parents=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path)
        case _:
            path.mkdir()
    says = "irectory|a folder" if kind == "folder" else "regular file|symbolic links"
    with pytest.raises(PyllamacpuError, match=says):
        reader(path)


def test_a_text_with_a_name_that_is_not_text_is_written(tmp_path: Path) -> None:
    """Of a file whose name is not UTF-8, as the system gives it."""
    write_whole(tmp_path / "x", "model \udcff.gguf\n")
    assert (tmp_path / "x").read_text(encoding="utf-8") == "model ?.gguf\n"
