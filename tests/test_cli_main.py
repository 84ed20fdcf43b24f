"""The command line as a whole: help, usage, errors and exit codes.

Covers __main__.py, cli/interrupts.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from cli_letters import ROOT, Result, cli_home, letters, process, run  # noqa: F401
from click.testing import CliRunner
from conftest import python_path

import pyllamacpu
import pyllamacpu.cli.chat_engine
from pyllamacpu.cli.main import _COMMANDS, cli, main
from pyllamacpu.errors import PyllamacpuError, StoreError

pytestmark = pytest.mark.usefixtures("cli_home")

# Help, version, usage


def test_python_m_is_the_command() -> None:
    result = process("--help")
    assert result.returncode == 0
    for name in _COMMANDS:
        assert re.search(rf"^  {name} ", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", [name for name in _COMMANDS if name != "show"])
def test_every_help_shows_an_example(name: str, run: Callable[..., Result]) -> None:
    result = run(name, "--help")
    assert result.code == 0
    assert re.search(rf"Examples?:\n\s+.*pyllamacpu {name}", result.out)


def test_help_is_a_command_too(run: Callable[..., Result]) -> None:
    assert run("help") == run("--help")
    assert run("help", "show") == run("show", "--help")
    assert run("help", "--help") == run("--help")
    assert run("help", "nothing").code == 2


@pytest.mark.parametrize(("name", "ours"), [("models", "list"), ("ls", "list"), ("download", "pull")])
def test_names_of_other_programs_for_commands(name: str, ours: str, run: Callable[..., Result]) -> None:
    assert run(name, "--help").out == run(ours, "--help").out


def test_version_is_the_packages(run: Callable[..., Result]) -> None:
    assert run("--version").out == f"pyllamacpu {pyllamacpu.__version__}\n"


def test_help_and_version_import_nothing_heavy() -> None:
    script = (
        "import sys\nfrom pyllamacpu.cli.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit as e: assert not e.code\n"
        "heavy = {'numpy', 'huggingface_hub', 'prompt_toolkit', 'rich', 'jinja2', 'pyllamacpu._native'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": python_path(ROOT)}
    for args in (["--version"], ["chat", "--help"], ["complete", "--help"], ["list"]):
        subprocess.run([sys.executable, "-c", script, *args], env=env, check=True, capture_output=True)


def test_the_class_is_imported_without_what_few_need() -> None:
    """Downloads, child processes, chats, and the tokenizers' libraries, of which a model needs one."""
    rare = {"ssl", "socket", "subprocess", "zipfile", "html", "regex", "sentencepiece", "huggingface_hub"}
    rare |= {"jinja2", "logging", "pyllamacpu.text.tool_calls", "pyllamacpu.sampling.schemas"}
    rare |= {"pyllamacpu.store.hub", "pyllamacpu.gguf.writer", "pyllamacpu.engine.disk_cache"}
    check_not_imported(rare, "pyllamacpu.api.llama, pyllamacpu.cli.main")


def test_a_classifier_is_imported_without_what_few_need() -> None:
    """From the start of `prompt-guard` to a score takes hardly longer than Python, numpy and the model do."""
    rare = {"ssl", "socket", "subprocess", "shutil", "difflib", "hashlib", "pyllamacpu.store.resolve"}
    check_not_imported(
        rare, "pyllamacpu.cli.main, pyllamacpu.cli.prompt_guard, pyllamacpu.safety.prompt_guard"
    )


