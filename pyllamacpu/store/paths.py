"""Where models, the chat history and lock files live on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pyllamacpu.errors import OptionError

PACK_VARIABLE = "PYLLAMACPU_PACK_CACHE"


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


def pack_folder(given: Any) -> Path | None:
    """The folder of packed weights that a `pack_cache` argument means: True is the usual one, False none, and
    None what PYLLAMACPU_PACK_CACHE says (1, 0, or a folder). Raises OptionError.
    """
    if given is None:
        found = os.environ.get(PACK_VARIABLE, "")
        given = {"": False, "0": False, "1": True}.get(found, found)
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
