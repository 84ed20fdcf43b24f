"""Ollama's dialect, through its own client. Covers server/ollama.py, server/ollama_models.py,
server/ollama_shapes.py.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import ollama
import pytest
from serving import Running, ollama_client, serving, tiny_llama, tiny_path, wait_until
from tiny_model import write_model

from pyllamacpu import Llama

QUESTION = [{"role": "user", "content": "hello the world"}]
GREEDY = {"temperature": 0, "num_predict": 10}


path, llm, client = tiny_path(), tiny_llama(), ollama_client()


@pytest.fixture
def running(home: Path, path: Path) -> Iterator[Running]:
    (home / "models").mkdir(parents=True)
    shutil.copy(path, home / "models" / "stored-Q4_1.gguf")
    with serving(("tiny", path)) as found:
        yield found
        found.wait_idle()


def test_chat(client: ollama.Client, llm: Llama) -> None:
    expected = llm.create_chat_completion(QUESTION, max_tokens=10, temperature=0)
    text = expected["choices"][0]["message"]["content"]
    answer = client.chat("tiny", QUESTION, options=GREEDY)
    assert answer.message.content == text and answer.done and answer.done_reason == "length"
    assert answer.eval_count == 10 and answer.prompt_eval_count == expected["usage"]["prompt_tokens"]
    assert answer.total_duration is not None and answer.total_duration > answer.eval_duration > 0
    parts = list(client.chat("tiny:latest", QUESTION, options=GREEDY, stream=True))
    assert "".join(part.message.content or "" for part in parts) == text
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_generate(client: ollama.Client, llm: Llama) -> None:
    expected = llm("hello the", max_tokens=10, temperature=0)["choices"][0]["text"]
    assert client.generate("tiny", "hello the", raw=True, options=GREEDY).response == expected
    chat = client.chat("tiny", QUESTION, options=GREEDY).message.content
    parts = client.generate("tiny", "hello the world", options=GREEDY, stream=True)
    assert "".join(part.response for part in parts) == chat
    hole = llm("hello", suffix="world", max_tokens=10, temperature=0)["choices"][0]["text"]
    assert client.generate("tiny", "hello", suffix="world", options=GREEDY).response == hole


def test_embed(client: ollama.Client, llm: Llama) -> None:
    answer = client.embed("tiny", ["hello", "the"])
    np.testing.assert_allclose(answer.embeddings, llm.embed(["hello", "the"], normalize=True), rtol=1e-6)
    assert client.embeddings("tiny", "hello").embedding == pytest.approx(list(answer.embeddings[0]))
    with pytest.raises(ollama.ResponseError, match="256"):
        client.embed("tiny", "the " * 400, truncate=False)
    default = client._request_raw("POST", "/api/embed", json={"model": "tiny", "input": "the " * 400})
    assert default.json()["prompt_eval_count"] == 256
    cut = client.embed("tiny", "the " * 400, truncate=True)
    assert cut.prompt_eval_count == 256


def test_models(client: ollama.Client, running: Running) -> None:
    assert [model.model for model in client.list().models] == ["tiny", "stored-Q4_1"]
    shown = client.show("stored-Q4_1")
    assert shown.details is not None and shown.details.family == "llama"
    assert shown.details.quantization_level == "Q4_1"
    assert shown.capabilities == ["completion", "embedding", "tools"]
    assert shown.modelinfo is not None and shown.modelinfo["llama.block_count"] == 2
    assert "user" not in (shown.template or "") and "messages" in (shown.template or "")
    wait_until(lambda: [model.model for model in client.ps().models] == ["tiny"])
    assert running.get("/api/version").json()["version"]


def test_models_are_loaded_and_unloaded(client: ollama.Client) -> None:
    assert client.generate("stored-Q4_1").done_reason == "load"
    assert "stored-Q4_1" in [model.model for model in client.ps().models]
    assert client.generate("stored-Q4_1", keep_alive=0).done_reason == "unload"
    wait_until(lambda: "stored-Q4_1" not in [model.model for model in client.ps().models])


def test_copy_and_delete(client: ollama.Client, home: Path) -> None:
    client.copy("stored-Q4_1", "second")
    assert client.generate("second", "hello", options=GREEDY).done
    with pytest.raises(ollama.ResponseError, match="already"):
        client.copy("tiny", "second")
    for name in ("../escape", "/tmp/x", "", "a/../b", "a//b"):
        with pytest.raises(ollama.ResponseError, match="destination"):
            client.copy("tiny", name)
    client.delete("second")
    assert sorted(entry.name for entry in (home / "models").glob("*.gguf")) == ["stored-Q4_1.gguf"]
    with pytest.raises(ollama.ResponseError, match="does not exist"):
        client.delete("second")
    with pytest.raises(ollama.ResponseError, match="it stays"):
        client.delete("tiny")


def test_pull(client: ollama.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    steps = [step.status for step in client.pull("stored-Q4_1", stream=True)]
    assert steps[0] == "pulling manifest" and steps[-1] == "success"
    for name in ("/etc/passwd", "../x", "a b"):
        with pytest.raises(ollama.ResponseError, match="not the name"):
            client.pull(name)
    with pytest.raises(ollama.ResponseError):
        client.pull("hf.co/nobody/nothing")


def test_pull_tells_of_bytes(client: ollama.Client, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = f"sha256:{'a' * 64}"

    def download(name: str, on_download: Any, **_: Any) -> Path:
        for done in (0, 50, 100):
            time.sleep(0.15)
            on_download(digest, done, 100)
        return path

    monkeypatch.setattr("pyllamacpu.server.ollama_models.resolve_model", download)
    steps = [step for step in client.pull("hf.co/a/b", stream=True) if step.digest]
    assert [(step.completed, step.total) for step in steps] == [(0, 100), (50, 100), (100, 100)]
    assert {step.digest for step in steps} == {digest} and steps[0].status == f"pulling {'a' * 12}"


def test_what_is_pulled_anew_is_loaded_anew(
    client: ollama.Client, running: Running, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = home / "models" / "stored-Q4_1.gguf"
    old = client.generate("stored-Q4_1", "hello the", raw=True, options=GREEDY).response

    def download(*_: Any, **__: Any) -> Path:
        write_model(home / "new.gguf", seed=11).replace(stored)
        return stored

    client.pull("stored-Q4_1")
    service = running.server.service
    assert service is not None and "stored-Q4_1" in service.models.loaded  # nothing new
    monkeypatch.setattr("pyllamacpu.server.ollama_models.resolve_model", download)
    client.pull("stored-Q4_1")
    assert client.generate("stored-Q4_1", "hello the", raw=True, options=GREEDY).response != old


@pytest.mark.parametrize("empty", [{}, {"input": ""}, {"input": []}])
def test_nothing_to_embed_loads_the_model(running: Running, empty: dict[str, Any]) -> None:
    """As an empty prompt of /api/generate does."""
    answer = running.post("/api/embed", model="stored-Q4_1", keep_alive=0, **empty)
    assert answer.status_code == 200 and answer.json()["embeddings"] == []
    service = running.server.service
    assert service is not None
    wait_until(lambda: "stored-Q4_1" not in service.models.loaded)
    answer = running.post("/api/embeddings", model="stored-Q4_1", prompt=empty.get("input") or "")
    assert answer.json()["embedding"] == [] and "stored-Q4_1" in service.models.loaded


def test_a_file_of_the_folder_is_not_a_name(
    client: ollama.Client, path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copy(path, home / "other.gguf")
    monkeypatch.chdir(home)
    for call in (client.pull, lambda name: client.create("new", from_=name)):
        with pytest.raises(ollama.ResponseError, match="no such"):
            call("other.gguf")


def test_show_has_metadata_of_every_kind(client: ollama.Client, home: Path) -> None:
    """Also arrays in arrays, which Ollama's own files have none of."""
    odd = {
        "x__nested": [[1, 2], [3]],
        "x__texts": ["a", "b"],
        "x__flags": [True, False],
        "x__long": [1.5] * 100,
    }
    write_model(home / "models" / "odd.gguf", **odd)
    info = client.show("odd").modelinfo
    assert info is not None and info["x.nested"] == [[1, 2], [3]] and info["x.flags"] == [True, False]
    assert info["x.texts"] == ["a", "b"] and info["x.long"] is None
    whole = client._request_raw("POST", "/api/show", json={"model": "odd", "verbose": True}).json()
    assert whole["model_info"]["x.long"] == [1.5] * 100


