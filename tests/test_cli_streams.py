"""Standard streams that are closed or full, homes that cannot be used, little memory: one line and a code.

Words of a file do not reach a terminal raw. Covers cli/streams.py, cli/list.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_letters import ROOT, cli_home  # noqa: F401
from conftest import python_path
from tiny_model import vocabulary, write_model

from pyllamacpu.cli.streams import open_streams
from pyllamacpu.progress import CONTROL, one_line, visible

pytestmark = pytest.mark.usefixtures("cli_home")
ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m"


def run(line: str, **env: str) -> tuple[int, str, str]:
    """A line of shell in which $P is this program: its code, stdout and stderr."""
    program = f"{sys.executable} -m pyllamacpu"
    values = {**os.environ, "PYTHONPATH": python_path(ROOT), "P": program, "OMP_NUM_THREADS": "1", **env}
    done = subprocess.run(
        ["bash", "-c", line],
        env=values,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("streams") / "tiny.gguf"))


ANSWER = "-m $M -p the -n 2 --temp 0"
COMMANDS = ("--version", "quantize --help", "show $M", f"complete {ANSWER}", f"chat {ANSWER} -st")


@pytest.mark.parametrize("command", COMMANDS)
def test_closed_and_full_streams(command: str, model: str) -> None:
    for stream, code, line in (
        ("> /dev/full", 1, "error: a standard stream cannot be used: No space left on device\n"),
        (">&-", 1, "error: standard output is closed, so nothing can be printed; > /dev/null is a place\n"),
        (">&- 2>&-", 1, ""),
        ("<&- >&- 2>&-", 1, ""),
    ):
        assert run(f"$P {command} {stream}", M=model) == (code, "", line), stream
    code, out, _ = run(f"$P {command} < /dev/null", M=model)
    assert code == 0 and out
    for stream in ("<&-", "2>&-", "2> /dev/full"):
        assert run(f"$P {command} {stream}", M=model)[:2] == (0, out), stream


@pytest.mark.parametrize("stream", ["2>&-", "2> /dev/full", ">&- 2>&-"])
def test_errors_keep_their_codes_when_they_cannot_be_shown(stream: str) -> None:
    assert run(f"$P show none.gguf {stream}") == (1, "", "")
    assert run(f"$P show --none {stream}") == (1 if ">&- 2" in stream else 2, "", "")


def test_no_file_gets_the_number_of_a_closed_stream() -> None:
    code = (
        "from pyllamacpu.cli.streams import open_streams\n"
        "printed = open_streams()\n"
        "file = open('/dev/null')\n"
        "raise SystemExit(file.fileno() if not printed else 99)"
    )
    assert run(f'{sys.executable} -c "{code}" <&- >&- 2>&-')[0] in range(3, 20)
    assert open_streams()


HOMES = ("/dev/null", "/nonexistent", "", "~nobody-at-all/x", "x" * 5000, "/" + "x" * 300)


@pytest.mark.parametrize("home", HOMES)
def test_homes_that_cannot_be_used(home: str, model: str) -> None:
    clean = "env -u PYLLAMACPU_HOME -u HF_HOME"
    assert run(f'{clean} "HOME=$V" $P complete -m $M -p the -n 1', M=model, V=home)[0] == 0
    for name in ("HOME", "PYLLAMACPU_HOME", "HF_HUB_CACHE"):
        code, _, err = run(f'{clean} HOME=/tmp "$N=$V" $P list', N=name, V=home)
        assert code in (0, 1) and err.count("\n") <= 1 and "Traceback" not in err, (name, err)


@pytest.mark.parametrize("megabytes", [60, 100, 200])
def test_little_address_space(megabytes: int, model: str) -> None:
    code, out, err = run(f"ulimit -v {megabytes << 10}; $P complete -m $M -p the -n 1", M=model)
    if code:
        assert (code, out, err.count("\n")) == (1, "", 1) and "rror" in err


# Words of a file


def test_words_are_made_visible() -> None:
    assert one_line(f"a\n{ESCAPE} b\t c") == "a �]0;owned��[2J�31m b c"
    assert f"{ESCAPE}\n\t".translate(CONTROL) == "�]0;owned��[2J�31m\n\t"
    read, write = os.pipe()
    with open(read), open(write, "w") as pipe:
        assert visible(ESCAPE, pipe) == ESCAPE  # a pipe gets what there is


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    pty = pytest.importorskip("pty")
    main, end = pty.openpty()
    try:
        yield main, end
    finally:
        os.close(main)


def printed(*args: str, env: dict[str, str]) -> bytes:
    """What a command prints on a terminal, stdout and stderr."""
    with terminal() as (main, end):
        command = [sys.executable, "-m", "pyllamacpu", *args]
        values = {**os.environ, "PYTHONPATH": python_path(ROOT), "COLUMNS": "100", **env}
        process = subprocess.Popen(command, env=values, stdin=subprocess.DEVNULL, stdout=end, stderr=end)
        os.close(end)
        found = b""
        while True:
            try:
                part = os.read(main, 1 << 16)
            except OSError as error:  # how Linux says that the other end is closed
                assert error.errno == errno.EIO
                break
            if not part:
                break
            found += part
        process.wait()
    return found


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with escape sequences wherever it has words."""
    metadata = vocabulary()
    pieces = [*map(str, metadata["tokenizer.ggml.tokens"])]
    pieces[-1] = f"q{ESCAPE}"
    changes = {
        "tokenizer__ggml__tokens": pieces,
        "general__name": f"nice{ESCAPE}",
        "general__size_label": ESCAPE,
        "tokenizer__ggml__pre": ESCAPE,
        "tokenizer__chat_template": "{{ messages[0].content }}" + ESCAPE,
        f"note__{ESCAPE}": ESCAPE,
    }
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "models").mkdir()
    return write_model(folder / "models" / f"m{ESCAPE.replace('/', '')}.gguf", **changes)


