"""Whether a server can be reached at all, found out in seconds, and messages of others without secrets."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from importlib import import_module
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

_SECONDS = 2.0  # for the name and the connection together
_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}

_CREDENTIALS = re.compile(r"(\w+://)[^/\s@]+@")
_QUERY = re.compile(r"(\w+://[^\s?#]+)[?#][^\s'\"),;]*[^\s'\"),;:.]")
_TOKENS = re.compile(r"\b(?:hf|pypi|ghp|glpat)[_-][A-Za-z0-9_-]{4,}|(?<=Bearer )[^\s,;]+")


def without_secrets(text: str) -> str:
    """`text` without what could be a password or token: in addresses, their queries, and by its own look."""
    text = _QUERY.sub(r"\1", _CREDENTIALS.sub(r"\1", text))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := os.environ.get(name):
            text = text.replace(token, "…")
    return _TOKENS.sub("…", text)


def split_address(url: str) -> SplitResult | None:
    """The parts of an address with a host and, if any, a port that can be; None for anything else."""
    try:
        parts = urlsplit(url)
        return parts if parts.hostname and parts.port != 0 else None
    except ValueError:
        return None


def reachable(url: str, seconds: float = _SECONDS) -> bool:
    """Whether a connection to the host of `url`, or to the proxy on the way, is there within `seconds`.

    A name server that does not answer cannot be interrupted, so it is asked in a thread of its own.
    """
    import socket  # 20 ms of every command's start, with what it brings

    parts = split_address(_proxied(url))
    if parts is None:
        return False
    address = (parts.hostname, parts.port or _PORTS.get(parts.scheme, 443))
    found: list[bool] = []

    def connect() -> None:
        with contextlib.suppress(OSError, UnicodeError), socket.create_connection(address, seconds):
            found.append(True)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(found)


def _proxied(url: str) -> str:
    """The address to connect to: the proxy that the environment names, or `url` itself."""
    from urllib.request import getproxies, proxy_bypass

    parts, proxies = split_address(url), getproxies()
    if parts is None:
        return url
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.hostname or ""):
        return url
    return proxy if "://" in proxy else f"http://{proxy}"


def package_index_reachable() -> bool | None:
    """Whether pip can reach its index; None where only pip knows what that is (configuration files)."""
    if os.environ.get("PIP_NO_INDEX") or os.environ.get("PIP_PROXY"):
        return None
    url = os.environ.get("PIP_INDEX_URL")
    if url is None and any(path.is_file() for path in _pip_configs()):
        return None
    url = url or _default_index()
    return None if url is None else reachable(url)


def _default_index() -> str | None:
    """pip's own default, as far as this pip says it."""
    try:
        module = import_module("pip._internal.models.index")
        return str(module.PyPI.simple_url)
    except (ImportError, AttributeError):
        return None


def _pip_configs() -> list[Path]:
    """Where pip looks for configuration: https://pip.pypa.io/en/stable/topics/configuration/"""
    named = os.environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return []
    home = Path(os.path.expanduser("~"))
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    found = [
        config / "pip/pip.conf",
        home / ".pip/pip.conf",
        home / "Library/Application Support/pip/pip.conf",
    ]
    found += [Path("/etc/pip.conf"), Path("/etc/xdg/pip/pip.conf"), Path(sys.prefix) / "pip.conf"]
    return [*found, Path(named)] if named else found
