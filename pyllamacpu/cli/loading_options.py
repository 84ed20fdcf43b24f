"""How every command that runs a model opens it: `--override-kv`, `--expert-memory`, `--pack-cache [DIR]`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllamacpu.cli.param_types import SIZE
from pyllamacpu.errors import OptionError
from pyllamacpu.store.paths import pack_folder

if TYPE_CHECKING:
    from pyllamacpu.gguf.overrides import Overrides


def _overrides(_context: click.Context, _option: click.Parameter, given: Sequence[str]) -> Overrides | None:
    """A click callback: values by keys; None without any."""
    if not given:
        return None
    from pyllamacpu.gguf.overrides import parse_overrides  # it needs numpy, and --help does not

    try:
        return parse_overrides(given)
    except OptionError as error:
        raise click.UsageError(str(error)) from None


def _folder(_context: click.Context, _option: click.Parameter, given: str | None) -> Path | None:
    """A click callback. A word that follows the option and is no folder's path is hardly meant as one."""
    if given is None or given == "":
        return pack_folder(None if given is None else True)
    if not given.startswith((os.sep, ".", "~")) and not os.path.isdir(given):
        raise click.BadParameter(
            f"there is no folder {given!r}: write ./{given} for a new one; without a folder, put another "
            "option behind it, or nothing"
        )
    return pack_folder(given)


expert_memory_option = click.option(
    "--expert-memory",
    type=SIZE,
    metavar="SIZE",
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


pack_option = click.option(
    "--pack-cache",
    callback=_folder,
    is_flag=False,
    flag_value="",
    metavar="[DIR]",
    help="Keep packed weights in files: the next load only maps them, and processes share them. In DIR, or "
    "in `panels` of PYLLAMACPU_HOME. Private, safe to delete.",
)


def loading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All of them, as a decorator."""
    return expert_memory_option(pack_option(override_option(command)))


def loading(given: dict[str, Any]) -> dict[str, Any]:
    """What they say, as keyword arguments of `Engine.open`, `Llama` and `LoadOptions`."""
    return {name: given[name] for name in ("expert_memory", "kv_overrides", "pack_cache")}
