"""Where models, the chat history and lock files live on this machine."""

from __future__ import annotations

import os
from pathlib import Path


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
