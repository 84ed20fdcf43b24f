"""`pyllamacpu panels`: the files of packed weights that --pack-cache keeps."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyllamacpu.errors import OptionError
from pyllamacpu.progress import one_line

if TYPE_CHECKING:
    from pyllamacpu.model.kept_panels import KeptFile


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Read them all, and remove those that are damaged.")
@click.option("--remove-unused", is_flag=True, help="Remove those whose model is gone or has changed.")
@click.option("--remove-all", is_flag=True, help="Remove them all.")
def panels(folder: Path | None, check: bool, remove_unused: bool, remove_all: bool) -> None:
    """List the files of packed weights in FOLDER; else in `panels` of PYLLAMACPU_HOME, or the folder that
    PYLLAMACPU_PACK_CACHE names.

    Removing one does no harm to who uses it; the next load makes it anew.

    \b
    Examples:
      pyllamacpu panels
      pyllamacpu panels --remove-unused
      pyllamacpu panels --check ~/panels
    """
    from pyllamacpu.model.kept_panels import kept_files
    from pyllamacpu.store.paths import usual_pack_folder

    if folder is not None and not folder.is_dir():
        raise OptionError(f"{folder}: {'is not a folder' if folder.exists() else 'there is no such folder'}")
    place = folder or usual_pack_folder().path
    found = kept_files(place)
    if not found:
        click.echo(f"No packed weights in {place}.", err=True)
        return
    states = [file.check() if check else file.state() for file in found]
    unwanted = [remove_all or (remove_unused and state != "ready") or state == "damaged" for state in states]
    removed = [goes and _removed(file) for file, goes in zip(found, unwanted, strict=True)]
    _print(found, ["removed" if gone else state for state, gone in zip(states, removed, strict=True)])
    left = [file.n_bytes for file, gone in zip(found, removed, strict=True) if not gone]
    click.echo(_total(left, None if folder else usual_pack_folder().limit_bytes), err=True)


def _removed(file: KeptFile) -> bool:
    """Whether it could be; why not is told."""
    try:
        file.remove()
    except OSError as error:
        click.echo(f"{file.path} cannot be removed: {error.strerror or error}", err=True)
        return False
    return True


def _total(sizes: list[int], limit_bytes: int | None) -> str:
    """Without the limit of a folder that was named: it is that of the commands that name it."""
    from pyllamacpu.units import decimal_bytes

    files = "1 file" if len(sizes) == 1 else f"{len(sizes)} files"
    most = "" if limit_bytes is None else f" of {decimal_bytes(limit_bytes)} at most (--pack-cache-limit)"
    return f"{files}, {decimal_bytes(sum(sizes))}{most}"


def _print(found: list[KeptFile], states: list[str]) -> None:
    from pyllamacpu.units import decimal_bytes

    names = [one_line(os.path.basename(file.model or file.path)) for file in found]
    width = max(len("MODEL"), *map(len, names))
    click.echo(f"{'MODEL':<{width}}  {'SIZE':>9}  {'TIER':<12}  {'USED':<16}  STATE")
    for file, name, state in zip(found, names, states, strict=True):
        when = datetime.datetime.fromtimestamp(file.used).strftime("%Y-%m-%d %H:%M")
        tier, size = one_line(file.tier), decimal_bytes(file.n_bytes)
        click.echo(f"{name:<{width}}  {size:>9}  {tier:<12}  {when:<16}  {state}")
