"""tools/make_command_reference.py: pyllamacpu/cli/README.md is what the commands say today."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("maker", ROOT / "tools" / "make_command_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date(maker: ModuleType) -> None:
    """In a process of its own: a command that was called without its group has forgotten the group's -h."""
    tool = ROOT / "tools" / "make_command_reference.py"
    command = [sys.executable, str(tool), "--check"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_command_and_option_is_in_it(maker: ModuleType) -> None:
    text = maker.OUT.read_text(encoding="utf-8")
    assert text.count("\n## pyllamacpu") == 1 + len(maker.cli.list_commands(None))
    assert "--cache-type-k" in text and "Usage: pyllamacpu quantize" in text
    assert max(map(len, text.splitlines())) <= maker.COLUMNS + 20


def test_a_changed_option_makes_it_out_of_date(maker: ModuleType) -> None:
    text = maker.OUT.read_text(encoding="utf-8")
    assert not maker.is_current(text.replace("--cache-type-k", "--cache-type-of-keys", 1))
