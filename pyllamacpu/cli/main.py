"""The command `pyllamacpu`: its subcommands, and what becomes of errors.

Exit codes: 0 done, 1 an error (one line on stderr), 2 wrong usage, 130 interrupted, 141 output unread.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

import click

from pyllamacpu import __version__
from pyllamacpu.cli.interrupts import INTERRUPTED, interrupts_raise
from pyllamacpu.cli.llama_cpp_options import command_for, translate
from pyllamacpu.cli.signals import Ended, end_by, ended_by_signals
from pyllamacpu.cli.streams import STREAM_FAILS, give_up, open_streams
from pyllamacpu.cli.wrapping import say
from pyllamacpu.errors import PyllamacpuError
from pyllamacpu.files import read_problem
from pyllamacpu.progress import one_line

_COMMANDS = {
    "chat": ("pyllamacpu.cli.chat", "chat"),
    "complete": ("pyllamacpu.cli.complete", "complete"),
    "serve": ("pyllamacpu.cli.serve", "serve"),
    "batch": ("pyllamacpu.cli.batch", "batch"),
    "image": ("pyllamacpu.cli.image", "image"),
    "guard": ("pyllamacpu.cli.guard", "guard"),
    "prompt-guard": ("pyllamacpu.cli.prompt_guard", "prompt_guard"),
    "code-shield": ("pyllamacpu.cli.code_shield", "code_shield"),
    "tokenize": ("pyllamacpu.cli.tokenize", "tokenize"),
    "show": ("pyllamacpu.cli.show", "show"),
    "pull": ("pyllamacpu.cli.pull", "pull"),
    "list": ("pyllamacpu.cli.list", "list_command"),
    "panels": ("pyllamacpu.cli.panels", "panels"),
    "quantize": ("pyllamacpu.cli.quantize", "quantize"),
    "imatrix": ("pyllamacpu.cli.imatrix", "imatrix"),
    "perplexity": ("pyllamacpu.cli.perplexity", "perplexity"),
    "bench": ("pyllamacpu.cli.bench", "bench"),
    "doctor": ("pyllamacpu.cli.doctor", "doctor"),
    "convert": ("pyllamacpu.cli.convert", "convert"),
}

_COMMAND = "pyllamacpu.command"  # where the context of the chosen command is
_LONG = 400  # characters: more than any command's first sentence
_READER_GONE = 141  # 128 + SIGPIPE


class _ReaderGone(Exception):
    """A broken pipe, under a name that click does not turn into its own exit."""


class _LazyGroup(click.Group):
    """A group that imports the module of a command when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        for parameter in command.params:
            if isinstance(parameter.type, (click.IntRange, click.FloatRange)):
                # click's own name for it is in its errors: 'x' is not a valid "integer range"
                parameter.type.name = "integer" if isinstance(parameter.type, click.IntRange) else "number"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command, and its arguments in our words: lines may come from llama.cpp's documentation."""
        if args[0] == "help":
            args = [*args[1:2], "--help"]
            if len(args) == 1:
                click.echo(ctx.get_help())
                ctx.exit()
        typed, args = args[0], [command_for(args[0], args[1:]), *args[1:]]
        if args[0] not in _COMMANDS:
            from difflib import get_close_matches

            if near := get_close_matches(args[0], _COMMANDS, 1):
                ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]}?")
        name, command, rest = super().resolve_command(ctx, args)
        interrupts_raise()  # its module is imported
        if name is None or command is None or ctx.resilient_parsing:
            return name, command, rest
        own = click.Context(command, ctx, name, **command.context_settings)
        ctx.meta[_COMMAND] = own
        line = translate(command, name, rest, own)
        line.runs = name if name != typed else None
        if note := line.note():
            say(one_line(note))
        return name, command, line.args

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGone from error
        except click.UsageError as error:
            error.ctx = error.ctx or ctx.meta.get(_COMMAND)  # click's parser leaves it out for some
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Whole sentences, where click's own list cuts them at the end of a line."""
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, command.get_short_help_str(_LONG)) for name, command in found if command is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"pyllamacpu {__version__}")
        ctx.exit()


_BARE: tuple[type[click.UsageError], ...] = tuple(
    filter(None, [getattr(click.exceptions, "NoArgsIsHelpError", None)])
)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
def cli() -> None:
    """Run models of the Llama family on the CPU.

    \b
    Examples:
      pyllamacpu chat
      pyllamacpu chat -m llama3.2:1b
      pyllamacpu complete -m model.gguf -p "The capital of France is" -n 40

    \b
    Environment:
      PYLLAMACPU_HOME  models and history; else ~/.cache/pyllamacpu
      PYLLAMACPU_ISA   the CPU tier to use (see `doctor`); else the best
      PYLLAMACPU_PACK_CACHE  1, or a folder: --pack-cache of all commands
      PYLLAMACPU_PACK_CACHE_LIMIT  a size: --pack-cache-limit of all commands
      PYLLAMACPU_WHOLE_TILES  1: all padding of images is computed (Llama 3.2)
      HF_HOME          the hub's cache; else ~/.cache/huggingface
      HF_ENDPOINT      the address of the hub; else https://huggingface.co
      HF_TOKEN         your access token, for models with terms to accept
      HF_HUB_OFFLINE   1: take what is in the cache, ask nobody
      NO_COLOR         any value: no colours
    pip's own variables decide where the starter model comes from.
    """


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    try:
        if not open_streams():
            sys.exit(_fail("standard output is closed, so nothing can be printed; > /dev/null is a place"))
        warnings.showwarning = _show_warning
        with ended_by_signals():
            code = _run(args)
            sys.stdout.flush()
    except Ended as ended:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        end_by(ended.number)
        code = 128 + ended.number
    except (BrokenPipeError, _ReaderGone):
        give_up(sys.stdout)
        code = _READER_GONE
    except KeyboardInterrupt:
        code = INTERRUPTED
    except OSError as error:
        give_up(sys.stdout)
        code = _fail(f"{STREAM_FAILS}: {error.strerror}")
    sys.exit(code)


def _run(args: Sequence[str] | None) -> int:
    """Run the group; the exit code. Errors that have a cause outside this program become one line."""
    try:
        result = cli.main(args, prog_name="pyllamacpu", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.Abort:
        return INTERRUPTED
    except click.UsageError as error:
        if isinstance(error, _BARE) and error.ctx:  # click 8.2 has made help without arguments an error
            click.echo(error.ctx.get_help())
            return 0
        command = error.ctx.command_path if error.ctx else "pyllamacpu"
        return _fail(f"{error.format_message()} (see `{command} --help`)", error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except PyllamacpuError as error:
        return _fail(str(error))
    except MemoryError:
        return _fail("out of memory: take a smaller model, context (-c) or cache type (-ctk q8_0)")
    except ImportError as error:
        return _fail(f"a library cannot be loaded: {_first_cause(error)}")
    except OSError as error:
        return _fail(f"{error.filename or STREAM_FAILS}: {read_problem(error)}")


def _first_cause(error: BaseException) -> str:
    """The words of what was raised first, one line of them."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return str(error).strip().split("\n")[0]


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of ours is a line on stderr, without the place in the code that it came from."""
    word = "warning" if issubclass(category, UserWarning) else category.__name__
    say(f"{word}: {one_line(str(message))}")


def _fail(text: str, code: int = 1) -> int:
    """Print `text` as one line on stderr; the exit code."""
    say("error: " + one_line(text))
    return code