@pytest.mark.parametrize(
    "change, says",
    [
        ({"options": {"temperature": -1}}, "options.temperature"),
        ({"options": {"num_ctx": 100000}}, "options.num_ctx"),
        ({"options": {"num_predict": -3}}, "options.num_predict"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"options": 3}, "options"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"keep_alive": 10**400}, "keep_alive"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"think": True}, "think"),
        ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages[0].images"),
        ({"model": None}, "model"),
    ],
)
def test_what_cannot_be_honoured_is_named(running: Running, change: dict[str, Any], says: str) -> None:
    response = running.post("/api/chat", **{"model": "tiny", "messages": QUESTION, **change})
    assert response.status_code == 400 and response.json()["error"].startswith(says)


def test_what_has_no_place_without_a_template_is_named(running: Running) -> None:
    """The system's words would be lost."""
    for more in ({"raw": True, "system": "Be kind."}, {"suffix": "b", "system": "Be kind."}):
        response = running.post("/api/generate", model="tiny", prompt="a", **more)
        assert response.status_code == 400 and response.json()["error"].startswith("system: ")
    for name, value in (("template", "{{ .Prompt }}"), ("context", [1])):
        response = running.post("/api/generate", model="tiny", prompt="a", raw=True, **{name: value})
        assert response.status_code == 400 and response.json()["error"].startswith(name)


