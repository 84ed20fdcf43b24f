"""The options that give an answer its form, with llama-cli's names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllamacpu.cli.options import options, read_text

if TYPE_CHECKING:
    from pyllamacpu.sampling.grammar import Grammar

_FORMS = ("grammar", "grammar_file", "json_schema", "json_schema_file")
_file = click.Path(path_type=Path)

grammar_options = options(
    click.option("--grammar", metavar="TEXT", help="The answer has the form of this GBNF or Lark grammar."),
    click.option("--grammar-file", type=_file, help="Read the grammar from this file."),
    click.option("-j", "--json-schema", metavar="JSON", help="The answer is JSON of this schema; {} is any."),
    click.option("-jf", "--json-schema-file", type=_file, help="Read the JSON schema from this file."),
)


def take_grammar(parameters: dict[str, Any]) -> Grammar | None:
    """Remove the options of the form from a command's parameters. Raises click.UsageError for two of them,
    OptionError for one that cannot be read.
    """
    given = {name: value for name in _FORMS if (value := parameters.pop(name)) is not None}
    if len(given) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(f"{names}: an answer has one form")
    if not given:
        return None

    from pyllamacpu.sampling.grammar import Grammar

    ((name, value),) = given.items()
    text = read_text(value) if isinstance(value, Path) else value
    return Grammar.json_schema(text) if name.startswith("json") else Grammar.text(text)
