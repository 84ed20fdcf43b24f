"""How commands that run a model open it: `--override-kv`, `--expert-memory`, `--pack-cache` and its limit,
`--numa`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from pyllamacpu.cli.param_types import SIZE
from pyllamacpu.errors import OptionError
from pyllamacpu.store.paths import PackFolder, pack_folder
from pyllamacpu.topology import NUMA, threads_running, use_numa

if TYPE_CHECKING:
    from pyllamacpu.gguf.overrides import Overrides


_LIMIT = "pyllamacpu.pack_cache_limit"


def _overrides(_context: click.Context, _option: click.Parameter, given: Sequence[str]) -> Overrides | None:
    """A click callback: values by keys; None without any."""
    if not given:
        return None
    from pyllamacpu.gguf.overrides import parse_overrides  # it needs numpy, and --help does not

    try:
        return parse_overrides(given)
    except OptionError as error:
        raise click.UsageError(str(error)) from None


def _keep_limit(context: click.Context, _option: click.Parameter, given: int | None) -> None:
    """A click callback, for the one of --pack-cache, which comes later."""
    context.meta[_LIMIT] = given


def _folder(context: click.Context, _option: click.Parameter, given: str | None) -> PackFolder | None:
    """A click callback. A word that follows the option and is no folder's path is hardly meant as one."""
    limit = context.meta[_LIMIT]
    if given is None or given == "":
        found = pack_folder(None if given is None else True)
        if found is None and limit is not None:
            raise click.UsageError("--pack-cache-limit: packed weights are kept with --pack-cache only")
        return found and pack_folder(found, limit)
    if not given.startswith((os.sep, ".", "~")) and not os.path.isdir(given):
        raise click.BadParameter(
            f"there is no folder {given!r}: write ./{given} for a new one; without a folder, put another "
            "option behind it, or nothing"
        )
    return pack_folder(given, limit)


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


_pack_folder_option = click.option(
    "--pack-cache",
    callback=_folder,
    is_flag=False,
    flag_value="",
    metavar="[DIR]",
    help="Keep packed weights in files: the next load only maps them, and processes share them. In DIR, or "
    "in `panels` of PYLLAMACPU_HOME. Private, safe to delete (`pyllamacpu panels`).",
)
_pack_limit_option = click.option(
    "--pack-cache-limit",
    type=SIZE,
    metavar="SIZE",
    callback=_keep_limit,
    is_eager=True,
    expose_value=False,
    help="Of that folder: what was not used for longest makes room for more.  [default: 64GiB]",
)


def pack_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Both of them, as a decorator; the command gets one `pack_cache`."""
    return _pack_folder_option(_pack_limit_option(command))


def _use_numa(_context: click.Context, _option: click.Parameter, given: str | None) -> None:
    """A click callback: for the whole process, as llama.cpp has it."""
    if given is not None:
        use_numa(given)


numa_option = click.option(
    "--numa",
    type=click.Choice(NUMA),
    metavar="TYPE",
    callback=_use_numa,
    expose_value=False,
    help="With several memory nodes: distribute threads and weights over them; isolate: stay on the node "
    "where the process runs; numactl: wherever that lets them run.  [default: distribute]",
)


def loading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All of them, as a decorator."""
    return numa_option(expert_memory_option(pack_option(override_option(command))))


def say_threads(asked: Iterable[int | None]) -> None:
    """A note where more threads are asked for than run."""
    from pyllamacpu.cli.wrapping import say

    most = max((n for n in asked if n is not None), default=0)
    if (running := threads_running(most)) < most:
        cpus = "1 CPU" if running == 1 else f"{running} CPUs"
        say(f"note: of {most} threads {running} run, as this process may use {cpus}")


def loading(given: dict[str, Any]) -> dict[str, Any]:
    """What they say, as keyword arguments of `Engine.open`, `Llama` and `LoadOptions`."""
    return {name: given[name] for name in ("expert_memory", "kv_overrides", "pack_cache")}
