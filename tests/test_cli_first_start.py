"""The offer of a better model: once, only where the hub is, never waited for (cli/first_start.py)."""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_letters import LetterLlama, Result, cli_home, letters, run  # noqa: F401

from pyllamacpu.cli import first_start
from pyllamacpu.cli.first_start import BETTER_MODEL, BetterModelOffer
from pyllamacpu.store.starter import STARTER

pytestmark = pytest.mark.usefixtures("cli_home")


def text_in_time(offer: BetterModelOffer) -> str | None:
    offer._found.wait(5)
    return offer.text()


def test_once_where_the_hub_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "*")
        text = text_in_time(BetterModelOffer())
        assert text is not None and f"chat -m {BETTER_MODEL}" in text
        again = BetterModelOffer()
        time.sleep(0.2)
        assert again.text() is None


def test_nothing_is_said_and_nobody_waits_without_it(monkeypatch: pytest.MonkeyPatch, cli_home: Path) -> None:
    release, asked = threading.Event(), []

    def reachable(_: str) -> bool:
        release.wait(60)
        asked.append("answered")
        return False

    monkeypatch.setattr(first_start, "reachable", reachable)
    assert BetterModelOffer().text() is None and not asked, "nobody waited for the answer"
    release.set()
    assert not (cli_home / "better-model-offered").exists(), "it is said another time"


def test_the_chat_says_it_for_the_starter_model(
    monkeypatch: pytest.MonkeyPatch, letters: type[LetterLlama], run: Callable[..., Result]
) -> None:
    monkeypatch.setattr(BetterModelOffer, "text", lambda _: "a better one")
    Path(STARTER.filename).write_bytes(b"GGUF")
    assert "a better one" in run("chat", "-m", STARTER.filename, terminal=True).err
    assert "a better one" not in run("chat", "-m", "m.gguf", terminal=True).err
    assert "a better one" not in run("chat", "-m", STARTER.filename, stdin=b"Hi").err
