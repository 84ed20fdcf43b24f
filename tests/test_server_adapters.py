"""Adapters over HTTP: `lora` in requests, names as models, /lora-adapters.

Covers server/adapters.py, cli/serve.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import Running, serving
from test_engine_adapters import write_adapter
from tiny_model import write_model

from pyllamacpu import Llama
from pyllamacpu.api.loading import LoadOptions
from pyllamacpu.cli.serve import _models
from pyllamacpu.errors import OptionError
from pyllamacpu.server.app import ServeOptions
from pyllamacpu.server.models import PoolOptions
from pyllamacpu.server.served_files import ServedAdapter, ServedFile

PROMPT: dict[str, Any] = {"prompt": "hello the world", "n_predict": 8, "temperature": 0, "ignore_eos": True}
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A model, and two adapters for it."""
    folder = tmp_path_factory.mktemp("served")
    model = write_model(folder / "tiny.gguf")
    with Llama(model, n_threads=1) as llm:
        adapters = [
            write_adapter(folder / f"{name}.gguf", llm.engine, 4, i, 1) for i, name in enumerate("ab")
        ]
    return [model, *adapters]


@pytest.fixture(scope="module")
def running(paths: list[Path]) -> Iterator[Running]:
    model, a, b = paths
    load = LoadOptions(n_ctx=256, n_threads=1, type_k="f32", type_v="f32")
    adapters = (ServedAdapter("a", a, 8.0), ServedAdapter("other", b, 8.0, applied=False))
    running = Running(ServeOptions((ServedFile("tiny", model, adapters=adapters),), PoolOptions(load)))
    yield running
    running.stop()


def alone(paths: list[Path], *scales: float) -> str:
    """The completion of PROMPT by a `Llama` with the adapters at these scales."""
    files = list(zip(paths[1:], scales, strict=False))
    with Llama(paths[0], n_ctx=256, n_threads=1, kv_type="f32", lora_path=files) as llm:
        never = dict.fromkeys(map(str, sorted(llm.text_tokenizer.eog)), -100.0)
        found = llm(PROMPT["prompt"], max_tokens=8, temperature=0, logit_bias=never)
        return str(found["choices"][0]["text"])


def test_requests_say_which_adapters_they_want(paths: list[Path], running: Running) -> None:
    texts = {}
    for name, more, scales in (
        ("default", {}, (8.0,)),
        ("none", {"lora": []}, ()),
        ("second", {"lora": [{"id": 1, "scale": -8}]}, (0.0, -8.0)),
        ("both", {"lora": [{"id": 1, "scale": 8}, {"id": 0, "scale": 4}]}, (4.0, 8.0)),
        ("named", {"model": "other"}, (0.0, 8.0)),
        ("named a", {"model": "a"}, (8.0,)),
    ):
        answer = running.post("/completion", **PROMPT, **more).json()
        texts[name] = answer["content"]
        assert texts[name] == alone(paths, *scales), name
        assert answer["model"] == {"named": "other", "named a": "a"}.get(name, "tiny")
    assert len(set(texts.values())) >= 4


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("/v1/messages", CHAT, lambda a: a["content"][0]["text"]),
        ("/v1/responses", {"input": "hello", "temperature": 0, "max_output_tokens": 8},
         lambda a: a["output"][0]["content"][0]["text"]),
        ("/api/chat", {"messages": CHAT["messages"], "stream": False,
                       "options": {"temperature": 0, "num_predict": 8}},
         lambda a: a["message"]["content"]),
        ("/api/generate", {"prompt": "hello", "stream": False,
                           "options": {"temperature": 0, "num_predict": 8}},
         lambda a: a["response"]),
    ],
)  # fmt: skip
def test_the_other_dialects_too(running: Running, path: str, body: dict[str, Any], text: Any) -> None:
    def ask(model: str, **more: Any) -> Any:
        answer = running.post(path, model=model, **body, **more)
        assert answer.status_code == 200, answer.text
        return text(answer.json())

    assert ask("other") == ask("tiny", lora=[{"id": 1, "scale": 8}]) != ask("tiny", lora=[])
    refused = running.post(path, model="tiny", **body, lora=[{"id": 7, "scale": 1}])
    assert refused.status_code == 400 and "lora" in refused.text


