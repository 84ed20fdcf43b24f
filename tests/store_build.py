"""Files as the hub's library leaves them in its cache."""

from __future__ import annotations

from pathlib import Path

from pyllamacpu.store.paths import hub_cache_dir


def cache_file(repo: str, name: str, content: bytes = b"GGUF", commit: str = "c" * 40) -> Path:
    """A file in the hub's cache, as the library would have put it there."""
    base = hub_cache_dir() / f"models--{repo.replace('/', '--')}"
    path = base / "snapshots" / commit / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    (base / "refs").mkdir(exist_ok=True)
    (base / "refs" / "main").write_text(commit)
    return path
