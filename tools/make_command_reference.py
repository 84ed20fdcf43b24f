"""Make pyllamacpu/cli/README.md: the reference of all commands, from their own `--help` at 100 columns.

    python tools/make_command_reference.py [--check]

With --check nothing is written; exits 1 when the file is out of date.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import click
from click.testing import CliRunner

from pyllamacpu.cli.main import cli

OUT = Path(__file__).resolve().parent.parent / "pyllamacpu" / "cli" / "README.md"
COLUMNS = 100
INTRODUCTION = """\
# The commands

Each command's own `--help`. This file is made by `python tools/make_command_reference.py`; do not edit it.
"""


def help_of(*command: str) -> str:
    """What `pyllamacpu [command] --help` prints."""
    result = CliRunner().invoke(
        cli, [*command, "--help"], prog_name="pyllamacpu", terminal_width=COLUMNS, catch_exceptions=False
    )
    return result.output.rstrip()


def reference() -> str:
    """The text of the file."""
    sections = [INTRODUCTION, section("pyllamacpu", help_of())]
    sections += [
        section(f"pyllamacpu {name}", help_of(name)) for name in cli.list_commands(click.Context(cli))
    ]
    return "\n".join(sections)


def section(title: str, text: str) -> str:
    return f"## {title}\n\n```text\n{text}\n```\n"


def is_current(written: str) -> bool:
    """Whether `written` says what the commands say now; versions of click break lines at other places."""
    return written.split() == reference().split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when out of date")
    if not parser.parse_args().check:
        OUT.write_text(reference(), encoding="utf-8")
    elif not OUT.exists() or not is_current(OUT.read_text(encoding="utf-8")):
        sys.exit(f"{OUT} is out of date: run python tools/make_command_reference.py")


if __name__ == "__main__":
    main()
