"""Errors of every kind as programs meet them."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest

from pyllamacpu import errors
from pyllamacpu.errors import PyllamacpuError
from pyllamacpu.sampling.grammar import ToolSchemaError
from pyllamacpu.server.errors import HTTPError

KINDS = [
    kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, PyllamacpuError) and not name.startswith("_")
]


@pytest.mark.parametrize("kind", [*KINDS, ToolSchemaError])
def test_errors_go_between_processes(kind: type[PyllamacpuError]) -> None:
    """A pool of processes, or Ray, gives up when an error of a worker cannot be read."""
    own = kind.__init__ is not Exception.__init__  # with the place and the reason apart
    arguments: Any = ("model.gguf", "is damaged") if own else ("is damaged",)
    error = kind(*arguments)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is kind and str(other) == str(error) and vars(other) == vars(error)


def test_refusals_of_the_server_too() -> None:
    other = pickle.loads(pickle.dumps(HTTPError("no", status=503, param="n", retry_after=3)))
    assert (str(other), other.status, other.param, other.headers) == ("no", 503, "n", {"Retry-After": "3"})