def check_not_imported(rare: set[str], modules: str) -> None:
    script = f"import sys, {modules}; print({rare} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": python_path(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=env, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "args, says",
    [
        (["nonsense"], "nonsense"),
        (["chat", "--tempp", "1"], "--tempp"),
        (["chat", "--top-k", "many"], "--top-k"),
        (["chat", "--top-p", "7"], "top_p: 7.0 is out of range; allowed: 0 to 1"),
        (["complete", "-ctk", "q9_9"], "q8_0"),
        (["complete", "-c", "-5"], "-c"),
        (["complete", "-p", "x", "-f", "y"], "not both"),
        (["complete", "-l", "word+1", "-p", "x"], "15043+1"),
        (["complete", "-p", "x", "--sampling-seq", "kz"], "unknown sampler"),
        (["complete", "-p", "x", "--samplers", "top_k;bottom_k"], "bottom_k"),
        (["tokenize", "-p", "x", "--stdin"], "only one"),
        (["tokenize", "-m"], "-m"),
        (["pull", "a", "b"], "b"),
    ],
)
def test_wrong_usage_is_one_line_and_2(args: list[str], says: str, run: Callable[..., Result]) -> None:
    result = run(*args)
    assert result.code == 2 and result.out == ""
    assert result.err.count("\n") == 1 and result.err.startswith("error: ")
    assert says in result.err and "--help`" in result.err


@pytest.mark.parametrize(
    "args, says",
    [
        (["complete", "-m", "missing.gguf", "-p", "x"], "missing.gguf: no such file"),
        (["chat", "-m", "nobody/model", "-p", "x"], "hf.co/nobody/model"),
        (["chat", "-p", "x"], "starter model"),
        (["complete", "-m", "m.gguf", "-p", ""], "prompt is empty"),
        (["complete", "-m", "m.gguf"], "prompt is empty"),
        (["complete", "-m", "m.gguf", "-f", "none.txt"], "none.txt: no such file"),
        (["complete", "-m", "m.gguf", "-f", "."], "Is a directory"),
        (["chat", "-m", "m.gguf"], "nothing to answer"),
        (["chat", "-m", "missing.gguf"], "missing.gguf: no such file"),
        (["complete", "-m", "no such"], "no such: no such model"),
        (["chat", "-m", "m.gguf", "-p", "x", "--chat-template", "no/such.jinja"], "no such file"),
        (["chat", "-m", "m.gguf", "-p", "x", "-sysf", "none.txt"], "none.txt"),
        (["pull", "hf.co/user/repo"], "HF_HUB_OFFLINE"),
    ],
)
@pytest.mark.usefixtures("letters")
def test_errors_are_one_line_and_1(args: list[str], says: str, run: Callable[..., Result]) -> None:
    result = run(*args)
    assert result.code == 1 and result.out == ""
    *warnings, last = [line for line in result.err.splitlines() if not line.startswith("fetching")]
    assert warnings == [] and last.startswith("error: ") and says in last


