"""`pyllamacpu pull`: fetch a model now, to use it later."""

from __future__ import annotations

import click


@click.command()
@click.argument("name", required=False)
def pull(name: str | None) -> None:
    """Fetch a model into the store or the hub's cache, and print its path.

    NAME is one of `pyllamacpu list --known`, such as llama3.2:1b or llama3.1:8b-q8_0, or user/repo[:quant]
    on the hub; without a NAME it is the starter model. The quantization is Q4_K_M, or the nearest that there
    is, unless it is given.

    \b
    Examples:
      pyllamacpu pull
      pyllamacpu pull llama3.2:1b
      pyllamacpu pull hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q8_0
    """
    from pyllamacpu.store import resolve_model

    click.echo(resolve_model(name, refresh=True))