@pytest.mark.parametrize("limit", [0, -1, -2])
def test_without_a_limit_an_answer_ends_with_the_context(client: ollama.Client, limit: int) -> None:
    """As Ollama has it, 0 is no limit either."""
    options = {"temperature": 0, "num_predict": limit, "stop_loops": False}
    answer = client.chat("tiny", QUESTION, options=options)
    assert answer.done_reason in ("length", "stop") and answer.eval_count is not None
    assert answer.done_reason == "stop" or answer.eval_count + (answer.prompt_eval_count or 0) >= 255
    assert answer.eval_count > 20


def test_models_are_not_pushed(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="not pushed"):
        client.push("tiny")


def test_what_is_left_out_is_named(running: Running) -> None:
    for path, body, says in (
        ("/api/copy", {"destination": "x"}, "source: is missing"),
        ("/api/embeddings", {"model": "tiny", "prompt": ["a", "b"]}, "prompt: 2 inputs"),
    ):
        response = running.post(path, **body)
        assert (response.status_code, response.json()["error"][: len(says)]) == (400, says)


def test_durations(running: Running) -> None:
    service = running.server.service
    assert service is not None
    for given, seconds in (("5m", 300), ("1h30m", 5400), (10, 10), ("-1", None), ("1.5s", 1.5)):
        running.post("/api/generate", model="tiny", keep_alive=given)
        assert service.models.loaded["tiny"].keep_alive == seconds


@pytest.mark.parametrize("stay, seconds", [(1e300, 1e9), (-1, 1e9), ("1h", 3500)])
def test_when_a_model_goes(running: Running, stay: Any, seconds: float) -> None:
    """Of a model that stays for ever, a time far away."""
    running.post("/api/generate", model="tiny", keep_alive=stay)
    (model,) = running.get("/api/ps").json()["models"]
    left = datetime.fromisoformat(model["expires_at"]).timestamp() - time.time()
    assert left > seconds