@pytest.mark.parametrize(
    "args",
    [
        ("show", "M"),
        ("show", "M", "--template"),
        ("show", "M", "--json"),
        ("show", "M", "--plan"),
        ("list",),
        ("tokenize", "-m", "M", "-p", f"the q{ESCAPE}"),
        ("complete", "-m", "M", "-p", f"the q{ESCAPE}", "-n", "4", "-l", "280+50", "--temp", "0"),
        ("chat", "-m", "M", "-p", "the", "-st", "-n", "4", "-l", "280+50"),
        ("bench", "-m", "M", "-p", "4", "-n", "0", "-r", "1", "-t", "1", "--no-limits"),
        ("bench", "-m", "M", "-p", "4", "-n", "0", "-r", "1", "-t", "1", "--no-limits", "-o", "csv"),
        ("quantize", "--dry-run", "M", "Q4_0"),
        ("convert", "--dry-run", "M", "-o", "/tmp/never.gguf"),
        ("perplexity", "-m", "M", "-f", "M"),
        ("show", f"none{ESCAPE}"),
    ],
    ids=lambda args: "-".join(word for word in args if word.isalpha()),
)
def test_escapes_of_a_file_do_not_reach_a_terminal(args: tuple[str, ...], hostile: Path) -> None:
    given = [str(hostile) if word == "M" else word for word in args]
    for term in ("xterm-256color", "dumb") if args[0] in ("tokenize", "complete", "chat") else ("xterm",):
        found = printed(*given, env={"PYLLAMACPU_HOME": str(hostile.parent.parent), "TERM": term})
        assert found and b"Traceback" not in found
        for raw in (b"\x1b]0;", b"\x07", b"\x1b[2J", "\x9b".encode()):
            assert raw not in found, found[max(0, found.find(raw) - 200) : found.find(raw) + 50]
