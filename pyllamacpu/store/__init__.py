"""The model store: the starter model, files by name, and the hub's cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllamacpu.store.resolve import StoredModel, list_models, model_files, resolve_model

if TYPE_CHECKING:
    from pyllamacpu.store.starter import starter_path

__all__ = ["StoredModel", "list_models", "model_files", "resolve_model", "starter_path"]


def __getattr__(name: str) -> object:
    """What fetches is imported when it is first used: most runs have their model."""
    if name != "starter_path":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pyllamacpu.store.starter import starter_path

    return starter_path
