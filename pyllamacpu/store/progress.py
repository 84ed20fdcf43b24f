"""What a person sees while something long runs: a bar on a terminal, one line elsewhere. Always on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that is given the bytes done so far, out of `total`."""
    if not sys.stderr.isatty():
        notify(f"{label} ({total / 1e6:.0f} MB) ...")
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.update(task, completed=min(done, total))


def notify(text: str) -> None:
    """Say one line on stderr."""
    print(text, file=sys.stderr, flush=True)
