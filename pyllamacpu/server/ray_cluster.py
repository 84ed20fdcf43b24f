"""A Ray cluster: the connection to it, its nodes, and the models that each of them must have."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyllamacpu import __version__
from pyllamacpu.errors import ModelError, OptionError, PyllamacpuError, StoreError
from pyllamacpu.files import read_problem
from pyllamacpu.server.models import PoolOptions
from pyllamacpu.server.served_files import ServedFile
from pyllamacpu.store import model_files, resolve_model

_CONNECT_SECONDS = 5.0
_HEAD, _TAIL = 1 << 20, 1 << 16  # bytes that tell files apart: metadata, the last weights


def import_ray() -> Any:
    """Ray. Raises OptionError without it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that is started here
    try:
        import ray
    except ImportError:
        raise OptionError("--ray needs Ray: pip install 'pyllamacpu[ray]'") from None
    return ray


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to the cluster at `address`: host:port, ray://host:port, auto, or local for one of this
    machine that ends with the block. Raises OptionError.
    """
    ray = import_ray()
    _check_listening(address)
    more = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **more)
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError, TypeError) as error:
        raise OptionError(f"--ray {address}: cannot connect: {_first_line(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Raises OptionError where nobody listens: Ray itself would try for minutes."""
    if address in ("auto", "local"):
        return
    found = re.fullmatch(r"(?:ray://)?(\[[0-9a-fA-F:]+\]|[^:/\[\]]+):(\d{1,5})", address)
    if found is None or not 0 < int(found[2]) < 65536:
        raise OptionError(f"--ray {address[:200]}: give host:port, ray://host:port, auto or local")
    try:
        socket.create_connection((found[1].strip("[]"), int(found[2])), _CONNECT_SECONDS).close()
    except OSError as error:
        raise OptionError(
            f"--ray {address}: no Ray cluster answers there: {error.strerror or error}"
        ) from error


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


@dataclass(frozen=True)
class Node:
    """A node that can compute. id: Ray's."""

    id: str
    address: str
    n_cpus: int


def live_nodes() -> dict[str, Node]:
    """The nodes that live and have a CPU, by id."""
    found = [
        Node(entry["NodeID"], entry["NodeManagerAddress"], int(entry["Resources"].get("CPU", 0)))
        for entry in import_ray().nodes()
        if entry["Alive"]
    ]
    return {node.id: node for node in found if node.n_cpus > 0}


def node_options(options: PoolOptions, n_cpus: int) -> PoolOptions:
    """`options` for a node of which `n_cpus` may be used. Paths are made absolute: it has another folder."""
    load, disk = options.load, options.cache_disk
    is_file = isinstance(load.draft, str) and Path(load.draft).exists()
    draft = str(Path(load.draft).absolute()) if is_file else load.draft
    load = replace(load, n_threads=min(load.n_threads or n_cpus, n_cpus), draft=draft)
    return replace(options, load=load, cache_disk=disk.absolute() if disk else None)


@dataclass(frozen=True)
class ClusterModel:
    """A model that every node must have: at the same path, or by the name that was given; its adapters at the
    same paths. fingerprint: of its files, so that all nodes answer with the same weights.
    """

    file: ServedFile
    fingerprint: str

    @classmethod
    def of(cls, file: ServedFile) -> ClusterModel:
        """Raises ModelError for a file that cannot be read."""
        adapters = tuple(replace(adapter, path=adapter.path.absolute()) for adapter in file.adapters)
        file = replace(file, path=file.path.absolute(), adapters=adapters)
        return cls(file, _fingerprint(_files(file)))

    def on_this_node(self) -> ServedFile:
        """The node's own file. Raises ModelError, StoreError."""
        path = self.file.path
        if not path.exists() and self.file.given:
            path = resolve_model(self.file.given)
        elif not path.exists():
            raise StoreError(
                f"{path}: no such file on this node: put it there, share the folder, or give a model's name"
            )
        file = replace(self.file, path=path)
        if _fingerprint(_files(file)) != self.fingerprint:
            raise ModelError(f"{path}: is not the file that the machine of the command has")
        return file


def _files(file: ServedFile) -> list[Path]:
    """All that is loaded for a model."""
    return [*model_files(file.path), *(adapter.path for adapter in file.adapters)]


def _fingerprint(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for part in paths:
        try:
            with open(part, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                digest.update(f"{size} ".encode() + file.read(_HEAD))
                file.seek(max(0, size - _TAIL))
                digest.update(file.read(_TAIL))
        except OSError as error:
            raise ModelError(f"{part}: {read_problem(error)}") from error
    return digest.hexdigest()


def files_on_this_node(models: Sequence[ClusterModel], version: str) -> list[ServedFile]:
    """The node's files. `version`: of the package that asks. Raises PyllamacpuError."""
    if version != __version__:
        raise PyllamacpuError(f"pyllamacpu {__version__} is installed; the command's machine has {version}")
    return [model.on_this_node() for model in models]
