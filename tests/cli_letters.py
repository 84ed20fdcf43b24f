"""Shared by the tests of the command line: a model of letters, a stdin, and ways to run commands."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import python_path

import pyllamacpu
import pyllamacpu.cli.chat_engine
from pyllamacpu.cli.main import main
from pyllamacpu.cli.usage import Usage
from pyllamacpu.sampling.options import SamplingOptions

ROOT = Path(__file__).parent.parent


@pytest.fixture
def cli_home(no_starter: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of its own, without a network."""
    monkeypatch.setenv("PYLLAMACPU_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return tmp_path / "home"


@dataclass(frozen=True)
class Piece:
    text: str
    tokens: tuple[int, ...] = ()
    finish_reason: str | None = None
    stats: Usage | None = None


class LetterTemplate:
    warning: str | None = None
    stop_tokens: Sequence[str] = ("</s>",)
    stop_strings: Sequence[str] = ("USER:",)
    call_form: Any = None


class LetterTokenizer:
    """Bytes as tokens; 1 is BOS and 2 the end."""

    add_bos, bos, eog = True, 1, frozenset({2})
    warnings: Sequence[str] = ()

    def token_id(self, piece: str) -> int | None:
        return 2 if piece == "</s>" else None

    def fewest_tokens(self, text: str | bytes) -> int:
        return len(text) // len(b"</s>")

    def encode(self, text: str | bytes, add_special: bool = True, parse_special: bool = False) -> list[int]:
        content = text.encode() if isinstance(text, str) else text
        content = content.replace(b"</s>", b"\2") if parse_special else content
        return [*([1] if add_special else []), *content]

    def token_bytes(self, token: int, special: bool = False) -> bytes:
        return bytes([token]) if token > 2 else b"<s>" if special else b""


class LetterLlama:
    """Stands for `Llama`: answers with `answer`, and remembers how it was called."""

    made: list[LetterLlama]
    answer = "Paris"
    context = 1000
    reads_images = False

    def __init__(self, model_path: str, **arguments: Any) -> None:
        self.model_path, self.arguments = model_path, arguments
        self.text_tokenizer, self.metadata = LetterTokenizer(), {"general.name": "Letters"}
        self.template = LetterTemplate()
        self.calls: list[tuple[list[int], SamplingOptions, int | None, Sequence[str]]] = []
        self.ends: list[frozenset[int]] = []
        self.loops: bool | None = None
        type(self).made.append(self)

    def n_ctx(self) -> int:
        return self.context

    def stream(
        self,
        tokens: list[int],
        options: SamplingOptions,
        max_tokens: int | None,
        stop: Sequence[str],
        on_prompt: Any,
        end_tokens: Iterable[int] = (),
        stop_loops: bool = False,
        grammar: Any = None,
        n_said: int = 0,
    ) -> Iterator[Piece]:
        self.calls.append((tokens, options, max_tokens, stop))
        self.loops = stop_loops
        self.ends.append(frozenset(end_tokens))
        text = self.answer if max_tokens is None else self.answer[:max_tokens]
        for letter in text:
            yield Piece(letter, (ord(letter),))
        yield Piece("", (), "stop", Usage(len(tokens), 0, len(text), 1.0, 1.0))


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[LetterLlama]:
    """Every command gets a model of letters; m.gguf in the current directory is its file."""

    class Made(LetterLlama):
        pass

    Made.made = []
    monkeypatch.setitem(vars(pyllamacpu), "Llama", Made)

    def render(_: Any, messages: list[dict[str, str]]) -> list[int]:
        return [ord(letter) for message in messages for letter in f"[{message['role']}]{message['content']}"]

    monkeypatch.setattr(pyllamacpu.cli.chat_engine.ChatEngine, "render", render)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    return Made


class Stdin(io.TextIOWrapper):
    """A stdin with this content, or a terminal."""

    def __init__(self, content: bytes = b"", terminal: bool = False) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command line in this process."""

    def call(*args: str, stdin: bytes = b"", terminal: bool = False) -> Result:
        monkeypatch.setattr(sys, "stdin", Stdin(stdin, terminal))
        with pytest.raises(SystemExit) as ended:
            main(args)
        captured = capsys.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return call


def process(*args: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run `python -m pyllamacpu` in a process of its own."""
    env = {**os.environ, "PYTHONPATH": python_path(ROOT)}
    command = [sys.executable, "-m", "pyllamacpu", *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False, **more)
