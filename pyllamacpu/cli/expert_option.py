"""`--expert-memory`: leave a model's experts in their file, and keep only some of them in memory."""

from __future__ import annotations

import click

from pyllamacpu.errors import OptionError
from pyllamacpu.units import parse_bytes


def memory_size(_context: click.Context, _option: click.Parameter, given: str | None) -> int | None:
    """A click callback: bytes, of 12GB, 500M, 4GiB or a plain number."""
    if given is None:
        return None
    try:
        return parse_bytes(given)
    except OptionError as error:
        raise click.BadParameter(str(error)) from None


expert_memory_option = click.option(
    "--expert-memory",
    callback=memory_size,
    metavar="BYTES",
    help="Leave a model's experts in its file, and keep as many in memory as fit in this (such as 12GB): for "
    "models larger than memory. Slower, the same answers.",
)
