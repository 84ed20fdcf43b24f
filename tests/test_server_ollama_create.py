"""Models made through Ollama's client: create, blobs, copy. Covers server/ollama_create.py,
server/model_making.py, store/created.py, store/model_names.py, store/blobs.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ollama
import openai
import pytest
from convert_models import MODELS, write_checkpoint
from serving import PATIENCE, Running, ollama_client, serving, tiny_path, wait_until
from tiny_model import DIM, write_model

import pyllamacpu.store.created
from pyllamacpu import Llama
from pyllamacpu.cli.main import main
from pyllamacpu.errors import StoreError
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.gguf.writer import GGUFWriter
from pyllamacpu.store.created import ModelCard, card_of, created_dir, created_models, link_files, make_model

QUESTION = [{"role": "user", "content": "hello the world"}]
SYSTEM = {"role": "system", "content": "the hello"}
GREEDY = {"temperature": 0, "num_predict": 10}


path, client = tiny_path(), ollama_client()


@pytest.fixture
def running(home: Path, path: Path) -> Iterator[Running]:
    with serving(("tiny", path)) as found:
        yield found
        found.wait_idle()


def names(client: ollama.Client) -> list[str | None]:
    return [model.model for model in client.list().models]


def test_a_model_with_a_system_prompt_and_parameters(
    client: ollama.Client, running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = client.chat("tiny", [SYSTEM, *QUESTION], options=GREEDY).message.content
    made = client.create(
        "mario",
        from_="tiny",
        system="the hello",
        parameters={**GREEDY, "stop": ["zzz"]},
        license=["MIT", "x"],
    )
    assert made.status == "success" and names(client) == ["tiny", "mario"]
    answer = client.chat("mario", QUESTION)
    assert answer.message.content == plain and answer.eval_count == 10
    assert client.chat("mario:latest", [SYSTEM, *QUESTION]).message.content == plain
    assert client.generate("mario", "hello the world").response == plain
    another = [{"role": "system", "content": "world"}, *QUESTION]
    expected = client.chat("tiny", another, options=GREEDY).message.content
    assert client.chat("mario", another).message.content == expected
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="k", max_retries=0) as other_client:
        asked: Any = {"model": "mario", "messages": QUESTION}
        assert other_client.chat.completions.create(**asked).choices[0].message.content == plain
    shown = client.show("mario")
    assert shown.license == "MIT\nx" and 'SYSTEM """the hello"""' in (shown.modelfile or "")
    assert shown.parameters is not None and "num_predict                    10" in shown.parameters
    assert shown.details is not None and shown.details.parent_model == "tiny"
    with pytest.raises(SystemExit):
        main(["list"])
    assert "mario" in capsys.readouterr().out
    client.delete("mario")
    assert names(client) == ["tiny"] and not created_models() and list(created_dir().iterdir()) == []


def test_messages_and_templates(client: ollama.Client) -> None:
    before = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]
    client.create("few", from_="tiny", messages=before, parameters=GREEDY)
    expected = client.chat("tiny", [*before, *QUESTION], options=GREEDY).message.content
    assert client.chat("few", QUESTION).message.content == expected
    client.create("turns", from_="few", template="{{ .System }}{{ .Prompt }} the")
    assert "namespace" in (client.show("turns").template or "")
    text = client.generate("tiny", "hello theworldhello the world the", raw=True, options=GREEDY)
    assert client.chat("turns", QUESTION).message.content == text.response
    client.create("named", from_="tiny", template="chatml")
    assert client.show("named").template == "chatml"
    for bad in ("{{ printf 3 }}", "{% for %}", "no such format"):
        with pytest.raises(ollama.ResponseError, match="template") as refused:
            client.create("bad", from_="tiny", template=bad)
        assert refused.value.status_code == 400


def test_made_anew(client: ollama.Client) -> None:
    """Also while the older one is loaded; it may be its own parent."""
    client.create("twice", from_="tiny", system="one", parameters=GREEDY)
    first = client.chat("twice", QUESTION).message.content
    client.create("twice", from_="twice", system="hello hello hello")
    assert client.show("twice")["parameters"] and len(list(created_dir().iterdir())) == 1
    expected = [{"role": "system", "content": "hello hello hello"}, *QUESTION]
    second = client.chat("twice", QUESTION).message.content
    assert second == client.chat("tiny", expected, options=GREEDY).message.content != first


def test_files_that_were_sent(client: ollama.Client, running: Running, path: Path) -> None:
    digest = client.create_blob(path)
    with running.client() as http:
        assert http.head(f"/api/blobs/{digest}").status_code == 200
        assert http.head(f"/api/blobs/sha256:{'0' * 64}").status_code == 404
        assert http.head("/api/blobs/sha256:../../x").status_code in (400, 404)
        assert http.post("/api/blobs/sha256:zz", content=b"x").status_code == 400
        wrong = http.post(f"/api/blobs/sha256:{'0' * 64}", content=b"x")
        assert wrong.status_code == 400 and "sha256:2d711642" in wrong.json()["error"]
        assert http.post(f"/api/blobs/{digest}", content=b"").status_code == 200
    head = (
        f"POST /api/blobs/sha256:{'0' * 64} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10**15}\r\n\r\n"
    )
    assert running.raw(head.encode()).startswith(b"HTTP/1.1 413")
    steps = list(client.create("sent", files={"x.gguf": digest}, stream=True))
    assert steps[-1].status == "success"
    expected = client.chat("tiny", QUESTION, options=GREEDY).message.content
    assert client.chat("sent", QUESTION, options=GREEDY).message.content == expected
    client.delete("sent")
    with running.client() as http:
        assert http.head(f"/api/blobs/{digest}").status_code == 404  # it was only kept for the model


def test_quantized(client: ollama.Client) -> None:
    steps = list(client.create("small", from_="tiny", quantize="q8_0", stream=True))
    done = [step for step in steps if step.total]
    assert done[-1].completed == done[-1].total and done[-1].total
    shown = client.show("small")
    assert shown.details is not None and shown.details.quantization_level == "Q8_0"
    sizes = {model.model: model.size for model in client.list().models}
    assert sizes["small"] < sizes["tiny"]
    assert client.chat("small", QUESTION, options=GREEDY).eval_count == 10
    for kind, says in (("q8_0", "quantized already"), ("q99", "unknown type")):
        parent = "small" if kind == "q8_0" else "tiny"
        with pytest.raises(ollama.ResponseError, match=says) as refused:
            client.create("smaller", from_=parent, quantize=kind)
        assert refused.value.status_code == 400


def test_a_checkpoint(client: ollama.Client, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", MODELS[0])
    files = {entry.name: client.create_blob(entry) for entry in sorted(folder.iterdir())}
    client.create("converted", files=files)
    shown = client.show("converted").modelinfo
    assert shown is not None and shown["general.architecture"] == "llama"
    del files["config.json"]
    with pytest.raises(ollama.ResponseError, match="config"):
        client.create("half", files=files)
    assert "half" not in names(client) and not list(created_dir().glob(".*"))


REFUSED: tuple[tuple[dict[str, Any], str, int], ...] = (
    ({"model": "../x"}, "model", 400),
    ({"model": "tiny"}, "already", 409),
    ({"from": None}, "from", 400),
    ({"from": "/etc/passwd"}, "from", 400),
    ({"files": {"x": "sha256:00"}}, "from", 400),
    ({"from": None, "files": {}}, "files", 400),
    ({"from": None, "files": {"../x": "sha256:00"}}, "files.../x", 400),
    ({"from": None, "files": {"x": 3}}, "files.x", 400),
    ({"from": None, "files": {"x": f"sha256:{'0' * 64}"}}, "files.x", 400),
    ({"adapters": {"x": "sha256:00"}}, "digest", 400),
    ({"parameters": {"temprature": 1}}, "parameters.temprature", 400),
    ({"parameters": {"temperature": "hot"}}, "parameters.temperature", 400),
    ({"parameters": {"stop": [""]}}, "parameters.stop", 400),
    ({"parameters": 3}, "parameters", 400),
    ({"messages": [{"role": "x"}]}, "messages[0].role", 400),
    ({"system": 3}, "system", 400),
    ({"license": 3}, "license", 400),
    ({"modelfile": "FROM x"}, "modelfile", 400),
)


def test_what_cannot_be_made_is_named(running: Running) -> None:
    with running.client() as http:
        for change, says, status in REFUSED:
            response = http.post("/api/create", json={"model": "new", "from": "tiny", **change})
            assert (response.status_code, says in response.json()["error"]) == (status, True), change
    assert not created_models()


def damaged(path: Path, kind: str) -> bytes:
    """The bytes of a file that is no model, in one of many ways."""
    whole = path.read_bytes()
    return {
        "cut": whole[: len(whole) // 2],
        "head": whole[:40],
        "magic": b"GGUF" + b"\xff" * 2000,
        "other": b"hello " * 1000,
        "version": whole[:4] + b"\x63\0\0\0" + whole[8:],
    }[kind]


@pytest.mark.parametrize("kind", ["cut", "head", "magic", "other", "version"])
@pytest.mark.parametrize("name", ["x.gguf", "model.safetensors", "plain"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_damaged_file_is_named_as_it_was_sent(
    running: Running, client: ollama.Client, path: Path, tmp_path: Path, kind: str, name: str, stream: bool
) -> None:
    """Without the places where the server keeps it."""
    (tmp_path / "sent").write_bytes(damaged(path, kind))
    files = {name: client.create_blob(tmp_path / "sent")}
    response = running.post("/api/create", model="new", files=files, stream=stream)
    said = json.loads(response.text.splitlines()[-1])["error"]
    assert response.status_code == 400 or (stream and response.status_code == 200), said
    assert said.startswith((f"files.{name}: ", "files: ")) and "sha256" not in said and "/" not in said, said


def test_models_that_are_nowhere(running: Running) -> None:
    for url, body in (
        ("/api/create", {"model": "new", "from": "nobody"}),
        ("/api/pull", {"model": "nobody"}),
        ("/api/show", {"model": "nobody"}),
    ):
        response = running.post(url, stream=False, **body)
        assert response.status_code == 404 and "nobody" in response.json()["error"], response.text


def write_adapter(path: Path) -> Path:
    """Of the tiny model, for the queries of its first layer."""
    random = np.random.default_rng(5)
    with GGUFWriter(path, "llama") as writer:
        writer.add("general.type", "adapter")
        writer.add("adapter.type", "lora")
        writer.add("adapter.lora.alpha", 8.0, ValueType.FLOAT32)
        for part, shape in (("a", (4, DIM)), ("b", (DIM, 4))):
            writer.add_array(
                f"blk.0.attn_q.weight.lora_{part}", random.normal(0, 1, shape).astype(np.float32)
            )
    return path


def test_a_damaged_adapter_is_named(running: Running, client: ollama.Client, tmp_path: Path) -> None:
    whole = write_adapter(tmp_path / "whole")
    for kind in ("cut", "head", "magic", "other", "version"):
        (tmp_path / "sent").write_bytes(damaged(whole, kind))
        adapters = {"a.gguf": client.create_blob(tmp_path / "sent")}
        body: dict[str, Any] = {"model": "new", "from": "tiny", "adapters": adapters, "stream": False}
        response = running.post("/api/create", **body)
        said = response.json()["error"]
        assert response.status_code == 400 and said.startswith("adapters: ") and "/" not in said


def test_adapters(
    client: ollama.Client, path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """From a sent file; copies and children have them too, and so has the terminal."""
    file = write_adapter(tmp_path / "adapter.gguf")
    digest = client.create_blob(file)
    client.create("adapted", from_="tiny", adapters={"adapter.gguf": digest}, parameters=GREEDY)
    with Llama(str(path), n_ctx=256, n_threads=1, kv_type="f32", lora_path=str(file)) as llm:
        expected = llm.create_chat_completion(QUESTION, max_tokens=10, temperature=0)
    text = expected["choices"][0]["message"]["content"]
    assert client.chat("tiny", QUESTION, options=GREEDY).message.content != text
    assert client.chat("adapted", QUESTION).message.content == text
    client.copy("adapted", "copied")
    client.create("child", from_="adapted", license="MIT")
    client.delete("adapted")
    assert {client.chat(name, QUESTION).message.content for name in ("copied", "child")} == {text}
    with pytest.raises(SystemExit):
        main(["chat", "-m", "copied", "-st", "-p", QUESTION[0]["content"], "--no-show-timings", "-ctk", "f32",
              "-ctv", "f32"])  # fmt: skip
    assert capfd.readouterr().out.strip() == text.strip()
    model = client.create_blob(path)
    with pytest.raises(ollama.ResponseError, match="not a LoRA adapter"):
        client.create("bad", from_="tiny", adapters={"x.gguf": model})


def test_a_copy_shares_the_weights(client: ollama.Client, path: Path) -> None:
    client.create("first", from_="tiny", system="the hello", parameters=GREEDY)
    client.copy("first", "second")
    client.delete("first")
    plain = client.chat("tiny", [SYSTEM, *QUESTION], options=GREEDY).message.content
    assert client.chat("second", QUESTION).message.content == plain
    assert created_models()["second"].stat().st_ino == path.stat().st_ino


@pytest.mark.parametrize(
    ("made", "listed", "asked"),
    [
        ("user/Mario:7b", "user/Mario:7b", ["user/mario:7b", "registry.ollama.ai/user/mario:7B"]),
        ("user/mario:latest", "user/mario", ["user/mario", "USER/MARIO:latest"]),
        ("library/mario", "mario", ["mario", "registry.ollama.ai/library/mario:latest"]),
        ("my.host:8080/some_user/m:q-4", "my.host:8080/some_user/m:q-4", ["my.host:8080/some_user/m:q-4"]),
    ],
)
def test_names_with_a_user_and_a_host(
    client: ollama.Client, running: Running, made: str, listed: str, asked: list[str]
) -> None:
    """All endpoints take them, and none takes them for folders."""
    client.create(made, from_="tiny", system="the hello", parameters=GREEDY)
    assert names(client) == ["tiny", listed]
    assert [entry.parent for entry in created_dir().glob("*/*.gguf")] == list(created_dir().iterdir())
    plain = client.chat("tiny", [SYSTEM, *QUESTION], options=GREEDY).message.content
    for name in asked:
        assert client.chat(name, QUESTION).message.content == plain
        assert client.show(name).parameters
        assert client.pull(name).status == "success"
    client.copy(asked[-1], "other/copy:v1")
    client.create(asked[0], from_=made, system="world")  # made anew, not beside
    assert len(created_models()) == 2
    client.create("again/x", from_="other/copy:v1")
    for name in ("other/copy:v1", "again/x", asked[-1]):
        client.delete(name)
    assert names(client) == ["tiny"] and list(created_dir().iterdir()) == []


def test_names_that_no_model_has(running: Running, client: ollama.Client) -> None:
    strange = (
        "../x",
        "a/../x",
        "/x",
        "a//x",
        "a/b/c/d",
        "a/",
        ".x",
        "a/.x",
        "a b",
        "a\\b",
        "x" * 201,
        "ü",
        "a\n",
    )
    for name in (*strange, "hf.co/user/repo", "hf.co/x"):
        refused = running.post("/api/create", model=name, **{"from": "tiny"})
        assert refused.status_code == 400 and "name" in refused.json()["error"], name
        refused = running.post("/api/copy", source="tiny", destination=name)
        assert refused.status_code == 400 and "name" in refused.json()["error"], name
    for name in strange:
        assert running.post("/api/create", model="new", **{"from": name}).status_code == 400, name
        assert running.post("/api/pull", model=name).status_code == 400, name
        assert running.post("/api/show", model=name).status_code == 404, name
    assert not created_models()


def test_the_file_of_a_created_model_is_not_its_name(client: ollama.Client, running: Running) -> None:
    client.create("user/x", from_="tiny", system="one")
    with running.client() as http:
        assert http.request("DELETE", "/api/delete", json={"model": "user-x"}).status_code == 404
    client.create("user-x", from_="tiny", system="two")
    assert client.show("user/x").modelfile != client.show("user-x").modelfile
    client.delete("user-x")
    assert list(created_models()) == ["user/x"]


def test_names_are_not_looked_up_as_folders(
    running: Running, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a folder of the server holds is not told."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "secret.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    for name in ("models", "models.gguf"):
        refused = running.post("/api/pull", model=name, stream=False)
        assert refused.status_code == 404 and "secret" not in refused.text and "director" not in refused.text


def test_a_client_that_leaves_leaves_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch, client: ollama.Client
) -> None:
    going, gone = threading.Event(), threading.Event()

    def slowly(files: Any, target: Path, on_copied: Any) -> None:
        going.set()
        assert gone.wait(PATIENCE)
        for done in range(1000):
            threading.Event().wait(0.02)
            on_copied(done, 1000)

    monkeypatch.setattr("pyllamacpu.server.model_making.link_files", slowly)
    body = json.dumps({"model": "new", "from": "tiny"}).encode()
    with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE) as connection:
        head = f"POST /api/create HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        assert going.wait(PATIENCE)
    gone.set()
    wait_until(lambda: list(created_dir().iterdir()) == [])
    assert not created_models()


# The store


def test_the_newer_of_two_counts(home: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run leaves that is killed between the new model and the end of the old one."""
    monkeypatch.setattr(pyllamacpu.store.created, "_remove", lambda folder: None)
    for system in ("old", "new"):
        make_model(ModelCard("two", system=system), lambda target: link_files([path], target))
    assert len(list(created_dir().iterdir())) == 2
    found = card_of(created_models()["two"])
    assert found is not None and found.system == "new"


