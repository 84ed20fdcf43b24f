"""The server on a Ray cluster of two nodes: all dialects, histories where they are cached, a node killed.

Covers server/ray_app.py, server/ray_router.py.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from ray_nodes import Cluster, ray_cluster
from serving import PATIENCE, wait_until
from tiny_model import write_model

from pyllamacpu.cli.main import cli
from pyllamacpu.errors import OptionError
from pyllamacpu.server import ray_app
from pyllamacpu.server.access import AccessOptions


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """`pyllamacpu serve --ray` with two replicas."""

    def __init__(self, cluster: Cluster, model: Path) -> None:
        self.cluster, self.port = cluster, free_port()
        fixed = ["-c", "512", "-ctk", "f32", "-ctv", "f32", "--replicas", "2", "--port", str(self.port)]
        command = [sys.executable, "-m", "pyllamacpu", "serve", "-m", f"tiny={model}", *fixed]
        command += ["--ray", cluster.address, "--cors-origins", "https://a.example"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE)
        wait_until(self.is_healthy)
        assert self.process.stderr is not None
        while "Ctrl-C stops" not in self.process.stderr.readline():  # both replicas are there
            pass

    def is_healthy(self) -> bool:
        assert self.process.poll() is None
        try:
            return self.client.get("/health").status_code == 200
        except httpx.HTTPError:
            return False

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def chat(self, *contents: str, **more: Any) -> httpx.Response:
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
        return self.post(
            "/v1/chat/completions", messages=messages, **{"temperature": 0, "max_tokens": 4, **more}
        )

    def stop(self) -> int:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate()
        return self.process.returncode


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    with ray_cluster() as cluster:
        running = Served(cluster, model)
        try:
            yield running
        finally:
            code = running.stop()
        assert code == 0


def test_the_dialects_are_the_servers(served: Served) -> None:
    assert served.client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert served.chat("hello").json()["object"] == "chat.completion"
    message = {"role": "user", "content": "hello"}
    assert served.post("/v1/messages", model="tiny", messages=[message], max_tokens=3).json()["content"]
    lines = served.post("/api/chat", model="tiny", messages=[message], options={"num_predict": 3}).text
    assert '"done":true' in lines.splitlines()[-1]
    assert served.post("/tokenize", content="hello").json()["tokens"]
    assert "<html" in served.client.get("/").text
    refusal = served.chat("hello", max_tokens=-1)
    assert refusal.status_code == 400 and refusal.json()["error"]["param"] == "max_tokens"
    assert served.post("/v1/nothing").status_code == 404


@pytest.mark.parametrize(
    "method, path",
    [("GET", "/metrics"), ("POST", "/api/create"), ("HEAD", "/api/blobs/sha256:00"),
     ("POST", "/api/blobs/sha256:00"), ("POST", "/lora-adapters")],
)  # fmt: skip
def test_what_one_replica_alone_would_do_is_refused_unread(method: str, path: str) -> None:
    ingress = ray_app._ingress(AccessOptions())()
    scope = {"type": "http", "method": method, "path": path, "headers": [(b"host", b"localhost")],
             "query_string": b""}  # fmt: skip
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body is read")

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(ingress(scope, receive, send))
    assert sent[0]["status"] == 501


def test_the_guard_stands_before_the_replicas(served: Served) -> None:
    assert served.client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403
    assert served.client.get("/v1/models", headers={"Origin": "https://b.example"}).status_code == 403
    allowed = served.client.get("/v1/models", headers={"Origin": "https://a.example"})
    assert allowed.headers.get_list("access-control-allow-origin") == ["https://a.example"]
    large = served.client.post("/v1/completions", content=b"x" * (17 << 20))
    assert large.status_code == 413


def test_a_stream_comes_as_it_is_made(served: Served) -> None:
    body = {"prompt": "the world", "max_tokens": 300, "ignore_eos": True, "stream": True}
    times = []
    with served.client.stream("POST", "/v1/completions", json=body) as response:
        times = [time.monotonic() for line in response.iter_lines() if line.startswith("data: {")]
    assert len(times) > 20 and times[-1] - times[0] > 3 * (times[1] - times[0])


def test_histories_are_in_the_cache(served: Served) -> None:
    people = [f"person {i} says hello to the world and everybody in it" for i in range(6)]
    before = [served.chat(text).json()["usage"]["prompt_tokens"] for text in people]
    after = [served.chat(text, "hi", "and again").json()["usage"] for text in people]
    for n_before, usage in zip(before, after, strict=True):
        assert usage["prompt_tokens_details"]["cached_tokens"] > n_before // 2


def test_who_leaves_is_forgotten(served: Served) -> None:
    body = {"prompt": "the world", "max_tokens": 450, "ignore_eos": True, "stream": True}
    for _ in range(3):
        with served.client.stream("POST", "/v1/completions", json=body) as response:
            next(response.iter_lines())
    end = time.monotonic() + PATIENCE
    while any(slot["is_processing"] for _ in range(4) for slot in served.client.get("/slots").json()):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_node_is_killed(served: Served) -> None:
    """Requests whose answer had not begun are asked again on the other node."""

    def ask(i: int) -> tuple[int, str]:
        response = served.chat(f"number {i}", max_tokens=300, ignore_eos=True)
        return response.status_code, response.text

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, i) for i in range(8)]
        time.sleep(0.3)
        served.cluster.kill()
        answers = [future.result() for future in asked]
    assert [status for status, _ in answers] == [200] * 8, answers
    wait_until(served.is_healthy)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Error: stack\n  File x\npyllamacpu.errors.GGUFError: a.gguf: not GGUF\n", "a.gguf: not GGUF"),
        ("ray.serve.exceptions.RayServeException: Prefix / is being used", "Prefix / is being used"),
        ("", ""),
    ],
)
def test_the_reason_is_the_last_line(text: str, words: str) -> None:
    assert ray_app._last_words(text) == words


@pytest.mark.filterwarnings("ignore")  # Ray Serve uses what pydantic will drop
def test_the_builder_needs_no_connection(tmp_path: Path) -> None:
    """`serve run` calls it before it connects."""
    ray = pytest.importorskip("ray")
    connected = ray.is_initialized()
    model = write_model(tmp_path / "tiny.gguf")
    application = ray_app.app({"model": [f"tiny={model}"], "replicas": "2", "threads": 1})
    assert isinstance(application, ray.serve.Application) and ray.is_initialized() == connected


def test_without_ray_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    model = write_model(tmp_path / "tiny.gguf")
    result = CliRunner().invoke(cli, ["serve", "-m", str(model), "--ray", "auto"])
    assert isinstance(result.exception, OptionError)
    assert str(result.exception) == "--ray needs Ray: pip install 'pyllamacpu[ray]'"


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--replicas", "2"], "give --ray"), (["--ray", "auto", "--port", "0"], "needs a port")],
)
def test_options_that_do_not_go_together(tmp_path: Path, more: list[str], words: str) -> None:
    model = write_model(tmp_path / "tiny.gguf")
    result = CliRunner().invoke(cli, ["serve", "-m", str(model), *more])
    assert isinstance(result.exception, OptionError) and words in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"modell": "x"}, "modell: "), ({"replicas": "many"}, "replicas: "), ({"parallel": 0}, "parallel: "),
     ({"precision": "best"}, "precision: ")],
)  # fmt: skip
def test_arguments_of_the_builder_are_checked(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        ray_app.app(arguments)


def test_arguments_of_the_builder_reach_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_app, "build", lambda options, replicas: options.pool.load)
    given = {"cache_type_k": "q8_0", "expert_memory": "5000000", "precision": "exact"}
    load = ray_app.app({"model": f"tiny={write_model(tmp_path / 'tiny.gguf')}", **given})
    assert (load.type_k, load.expert_memory, load.precision) == ("q8_0", 5_000_000, "exact")
