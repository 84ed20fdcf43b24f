"""The model store: the starter model through a pip without network, the hub through a server of our own."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pyllamacpu.errors import StoreError
from pyllamacpu.store import hub, resolve, starter
from pyllamacpu.store.files import exclusive, install_stream, whole_file
from pyllamacpu.store.hub import HubRef, parse_hub_ref
from pyllamacpu.store.paths import hub_cache_dir, models_dir, store_home
from pyllamacpu.store.quants import choose_file, part_names, quant_of
from pyllamacpu.store.resolve import list_models, resolve_model
from pyllamacpu.store.starter import STARTER, Starter, starter_path

CONTENT = b"GGUF" + bytes(range(256)) * 4000  # stands for the starter model: more than one read


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store, a hub cache and a pip that know nothing of this machine."""
    for name in [name for name in os.environ if name.startswith(("HF_", "PIP_", "HUGGINGFACE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYLLAMACPU_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "links").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    return tmp_path / "home"


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


def test_whole_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "x"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), whole_file(target) as out:
        out.write(b"half")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old"
    with whole_file(target) as out:
        out.write(b"new")
    assert target.read_bytes() == b"new"
    assert [path.name for path in target.parent.iterdir()] == ["x"]


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


# Names


def store_file(name: str, content: bytes = b"GGUF") -> Path:
    path = models_dir() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_paths_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own model.gguf"
    own.write_bytes(b"GGUF")
    first, second = store_file("Alpha-7B.Q4_K_M.gguf"), store_file("Alpha-8B.Q4_K_M.gguf")
    third = store_file("sub/Beta.gguf")
    assert resolve_model(str(own)) == own
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/own model.gguf") == own
    for name in ("Alpha-7B.Q4_K_M.gguf", "alpha-7b.q4_k_m", "ALPHA-7", "alpha-7b"):
        assert resolve_model(name) == first
    assert resolve_model("alpha-8") == second
    assert resolve_model("sub/beta") == third
    with pytest.raises(StoreError, match=r"several models: Alpha-7B.Q4_K_M, Alpha-8B.Q4_K_M"):
        resolve_model("alpha")


def test_a_whole_name_wins_over_longer_ones() -> None:
    short = store_file("Gamma.gguf")
    store_file("Gamma-large.gguf")
    assert resolve_model("gamma") == short


def test_a_directory_of_the_same_name_does_not_hide_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = store_file("Delta.gguf")
    (tmp_path / "Delta").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_model("Delta") == stored


@pytest.mark.parametrize(
    "name, says",
    [
        ("Alhpa-7B", "did you mean Alpha-7B.Q4_K_M"),
        ("llama-guard", "pyllamacpu list"),
        ("meta-llama/Llama-3.2-1B", "hf.co/meta-llama/Llama-3.2-1B"),
        ("https://example.com/model.gguf", "download the file"),
        ("hf.co/nobody", "hf.co/user/repo"),
        ("hf.co/user/repo/readme.md", "not a GGUF file"),
        ("hf.co/user/repo/resolve/main/../../x.gguf", "not a GGUF file"),
        ("", "empty"),
        ("  ", "empty"),
        ("nul\0byte", "no such"),
        ("x" * 5000, "no such"),
        ("./missing.gguf", "no such file"),
    ],
)
def test_unknown_names_say_what_to_do(name: str, says: str) -> None:
    store_file("Alpha-7B.Q4_K_M.gguf")
    with pytest.raises(StoreError) as caught:
        resolve_model(name)
    assert says in str(caught.value)


def test_mistyped_path_and_directory(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "llama.gguf").write_bytes(b"GGUF")
    with pytest.raises(StoreError, match=r"did you mean .*models/llama\.gguf"):
        resolve_model(str(tmp_path / "models" / "lama.gguf"))
    with pytest.raises(StoreError, match=r"is a directory; give one of its files: llama\.gguf"):
        resolve_model(str(tmp_path / "models"))


def test_starter_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetched: list[int] = []
    monkeypatch.setattr(resolve, "starter_path", lambda: (fetched.append(1), tmp_path / "s")[1])
    assert resolve_model(None) == tmp_path / "s"
    assert resolve_model("smollm2") == tmp_path / "s"
    assert resolve_model(STARTER.filename) == tmp_path / "s"
    assert len(fetched) == 3
    assert resolve.is_starter(None) and resolve.is_starter("SMOLLM2-135m") and not resolve.is_starter("smol")
    with pytest.raises(StoreError, match="SmolLM2"):
        resolve_model("smol")  # too short to begin a download
    with pytest.raises(StoreError, match="SmolLM2"):
        resolve_model("smolm2")


def test_list_names_resolve_to_their_files() -> None:
    store_file("Alpha-7B.Q4_K_M.gguf", b"12345")
    store_file("big-00001-of-00002.gguf", b"123")
    store_file("big-00002-of-00002.gguf", b"4567")
    store_file("broken-00001-of-00002.gguf")
    store_file(".hidden.gguf")
    cache_file("user/repo", "x-Q8_0.gguf", b"123456")
    cache_file("user/repo", "sub/y-00001-of-00002.gguf")
    models = {model.name: model for model in list_models()}
    assert {name: model.size for name, model in models.items()} == {
        "Alpha-7B.Q4_K_M": 5,
        "big-00001-of-00002": 7,
        "hf.co/user/repo/x-Q8_0.gguf": 6,
    }
    for model in models.values():
        assert resolve_model(model.name) == model.path


# Quantizations


@pytest.mark.parametrize(
    "name, quant",
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("model.IQ2_XXS.gguf", "IQ2_XXS"),
        ("model-UD-Q4_K_XL-00001-of-00003.gguf", "UD-Q4_K_XL"),
        ("BF16/model-BF16-00001-of-00002.gguf", "BF16"),
        ("model-f16.gguf", "F16"),
        ("model-q8_0.gguf", "Q8_0"),
        ("tq1_0/x-TQ1_0.gguf", "TQ1_0"),
        ("model.gguf", None),
        ("Q4ever.gguf", None),
    ],
)
def test_quant_of(name: str, quant: str | None) -> None:
    assert quant_of(name) == quant


FILES = [
    "README.md",
    "mmproj-model-f16.gguf",
    "m-Q8_0.gguf",
    "m-Q4_K_M.gguf",
    "m-Q4_K_S.gguf",
    "UD/m-UD-Q4_K_XL-00001-of-00002.gguf",
    "UD/m-UD-Q4_K_XL-00002-of-00002.gguf",
    "m-IQ4_XS.gguf",
]


def test_choose_file() -> None:
    assert choose_file(FILES, None, "here") == "m-Q4_K_M.gguf"
    assert choose_file(FILES, "q8_0", "here") == "m-Q8_0.gguf"
    assert choose_file(FILES, "UD-Q4_K_XL", "here") == "UD/m-UD-Q4_K_XL-00001-of-00002.gguf"
    assert choose_file(FILES, "q4_k_xl", "here") == "UD/m-UD-Q4_K_XL-00001-of-00002.gguf"
    assert choose_file(FILES, "m-IQ4_XS.gguf", "here") == "m-IQ4_XS.gguf"
    assert choose_file(["a-F32.gguf", "a-Q8_0.gguf", "a-Q2_K.gguf"], None, "here") == "a-Q8_0.gguf"
    assert choose_file(["bb.gguf", "a.gguf"], None, "here") == "a.gguf"
    with pytest.raises(StoreError, match=r"here has no Q5_K_M; it has IQ4_XS, Q4_K_M"):
        choose_file(FILES, "Q5_K_M", "here")
    with pytest.raises(StoreError, match="no GGUF model"):
        choose_file(["README.md", "mmproj-f16.gguf"], None, "here")


def test_part_names() -> None:
    assert part_names("d/x-00002-of-00003.gguf") == [f"d/x-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert part_names("x.gguf") == ["x.gguf"]
    assert part_names("x-00001-of-00001.gguf") == ["x-00001-of-00001.gguf"]


# The hub


@pytest.mark.parametrize(
    "name, reference",
    [
        ("hf.co/user/repo", HubRef("user/repo")),
        ("HF.co/user/repo:Q8_0", HubRef("user/repo", quant="Q8_0")),
        ("huggingface.co/user/repo/", HubRef("user/repo")),
        ("hf://user/repo/a/b.gguf", HubRef("user/repo", filename="a/b.gguf")),
        ("https://huggingface.co/u/r", HubRef("u/r")),
        ("https://huggingface.co/u/r/tree/main", HubRef("u/r")),
        ("https://hf.co/u/r:q4_k_m", HubRef("u/r", quant="q4_k_m")),
        (
            "https://huggingface.co/u/r/resolve/main/x%20y.gguf?download=true",
            HubRef("u/r", filename="x y.gguf"),
        ),
        (
            "https://huggingface.co/u/r/blob/abc123/x.gguf",
            HubRef("u/r", filename="x.gguf", revision="abc123"),
        ),
        ("https://mirror.example/u/r", HubRef("u/r")),
        ("https://other.example/u/r", None),
        ("user/repo", None),
        ("model.gguf", None),
    ],
)
def test_parse_hub_ref(name: str, reference: HubRef | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    assert parse_hub_ref(name) == reference


def cache_file(repo: str, name: str, content: bytes = b"GGUF", commit: str = "c" * 40) -> Path:
    """A file in the hub's cache, as the library would have put it there."""
    base = hub_cache_dir() / f"models--{repo.replace('/', '--')}"
    path = base / "snapshots" / commit / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    (base / "refs").mkdir(exist_ok=True)
    (base / "refs" / "main").write_text(commit)
    return path


class FakeHub(BaseHTTPRequestHandler):
    """The part of the hub's HTTP interface that downloads use."""

    commit = "d" * 40
    files: dict[str, bytes]
    asked: list[tuple[str, str, str | None]]
    status = 200

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        self.asked.append((self.command, path, self.headers.get("Authorization")))
        if self.status != 200:
            self._send(self.status, b"", {"X-Error-Code": "GatedRepo"} if self.status == 403 else {}, body)
        elif path.startswith("/api/models/user/repo/tree/"):
            listing = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in self.files.items()
            ]
            self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, body)
        elif path.startswith("/user/repo/resolve/") and (name := path.split("/", 5)[5]) in self.files:
            content = self.files[name]
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": self.commit}
            self._send(200, content, headers, body)
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    """A hub on this machine, with one repository."""

    class Handler(FakeHub):
        pass

    Handler.files = {"x-Q4_K_M.gguf": b"four bits", "x-Q8_0.gguf": b"eight bits", "README.md": b"hello"}
    Handler.asked = []
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{httpd.server_port}")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield Handler
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_hub_download_and_reuse(server: type[FakeHub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    path = resolve_model("hf.co/user/repo")
    assert path.read_bytes() == b"four bits"
    assert path.is_relative_to(hub_cache_dir())
    tokens = [token for _, asked, token in server.asked if "/user/repo/" in asked]
    assert tokens and set(tokens) == {"Bearer hf_secret"}
    before = len(server.asked)
    assert resolve_model("hf.co/user/repo") == path
    assert resolve_model("hf.co/user/repo:q4_k_m") == path
    assert len(server.asked) == before  # the cache was enough
    assert resolve_model("hf.co/user/repo", refresh=True) == path
    assert len(server.asked) > before
    assert resolve_model("hf.co/user/repo:q8_0").read_bytes() == b"eight bits"
    assert [model.name for model in list_models()] == [
        "hf.co/user/repo/x-Q4_K_M.gguf",
        "hf.co/user/repo/x-Q8_0.gguf",
    ]


def test_all_parts_are_downloaded(server: type[FakeHub]) -> None:
    server.files = {f"big-Q4_K_M-0000{n}-of-00003.gguf": bytes([n]) for n in (1, 2, 3)}
    path = resolve_model("hf.co/user/repo")
    assert [path.with_name(name).read_bytes() for name in part_names(path.name)] == [b"\1", b"\2", b"\3"]
    server.files = {f"big-Q8_0-0000{n}-of-00003.gguf": b"" for n in (1, 2)}
    with pytest.raises(StoreError, match="lacks big-Q8_0-00003-of-00003"):
        resolve_model("hf.co/user/repo:Q8_0")


@pytest.mark.parametrize(
    "status, name, says",
    [
        (200, "hf.co/user/other", "no such repository"),
        (200, "hf.co/user/repo:Q2_K", "has no Q2_K; it has Q4_K_M, Q8_0"),
        (403, "hf.co/user/repo", "set HF_TOKEN"),
        (418, "hf.co/user/repo", "cannot download"),
    ],
)
def test_hub_errors_are_one_line(server: type[FakeHub], status: int, name: str, says: str) -> None:
    server.status = status
    with pytest.raises(StoreError) as caught:
        resolve_model(name)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_offline_takes_what_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    path = cache_file("user/repo", "x-Q8_0.gguf")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve_model("hf.co/user/repo") == path
    assert resolve_model("hf.co/user/repo/x-Q8_0.gguf") == path
    with pytest.raises(StoreError, match="HF_HUB_OFFLINE"):
        resolve_model("hf.co/user/repo:Q4_K_M")


def test_an_unfinished_download_is_no_model() -> None:
    base = cache_file("user/repo", "x-Q4_K_M.gguf").parent
    (base / "y-Q8_0.gguf").symlink_to(base / "nowhere")
    assert [model.path.name for model in list_models()] == ["x-Q4_K_M.gguf"]


def test_import_is_light() -> None:
    script = (
        "import sys, pyllamacpu.store\n"
        "heavy = {'huggingface_hub', 'rich', 'numpy', 'requests', 'httpx'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", script], env=env, check=True)