def test_killed_runs_leave_nothing_for_long(home: Path, path: Path) -> None:
    for name in (".0123456789abcdef.part", ".0123456789abcdef.gone"):
        (created_dir() / name).mkdir(parents=True)
        (created_dir() / name / "lock").touch()
    make_model(ModelCard("one"), lambda target: link_files([path], target))
    assert [entry.name.startswith(".") for entry in created_dir().iterdir()] == [False]


def test_weights_on_another_disk_are_copied(home: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    seen = []
    made = make_model(ModelCard("one"), lambda t: link_files([path], t, lambda *given: seen.append(given)))
    assert made.read_bytes() == path.read_bytes() and seen[-1] == (path.stat().st_size,) * 2


def test_split_models_keep_their_parts(home: Path, tmp_path: Path, path: Path) -> None:
    main_out = tmp_path / "cut.gguf"
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(path), "-o", str(main_out), "--split-max-tensors", "8"])
    assert ended.value.code == 0
    parts = sorted(tmp_path.glob("cut-*.gguf"))
    assert len(parts) > 1
    made = make_model(ModelCard("x-00001-of-00002"), lambda target: link_files(parts, target))
    with Llama("x-00001-of-00002", n_ctx=64, n_threads=1) as llm:
        assert llm.n_ctx() == 64
    assert len(list(made.parent.glob("*.gguf"))) == len(parts)


