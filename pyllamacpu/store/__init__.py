"""The model store: the starter model, files by name, and the hub's cache."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyllamacpu.store.resolve import StoredModel, list_models, model_files, resolve_model
    from pyllamacpu.store.starter import starter_path

__all__ = ["StoredModel", "list_models", "model_files", "resolve_model", "starter_path"]


def __getattr__(name: str) -> object:
    """Imported when first used: most runs have the path of their model, and none fetches it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "starter" if name == "starter_path" else "resolve"
    return getattr(import_module(f"pyllamacpu.store.{home}"), name)
