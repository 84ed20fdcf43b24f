"""Fixtures that several test modules share."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from pyllamacpu.store.starter_model import STARTER

FIXTURES = Path(__file__).parent / "fixtures"
YES = ("1", "true", "yes")


def flag(name: str) -> bool:
    """Whether an environment variable is set to something that means yes."""
    return os.environ.get(name, "").lower() in YES


def pytest_configure() -> None:
    """Ctrl-C works in tests, and in their child processes, even where a background script runs them."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def as_many_threads_as_asked_for() -> Iterator[None]:
    """Pools run all their threads in tests, however few CPUs there are: races have to be seen."""
    from pyllamacpu import native

    native.pools_follow_cpus = False
    yield
    native.pools_follow_cpus = True


@pytest.fixture(scope="session")
def starter_model() -> Path:
    """The starter model's file: `PYLLAMACPU_TEST_MODEL`, or the one in the model store.

    A file that is not in the store is fetched only in CI (`CI=true`) or with `PYLLAMACPU_TEST_DOWNLOAD=1`.
    Without the file, tests that need it are skipped; in CI they fail.
    """
    if named := os.environ.get("PYLLAMACPU_TEST_MODEL"):
        if not Path(named).is_file():
            pytest.fail(f"PYLLAMACPU_TEST_MODEL is {named}, which is no file")
        return Path(named)

    from pyllamacpu.errors import StoreError
    from pyllamacpu.store import starter_path

    try:
        return starter_path(download=flag("CI") or flag("PYLLAMACPU_TEST_DOWNLOAD"))
    except StoreError as error:
        if flag("CI"):
            pytest.fail(f"no starter model: {error}")
        pytest.skip(f"no starter model (set PYLLAMACPU_TEST_DOWNLOAD=1 to fetch it): {error}")


def python_path(*folders: Path) -> str:
    """PYTHONPATH of a child process: these folders, then what the tests' own has."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture
def no_starter(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The starter model's package is found empty, whether it is installed or not."""
    folder = tmp_path_factory.mktemp("no-starter")
    (folder / STARTER.module).mkdir()
    (folder / STARTER.module / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", python_path(folder))


@pytest.fixture
def home(no_starter: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store, a hub cache, a pip and packages that know nothing of this machine."""
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
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a script of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    return importlib.import_module
