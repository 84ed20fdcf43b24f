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
    from pyllamacpu.units import decimal_bytes

    models = list_models()
    if not models:
        click.echo("No models yet: `pyllamacpu pull` fetches the starter model.", err=True)
        return
    width = max(len("NAME"), *(len(model.name) for model in models))
    click.echo(f"{'NAME':<{width}}  {'SIZE':>9}  MODIFIED")
    for model in models:
        when = datetime.datetime.fromtimestamp(model.modified).strftime("%Y-%m-%d %H:%M")
        click.echo(f"{model.name:<{width}}  {decimal_bytes(model.size):>9}  {when}")
