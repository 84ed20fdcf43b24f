"""The names of KV pages outside of this process: hashes of all that decides their bits.

    key of a page = sha256(key of the page before it, its 32 token ids; of rows of images: digest and row)
    key before the first = sha256(what computes: the model's content, the plan, KV types, kernels, tier, CPU)

Two processes that would compute the same bits find each other's pages, and nobody else's.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np

from pyllamacpu.engine.page_files import PageFiles
from pyllamacpu.engine.pages import KVCache
from pyllamacpu.engine.prefix_cache import Root
from pyllamacpu.engine.token_ids import ImageIds
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.graph.compiled import CompiledPlan
from pyllamacpu.model.weights import Matrix, Table, Vector
from pyllamacpu.native import extension_content, isa_selected

_FRESH = 2.0  # seconds after a change during which a file could change again without a new time


def next_key(key: bytes, tokens: Seq[int], images: ImageIds | None = None) -> bytes:
    """The key of the page of `tokens` behind the page of `key`. Rows of images go by what they show."""
    found = hashlib.sha256(key + np.maximum(np.asarray(tokens, "<i4"), -1).tobytes())
    for part in [] if images is None else images.key_parts(tokens):
        found.update(part)
    return found.digest()


def root_key(base: bytes, root: Root) -> bytes | None:
    """The key before the first page of a tree of the prefix cache. None for an extra key that is not bytes (a
    digest): its meaning ends with this process, and such pages stay in memory.
    """
    adapters, extra = root
    if root == ((), None):
        return base
    if extra is not None and not isinstance(extra, bytes):
        return None
    return _hashed([base, *((a.digest, a.alpha, scale) for a, scale in adapters), extra])


def base_key(
    file: GGUFFile, plan: CompiledPlan, cache: KVCache, files: PageFiles, precision: str = "fast"
) -> bytes:
    """What decides the bits of all pages of a loaded model. The model's content is hashed once: the folder of
    pages remembers it for as long as the file is the same. Raises GGUFError.
    """
    parts: list[Any] = [
        content_hash(file, files),
        *_plan_facts(plan),
        repr([cache.spaces[space] for space in cache.token_spaces]),
        cache.type_k.name,
        cache.type_v.name,
        cache.rounding,
        isa_selected(),
        precision,
        extension_content(),
        *_machine_facts(),
    ]
    return _hashed(parts)


def _hashed(parts: Iterable[Any]) -> bytes:
    """One hash of texts, numbers and bytes, each with its length."""
    found = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.digest()


def _plan_facts(plan: CompiledPlan) -> Iterable[Any]:
    """What flows where, ops with their numbers and vectors in full, and which weights they read."""
    yield str(plan)
    for op in plan.ops:
        yield op.name, op.rows, op.times
        for name, value in sorted(op.values.items()):
            yield name
            for item in value if isinstance(value, list) else [value]:
                yield from _value_facts(item)


def _value_facts(value: Any) -> Iterable[Any]:
    if isinstance(value, Vector):
        yield value.name
        yield value.values.tobytes()
    elif isinstance(value, (Matrix, Table)):
        yield value.name, value.rows, value.cols, value.type.name
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _value_facts(item)
    elif isinstance(value, (int, float, str)):
        yield value


def _machine_facts() -> list[str]:
    """What the C library's functions choose their code by: the last bit of a sine may differ."""
    wanted = ("flags", "Features", "model name", "CPU implementer", "CPU part")
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = [platform.processor()]
    found = {line for line in lines if line.split("\t")[0].split(":")[0].strip() in wanted}
    return [platform.machine(), *platform.libc_ver(), *sorted(found)]


def content_hash(file: GGUFFile, files: PageFiles) -> bytes:
    """The hash of a model's bytes."""
    identity = _identity(file.statuses)
    if (known := files.read_fact(identity)) is not None:
        return known
    began = time.time()
    found = hashlib.sha256()
    for piece in file.content():
        found.update(piece.data)
    newest = max(max(status.st_mtime, status.st_ctime) for status in file.statuses)
    if _is_unchanged(file, identity) and newest < began - _FRESH:
        files.write_fact(identity, found.digest())
    return found.digest()


def _identity(statuses: Iterable[os.stat_result]) -> bytes:
    """A file whose bytes were changed has another one: its inode's time goes with every write."""
    return _hashed((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in statuses)


def _is_unchanged(file: GGUFFile, identity: bytes) -> bool:
    """Whether the paths still lead to the files that were opened."""
    try:
        return _identity(os.stat(path) for path in file.paths) == identity
    except OSError:
        return False
