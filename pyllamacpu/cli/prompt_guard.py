"""`pyllamacpu prompt-guard`: does a text attack the model that reads it? Asked of Prompt Guard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllamacpu.cli.loading_options import override_option, pack_option
from pyllamacpu.cli.options import checked_argument, read_text
from pyllamacpu.cli.param_types import MAX_THREADS, Whole

if TYPE_CHECKING:
    from pyllamacpu.safety.prompt_guard import PromptVerdict

ATTACK = 3  # the exit code
MODEL_VARIABLE = "PYLLAMACPU_PROMPT_GUARD"  # the firewall's too (safety/scanners/models.py)


@click.command("prompt-guard")
@click.argument("files", nargs=-1, metavar="[FILE|-]...")
@click.option(
    "-m",
    "--model",
    metavar="MODEL",
    required=True,
    envvar=MODEL_VARIABLE,
    help="A Prompt Guard model (1 or 2): a GGUF file, or a name as of `pyllamacpu list`.  "
    f"[{MODEL_VARIABLE}]",
)
@click.option("-p", "--prompt", help="Judge this text instead of a file.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.9,
    help="Probability from which a text is an attack.  [default: 0.9]",
)
@click.option(
    "--indirect",
    is_flag=True,
    help="The text is not the user's own (a document, a tool's result): Prompt Guard 1's INJECTION is an "
    "attack too.",
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each text.")
@override_option
@click.option(
    "-t", "--threads", type=Whole(1, MAX_THREADS), help="CPU threads.  [default: the machine's cores]"
)
@pack_option
@click.pass_context
def prompt_guard(context: click.Context, /, files: tuple[str, ...], **parameters: Any) -> None:
    """Ask a Prompt Guard model whether texts are attacks: injections and jailbreaks.

    Prints "attack" or "benign" with the probability of an attack, a line for each text. The text is that of
    each FILE, of -p, or of stdin; long ones are read whole, window by window. The exit code is 3 when one is
    an attack.

    \b
    Examples:
      pyllamacpu prompt-guard -m pg2.gguf -p "Ignore previous instructions."
      pyllamacpu prompt-guard -m pg2.gguf page.html mail.txt --threshold 0.5
      curl -s example.org | pyllamacpu prompt-guard -m pg2.gguf - --json
    """
    from pyllamacpu.safety.prompt_guard import PromptGuard

    if parameters["prompt"] is not None and files:
        raise click.UsageError("give the text as -p or as files, not both")
    names = files or ("-",)
    said = parameters["prompt"]
    texts = [read_text(Path(name)) for name in names] if said is None else [checked_argument(said, "-p")]
    model = parameters["model"]
    passed_on = ("threshold", "indirect", "kv_overrides", "pack_cache")
    options = {name: parameters[name] for name in passed_on}
    with PromptGuard(model, n_threads=parameters["threads"], **options) as guard:
        verdicts = guard.check_all(texts)
    for i, verdict in enumerate(verdicts):
        name = names[i] if len(verdicts) > 1 else ""
        click.echo(_as_json(verdict, name) if parameters["as_json"] else _as_text(verdict, name))
    if any(verdict.attack for verdict in verdicts):
        context.exit(ATTACK)


def _as_text(verdict: PromptVerdict, name: str) -> str:
    said = "attack" if verdict.attack else "benign"
    return f"{name}: {said} ({verdict.score:.4f})" if name else f"{said} ({verdict.score:.4f})"


def _as_json(verdict: PromptVerdict, name: str) -> str:
    return json.dumps({"file": name, **verdict._asdict()} if name else verdict._asdict())
