"""The options `--cache-disk` and `--cache-disk-limit`, of every command that answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pyllamacpu.cli.param_types import SIZE


def _checked(context: click.Context, _option: click.Parameter, given: Path | None) -> Path | None:
    """A click callback; the limit is read before."""
    if given is None and context.params.get("cache_disk_limit") is not None:
        raise click.UsageError("--cache-disk-limit: name the folder too, with --cache-disk")
    return given


_folder_option = click.option(
    "--cache-disk",
    type=click.Path(path_type=Path),
    callback=_checked,
    metavar="DIR",
    help="Keep keys and values there too: a prompt is not read again after a restart. Private, shared by "
    "the processes that name it, safe to delete.",
)
_limit_option = click.option(
    "--cache-disk-limit", type=SIZE, metavar="SIZE", is_eager=True, help="Of that folder.  [default: 8GiB]"
)


def disk_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Both of them, as a decorator."""
    return _folder_option(_limit_option(command))
