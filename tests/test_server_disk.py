"""`serve --cache-disk`: a server that is started again goes on with the pages of the one before.

Covers cli/disk_options.py.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from serving import Running, serving, tiny_path

from pyllamacpu.cli.main import cli

path = tiny_path(n_ctx=1024)
PROMPT = "hello the world " * 20


def ask(running: Running) -> tuple[Any, int]:
    """Text and logprobs, and the tokens of the prompt that were cached."""
    reply = running.post("/v1/completions", prompt=PROMPT, max_tokens=12, temperature=0, logprobs=3)
    assert reply.status_code == 200, reply.text
    body = reply.json()
    return body["choices"][0], body["usage"]["prompt_tokens_details"]["cached_tokens"]


def metric(running: Running, name: str) -> float:
    lines = running.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"pyllamacpu_disk_cache_{name} "))


def test_a_restart_changes_no_bit(path: Path, tmp_path: Path) -> None:
    with serving(("tiny", path), n_ctx=1024) as running:
        expected = ask(running)
        assert "disk_cache" not in running.get("/metrics").text
    found = []
    for _ in range(2):
        with serving(("tiny", path), n_ctx=1024, cache_disk=tmp_path / "pages") as running:
            found.append(ask(running))
            hits, n_bytes = metric(running, "hits_total"), metric(running, "bytes")
    assert found[0] == expected
    assert found[1][0] == expected[0]
    assert found[1][1] == 32 * hits > 32
    assert n_bytes > 0


def test_a_folder_that_cannot_be_used_is_told_of_at_once(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    given = ["--port", "0", "--cache-disk", str(tmp_path / "file")]
    result = CliRunner().invoke(cli, ["serve", "-m", str(path), *given])
    assert result.exit_code != 0 and "File exists" in str(result.exception)


def test_complete_and_chat_keep_prompts_too(path: Path, tmp_path: Path) -> None:
    prompt = "hello the world " * 12
    shared = ["-m", str(path), "-n", "4", "--cache-disk", str(tmp_path / "pages")]
    complete = ["complete", "-p", prompt, "--temp", "0", "--perf", *shared]
    chat = ["chat", "-st", "-p", prompt, "-v", *shared]
    for arguments in (complete, chat):
        first, second = (CliRunner().invoke(cli, arguments) for _ in range(2))
        assert first.exit_code == second.exit_code == 0, first.output
        assert " cached" not in first.output or " (0 cached)" in first.output
        assert re.search(r"\((32|64|96) cached\)", second.output), second.output


@pytest.mark.parametrize("end", ["keep_alive", "stop"])
def test_unloading_writes_what_is_left(path: Path, tmp_path: Path, end: str) -> None:
    keep_alive = 0.0 if end == "keep_alive" else None
    with serving(("tiny", path), n_ctx=1024, cache_disk=tmp_path / "pages", keep_alive=keep_alive) as running:
        ask(running)
    assert len(list((tmp_path / "pages").glob("*.kv"))) >= 3
