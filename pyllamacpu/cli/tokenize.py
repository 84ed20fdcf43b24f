"""`pyllamacpu tokenize`: the tokens of a text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyllamacpu.cli.loading_options import override_option
from pyllamacpu.cli.options import model_option
from pyllamacpu.progress import visible

if TYPE_CHECKING:
    from pyllamacpu.gguf.overrides import Overrides
    from pyllamacpu.text import Tokenizer


@click.command()
@model_option
@override_option
@click.option("-p", "--prompt", help="The text.")
@click.option(
    "-f", "--file", type=click.Path(path_type=Path), help="Read the text from this file, byte for byte."
)
@click.option("--stdin", "from_stdin", is_flag=True, help="Read the text from stdin, byte for byte.")
@click.option("--ids", is_flag=True, help="Print the ids only, as a list that Python and JSON can read.")
@click.option("--no-bos", is_flag=True, help="Add no BOS token, also where the model wants one.")
@click.option("--no-parse-special", is_flag=True, help="Special tokens spelled in the text are plain text.")
@click.option("--show-count", is_flag=True, help="Print the number of tokens at the end.")
@click.option(
    "-e/ ",
    "--escape/--no-escape",
    default=None,
    help=r"Read \n, \t, \xHH ... (on for -p, off for files).",
)
def tokenize(
    model: str | None,
    prompt: str | None,
    file: Path | None,
    from_stdin: bool,
    ids: bool,
    no_bos: bool,
    no_parse_special: bool,
    show_count: bool,
    escape: bool | None,
    kv_overrides: Overrides | None,
) -> None:
    """Show the tokens of a text: one line each, with its id and what it stands for.

    \b
    Examples:
      pyllamacpu tokenize -p "Hello world"
      pyllamacpu tokenize -m model.gguf -f story.txt --ids
    """
    from pyllamacpu import Llama
    from pyllamacpu.cli.chat_engine import tokenizer_of
    from pyllamacpu.cli.complete import prompt_bytes
    from pyllamacpu.store import resolve_model

    if from_stdin and (prompt is not None or file is not None):
        raise click.UsageError("give the text as -p, -f or --stdin, only one of them")
    content = prompt_bytes(prompt, Path("-") if from_stdin else file, escape, keep_newline=True)
    llm = Llama(str(resolve_model(model)), vocab_only=True, verbose=False, kv_overrides=kv_overrides)
    tokenizer = tokenizer_of(llm)
    tokens = tokenizer.encode(content, add_special=True, parse_special=not no_parse_special)
    if no_bos and tokenizer.add_bos and tokens[:1] == [tokenizer.bos]:
        tokens = tokens[1:]
    click.echo(
        f"[{', '.join(map(str, tokens))}]" if ids else "".join(_line(tokenizer, token) for token in tokens),
        nl=ids,
    )
    if show_count:
        click.echo(f"Total number of tokens: {len(tokens)}")


def _line(tokenizer: Tokenizer, token: int) -> str:
    """One token: its id and its text, or its bytes where they are not whole characters."""
    piece = tokenizer.token_bytes(token, special=True)
    try:
        return f"{token:6d} -> '{visible(piece.decode('utf-8'), sys.stdout)}'\n"
    except UnicodeDecodeError:
        return f"{token:6d} -> '<{piece.hex(' ')}>' (utf-8 decode failure)\n"