@pytest.mark.parametrize(
    ("path", "field", "vector"),
    [
        ("/v1/embeddings", "input", lambda a: a["data"][0]["embedding"]),
        ("/embedding", "content", lambda a: a[0]["embedding"][0]),
        ("/api/embed", "input", lambda a: a["embeddings"][0]),
        ("/api/embeddings", "prompt", lambda a: a["embedding"]),
    ],
)
def test_embeddings_too(paths: list[Path], running: Running, path: str, field: str, vector: Any) -> None:
    def ask(**more: Any) -> Any:
        answer = running.post(path, **{"model": "tiny", field: "hello"} | more)
        assert answer.status_code == 200, answer.text
        return vector(answer.json())

    plain, second = ask(lora=[]), ask(lora=[{"id": 1, "scale": 8}])
    assert second == ask(model="other") != plain != ask()
    with Llama(paths[0], n_ctx=256, n_threads=1, kv_type="f32", lora_path=[(paths[2], 8.0)]) as llm:
        assert np.allclose(second, llm.embed("hello", normalize=True), atol=1e-6)
    refused = running.post(path, **{"model": "tiny", field: "hello", "lora": [{"id": 7, "scale": 1}]})
    assert refused.status_code == 400 and "lora[0].id" in refused.text


def test_openais_dialect_too(running: Running) -> None:
    names = {entry["id"] for entry in running.get("/v1/models").json()["data"]}
    assert {"tiny", "a", "other"} <= names

    def chat(**more: Any) -> Any:
        answer = running.post("/v1/chat/completions", **CHAT, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["message"]["content"]

    named, listed = chat(model="other"), chat(model="tiny", lora=[{"id": 1, "scale": 8}])
    assert named == listed != chat(model="tiny", lora=[])
    vectors = [
        running.post("/v1/embeddings", model=name, input="hello").json()["data"][0]["embedding"]
        for name in ("tiny", "other", "a")
    ]
    assert not np.allclose(vectors[0], vectors[1])
    assert vectors[0] == vectors[2]  # which is applied to both
    echo = {"prompt": "hello the world", "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    first, second = (
        running.post("/v1/completions", model=name, **echo).json()["choices"][0]["logprobs"]["token_logprobs"]
        for name in ("tiny", "other")
    )
    assert first[1:3] != second[1:3]
    asked = running.post("/v1/completions", model="tiny", lora=[{"id": 1, "scale": 8}], **echo).json()
    assert asked["choices"][0]["logprobs"]["token_logprobs"][1:3] == second[1:3]


def test_the_scales_of_all_requests(paths: list[Path], running: Running) -> None:
    before = running.get("/lora-adapters").json()
    assert [(row["id"], row["name"], row["scale"]) for row in before] == [(0, "a", 8.0), (1, "other", 0.0)]
    with running.client() as client:
        assert client.post("/lora-adapters", json=[{"id": 1, "scale": 2}]).json() == {"success": True}
        assert [row["scale"] for row in running.get("/lora-adapters").json()] == [0.0, 2.0]
        assert running.post("/completion", **PROMPT).json()["content"] == alone(paths, 0.0, 2.0)
        for body in ({}, [3], [{"id": 0}], [{"id": 2, "scale": 1}], [{"id": 0, "scale": "1"}]):
            assert client.post("/lora-adapters", json=body).status_code == 400
        assert client.post("/lora-adapters", json=before).json() == {"success": True}
    assert running.get("/lora-adapters").json() == before


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        ([{"id": 2, "scale": 1}], r"lora[0].id: 2 is out of range; allowed: 0 to 1"),
        ([{"id": 0, "scale": 1}, {"id": 0, "scale": 2}], "lora[1].id: adapter 0 is given twice"),
        ([{"id": 0}], "lora[0].scale: is missing"),
        ([{"scale": 1}], "lora[0].id: is missing"),
        ([{"id": 0, "scale": 1e9}], "lora[0].scale: "),
        ("a", "lora: must be a list"),
    ],
)
def test_what_is_not_a_list_of_adapters(running: Running, lora: Any, says: str) -> None:
    answer = running.post("/completion", **PROMPT, lora=lora)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(says)


def test_without_adapters(paths: list[Path]) -> None:
    with serving(("tiny", paths[0])) as running:
        assert running.get("/lora-adapters").json() == []
        answer = running.post("/completion", **PROMPT, lora=[{"id": 0, "scale": 1}])
        assert (answer.status_code, "start the server with --lora" in answer.text) == (400, True)