def test_an_error_with_line_breaks_stays_one_line(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreError("first\nsecond")

    monkeypatch.setattr("pyllamacpu.store.list_models", fail)
    assert run("list").err == "error: first second\n"


@pytest.mark.parametrize(
    "error, code, says",
    [
        (KeyboardInterrupt(), 130, ""),
        (click.Abort(), 130, ""),
        (MemoryError(), 1, "out of memory"),
        (OSError(5, "Input/output error", "disk"), 1, "disk: Input/output error"),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, says: str, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("pyllamacpu.store.list_models", fail)
    result = run("list")
    assert result.code == code and says in result.err and "Traceback" not in result.err


def test_the_bare_command_is_its_help() -> None:
    done = process()
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == process("--help").stdout
    assert done.stdout.startswith("Usage: pyllamacpu") and "\n  chat " in done.stdout


def test_words_of_a_file_do_not_reach_the_terminal_raw(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        warnings.warn("a \x1b[31mred\x07 warning", UserWarning, stacklevel=1)
        raise PyllamacpuError("name \x1b[2J\r\x9b31m\u202e of\n a file")

    monkeypatch.setattr("pyllamacpu.store.list_models", fail)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = run("list")
    assert result.code == 1
    assert (
        result.err
        == "warning: a \ufffd[31mred\ufffd warning\nerror: name \ufffd[2J \ufffd31m\ufffd of a file\n"
    )


def test_a_bug_is_no_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("pyllamacpu.store.list_models", fail)
    with pytest.raises(ZeroDivisionError):
        main(["list"])


LETTERS_MAIN = """
import sys
sys.path.insert(0, {tests!r})
import pyllamacpu, cli_letters as t
class Made(t.LetterLlama):
    made = []
    answer = {answer}
vars(pyllamacpu)["Llama"] = Made
from pyllamacpu.cli.main import main
main(sys.argv[1:])
"""


def letters_process(tmp_path: Path, *args: str, answer: str = "'x' * 10") -> subprocess.Popen[str]:
    """The command line with a model of letters in a process of its own."""
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    script = LETTERS_MAIN.format(tests=str(ROOT / "tests"), answer=answer)
    return subprocess.Popen(
        [sys.executable, "-c", script, *args, "-m", str(tmp_path / "m.gguf")],
        env={**os.environ, "PYTHONPATH": python_path(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    running = letters_process(tmp_path, "complete", "-p", "x", answer="'line\\n' * 200000")
    assert running.stdout is not None and running.stderr is not None
    with running:
        running.stdout.read(5)
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == 141


def test_interrupt_ends_a_completion_quietly(tmp_path: Path) -> None:
    running = letters_process(
        tmp_path, "complete", "-p", "x", answer="__import__('itertools').repeat('y', 10**12)"
    )
    assert running.stdout is not None
    running.stdout.read(3)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "Traceback" not in err


@pytest.mark.parametrize("at", ["click", "pyllamacpu.cli.main", "pyllamacpu.cli.show", "numpy"])
def test_interrupts_while_modules_are_imported_end_it_quietly(at: str, tmp_path: Path) -> None:
    """As a hand does it: the signal comes while that module is looked for."""
    script = (
        "import os, runpy, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == {at!r}: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.argv = ['pyllamacpu', 'show', 'x.gguf']\n"
        "runpy.run_module('pyllamacpu', run_name='__main__', alter_sys=True)\n"
    )
    env = {**os.environ, "PYTHONPATH": python_path(ROOT)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=env, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (130, b"", b"")


def test_nothing_is_imported_before_interrupts_are_quiet() -> None:
    script = (
        "import sys, signal\nbefore = set(sys.modules)\nimport pyllamacpu.__main__\n"
        "names = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert names <= {'pyllamacpu', '__future__'}, names\n"
        "assert 'pyllamacpu.cli.main' not in sys.modules"
    )
    env = {**os.environ, "PYTHONPATH": python_path(ROOT)}
    subprocess.run([sys.executable, "-c", script], env=env, check=True, timeout=60)


def test_ignored_interrupts_stay_ignored() -> None:
    """As a shell starts what is to run in the background."""
    script = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nsys.argv = ['x', '--version']\n"
        "import pyllamacpu.__main__\ntry: pyllamacpu.__main__.main()\n"
        "finally: assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN"
    )
    env = {**os.environ, "PYTHONPATH": python_path(ROOT)}
    subprocess.run([sys.executable, "-c", script], env=env, check=True, timeout=60, capture_output=True)


# What a newcomer meets


@pytest.mark.parametrize(
    "args",
    [
        ["chat", "-m", "quite-another-name.gguf", "-p", "x"],
        ["complete", "-m", "quite-another-name.gguf", "-p", "x"],
        ["show", "quite-another-name.gguf"],
        ["tokenize", "-m", "quite-another-name.gguf", "-p", "x"],
        ["quantize", "quite-another-name.gguf", "Q4_0"],
        ["bench", "-m", "quite-another-name.gguf"],
        ["pull", "quite-another-name.gguf"],
        ["imatrix", "-m", "quite-another-name.gguf", "-f", "m.gguf"],
        ["imatrix", "--in-file", "quite-another-name.gguf"],
        ["perplexity", "-m", "quite-another-name.gguf", "-f", "m.gguf"],
        ["perplexity", "-m", "m.gguf", "-f", "quite-another-name.gguf"],
        ["complete", "-m", "m.gguf", "-f", "quite-another-name.gguf"],
        ["chat", "-m", "m.gguf", "-p", "x", "-sysf", "quite-another-name.gguf"],
        ["quantize", "-f", "quite-another-name.gguf", "m.gguf", "o.gguf", "--target-size", "1GB"],
        ["convert", "quite-another-name.gguf"],
    ],
)
@pytest.mark.usefixtures("letters")
def test_a_missing_file_has_one_message(args: list[str], run: Callable[..., Result]) -> None:
    result = run(*args, terminal="-f" not in args)
    assert result.code == 1
    assert re.fullmatch(r"error: (\S*/)?quite-another-name\.gguf: no such file( or folder)?\n", result.err)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["tokenize", "-p"], "Option '-p' requires an argument. (see `pyllamacpu tokenize --help`)"),
        (["tokenize", "x"], "(see `pyllamacpu tokenize --help`)"),
        (["chatt"], "No such command 'chatt'. Did you mean chat? (see `pyllamacpu --help`)"),
        (["zzz"], "No such command 'zzz'. (see `pyllamacpu --help`)"),
    ],
)
def test_wrong_usage_names_the_commands_help(args: list[str], says: str, run: Callable[..., Result]) -> None:
    result = run(*args)
    assert result.code == 2 and says in result.err


def test_the_list_of_commands_has_whole_sentences(run: Callable[..., Result]) -> None:
    commands = run("--help").out.split("Commands:")[1]
    assert commands.count("\n  c") >= 3 and "..." not in commands


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["chat", "-c", "abc"], "'abc' is not a valid integer."),
        (["serve", "--port", "x"], "'x' is not a valid integer."),
        (["chat", "-c", "-5"], "-5 is not in the range x>=0."),
        (["quantize", "a.gguf", "--target-bpw", "nan"], "nan is not in the range 1<=x<=32."),
        (["bench", "--delay", "nan"], "nan is not in the range 0<=x<=3600."),
        (["serve", "--itl-target", "nan"], "nan is not in the range x>=1."),
        (["bench", "--delay", "x"], "'x' is not a valid number."),
    ],
)
def test_wrong_numbers_are_called_numbers(args: list[str], says: str, run: Callable[..., Result]) -> None:
    result = run(*args)
    assert result.code == 2 and says in result.err


def test_help_states_defaults_and_the_environment(run: Callable[..., Result]) -> None:
    help_text = " ".join(run("--help").out.split())
    for name in (
        "PYLLAMACPU_HOME",
        "PYLLAMACPU_ISA",
        "WHOLE_TILES",
        "HF_HOME",
        "HF_ENDPOINT",
        "HF_TOKEN",
        "NO_COLOR",
    ):
        assert name in help_text
    chat = " ".join(run("chat", "--help").out.split())
    for option in (
        "-c, --ctx-size",
        "-t, --threads",
        "-b, --batch-size",
        "-ctk, --cache-type-k",
        "-n, --pred",
    ):
        at = chat.index(option)
        assert "[default: " in chat[at : at + 170], option


@pytest.mark.parametrize(
    ("typed", "args"),
    [
        ("run", ["m.gguf", "-p", "x"]),
        ("llama-cli", ["-m", "m.gguf", "-p", "x", "-ngl", "9"]),
        ("chat", ["m.gguf"]),
    ],
)
@pytest.mark.usefixtures("letters")
def test_other_programs_names_are_commands(typed: str, args: list[str], run: Callable[..., Result]) -> None:
    result = run(typed, *args, stdin=b"Hi")
    assert (result.code, result.out) == (0, "Paris\n")


def test_two_models_are_wrong_usage(run: Callable[..., Result]) -> None:
    assert run("chat", "a.gguf", "-m", "b.gguf").err.startswith("error: give one model: a.gguf or -m b.gguf")


@pytest.mark.parametrize("name", ["", *_COMMANDS])
def test_help_fits_80_columns(name: str) -> None:
    """Examples too, which are not wrapped: a terminal would break their words."""
    shown = CliRunner().invoke(
        cli, [*filter(None, [name]), "--help"], prog_name="pyllamacpu", terminal_width=80
    )
    assert shown.exit_code == 0
    assert [line for line in shown.output.splitlines() if len(line) > 80] == []
