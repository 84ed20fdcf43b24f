"""`pyllamacpu list`: the models on this machine."""

from __future__ import annotations

import datetime

import click

from pyllamacpu.progress import one_line


@click.command("list")
@click.option("--known", is_flag=True, help="The names that can be fetched, and where from, instead.")
def list_command(known: bool) -> None:
    """List the models in the store and in the Hugging Face cache.

    Each NAME can be given to -m.

    \b
    Examples:
      pyllamacpu list
      pyllamacpu list --known
    """
    if known:
        _list_known()
        return
    from pyllamacpu.store import list_models
    from pyllamacpu.units import decimal_bytes

    models = list_models()
    if not models:
        click.echo(
            "No models yet: `pyllamacpu pull` fetches the starter model, `pull llama3.2:1b` a better one.",
            err=True,
        )
        return
    width = max(len("NAME"), *(len(model.name) for model in models))
    click.echo(f"{'NAME':<{width}}  {'SIZE':>9}  MODIFIED")
    for model in models:
        when = datetime.datetime.fromtimestamp(model.modified).strftime("%Y-%m-%d %H:%M")
        click.echo(f"{one_line(model.name):<{width}}  {decimal_bytes(model.size):>9}  {when}")


def _list_known() -> None:
    """The names of the catalogue; a quantization may be added, as in llama3.2:1b-q8_0."""
    from pyllamacpu.store.catalogue import catalogue

    width = max(len(entry.full_name) for entry in catalogue())
    click.echo(f"{'NAME':<{width}}  REPOSITORY")
    for entry in catalogue():
        click.echo(f"{entry.full_name:<{width}}  hf.co/{entry.repo}:{entry.quant}")
