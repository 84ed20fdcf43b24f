"""How every command that runs a model opens it: `--override-kv`, `--expert-memory`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from pyllamacpu.errors import OptionError
from pyllamacpu.gguf.overrides import Overrides, parse_overrides
from pyllamacpu.units import parse_bytes


def memory_size(_context: click.Context, _option: click.Parameter, given: str | None) -> int | None:
    """A click callback: bytes, of 12GB, 500M, 4GiB or a plain number."""
    if given is None:
        return None
    try:
        return parse_bytes(given)
    except OptionError as error:
        raise click.BadParameter(str(error)) from None


def _overrides(_context: click.Context, _option: click.Parameter, given: Sequence[str]) -> Overrides | None:
    """A click callback: values by keys; None without any."""
    try:
        return parse_overrides(given) or None
    except OptionError as error:
        raise click.UsageError(str(error)) from None


expert_memory_option = click.option(
    "--expert-memory",
    callback=memory_size,
    metavar="BYTES",
    help="Leave a model's experts in its file, and keep as many in memory as fit in this (such as 12GB): for "
    "models larger than memory. Slower, the same answers.",
)
override_option = click.option(
    "--override-kv",
    "kv_overrides",
    multiple=True,
    callback=_overrides,
    metavar="KEY=TYPE:VALUE",
    help="Open the model as if its metadata said this (can be repeated); TYPE is int, float, bool or str.",
)


def loading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Both, as a decorator."""
    return expert_memory_option(override_option(command))


def loading(given: dict[str, Any]) -> dict[str, Any]:
    """What they say, as keyword arguments of `Engine.open`, `Llama` and `LoadOptions`."""
    return {name: given[name] for name in ("expert_memory", "kv_overrides")}
