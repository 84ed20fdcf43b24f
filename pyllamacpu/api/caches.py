"""Caches of evaluated texts that a program keeps itself: `Llama.set_cache`.

The pages of a `Llama` object's own earlier calls are reused without any of these. A cache carries them
further: into another object, or with `LlamaDiskCache` into another process. What is stored is exact, so that
answers do not depend on it.
"""

from __future__ import annotations

import abc
import contextlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyllamacpu.api.state import LlamaState
from pyllamacpu.engine.token_ids import common_prefix
from pyllamacpu.errors import OptionError, OutputError
from pyllamacpu.files import PartialFile, open_regular
from pyllamacpu.forks import fork_safe_lock

Key = tuple[int, ...]
CAPACITY = 2 << 30  # bytes
_NAME = re.compile(r"[0-9a-f]{64}\.npz")


class BaseLlamaCache(abc.ABC):
    """States by their tokens. Looking up finds the state that has most tokens in common from the start."""

    def __init__(self, capacity_bytes: int = CAPACITY) -> None:
        """Raises OptionError."""
        if isinstance(capacity_bytes, bool) or not isinstance(capacity_bytes, (int, float)):
            raise OptionError(f"capacity_bytes={capacity_bytes!r:.80}: give a number of bytes")
        if not capacity_bytes >= 0:  # nan too
            raise OptionError(f"capacity_bytes={capacity_bytes}: give a number of bytes, 0 or more")
        self.capacity_bytes = capacity_bytes

    @property
    @abc.abstractmethod
    def cache_size(self) -> int:
        """Bytes that are taken."""

    @abc.abstractmethod
    def _find_longest_prefix_key(self, key: Key) -> Key | None:
        """The stored key that has most tokens in common with `key`, None if no token is."""

    @abc.abstractmethod
    def __getitem__(self, key: Sequence[int]) -> LlamaState: ...

    @abc.abstractmethod
    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None: ...

    def __contains__(self, key: Sequence[int]) -> bool:
        return self._find_longest_prefix_key(tuple(key)) is not None


def _nearest(keys: Iterable[Key], key: Key) -> Key | None:
    n, found = max(((common_prefix(other, key), other) for other in keys), default=(0, ()))
    return found if n else None


class LlamaRAMCache(BaseLlamaCache):
    """States in memory; the least recently used go when they take more than `capacity_bytes`. Threads may
    share one.
    """

    def __init__(self, capacity_bytes: int = CAPACITY) -> None:
        super().__init__(capacity_bytes)
        self.cache_state: OrderedDict[Key, LlamaState] = OrderedDict()
        self._lock = fork_safe_lock()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = {name: value for name, value in self.__dict__.items() if name != "_lock"}
            return {**state, "cache_state": self.cache_state.copy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=fork_safe_lock())

    @property
    def cache_size(self) -> int:
        with self._lock:
            return sum(state.llama_state_size for state in self.cache_state.values())

    def _find_longest_prefix_key(self, key: Key) -> Key | None:
        with self._lock:
            return _nearest(self.cache_state, key)

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        with self._lock:
            found = self._find_longest_prefix_key(tuple(key))
            if found is None:
                raise KeyError("no state begins with these tokens")
            self.cache_state.move_to_end(found)
            return self.cache_state[found]

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        with self._lock:
            self.cache_state[tuple(key)] = value
            self.cache_state.move_to_end(tuple(key))
            while self.cache_state and self.cache_size > self.capacity_bytes:
                self.cache_state.popitem(last=False)


LlamaCache = LlamaRAMCache


class LlamaDiskCache(BaseLlamaCache):
    """States as files of a folder; the least recently used go when they take more than `capacity_bytes`.

    A file holds arrays and JSON only: nothing in it is executed. One that is damaged is as if it were not
    there.
    """

    def __init__(
        self, cache_dir: str | os.PathLike[str] = ".cache/llama_cache", capacity_bytes: int = CAPACITY
    ) -> None:
        """Raises OptionError, OutputError for a folder that cannot be made."""
        super().__init__(capacity_bytes)
        if not isinstance(cache_dir, (str, os.PathLike)) or not os.fspath(cache_dir):
            raise OptionError(f"cache_dir={cache_dir!r:.80}: give the path of a folder")
        self._folder = Path(os.fsdecode(cache_dir))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:  # ValueError: a path with a null character
            raise OutputError(self._folder, f"cannot be made: {getattr(error, 'strerror', error)}") from error

    @property
    def cache_size(self) -> int:
        return sum(self._sizes().values())

    def _sizes(self) -> dict[Path, int]:
        """Bytes of our files, the least recently used first; other files of the folder are nobody's business
        here. One that another process removes meanwhile is left out.
        """
        found = []
        for path in self._folder.glob("*.npz"):
            if _NAME.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):
                    facts = path.stat()
                    found.append((facts.st_mtime_ns, path, facts.st_size))
        return {path: size for _, path, size in sorted(found)}

    def _keys(self) -> dict[Key, Path]:
        found: dict[Key, Path] = {}
        for path in self._sizes():
            if (key := _read(path, lambda arrays: tuple(arrays["input_ids"].tolist()))) is not None:
                found[key] = path
        return found

    def _find_longest_prefix_key(self, key: Key) -> Key | None:
        return _nearest(self._keys(), key)

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        keys = self._keys()
        found = _nearest(keys, tuple(key))
        state: LlamaState | None = None if found is None else _read(keys[found], _unpack)
        if found is None or state is None:
            raise KeyError("no state begins with these tokens")
        with contextlib.suppress(FileNotFoundError):
            os.utime(keys[found])
        return state

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        import hashlib

        name = hashlib.sha256(np.asarray(key, np.int32).tobytes()).hexdigest()
        target = self._folder / f"{name}.npz"
        with PartialFile(target, mode=0o600) as part:  # texts of a person are in it
            try:
                np.savez(part.file, **_pack(value))
            except OSError as error:
                raise OutputError(target, f"cannot be written: {error.strerror or error}") from error
        sizes = self._sizes()
        taken = sum(sizes.values())
        for path, size in sizes.items():
            if taken <= self.capacity_bytes:
                break
            path.unlink(missing_ok=True)
            taken -= size


def _pack(state: LlamaState) -> dict[str, Any]:
    facts = {"model": state.model, "seed": state.seed, "weights": state.weights}
    return {
        "input_ids": state.input_ids[: state.n_tokens],
        "scores": state.scores,
        "llama_state": np.frombuffer(state.llama_state, np.uint8),
        "facts": np.array(json.dumps(facts)),
    }


def _unpack(arrays: Any) -> LlamaState:
    facts, data = json.loads(str(arrays["facts"])), arrays["llama_state"].tobytes()
    ids = arrays["input_ids"]
    return LlamaState(
        ids,
        arrays["scores"],
        len(ids),
        data,
        len(data),
        facts["seed"],
        model=tuple(facts["model"]),
        weights=facts.get("weights", ""),
    )


def _read(path: Path, make: Callable[[Any], Any]) -> Any:
    """What `make` makes of the arrays of a file; None if it is damaged or gone."""
    try:
        with open(open_regular(path), "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return make(arrays)
    except Exception:  # of zip, zlib, numpy or JSON: whatever a damaged file makes them run into
        return None
