"""Without a network: an error within seconds, in one line, without secrets. Covers store/network.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import python_path

from pyllamacpu.errors import StoreError
from pyllamacpu.store import starter
from pyllamacpu.store.network import package_index_reachable, reachable, split_address, without_secrets
from pyllamacpu.store.resolve import resolve_model

pytestmark = pytest.mark.usefixtures("home")
ROOT = Path(__file__).parent.parent
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def test_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        assert reachable(url)
        monkeypatch.setenv("http_proxy", NOBODY)
        assert not reachable("http://example.invalid/"), "the proxy is what is asked"
        monkeypatch.setenv("http_proxy", url)
        assert reachable("http://example.invalid/")
    monkeypatch.delenv("http_proxy")
    assert not reachable(NOBODY) and not reachable("https://") and not reachable("http://example.invalid/")


def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    release, over = threading.Event(), []

    def wait(*_: object) -> None:
        release.wait(60)
        over.append("answered")
        raise OSError

    monkeypatch.setattr(socket, "create_connection", wait)
    assert not reachable("https://example.invalid/", 0.2) and not over, "it did not wait for the name server"
    release.set()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://user:secret@host/simple is bad", "https://host/simple is bad"),
        ("get http://h/x.gguf?X-Amz-Signature=abc&y=1 failed", "get http://h/x.gguf failed"),
        ("header Bearer abc.def, token hf_abcDEF123", "header Bearer …, token …"),
        ("nothing here: hf.co/user/repo", "nothing here: hf.co/user/repo"),
        ("mine is sesame", "mine is …"),
    ],
)
def test_secrets_are_taken_out(text: str, clean: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "sesame")
    assert without_secrets(text) == clean


def test_pip_knows_what_we_do_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert package_index_reachable() is None  # PIP_NO_INDEX
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", NOBODY)
    assert package_index_reachable() is False
    monkeypatch.delenv("PIP_INDEX_URL")
    config = tmp_path / "pip.conf"
    config.write_text("")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert package_index_reachable() is None


# Instead of sleeping, a line in the file SLEEPS.
_SLEEPLESS = """
import os, time
def sleep(seconds):
    with open(os.environ["SLEEPS"], "a") as file:
        file.write(f"{seconds}\\n")
time.sleep = sleep
"""


@pytest.mark.parametrize("args", [["pull", "llama3.2:1b"], ["pull"], ["pull", "user/repo:Q8_0"]])
def test_the_error_comes_within_seconds(
    args: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No process of it wants to sleep for more than 3 s together: tries after tries took 20 s."""
    (tmp_path / "sitecustomize.py").write_text(_SLEEPLESS)
    monkeypatch.setenv("SLEEPS", str(tmp_path / "sleeps"))
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    monkeypatch.setenv("HF_ENDPOINT", "http://me:hidden@127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_notthis")
    monkeypatch.setenv("PYTHONPATH", python_path(tmp_path, ROOT))
    done = subprocess.run(
        [sys.executable, "-m", "pyllamacpu", *args], capture_output=True, text=True, check=False
    )
    sleeps = (tmp_path / "sleeps").read_text().split() if (tmp_path / "sleeps").exists() else []
    assert sum(map(float, sleeps)) < 3
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not any(word in done.stderr for word in ("secret", "hidden", "hf_notthis", "Retry"))
    assert "check the network" in done.stderr


def test_links_of_pip_are_looked_at_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "package_index_reachable", lambda: False)
    assert starter._pip_retries() == ["--retries", "0"]  # PIP_FIND_LINKS is set
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(StoreError, match="no connection to the package index"):
        starter._pip_retries()


def test_the_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", NOBODY)
    with pytest.raises(StoreError, match=r"hf.co/user/repo: no connection to 127.0.0.1; check the network"):
        resolve_model("hf.co/user/repo")


@pytest.mark.parametrize(
    "bad", ["http://localhost:abc", "http://localhost:99999", "http://[::1", "mirror.org"]
)
def test_what_is_not_an_address(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert split_address(bad) is None and not reachable(bad)
    with pytest.raises(StoreError):
        resolve_model(bad)
    monkeypatch.setenv("PIP_INDEX_URL", bad)
    monkeypatch.delenv("PIP_NO_INDEX")
    assert package_index_reachable() is False
    monkeypatch.setenv("HF_ENDPOINT", bad)
    for name in ("hf.co/user/repo", "https://huggingface.co/user/repo"):
        with pytest.raises(StoreError, match=r"^HF_ENDPOINT=.* is not an address"):
            resolve_model(name)
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.setenv("https_proxy", "http://localhost:abc")
    assert not reachable("https://example.invalid")
