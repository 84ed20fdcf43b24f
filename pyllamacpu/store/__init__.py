"""The model store: the starter model, files by name, and the hub's cache."""

from __future__ import annotations

from pyllamacpu.store.resolve import StoredModel, list_models, model_files, resolve_model
from pyllamacpu.store.starter import starter_path

__all__ = ["StoredModel", "list_models", "model_files", "resolve_model", "starter_path"]
