"""The description of the API is what the server does. Covers server/description.py, server/shapes.py."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Running, serving, wait_until
from tiny_model import write_model

from pyllamacpu.server.description import FIELDS_FILE, body_fields, body_schema
from pyllamacpu.server.shapes import REQUIRED

sys.path.append(str(Path(__file__).parent.parent / "tools"))

from make_api_description import REQUESTS, read_fields, written


def test_the_fields_are_those_that_are_read(home: Path, tmp_path: Path) -> None:
    """A field that a dialect reads newly, or in another range: tools/make_api_description.py."""
    there = FIELDS_FILE.read_text(encoding="utf-8")
    assert written(read_fields(tmp_path)) == there, "run python tools/make_api_description.py"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYLLAMACPU_HOME", str(tmp_path_factory.mktemp("home")))
        with serving(("tiny", write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))) as found:
            wait_until(lambda: found.get("/health").status_code == 200)
            yield found


def test_every_route_is_described(running: Running) -> None:
    described = running.get("/openapi.json").json()
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            assert operation["responses"], path
            assert "422" not in operation["responses"], path
            assert (method in ("post", "delete")) == ("requestBody" in operation), path
    assert body_fields().keys() <= {re.sub(r"\{.*", "", path) for path in described["paths"]}
    assert REQUIRED.keys() <= body_fields().keys() == REQUESTS.keys()


def test_ranges_and_needed_fields_are_told() -> None:
    chat = body_schema("/v1/chat/completions")
    assert chat["required"] == ["messages"] and chat["properties"]["messages"]["minItems"] == 1
    limits = {"type": "number", "minimum": 0.0, "maximum": 2.0}
    assert chat["properties"]["temperature"] == {"anyOf": [limits, {"type": "null"}]}
    assert chat["properties"]["audio"] == {"type": "null"}
    options = body_schema("/api/chat")["properties"]["options"]
    assert "num_predict" in options["properties"]
    assert [branch["required"] for branch in body_schema("/api/show")["anyOf"]] == [["model"], ["name"]]


def test_schemathesis_finds_no_disagreement(running: Running) -> None:
    """A case for each operation; the long run is by hand: `st run URL/openapi.json`. That all valid
    bodies are accepted cannot be asked: which adapters, names and lengths there are, no schema says.
    """
    schemathesis = pytest.importorskip("schemathesis")
    import hypothesis
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    for found in schema.get_all_operations():
        operation = found.ok()

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.seed(1)
        @hypothesis.settings(
            max_examples=1,
            deadline=None,
            database=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def check(case: Any) -> None:
            case.call_and_validate(timeout=30, excluded_checks=[positive_data_acceptance])

        check()


def test_the_file_is_part_of_the_package() -> None:
    assert json.loads(FIELDS_FILE.read_text(encoding="utf-8"))
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert "server/*.json" in text
