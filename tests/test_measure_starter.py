"""tools/measure_starter.py: what it counts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parent.parent / "tools" / "measure_starter.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measure_starter", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)

    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The capital of France is Paris.", "en"),
        ("L'Étoile, la Cité de la France, est la capitale de la France.", "fr"),
        ("Привет!", "ru"),
        ("Hola, el mundo es de los ríos.", "es"),
        ("Ich bin ein Berliner und das ist nicht die Frage.", "de"),
        ("😀😀😀😀", "?"),
        ("Paris", "en"),
        ("你好", "cjk"),
    ],
)
def test_the_language_of_an_answer(tool: ModuleType, text: str, found: str) -> None:
    assert tool.language(text) == found


def test_the_report_counts(tool: ModuleType) -> None:
    good = tool.Answer("q", "a", True, False, True, True, 10)
    bad = tool.Answer("q", "a", False, True, False, None, 30)
    assert tool.report([good, good, bad]) == (
        "ended 2/3, looped 1/3, language 2/3, facts 2/12, tokens 10 (median)"
    )
    assert len(tool.QUESTIONS) == 10 and tool.SEEDS == 6
    assert set(tool.FACTS) <= {question for question, _ in tool.QUESTIONS}
