"""Models from the Hugging Face hub, in huggingface_hub's own cache.

What is in the cache already is found without a connection and without importing the library, whose layout is
documented: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from pyllamacpu.errors import StoreError
from pyllamacpu.progress import notify
from pyllamacpu.store.files import check_content
from pyllamacpu.store.hub_errors import NoConnection, typed_errors
from pyllamacpu.store.network import reachable, split_address, without_secrets
from pyllamacpu.store.paths import hub_cache_dir
from pyllamacpu.store.quants import choose_file, is_model, matching_files, part_names
from pyllamacpu.store.watched import OnDownload, sha256_of, watched

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_HOSTS = ("hf.co", "www.hf.co", "huggingface.co", "www.huggingface.co")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*\Z")


@dataclass(frozen=True)
class HubRef:
    """A model on the hub: the repository, and which of its files."""

    repo: str  # user/name
    quant: str | None = None
    filename: str | None = None  # path inside the repository
    revision: str | None = None  # branch, tag or commit; None is main

    def __str__(self) -> str:
        tail = f"/{self.filename}" if self.filename else f":{self.quant}" if self.quant else ""
        return f"hf.co/{self.repo}{tail}"


def parse_hub_ref(name: str) -> HubRef | None:
    """Read a hub name; None if `name` is of another kind.

    These are `hf.co/user/repo[:quant]`, `hf.co/user/repo/file.gguf` and the addresses of such pages.
    Raises StoreError for a hub name that is malformed.
    """
    path = _hub_path(name)
    if path is None:
        return None
    user, _, rest = path.strip("/").partition("/")
    head, slash, tail = rest.partition("/")
    repo_name, _, quant = head.partition(":")
    if not (_NAME.match(user) and _NAME.match(repo_name)):
        raise StoreError(f"{name}: a model on the hub is named hf.co/user/repo or hf.co/user/repo:quant")
    repo = f"{user}/{repo_name}"
    if not (slash and tail):
        return HubRef(repo, quant=quant or None)
    return _ref_to_file(name, repo, tail)


def is_hub_name(name: str) -> bool:
    """Whether `name` names something on the hub, malformed or not."""
    return _hub_path(name) is not None


def _hub_path(name: str) -> str | None:
    """What follows the host in a hub name; None when the host is another one."""
    if name.startswith("hf://"):
        return name[len("hf://") :].removeprefix("models/")
    if name.lower().startswith(("http://", "https://")):
        parts, own = split_address(name), split_address(hub_endpoint())
        hosts = (*_HOSTS, own.netloc) if own else _HOSTS
        return unquote(parts.path) if parts and parts.netloc in hosts else None
    host, _, path = name.partition("/")
    return path if host.lower() in _HOSTS else None


def _ref_to_file(name: str, repo: str, tail: str) -> HubRef:
    """A reference to one file: `resolve/main/x.gguf` as in an address, or just `x.gguf`."""
    words = tail.split("/")
    revision = None
    if words[0] in ("resolve", "blob", "tree", "raw"):
        revision = words[1] if len(words) > 1 and words[1] != "main" else None
        words = words[2:]
    filename = "/".join(words)
    if ".." in words or (filename and not filename.lower().endswith(".gguf")):
        raise StoreError(f"{name}: {filename} is not a GGUF file")
    return HubRef(repo, filename=filename or None, revision=revision)


def fetch(reference: HubRef, refresh: bool = False, on_download: OnDownload | None = None) -> Path:
    """The local file of a model on the hub (its first part when it is split), downloaded if it is not cached.

    With `refresh` the hub is asked even when the cache has a fitting file. `on_download` is called for each
    file again and again. Raises StoreError.
    """
    if not refresh and (path := _cached_choice(reference, exact=True)):
        return path
    if _offline():
        if path := _cached_choice(reference, exact=False):
            return path
        raise StoreError(f"{reference} is not in the cache {hub_cache_dir()}, and HF_HUB_OFFLINE is set")
    return _download(reference, on_download)


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def download(
    repo: str,
    patterns: Sequence[str | None],
    local_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Path:
    """The local path of the first file that `patterns` mean in a repository on the hub; all are downloaded.

    A pattern is a name or a glob that must fit one model (all parts of a split one count as one); None means
    the repository's best four-bit file. A single name (or None) is looked for in the cache first. Raises
    OptionError when no file or several fit, StoreError for the network.
    """
    one = len(patterns) == 1 and local_dir is None and cache_dir is None
    if one and not any(mark in (patterns[0] or "") for mark in "*?["):
        return fetch(HubRef(repo, filename=patterns[0]))
    api = _connect(repo)
    with typed_errors(repo, repo):
        there = api.list_repo_files(repo, revision=None)
        names = [name for pattern in patterns for name in matching_files(there, pattern, repo)]
        folder = None if local_dir is None else Path(local_dir)
        cache = hub_cache_dir() if cache_dir is None else Path(cache_dir)
        wanted = HubRef(repo)
        paths = [_download_file(api, wanted, name, None, cache, folder) for name in names]
    return paths[0]


def _download(reference: HubRef, on_download: OnDownload | None = None) -> Path:
    """Ask the hub for its files, choose, and download every part; without a connection take the cache."""
    try:
        api = _connect(str(reference))
        with typed_errors(str(reference), reference.repo):
            wanted = _wanted_files(api, reference)
            paths = [_download_file(api, reference, name, on_download, hub_cache_dir()) for name in wanted]
    except NoConnection as error:
        if path := _cached_choice(reference, exact=False):
            notify(f"note: {error}; {path.name} is taken from the cache")
            return path
        raise
    return paths[0]


def _download_file(
    api: HfApi,
    reference: HubRef,
    name: str,
    on_download: OnDownload | None,
    cache: Path,
    folder: Path | None = None,
) -> Path:
    """A file of the repository in the hub's cache (or in `folder`). What was not there before is compared
    with the digest that the hub gives, where it gives one: its client compares sizes only.
    """
    from huggingface_hub import hf_hub_url

    repo, revision = reference.repo, reference.revision
    known = api.get_hf_file_metadata(url=hf_hub_url(repo, name, revision=revision, endpoint=api.endpoint))
    etag, blobs = known.etag or "", cache / f"models--{repo.replace('/', '--')}" / "blobs"
    before = _written(blobs / etag if folder is None else folder / name)

    def download() -> str:
        return str(api.hf_hub_download(repo, name, revision=revision, cache_dir=cache, local_dir=folder))

    if on_download is None:
        path = Path(download())
    else:
        path = Path(watched(download, blobs, etag, known.size or 0, on_download))
    if (sha256 := sha256_of(etag)) and _written(path) != before:
        check_content(path, sha256)
    return path


def _written(path: Path) -> tuple[int, int] | None:
    """Which file it is, and when it was written; None when there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def hub_endpoint() -> str:
    """The address of the hub, which the environment may change."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def _connect(name: str) -> HfApi:
    """The hub's client for the endpoint and token that the environment names; bars only on a terminal.

    Raises StoreError at once where there is no way to the hub: the client would try again and again.
    """
    address = split_address(hub_endpoint())
    if address is None:
        given = without_secrets(hub_endpoint())
        raise StoreError(f"HF_ENDPOINT={given} is not an address such as https://huggingface.co")
    if not reachable(hub_endpoint()):
        raise NoConnection(f"{name}: no connection to {address.hostname}; check the network")
    import logging

    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined,unused-ignore]

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what goes wrong is our error's to say
    if not sys.stderr.isatty():
        disable_progress_bars()
    endpoint, token = os.environ.get("HF_ENDPOINT") or None, os.environ.get("HF_TOKEN") or None
    return huggingface_hub.HfApi(endpoint=endpoint, token=token)


def _wanted_files(api: HfApi, reference: HubRef) -> list[str]:
    """The repository's files to download: the chosen one with all its parts."""
    if reference.filename:
        return part_names(reference.filename)
    there = api.list_repo_files(reference.repo, revision=reference.revision)
    wanted = part_names(choose_file(there, reference.quant, str(reference)))
    if missing := sorted(set(wanted) - set(there)):
        raise StoreError(f"{reference}: the repository lacks {missing[0]}, a part of the model")
    return wanted


