"""Lines from llama.cpp's documentation run as they are, with one note about what has no meaning here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from cli_letters import LetterLlama, Result, cli_home, letters, run  # noqa: F401

from pyllamacpu.cli.llama_cpp_options import command_for, translate
from pyllamacpu.cli.main import cli

pytestmark = pytest.mark.usefixtures("cli_home")
Run = Callable[..., Result]


def translated(name: str, *args: str) -> tuple[list[str], list[str]]:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    line = translate(command, name, args, click.Context(command, info_name=name))
    return line.args, line.ignored


@pytest.mark.parametrize(
    ("name", "line", "args", "ignored"),
    [
        ("chat", "-m a.gguf -ngl 99 -c 4096", "-m a.gguf -c 4096", ["-ngl 99"]),
        ("chat", "-fa on -p x", "-p x", ["-fa on"]),
        ("chat", "-fa -p x", "-p x", ["-fa"]),
        ("chat", "--flash-attn=on -cnv --color auto", "", ["--flash-attn on", "-cnv", "--color auto"]),
        ("chat", "--mlock --no-mmap --no-warmup --jinja -i", "", "--mlock --no-mmap --no-warmup --jinja -i"),
        ("chat", "--n_gpu_layers 3 --ctx_size 99", "--ctx-size 99", ["--n-gpu-layers 3"]),
        ("chat", "-hf u/r:Q4_K_M", "--model hf.co/u/r:Q4_K_M", []),
        ("chat", "-hf u/r:Q8_0 -hff x.gguf -st", "-st --model hf.co/u/r/x.gguf", []),
        ("chat", "-mu https://hf.co/u/r/x.gguf", "--model https://hf.co/u/r/x.gguf", []),
        ("chat", "--chat-template-file t.jinja", "--chat-template t.jinja", []),
        ("complete", "-p -ngl -n -1", "-p -ngl -n -1", []),
        ("complete", "-c4096 -n-2 -- -ngl", "-c 4096 -n -2 -- -ngl", []),
        ("complete", "--prompt=-ngl -no-cnv", "--prompt=-ngl", ["-no-cnv"]),
        ("bench", "-m a.gguf -ngl 10,20 -fa 1 -mmp 0 -p 16", "-m a.gguf -p 16", "-ngl 10,20|-fa 1|-mmp 0"),
        ("bench", "-hf u/r --no-warmup -nkvo 0,1", "--no-warmup --model hf.co/u/r", ["-nkvo 0,1"]),
        ("perplexity", "-m a.gguf -f w.raw -ngl 99 -s 1", "-m a.gguf -f w.raw", ["-ngl 99", "-s 1"]),
        ("imatrix", "-m a.gguf -f c.txt -ngl 99 -fa", "-m a.gguf -f c.txt", ["-ngl 99", "-fa"]),
        ("quantize", "in.gguf out.gguf Q4_K_M 8", "in.gguf out.gguf Q4_K_M 8", []),
        ("chat", "--pack-cache -ngl 99 -p hi", "--pack-cache= -p hi", ["-ngl 99"]),
        ("chat", "--pack-cache -ngl 99 m.gguf", "--pack-cache= m.gguf", ["-ngl 99"]),
        ("chat", "--pack-cache -hf a/b -p hi", "--pack-cache= -p hi --model hf.co/a/b", []),
        ("chat", "-p hi --pack-cache", "-p hi --pack-cache=", []),
        ("chat", "--pack-cache dir -p hi", "--pack-cache dir -p hi", []),
        ("chat", "--pack-cache=dir -fa", "--pack-cache=dir", ["-fa"]),
        ("bench", "-m a.gguf -hf u/r", "-m a.gguf --model hf.co/u/r", []),
        ("chat", "-p -m -hf u/r", "-p -m --model hf.co/u/r", []),
    ],
)
def test_lines_of_the_documentation(name: str, line: str, args: str, ignored: list[str] | str) -> None:
    if isinstance(ignored, str):
        ignored = ignored.split("|") if "|" in ignored else ignored.split()
    assert translated(name, *line.split()) == (args.split(), ignored)


@pytest.mark.parametrize("line", ["-cnvx", "-cx", "-vst", "-mmodel.gguf", "-ts", "--no-such", "-ngl99x"])
def test_short_options_are_whole_words(line: str, run: Run) -> None:  # noqa: F811
    """`-cnv` was read as `-c nv`; what neither program knows is an error that names it."""
    name = line if line != "-ts" else "-tsx"
    result = run("chat", name)
    assert result.code == 2
    assert result.err.startswith(f"error: No such option '{name}'") or name in result.err


def test_the_near_spelling_is_offered(run: Run) -> None:  # noqa: F811
    assert "-m model.gguf" in run("chat", "-mmodel.gguf").err
    assert "--temp" in run("chat", "--tempp", "1").err


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("perplexity", "--mmproj g"),
        ("chat", "--rope-scale 4"),
        ("bench", "--list-devices"),
    ],
)
def test_what_would_change_the_result_is_refused(name: str, line: str, run: Run) -> None:  # noqa: F811
    result = run(name, *line.split())
    assert result.code == 2 and line.split()[0] in result.err


@pytest.mark.parametrize("given", ["-m a.gguf", "--model=a.gguf", "-mu https://hf.co/u/r/x.gguf"])
@pytest.mark.parametrize("command", ["chat", "complete", "perplexity", "tokenize", "imatrix"])
def test_one_model_is_given(given: str, command: str, run: Run) -> None:  # noqa: F811
    for line in (f"{given} -hf a/b", f"-hf a/b {given}"):
        result = run(command, *line.split())
        assert result.code == 2 and "give one model: -" in result.err and "or -hf a/b" in result.err


def test_values_that_may_be_missing_swallow_no_option(run: Run) -> None:  # noqa: F811
    """Of every option of every command whose value may be left out."""
    found = 0
    for name in cli.list_commands(click.Context(cli)):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        for option in command.params:
            if isinstance(option, click.Option) and option._flag_needs_value:
                word, found = option.opts[0], found + 1
                assert translated(name, word, "-ngl", "9") == ([f"{word}={option.flag_value}"], ["-ngl 9"])
    assert found > 5


def test_one_note_on_stderr(run: Run, letters: type[LetterLlama]) -> None:  # noqa: F811
    line = "-m m.gguf -ngl 99 -fa -cnv --mlock --no-mmap --no-warmup --jinja --color -i -st -p hello"
    result = run("chat", *line.split())
    assert (result.code, result.out) == (0, "Paris\n")
    assert result.err == (
        "note: -ngl 99, -fa, -cnv, --mlock, --no-mmap, --no-warmup, --jinja, --color, -i "
        "have no meaning here and are ignored\n"
    )


def test_no_conversation_is_complete(run: Run, letters: type[LetterLlama]) -> None:  # noqa: F811
    """llama-cli is both commands; what is said decides."""
    assert command_for("chat", ["-no-cnv"]) == "complete"
    assert command_for("complete", ["-cnv"]) == "chat"
    assert command_for("bench", ["-cnv"]) == "bench"
    result = run("chat", "-m", "m.gguf", "-no-cnv", "-p", "Once")
    assert (result.code, result.out) == (0, "OnceParis\n")
    assert result.err == (
        "note: this line is for `pyllamacpu complete`; -no-cnv has no meaning here and is ignored\n"
    )


def test_offline_and_token_go_to_the_hubs_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    assert translated("chat", "--offline", "-hft", "hf_x") == ([], [])
    assert (os.environ["HF_HUB_OFFLINE"], os.environ["HF_TOKEN"]) == ("1", "hf_x")


def test_a_missing_value_is_said(run: Run, tmp_path: Path) -> None:  # noqa: F811
    assert "requires an argument" in run("chat", "-hf").err
    assert "give both" in run("chat", "-hff", "x.gguf").err


def test_the_servers_own_words() -> None:
    line = "-m a.gguf -c 4096 -np 4 -ngl 99 -fa -cb --jinja -b 2048 --slots --port 8080 --metrics"
    args, ignored = translated("serve", *line.split())
    assert args == ["-m", "a.gguf", "-c", "4096", "-np", "4", "--port", "8080", "--metrics"]
    assert ignored == ["-ngl 99", "-fa", "-cb", "--jinja", "-b 2048", "--slots"]
    assert translated("serve", "--temp", "0", "-n", "9", "-ngl", "1") == ([], ["-ngl 1"])
    command = cli.get_command(click.Context(cli), "serve")
    assert command is not None
    made = translate(command, "serve", ["--temp", "0", "-fa"], click.Context(command, info_name="serve"))
    assert made.note() == (
        "note: -fa has no meaning here and is ignored; --temp 0: ignored, each request says that itself"
    )


def test_every_option_of_a_command_goes_through() -> None:
    """What a command has itself is never taken for one of llama.cpp's."""
    for name in cli.list_commands(click.Context(cli)):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                for word in (word for word in parameter.opts + parameter.secondary_opts if word.strip()):
                    values = [] if parameter.is_flag else ["1"] * parameter.nargs
                    assert translated(name, word, *values) == ([word, *values], [])
