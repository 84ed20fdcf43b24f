"""The small JSON files of a checkpoint: configs and indexes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyllamacpu.errors import CheckpointError
from pyllamacpu.files import read_problem, read_regular

MAX_BYTES = 1 << 28


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError when it is missing, too large, damaged or holds
    anything else.
    """
    try:
        content = read_regular(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise CheckpointError(path, read_problem(error, "cannot be read: ")) from error
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            path, f"is not sound JSON: {error or 'nested too deep'}; download it again"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(path, "is not a JSON object; download it again")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """The same; empty when there is no file."""
    return read_json(path) if path.is_file() else {}