def _cached_choice(reference: HubRef, exact: bool) -> Path | None:
    """The cached file that `reference` means, with all its parts, or None.

    With `exact`, a reference without a quantization means Q4_K_M only: anything else is the hub's to say.
    """
    for snapshot in _snapshots(reference.repo, reference.revision):
        files = sorted(path.relative_to(snapshot).as_posix() for path in _gguf_files(snapshot))
        name = reference.filename
        if name is None:
            try:
                name = choose_file(files, reference.quant or ("Q4_K_M" if exact else None), str(reference))
            except StoreError:
                continue
        parts = part_names(name)
        if all((snapshot / part).is_file() for part in parts):
            return snapshot / parts[0]
    return None


def _snapshots(repo: str, revision: str | None) -> Iterator[Path]:
    """The cached commits of a repository: that of `revision` (or main), then for main the others by age."""
    base = hub_cache_dir() / f"models--{repo.replace('/', '--')}"
    try:
        commit = (base / "refs" / (revision or "main")).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        commit = revision or ""
    first = base / "snapshots" / commit
    if commit and first.is_dir():
        yield first
    if revision is None and (base / "snapshots").is_dir():
        others = [path for path in (base / "snapshots").iterdir() if path.is_dir() and path != first]
        yield from sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)


def _gguf_files(folder: Path) -> Iterator[Path]:
    """Whole GGUF files below `folder`: links to a download that never ended are not."""
    return (path for path in folder.rglob("*.gguf") if path.is_file())


def cached_models() -> Iterator[tuple[HubRef, list[Path]]]:
    """Every model in the hub's cache that is there with all its parts: how to name it, and its files."""
    if not hub_cache_dir().is_dir():
        return
    for base in sorted(hub_cache_dir().glob("models--*--*")):
        repo = base.name.removeprefix("models--").replace("--", "/", 1)
        seen: set[str] = set()
        for snapshot in _snapshots(repo, None):
            for path in sorted(_gguf_files(snapshot)):
                name = path.relative_to(snapshot).as_posix()
                parts = [snapshot / part for part in part_names(name)]
                if name not in seen and is_model(name) and all(part.is_file() for part in parts):
                    seen.add(name)
                    yield HubRef(repo, filename=name), parts
