"""What the tests of benchmarks/ share: where its scripts are, and a small shape for synthetic.py."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks"

needs_scripts = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs a source tree")


def small(synthetic: ModuleType, **changes: Any) -> Any:
    usual = {
        "n_layers": 8,
        "dim": 256,
        "n_heads": 8,
        "kv_heads": 2,
        "ffn_dim": 512,
        "vocab": 1000,
        "n_ctx": 512,
    }
    usual |= {"label": "1M", "rope_theta": 1e4, "tied": True, "pre": "llama-bpe", "rope_factor": 8.0}
    return synthetic.Shape(**(usual | changes))
