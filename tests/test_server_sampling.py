"""What is sampled with when a request says little or much, per dialect. Covers server/sampling_fields.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from serving import Running, serving
from tiny_model import write_model

from pyllamacpu.engine.generate import Request
from pyllamacpu.engine.scheduler import Scheduler
from pyllamacpu.sampling.options import SamplingOptions
from pyllamacpu.store.starter import STARTER

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
OWN: dict[str, Any] = {"temperature": 0.2, "top_p": 0.9, "repeat_penalty": 1.12}
DIALECTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {**CHAT, "max_tokens": 1}),
    ("/v1/completions", {"prompt": "hello", "max_tokens": 1}),
    ("/v1/responses", {"input": "hello", "max_output_tokens": 1}),
    ("/v1/messages", {**CHAT, "max_tokens": 1}),
    ("/api/chat", {**CHAT, "options": {"num_predict": 1}}),
    ("/api/generate", {"prompt": "hello", "options": {"num_predict": 1}}),
    ("/completion", {"prompt": "hello", "n_predict": 1}),
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two models, one of which passes for the starter model."""
    folder = tmp_path_factory.mktemp("models")
    paths = [write_model(folder / name) for name in (STARTER.filename, "tiny.gguf")]
    with serving(("starter", paths[0]), ("tiny", paths[1])) as found:
        yield found
        found.wait_idle()


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[SamplingOptions]:
    """The options of the requests that reach the engine."""
    found: list[SamplingOptions] = []
    submit = Scheduler.submit

    def watched(self: Scheduler, request: Any, owner: Any = None) -> Any:
        assert isinstance(request, Request)
        found.append(request.sampling)
        return submit(self, request, owner=owner)

    monkeypatch.setattr(Scheduler, "submit", watched)
    return found


@pytest.mark.parametrize("path, body", DIALECTS)
def test_what_is_left_out_is_the_models_own(
    running: Running, sampled: list[SamplingOptions], path: str, body: dict[str, Any]
) -> None:
    given = {"temperature": 0.7, "top_k": 5}
    if "options" in body:
        given = {"options": {**body["options"], **given}}
    for more in ({}, given):
        for model in ("starter", "tiny"):
            response = running.post(path, model=model, **{**body, **more})
            assert response.status_code == 200, response.text
    assert sampled == [
        SamplingOptions(**OWN),
        SamplingOptions(),
        SamplingOptions(**{**OWN, "temperature": 0.7, "top_k": 5}),
        SamplingOptions(temperature=0.7, top_k=5),
    ]


def test_the_page_is_told(running: Running) -> None:
    for model, own in (("starter", OWN), ("tiny", {})):
        shown = running.get(f"/props?model={model}").json()["default_generation_settings"]["params"]
        expected = SamplingOptions(**own)
        assert {name: shown[name] for name in OWN} == {name: getattr(expected, name) for name in OWN}
