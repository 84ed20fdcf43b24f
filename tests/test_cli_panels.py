"""`--pack-cache` of the commands and of `Llama`, and `pyllamacpu panels`.

Covers cli/panels.py, cli/loading_options.py, model/kept_panels.py.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from deberta_models import converted as converted_deberta
from deberta_models import write_checkpoint
from llama4_vision_models import expected, llama4_vision
from llama4_vision_models import opened as opened_with_tower
from mllama_files import mllama
from mllama_files import opened as opened_mllama
from mllama_models import processed
from packing import damage, no_waiting, packing_fails
from serving import serving
from tiny_model import write_model

from pyllamacpu import Llama
from pyllamacpu.cli.main import cli
from pyllamacpu.errors import OptionError
from pyllamacpu.model.panel_file import PanelFile
from pyllamacpu.safety import PromptGuard
from pyllamacpu.store.paths import PACK_LIMIT_VARIABLE, PACK_VARIABLE, PackFolder, pack_folder, panels_dir

__all__ = ["llama4_vision", "mllama", "no_waiting"]

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYLLAMACPU_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(PACK_VARIABLE, raising=False)
    return tmp_path / "home"


@pytest.fixture
def run() -> Run:
    def call(*arguments: object) -> Result:
        return CliRunner().invoke(cli, [str(argument) for argument in arguments])

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny.gguf")


def kept(folder: Path) -> list[str]:
    return sorted(path.name.split(".")[0] for path in folder.glob("*.panels"))


def test_where_packed_weights_are_kept(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pack_folder(None) is None and pack_folder(False) is None
    assert pack_folder(True) == PackFolder(panels_dir()) == PackFolder(home / "panels")
    assert pack_folder(tmp_path) == pack_folder(str(tmp_path)) == PackFolder(tmp_path, 64 << 30)
    monkeypatch.chdir(tmp_path)
    assert pack_folder("here") == PackFolder(tmp_path / "here")
    for value, wanted in (
        ("1", panels_dir()),
        ("True", panels_dir()),
        ("off", None),
        ("0", None),
        ("", None),
        (str(tmp_path), tmp_path),
    ):
        monkeypatch.setenv(PACK_VARIABLE, value)
        assert pack_folder(None) == (wanted and PackFolder(wanted))
        assert pack_folder(False) is None
    for wrong in (3, b"", "", [1]):
        with pytest.raises(OptionError, match="pack_cache"):
            pack_folder(wrong)


def test_how_much_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    assert pack_folder(tmp_path, 5) == pack_folder(PackFolder(tmp_path), 5) == PackFolder(tmp_path, 5)
    monkeypatch.setenv(PACK_LIMIT_VARIABLE, "4GB")
    assert pack_folder(tmp_path) == PackFolder(tmp_path, 4_000_000_000)
    assert pack_folder(tmp_path, 5) == PackFolder(tmp_path, 5)
    for wrong in (0, -1, 1.5, "5", True):
        with pytest.raises(OptionError, match="pack_cache_limit"):
            pack_folder(tmp_path, wrong)
    with pytest.raises(OptionError, match="name the folder too"):
        pack_folder(False, 5)
    monkeypatch.setenv(PACK_LIMIT_VARIABLE, "much")
    with pytest.raises(OptionError, match=f"{PACK_LIMIT_VARIABLE}: .*not a size"):
        pack_folder(tmp_path)
    alone = run("complete", "--pack-cache-limit", "1GB", "-p", "the")
    assert alone.exit_code == 2 and "with --pack-cache only" in alone.stderr


COMMANDS = {
    "complete": ("complete", "-p", "the", "-n", "2"),
    "perplexity": ("perplexity", "-c", "16", "--chunks", "1"),
    "bench": ("bench", "-p", "4", "-n", "0", "-r", "1", "--no-limits"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_keep_them(command: str, model: Path, tmp_path: Path, home: Path, run: Run) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the hello world " * 20)
    more = ("-f", text) if command == "perplexity" else ()
    arguments = (*COMMANDS[command], "-m", model, *more)
    assert run(*arguments).exit_code == 0
    assert kept(home / "panels") == []
    assert run(*arguments, "--pack-cache", tmp_path / "mine").exit_code == 0
    assert run(*arguments, "--pack-cache").exit_code == 0
    assert kept(tmp_path / "mine") == kept(home / "panels") == ["tiny"]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_keep_no_more_than_the_limit(
    command: str, model: Path, tmp_path: Path, home: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """And answer all the same. The limit may stand before or after the folder."""
    text = tmp_path / "text.txt"
    text.write_text("the hello world " * 20)
    more = ("-f", text) if command == "perplexity" else ()
    arguments = (*COMMANDS[command], "-m", model, *more)
    assert run(*arguments, "--pack-cache-limit", "2MB", "--pack-cache").exit_code == 0
    assert run(*arguments, "--pack-cache", tmp_path / "mine", "--pack-cache-limit", "2MB").exit_code == 0
    assert caplog.text.count("more than the limit of 2.00 MB") == 2
    assert kept(tmp_path / "mine") == kept(home / "panels") == []


def test_a_word_behind_the_option_that_is_no_folder(model: Path, run: Run) -> None:
    """As in `chat --pack-cache llama3.2:1b`, where no folder is meant."""
    found = run("complete", "--pack-cache", "llama3.2:1b", "-m", model, "-p", "the")
    assert found.exit_code == 2 and "there is no folder 'llama3.2:1b': write ./llama3.2:1b" in found.stderr
    assert run("complete", "-m", model, "-p", "the", "--pack-cache", model).exit_code == 1
    assert not Path("llama3.2:1b").exists()


def test_a_server_keeps_them(model: Path, tmp_path: Path) -> None:
    with serving(("tiny", model), n_ctx=256, pack_cache=tmp_path / "panels") as running:
        assert running.post("/completion", prompt="the", n_predict=2).status_code == 200
    assert kept(tmp_path / "panels") == ["tiny"]


def test_llama_and_its_draft_model(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = write_model(tmp_path / "draft.gguf", seed=2)
    answers = []
    for folder in (False, tmp_path / "panels", str(tmp_path / "panels")):
        if isinstance(folder, str):
            packing_fails(monkeypatch)
        options: dict[str, Any] = {"n_ctx": 64, "pack_cache": folder, "draft_model": str(draft)}
        with Llama(str(model), **options) as llm:
            answers.append(llm("the hello", max_tokens=8, temperature=0)["choices"][0]["text"])
    assert len(set(answers)) == 1
    assert kept(tmp_path / "panels") == ["draft", "tiny"]


def test_towers_in_files_of_their_own(
    llama4_vision: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = {"pixel_values": expected()["pixels"]}
    ids = expected()["ids"].tolist()
    found = []
    for folder in (False, tmp_path / "panels", tmp_path / "panels"):
        if len(found) == 4:
            packing_fails(monkeypatch)
        with opened_with_tower(llama4_vision, pack_cache=folder) as llm:
            found += [llm.image_features(pixels).tobytes()]
            found += [llm.logits(ids, images=[pixels["pixel_values"]]).tobytes()]
    assert found == found[:2] * 3
    assert len(kept(tmp_path / "panels")) == 2


def test_towers_in_the_model_s_file(mllama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for folder in (False, tmp_path / "panels", tmp_path / "panels"):
        if len(found) == 2:
            packing_fails(monkeypatch)
        with opened_mllama(mllama, pack_cache=folder) as llm:
            found.append(llm.image_features(processed(2, (2, 1))).tobytes())
    assert found == found[:1] * 3
    assert len(kept(tmp_path / "panels")) == 2


def test_prompt_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_checkpoint(tmp_path / "checkpoint")
    path = converted_deberta(source, tmp_path / "guard.gguf")
    seen: list[Any] = []

    def open_it(path: Any, **options: Any) -> Any:
        seen.append(options["pack_cache"])
        raise OptionError("seen")

    monkeypatch.setattr("pyllamacpu.safety.prompt_guard.Encoder.open", open_it)
    with pytest.raises(OptionError, match="seen"):
        PromptGuard(path, pack_cache=tmp_path / "panels")
    assert seen == [PackFolder(tmp_path / "panels")]


# The command


def states(result: Result) -> list[str]:
    assert result.exit_code == 0
    return [line.split()[-1] for line in result.stdout.splitlines()[1:]]


def test_listing_checking_and_removing(tmp_path: Path, home: Path, run: Run) -> None:
    nothing = run("panels")
    assert nothing.exit_code == 0 and "No packed weights" in nothing.stderr
    paths = [write_model(tmp_path / f"{name}.gguf", seed=i) for i, name in enumerate("abcd")]
    for path in paths:
        Llama(str(path), n_ctx=64, pack_cache=True).close()
    listed = run("panels")
    assert states(listed) == ["ready"] * 4
    assert "a.gguf" in listed.stdout and "d.gguf" in listed.stdout
    paths[1].unlink()
    os.utime(paths[2])
    files = sorted((home / "panels").glob("*.panels"))
    damage(files[3], -1)
    assert states(run("panels")) == ["ready", "unused", "unused", "ready"]
    assert states(run("panels", "--check")) == ["ready", "unused", "unused", "removed"]
    assert states(run("panels", "--remove-unused", home / "panels")) == ["ready", "removed", "removed"]
    assert kept(home / "panels") == ["a"]
    damage(files[0], 9)
    assert states(run("panels")) == ["removed"]
    assert list((home / "panels").iterdir()) == []


def test_a_folder_in_a_file_s_place_and_what_this_process_lacks(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    Llama(str(model), n_ctx=64, pack_cache=tmp_path / "panels").close()
    (path,) = (tmp_path / "panels").glob("*.panels")
    other = path.with_name("x" + path.name)
    other.mkdir()
    for option in ((), ("--check",), ("--remove-unused",)):
        result = run("panels", *option, path.parent)
        assert states(result) == ["ready", "damaged"] and path.exists()
        assert f"{other} cannot be removed" in result.stderr
    other.rmdir()

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(PanelFile, "map", fail)
    failed = run("panels", "--check", path.parent)
    assert failed.exit_code == 1 and "no memory" in str(failed.exception) and path.exists()


def test_a_model_is_shown_with_its_packed_weights(model: Path, run: Run) -> None:
    assert "not kept (--pack-cache)" in run("show", model).stdout
    Llama(str(model), n_ctx=64, pack_cache=True).close()
    (found,) = json.loads(run("show", model, "--json").stdout)["file"]["packed_weights"]
    assert found["state"] == "ready" and found["bytes"] == Path(found["path"]).stat().st_size
    assert f"({found['tier']}, ready)" in run("show", model).stdout
    os.utime(model)
    assert f"({found['tier']}, unused)" in run("show", model).stdout


def test_the_sum_and_the_limit_are_shown(
    model: Path, home: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PACK_LIMIT_VARIABLE, "1GB")
    Llama(str(model), n_ctx=64, pack_cache=True).close()
    size = sum(path.stat().st_size for path in (home / "panels").glob("*.panels"))
    assert run("panels").stderr == f"1 file, {size / 1e6:.2f} MB of 1.00 GB at most (--pack-cache-limit)\n"
    assert "1 file" in run("panels", home / "panels").stderr
    assert "0 files, 0 B" in run("panels", "--remove-all").stderr


def test_a_folder_that_is_not_there(model: Path, tmp_path: Path, home: Path, run: Run) -> None:
    for folder, says in ((tmp_path / "none", "there is no such folder"), (model, "is not a folder")):
        result = run("panels", str(folder))
        assert result.exit_code == 1 and f"{folder}: {says}" in f"{result.exception}{result.output}"
    assert run("panels").exit_code == 0  # the usual one need not be there


def test_removing_all_of_the_folder_that_is_named(
    model: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PACK_VARIABLE, str(tmp_path / "mine"))
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with Llama(str(model), n_ctx=64) as llm:
        wanted = llm.logits([5, 6])
        assert states(run("panels", "--remove-all")) == ["removed"]
        assert np.array_equal(llm.logits([5, 6]), wanted)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