def test_the_commands_options(paths: list[Path]) -> None:
    given = {"models": [f"m={paths[0]}"], "lora": [f"x={paths[1]}:2", str(paths[2])]}
    (model,) = _models({**given, "lora_init_without_apply": False})
    assert model.adapters == (ServedAdapter("x", paths[1], 2.0), ServedAdapter("b", paths[2]))
    (model,) = _models({**given, "lora_init_without_apply": True})
    assert [adapter.applied for adapter in model.adapters] == [False, False]
    with pytest.raises(OptionError, match="does nothing without --lora"):
        _models({**given, "lora": [], "lora_init_without_apply": True})
    given["lora"].append(f"m={paths[1]}")
    with pytest.raises(OptionError, match="two models or adapters are called m"):
        _models({**given, "lora_init_without_apply": False})


def test_adapters_of_other_models_than_the_first(paths: list[Path], tmp_path: Path) -> None:
    """Each model has its own, by name; what is loaded, listed, scaled and asked for goes to that model."""
    large, (_, a, b) = write_model(tmp_path / "large.gguf", seed=5), paths
    given = {
        "models": [f"small={paths[0]}", f"large={large}"],
        "lora": [
            f"x={a}",
            f"y@large={b}:8",
            f"@LARGE.gguf={a}:2",
            f"z@small={b}",
        ],
        "lora_init_without_apply": True,
    }
    small, other = _models(given)
    assert [adapter.name for adapter in small.adapters] == ["x", "z"]
    assert other.adapters == (
        ServedAdapter("y", b, 8.0, False),
        ServedAdapter("a", a, 2.0, False),
    )
    for text, says in (
        (f"x@medium={a}", "no model is called medium; there are small, large"),
        (f"x@={a}", "name the model after the @"),
    ):
        with pytest.raises(OptionError, match=says):
            _models({**given, "lora": [text]})
    load = LoadOptions(n_ctx=256, n_threads=1, type_k="f32", type_v="f32")
    running = Running(ServeOptions((small, other), PoolOptions(load)))
    try:
        with Llama(large, n_ctx=256, n_threads=1, kv_type="f32", lora_path=[(b, 8.0)]) as llm:
            never = dict.fromkeys(map(str, sorted(llm.text_tokenizer.eog)), -100.0)
            answer = llm(PROMPT["prompt"], max_tokens=8, temperature=0, logit_bias=never)
        wanted = answer["choices"][0]["text"]
        ask = {**PROMPT, "model": "large", "lora": [{"id": 0, "scale": 8}]}
        assert running.post("/completion", **ask).json()["content"] == wanted
        assert running.post("/completion", **PROMPT, model="y").json()["content"] == wanted
        assert running.post("/completion", **PROMPT, model="large").json()["content"] != wanted
        for name in ("large", "y"):
            listed = running.get(f"/lora-adapters?model={name}").json()
            assert [(row["name"], row["scale"]) for row in listed] == [("y", 0.0), ("a", 0.0)]
        with running.client() as client:
            assert client.post("/lora-adapters?model=large", json=[{"id": 0, "scale": 8}]).status_code == 200
            assert client.get("/lora-adapters?model=nobody").status_code == 404
        assert running.post("/completion", **PROMPT, model="large").json()["content"] == wanted
        assert [row["scale"] for row in running.get("/lora-adapters").json()] == [0.0, 0.0]
    finally:
        running.stop()


def test_overridden_metadata_is_the_first_models(paths: list[Path], tmp_path: Path) -> None:
    key = "llama.attention.layer_norm_rms_epsilon"
    other = write_model(tmp_path / "other.gguf", seed=5)
    load = LoadOptions(n_ctx=256, n_threads=1, type_k="f32", type_v="f32", kv_overrides={key: 0.05})
    running = Running(ServeOptions((ServedFile("m", paths[0]), ServedFile("n", other)), PoolOptions(load)))
    try:
        for name, path, overrides in (("m", paths[0], {key: 0.05}), ("n", other, None)):
            with Llama(path, n_ctx=256, n_threads=1, kv_type="f32", kv_overrides=overrides) as llm:
                never = dict.fromkeys(map(str, sorted(llm.text_tokenizer.eog)), -100.0)
                wanted = llm(PROMPT["prompt"], max_tokens=8, temperature=0, logit_bias=never)
            found = running.post("/completion", **PROMPT, model=name).json()["content"]
            assert found == wanted["choices"][0]["text"]
    finally:
        running.stop()
