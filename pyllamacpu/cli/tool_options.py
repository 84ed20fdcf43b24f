"""The options of `chat` that let the model call Python functions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllamacpu.cli.options import options

if TYPE_CHECKING:
    from pyllamacpu.cli.toolbox import Toolbox

tool_options = options(
    click.option(
        "--tools",
        "tool_file",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Let the model call this file's public Python functions that have docstrings. You are asked "
        "before each call.",
    ),
    click.option(
        "--tool-choice",
        metavar="CHOICE",
        help="auto: calls as the model likes (the default); required, or a function's name: each message "
        "leads to a call.",
    ),
    click.option("--allow-tools", is_flag=True, help="Run the functions of --tools without asking."),
)


def take_tools(parameters: dict[str, Any]) -> Toolbox | None:
    """Remove these options from the parameters of the command. Raises click.UsageError where nobody can be
    asked or for options that need --tools, OptionError for a file or a choice that cannot be used.
    """
    file, choice = parameters.pop("tool_file"), parameters.pop("tool_choice")
    unasked = parameters.pop("allow_tools")
    if file is None:
        if choice is not None or unasked:
            raise click.UsageError(f"{'--allow-tools' if unasked else '--tool-choice'} needs --tools FILE")
        return None
    if not unasked and not (sys.stdin.isatty() and (sys.stdout.isatty() or sys.stderr.isatty())):
        raise click.UsageError(
            "--tools asks before a function is run, and here is no terminal to ask on: --allow-tools runs "
            "them unasked"
        )
    from pyllamacpu.cli.tool_files import load_tools
    from pyllamacpu.cli.toolbox import Toolbox

    tools = load_tools(file)
    allowed = ("auto", "required", *(tool.name for tool in tools))
    if choice is not None and choice not in allowed:
        raise click.UsageError(f"--tool-choice {choice!r}: allowed: {', '.join(allowed)}")
    return Toolbox(tools, "auto" if choice is None else choice, unasked)
