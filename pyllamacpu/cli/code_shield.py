"""`pyllamacpu code-shield`: is this code insecure? By rules, without a model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllamacpu.cli.options import read_text
from pyllamacpu.errors import OptionError

if TYPE_CHECKING:
    from pyllamacpu.safety.code_shield.issues import CodeShieldScanResult


@click.command("code-shield")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--language",
    metavar="NAME",
    help="The code's language, such as python or c.  [default: by the file's name or fences, else all]",
)
@click.option(
    "--all-rules", is_flag=True, help="Those too that CyberSecEval counts, such as passwords in the code."
)
@click.option("--semgrep/--no-semgrep", default=True, help="Run semgrep's rules where it is installed.")
@click.option("--list", "listed", is_flag=True, help="Show how many rules each language has here, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object.")
def code_shield(**parameters: Any) -> None:
    """Judge code, or a model's answer with code in it, by Code Shield's rules.

    Prints block, warn or ignore, then a line for each finding. FILE is - or nothing for stdin. Python is
    judged by its syntax tree; some rules for other languages need the program semgrep.

    \b
    Examples:
      pyllamacpu code-shield app.py
      pyllamacpu complete -p "Write a C program" | pyllamacpu code-shield -
      pyllamacpu code-shield --list
    """
    from pyllamacpu.safety import CodeShield
    from pyllamacpu.safety.code_shield.scan import coverage

    shield = CodeShield(
        "cyberseceval" if parameters["all_rules"] else "codeshield", None if parameters["semgrep"] else False
    )
    if parameters["listed"] and any(parameters[name] is not None for name in ("file", "language")):
        raise click.UsageError("--list takes no file and no --language")
    if parameters["listed"]:
        rows = coverage(shield.rules, shield.semgrep is not None)
        click.echo(_as_json(rows) if parameters["as_json"] else _as_table(rows))
        return
    file = parameters["file"] or Path("-")
    result = shield.scan(read_text(file), _language(parameters["language"], file.suffix))
    if parameters["as_json"]:
        click.echo(json.dumps(asdict(result)))
        return
    click.echo(_as_text(result))
    for words in result.not_covered:
        click.echo(f"not covered: {words}", err=True)


def _language(given: str | None, suffix: str) -> str | None:
    """Raises OptionError."""
    from pyllamacpu.safety.code_shield.code_text import language_named
    from pyllamacpu.safety.code_shield.issues import Language

    if given is None:
        found = language_named(suffix) if len(suffix) > 1 else None
        return None if found is None else found.value
    if (found := language_named(given)) is None:
        raise OptionError(f"--language {given}: known are {', '.join(one.value for one in Language)}")
    return found.value


def _as_text(result: CodeShieldScanResult) -> str:
    lines = [result.recommended_treatment.value, *(f"error: {words}" for words in result.errors)]
    for issue in result.issues_found or ():
        cwe = f" ({issue.cwe_id})" if issue.cwe_id else ""
        lines.append(
            f"line {issue.line}: {issue.severity.value}: {issue.description}{cwe} [{issue.pattern_id}]"
        )
    return "\n".join(lines)


def _as_json(rows: Iterable[tuple[str, int, int]]) -> str:
    keys = ("language", "rules", "not_applied")
    return json.dumps([dict(zip(keys, row, strict=True)) for row in rows])


def _as_table(rows: Iterable[tuple[str, int, int]]) -> str:
    lines = [f"{'language':14} {'rules':>5}  not applied"]
    lines += [f"{name:14} {n:5}  {f'{left} need semgrep' if left else ''}".rstrip() for name, n, left in rows]
    return "\n".join(lines)
