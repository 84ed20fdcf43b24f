"""`complete`, `tokenize`, `list` and `pull`, with a model of letters.

Covers cli/complete.py, cli/pull.py, cli/tokenize.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
from cli_letters import LetterLlama, LetterTokenizer, Piece, Result, cli_home, letters, run  # noqa: F401

import pyllamacpu
from pyllamacpu.cli.output import Screen
from pyllamacpu.errors import OptionError

pytestmark = pytest.mark.usefixtures("cli_home")

# complete and tokenize


@pytest.mark.parametrize(
    "args, stdin, out, prompt",
    [
        (["-p", "The capital is "], b"", "The capital is Paris\n", b"The capital is "),
        (["-p", "x", "--no-display-prompt"], b"", "Paris\n", b"x"),
        (["-p", "x", "-n", "2"], b"", "xPa\n", b"x"),
        (["-p", "x", "-n", "0"], b"", "x\n", b"x"),
        (["-p", r"a\nb</s>"], b"", "a\nb</s>Paris\n", b"a\nb\2"),
        (["-p", r"a\nb", "--no-escape"], b"", "a\\nbParis\n", b"a\\nb"),
        ([], b"from stdin\n", "from stdinParis\n", b"from stdin"),
        (["-f", "-"], b"two\n\n", "two\nParis\n", b"two\n"),
        ([], rb"raw \n", "raw \\nParis\n", rb"raw \n"),
        (["-e"], rb"raw \n", "raw \nParis\n", b"raw \n"),
        ([], b"\xff\xfe", "\ufffd\ufffdParis\n", b"\xff\xfe"),
    ],
)
def test_complete(
    args: list[str],
    stdin: bytes,
    out: str,
    prompt: bytes,
    letters: type[LetterLlama],
    run: Callable[..., Result],
) -> None:
    result = run("complete", "-m", "m.gguf", *args, stdin=stdin)
    assert (result.code, result.out, result.err) == (0, out, "")
    assert letters.made[0].calls[0][0] == [1, *prompt]


def test_a_prompt_that_cannot_fit_is_not_encoded(
    letters: type[LetterLlama], run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("long.txt").write_bytes(b"x" * 5000)
    monkeypatch.setattr(LetterTokenizer, "encode", None)
    result = run("complete", "-m", "m.gguf", "-f", "long.txt")
    assert result.code == 1 and result.err.startswith("error: 1250 tokens do not fit in the context of 1000")


def test_complete_options(letters: type[LetterLlama], run: Callable[..., Result]) -> None:
    result = run(
        "complete", "-m", "m.gguf", "-p", "x", "--temp", "0", "--perf", "-r", r"\n\n", "--ignore-eos"
    )
    assert re.search(r"prompt 2 tokens, 2.0 tokens/s; answer 5 tokens, 5.0 tokens/s", result.err)
    _, sampling, limit, stop = letters.made[0].calls[0]
    assert (sampling.temperature, limit, list(stop)) == (0, None, ["\n\n"])
    assert sampling.logit_bias == ((2, float("-inf")),)


@pytest.mark.parametrize("limit, told", [(None, True), ("3", False), ("9", True)])
def test_a_text_that_the_context_cuts_says_so(
    limit: str | None, told: bool, letters: type[LetterLlama], run: Callable[..., Result]
) -> None:
    class Cut(letters):  # type: ignore[valid-type,misc]
        def stream(self, *args: Any, **more: Any) -> Iterator[Piece]:
            for event in super().stream(*args, **more):
                reason = event.finish_reason and "length"
                yield replace(event, finish_reason=reason)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vars(pyllamacpu), "Llama", Cut)
        result = run("complete", "-m", "m.gguf", "-p", "x", *(["-n", limit] if limit else []))
    said = "[the context of 1000 tokens is full; the answer ends here]\n"
    assert (result.code, result.err) == (0, said if told else "")


def test_nothing_is_shown_before_the_options_are_checked(
    letters: type[LetterLlama], run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any, **more: Any) -> Iterator[Piece]:
        raise OptionError("a bias that there is not")
        yield

    monkeypatch.setattr(letters, "stream", refused)
    result = run("complete", "-m", "m.gguf", "-p", "hi")
    assert (result.code, result.out, result.err) == (1, "", "error: a bias that there is not\n")


def test_an_error_after_the_text_is_on_a_line_of_its_own(
    letters: type[LetterLlama], run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **more: Any) -> Iterator[Piece]:
        yield Piece("one")
        raise OptionError("it broke")

    monkeypatch.setattr(letters, "stream", broken)
    assert run("complete", "-m", "m.gguf", "-p", "hi ").out == "hi one"
    monkeypatch.setattr(Screen, "__init__", partialmethod(seen_screen, Screen.__init__))
    assert run("complete", "-m", "m.gguf", "-p", "hi ").out == "hi one\n"


def seen_screen(self: Screen, init: Callable[..., None]) -> None:
    init(self)
    self.seen = True


@pytest.mark.parametrize("command", ["complete", "chat"])
def test_verbose_is_a_line_behind_the_text(
    command: str, letters: type[LetterLlama], run: Callable[..., Result]
) -> None:
    """The model itself would print it while the last words are held back."""
    result = run(command, "-m", "m.gguf", "-p", "hi", "-v", "-st")
    assert result.out.endswith("Paris\n") and result.err.count("tokens/s") == 2
    assert letters.made[0].arguments["verbose"] is False


@pytest.mark.parametrize(
    "args",
    [
        *(["chat", "-m", name] for name in ("", " ")),
        ["chat", ""],
        *([command, "-m", "", "-p", "x"] for command in ("complete", "tokenize")),
        *(["serve", "-m", name] for name in ("", "name=", " ")),
        ["batch", "-m", "", "in.jsonl", "out.jsonl"],
        ["bench", "-m", ""],
        ["perplexity", "-m", "", "-f", "m.gguf"],
        ["imatrix", "-m", "", "-f", "m.gguf"],
        ["show", ""],
        ["pull", ""],
        ["complete", "-m", "m.gguf", "-p", "x", "--guard", ""],
        ["complete", "-m", "m.gguf", "-p", "x", "--draft-model", ""],
    ],
)
@pytest.mark.usefixtures("letters")
def test_an_empty_name_is_not_the_starter_model(args: list[str], run: Callable[..., Result]) -> None:
    result = run(*args)
    assert result.code == 1 and "the model's name is empty" in result.err


@pytest.mark.parametrize(
    "args, stdin, out",
    [
        (["-p", "ab"], b"", "     1 -> '<s>'\n    97 -> 'a'\n    98 -> 'b'\n"),
        (["-p", "ab", "--ids"], b"", "[1, 97, 98]\n"),
        (["-p", "ab", "--ids", "--no-bos"], b"", "[97, 98]\n"),
        (["-p", "</s>", "--ids"], b"", "[1, 2]\n"),
        (["-p", "</s>", "--ids", "--no-parse-special"], b"", "[1, 60, 47, 115, 62]\n"),
        (["--stdin", "--ids", "--show-count"], b"a\n", "[1, 97, 10]\nTotal number of tokens: 3\n"),
        (["--ids", "--no-bos"], b"\\n", "[92, 110]\n"),
        (["--ids", "--no-bos", "-p", ""], b"", "[]\n"),
        (["--no-bos"], b"\xff", "   255 -> '<ff>' (utf-8 decode failure)\n"),
    ],
)
@pytest.mark.usefixtures("letters")
def test_tokenize(args: list[str], stdin: bytes, out: str, run: Callable[..., Result]) -> None:
    result = run("tokenize", "-m", "m.gguf", *args, stdin=stdin)
    assert (result.code, result.out, result.err) == (0, out, "")


def test_tokenize_loads_no_weights(letters: type[LetterLlama], run: Callable[..., Result]) -> None:
    run("tokenize", "-m", "m.gguf", "-p", "x")
    assert letters.made[0].arguments["vocab_only"] is True


def test_no_prompt_on_a_terminal_is_wrong_usage(run: Callable[..., Result]) -> None:
    assert run("complete", terminal=True).code == 2
    assert run("tokenize", terminal=True).code == 2


def test_a_file_without_tokenizer(
    letters: type[LetterLlama], run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = letters.__init__

    def without(self: Any, *args: Any, **more: Any) -> None:
        made(self, *args, **more)
        self.text_tokenizer = None

    monkeypatch.setattr(letters, "__init__", without)
    for command in ("complete", "tokenize", "chat"):
        result = run(command, "-m", "m.gguf", "-p", "x")
        assert result.code == 1 and "tokenizer" in result.err


# list and pull


def test_list_and_pull(cli_home: Path, run: Callable[..., Result]) -> None:
    empty = run("list")
    assert (empty.code, empty.out) == (0, "") and "pyllamacpu pull" in empty.err
    (cli_home / "models").mkdir(parents=True)
    (cli_home / "models" / "Alpha.Q4_0.gguf").write_bytes(b"x" * 1_234_567)
    lines = run("list").out.splitlines()
    assert lines[0].split() == ["NAME", "SIZE", "MODIFIED"]
    assert re.match(r"Alpha\.Q4_0\s+1\.23 MB\s+\d{4}-\d\d-\d\d \d\d:\d\d$", lines[1])
    assert run("pull", "alpha").out == f"{cli_home / 'models' / 'Alpha.Q4_0.gguf'}\n"
