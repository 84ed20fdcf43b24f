"""Where models, the chat history and lock files live on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyllamacpu.errors import OptionError
from pyllamacpu.units import SWITCH_WORDS, parse_bytes

PACK_VARIABLE = "PYLLAMACPU_PACK_CACHE"
PACK_LIMIT_VARIABLE = "PYLLAMACPU_PACK_CACHE_LIMIT"
PACK_LIMIT = 64 << 30  # bytes of packed weights in a folder, unless another limit is given


@dataclass(frozen=True)
class PackFolder:
    """A folder of packed weights, and how many bytes they take at most."""

    path: Path
    limit_bytes: int = PACK_LIMIT

    def __fspath__(self) -> str:
        return str(self.path)


def store_home() -> Path:
    """The directory that holds everything this package keeps.

    `PYLLAMACPU_HOME` wins; otherwise it is `pyllamacpu` in `XDG_CACHE_HOME` (when that is absolute, as its
    specification asks) or in `~/.cache`. The directory need not exist.
    """
    home = os.environ.get("PYLLAMACPU_HOME")
    if home:
        return expanded(home).absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else _user_home() / ".cache") / "pyllamacpu"


def models_dir() -> Path:
    """The directory of stored model files; it need not exist."""
    return store_home() / "models"


def panels_dir() -> Path:
    """Where packed weights are kept, unless another folder is named; it need not exist."""
    return store_home() / "panels"


def pack_folder(given: Any, limit_bytes: Any = None) -> PackFolder | None:
    """The folder of packed weights that a `pack_cache` argument means: True is the usual one, False none, and
    None what PYLLAMACPU_PACK_CACHE says (1, 0, yes, no and the like, or a folder). Its limit, if none is
    given, is what PYLLAMACPU_PACK_CACHE_LIMIT says. Raises OptionError.
    """
    if isinstance(given, PackFolder):
        return given if limit_bytes is None else replace(given, limit_bytes=_pack_limit(limit_bytes))
    path = _pack_path(given)
    if path is None and limit_bytes is not None:
        raise OptionError("pack_cache_limit: name the folder too, with pack_cache")
    return None if path is None else PackFolder(path, _pack_limit(limit_bytes))


def usual_pack_folder() -> PackFolder:
    """The folder that PYLLAMACPU_PACK_CACHE names, or else the usual one. Raises OptionError."""
    found = pack_folder(None) or pack_folder(True)
    assert found is not None
    return found


def _pack_limit(given: Any) -> int:
    if given is None:
        named = os.environ.get(PACK_LIMIT_VARIABLE)
        try:
            return parse_bytes(named) if named else PACK_LIMIT
        except OptionError as error:
            raise OptionError(f"{PACK_LIMIT_VARIABLE}: {error}") from None
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise OptionError(f"pack_cache_limit={given!r:.80}: give a number of bytes")
    return given


def _pack_path(given: Any) -> Path | None:
    if given is None:
        found = os.environ.get(PACK_VARIABLE, "")
        given = SWITCH_WORDS.get(found.lower(), found)
    if isinstance(given, bool):
        return panels_dir() if given else None
    if not isinstance(given, (str, os.PathLike)) or not os.fspath(given):
        raise OptionError(f"pack_cache={given!r:.80}: give the path of a folder, True, False or None")
    return expanded(os.fsdecode(given)).absolute()


def hub_cache_dir() -> Path:
    """The cache directory of huggingface_hub, found by its own rules but without its slow import.

    Rules: https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
    """
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(name):
            return expanded(os.path.expandvars(value))
    if value := os.environ.get("HF_HOME"):
        return expanded(os.path.expandvars(value)) / "hub"
    cache = os.environ.get("XDG_CACHE_HOME") or str(_user_home() / ".cache")
    return expanded(cache) / "huggingface" / "hub"


def expanded(path: str) -> Path:
    """`path` with ~ replaced by the home of its user; as it stands where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _user_home() -> Path:
    """The user's home directory, or the current directory for a user who has none (some containers)."""
    try:
        return Path.home()
    except RuntimeError:
        return Path.cwd()
