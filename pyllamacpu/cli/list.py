"""`pyllamacpu list`: the models on this machine."""

from __future__ import annotations

import datetime

import click


@click.command("list")
def list_command() -> None:
    """List the models in the store and in the Hugging Face cache.

    Each NAME can be given to -m.

    \b
    Example:
      pyllamacpu list
    """
    from pyllamacpu.store import list_models

    models = list_models()
    if not models:
        click.echo("No models yet: `pyllamacpu pull` fetches the starter model.", err=True)
        return
    width = max(len("NAME"), *(len(model.name) for model in models))
    click.echo(f"{'NAME':<{width}}  {'SIZE':>8}  MODIFIED")
    for model in models:
        when = datetime.datetime.fromtimestamp(model.modified).strftime("%Y-%m-%d %H:%M")
        click.echo(f"{model.name:<{width}}  {human_size(model.size):>8}  {when}")


def human_size(size: int) -> str:
    """`size` in bytes as a person reads it, in powers of 1000 as file managers and the hub count."""
    amount, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while amount >= 999.5 and len(units) > 1:
        amount /= 1000
        units.pop(0)
    return f"{amount:.0f} {units[0]}" if amount >= 99.5 or units[0] == "B" else f"{amount:.1f} {units[0]}"