DAMAGED_CARDS = [
    "", "[]", '{"name": "../x"}', '{"name": "a", "odd": 1}', '{"name": 3}',
    '{"name": "a", "created": Infinity}',
    '{"name": "a", "created": NaN}', '{"name": "a", "created": 1' + "0" * 400 + "}",
    '{"name": "a", "created": -1}', '{"name": "a", "license": [5]}', '{"name": "a", "messages": [5]}',
    '{"name": "a", "messages": [{"role": 3}]}', '{"name": "a", "parameters": {"stop": 5}}',
    '{"name": "a", "parameters": {"stop": "ab"}}', '{"name": "a", "parameters": {"stop": [1]}}',
    '{"name": "a", "parameters": {"num_ctx": true}}', '{"name": "a", "parameters": {"num_ctx": -4}}',
    '{"name": "a", "parameters": {"num_predict": "x"}}', '{"name": "a", "parameters": {"temperature": {}}}',
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED_CARDS)
def test_damaged_cards(home: Path, path: Path, content: str) -> None:
    made = make_model(ModelCard("one"), lambda target: link_files([path], target))
    (made.parent / "card.json").write_text(content, encoding="utf-8")
    assert not created_models()
    with pytest.raises(StoreError, match="card"):
        card_of(made)


def test_files_elsewhere_have_no_card(tmp_path: Path) -> None:
    assert card_of(write_model(tmp_path / "tiny.gguf")) is None
    assert hashlib.sha256(b"x").hexdigest().startswith("2d711642")


def test_the_terminal_knows_it_too(home: Path, path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """System prompt, messages, parameters and template of a created model in `chat`."""
    before = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]
    parameters = {"temperature": 0.0, "num_predict": 9, "num_ctx": 128}
    card = ModelCard(
        "mine", "", "the hello", "{% for m in messages %}{{ m.content }} {% endfor %}", parameters, before
    )
    make_model(card, lambda target: link_files([path], target))
    with pytest.raises(SystemExit) as ended:
        main(["chat", "-m", "mine", "-st", "-p", "hello", "--no-show-timings"])
    assert ended.value.code == 0
    with Llama(str(path), n_ctx=128, n_threads=1) as llm:
        expected = llm("the hello hello world hello ", max_tokens=9, temperature=0)["choices"][0]["text"]
    assert capfd.readouterr().out.strip() == expected.strip()
