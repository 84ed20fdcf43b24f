"""A batch over a Ray cluster of two nodes, one of which is killed; without Ray, what is said instead.

Covers server/ray_batch.py, server/ray_cluster.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ray_nodes import Cluster, ray_cluster
from serving import wait_until
from tiny_model import write_model

from pyllamacpu.cli.main import cli
from pyllamacpu.errors import ModelError, OptionError, StoreError
from pyllamacpu.server.ray_cluster import ClusterModel, connected
from pyllamacpu.server.served_files import ServedFile


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_cluster() as started:
        yield started


def write_requests(path: Path, n: int, **body: Any) -> Path:
    chat = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "ignore_eos": True, **body}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": chat}
    path.write_text("".join(json.dumps({"custom_id": f"number {i}", **line}) + "\n" for i in range(n)))
    return path


def start(address: str, *arguments: object) -> subprocess.Popen[str]:
    fixed = ["-c", "256", "-ctk", "f32", "-ctv", "f32", "-np", "2", "--ray", address]
    command = [sys.executable, "-m", "pyllamacpu", "batch", *fixed, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def n_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_kills_of_the_command_and_of_a_node_cost_nothing(
    cluster: Cluster, model: Path, tmp_path: Path
) -> None:
    source, target = write_requests(tmp_path / "in.jsonl", 150, max_tokens=150), tmp_path / "out.jsonl"
    process = start(cluster.address, "-m", model, source, target)
    wait_until(lambda: n_lines(target) >= 5)
    process.kill()
    process.communicate()
    before = n_lines(target)
    process = start(cluster.address, "-m", model, source, target)
    wait_until(lambda: n_lines(target) >= before + 20)
    cluster.kill()
    assert n_lines(target) < 150
    words = process.communicate()[1]
    assert process.returncode == 0, words
    assert words.count(": ready, 1 threads") == 2 and "unfinished requests are asked again" in words
    assert f"{before} were there" in words
    lines = [json.loads(line) for line in target.read_bytes().splitlines()]
    assert sorted(line["custom_id"] for line in lines) == sorted(f"number {i}" for i in range(150))
    texts = {line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}
    assert len(texts) == 1  # the bits of running alone, wherever it ran


def test_a_request_that_crashes_engines_costs_only_itself(
    cluster: Cluster, model: Path, tmp_path: Path
) -> None:
    """The nodes run a package whose engine ends the process for one prompt."""
    code = (
        "import os\nfrom pyllamacpu.server import batch_engine\n"
        "plain = batch_engine.BatchEngine.answer\n"
        "async def answer(self, url, body):\n"
        "    if body['max_tokens'] == 77:\n        os._exit(1)\n"
        "    return await plain(self, url, body)\n"
        "batch_engine.BatchEngine.answer = answer\n"
        "from pyllamacpu.server import ray_batch\n"
        "class NodeEngine(ray_batch.NodeEngine):\n"
        "    def __init__(self):\n"
        "        batch_engine.BatchEngine.answer = answer\n        super().__init__()\n"
        "ray_batch.NodeEngine = NodeEngine\n"
        "from pyllamacpu.cli.main import main\nmain()\n"
    )
    source, target = write_requests(tmp_path / "in.jsonl", 6, max_tokens=20), tmp_path / "out.jsonl"
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    lines[2]["body"]["max_tokens"] = 77
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    fixed = ["-m", model, "-c", "256", "-np", "2", "--ray", cluster.address, source, target]
    command = [sys.executable, "-c", code, "batch", *map(str, fixed)]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    found = {line["custom_id"]: line for line in map(json.loads, target.read_bytes().splitlines())}
    assert len(found) == 6
    assert {key for key, line in found.items() if line["error"] is not None} == {"number 2"}
    assert found["number 2"]["error"]["code"] == "engine_lost"


def test_a_model_that_no_node_can_load(cluster: Cluster, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    source = write_requests(tmp_path / "in.jsonl", 2)
    process = start(cluster.address, "-m", broken, source, tmp_path / "out.jsonl")
    words = process.communicate()[1]
    assert process.returncode == 1 and "takes no part" in words and "broken.gguf" in words


def test_nodes_need_the_same_file(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy.gguf"
    path.write_bytes(model.read_bytes())
    wanted = ClusterModel.of(ServedFile("copy", path))
    assert wanted.on_this_node().path == path
    path.write_bytes(model.read_bytes()[:-1] + b"\0")
    with pytest.raises(ModelError, match="is not the file"):
        wanted.on_this_node()
    path.unlink()
    with pytest.raises(StoreError, match="no such file on this node"):
        wanted.on_this_node()


@pytest.mark.parametrize(
    ("address", "words"),
    [("127.0.0.1:1", "no Ray cluster answers"), ("http://x", "host:port"), ("x:0", "give host")],
)
def test_addresses_without_a_cluster(address: str, words: str) -> None:
    pytest.importorskip("ray")
    with pytest.raises(OptionError, match=words), connected(address):
        pass


def test_without_ray_it_says_how_to_install_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    source = write_requests(tmp_path / "in.jsonl", 1)
    arguments = ["batch", "-m", str(model), "--ray", "auto", str(source), str(tmp_path / "out.jsonl")]
    result = CliRunner().invoke(cli, arguments)
    assert isinstance(result.exception, OptionError)
    assert str(result.exception) == "--ray needs Ray: pip install 'pyllamacpu[ray]'"
