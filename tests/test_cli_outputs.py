"""One rule for every command that writes: inputs are never replaced, files of another kind only with --force.

Covers cli/imatrix.py, cli/perplexity.py, cli/bench.py, cli/convert.py, cli/quantize.py, cli/commands.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_letters import LetterLlama, Result, cli_home, letters, run  # noqa: F401
from convert_models import BY_NAME, write_checkpoint
from tiny_model import write_model

from pyllamacpu.cli.commands import run_command
from pyllamacpu.cli.session import ChatSession
from pyllamacpu.errors import OptionError, OutputError
from pyllamacpu.sampling.options import SamplingOptions

pytestmark = pytest.mark.usefixtures("cli_home")
Run = Callable[..., Result]

BENCH = ("bench", "-p", "4", "-n", "0", "-r", "1", "-t", "1", "--no-limits")
EVALUATE = ("-c", "64", "--chunks", "1", "-t", "1")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a model with other names, a text, and what must not be lost."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_model(folder / "model.gguf", n_ctx=512)
    os.link("model.gguf", "hard.gguf")
    Path("soft.gguf").symlink_to("model.gguf")
    Path("text.txt").write_text("the hello world a " * 100)
    Path("diary.txt").write_text("Dear diary, " * 20)
    shutil.copy("model.gguf", "other.gguf")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


IMATRIX = ("imatrix", "-m", "model.gguf", "-f", "text.txt", *EVALUATE, "-o")
PERPLEXITY = ("perplexity", "-m", "model.gguf", "-f", "text.txt", *EVALUATE, "--save-all-logits")
RESULTS = (*BENCH, "-m", "model.gguf", "--output-file")
BATCHED = ("bench", "--batched", "-npp", "4", "-ntg", "2", "-npl", "1", "-t", "1", "--no-limits")
MODEL_NAMES = ("model.gguf", "hard.gguf", "soft.gguf", "../work/model.gguf", "./model.gguf")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "command",
    [
        *[(*IMATRIX, name) for name in (*MODEL_NAMES, "text.txt")],
        (*IMATRIX, "text.txt", "--output-format", "dat"),
        *[(*PERPLEXITY, name) for name in (*MODEL_NAMES, "text.txt")],
        *[(*RESULTS, name) for name in MODEL_NAMES],
        (*BATCHED, "-m", "model.gguf", "--output-file", "hard.gguf"),
        (*RESULTS, "other.gguf", "--lora", "other.gguf"),
        (*PERPLEXITY, "other.gguf", "--lora", "model.gguf,other.gguf:0.5"),
        ("batch", "-m", "model.gguf", "text.txt", "other.gguf", "--draft-model", "other.gguf"),
        ("quantize", "model.gguf", "model.gguf", "Q8_0"),
        ("quantize", "model.gguf", "soft.gguf", "Q8_0"),
        ("convert", "model.gguf", "-o", "hard.gguf"),
    ],
    ids=lambda command: f"{command[0]}-{command[-1]}",
)
def test_an_input_is_never_replaced(command: tuple[str, ...], force: bool, folder: Path, run: Run) -> None:
    before = contents(folder)
    result = run(*command, *(["--force"] if force else []))
    assert result.code in (1, 2) and "is an input too" in result.err and result.out == ""
    assert result.err.count("\n") == 1 and contents(folder) == before


@pytest.mark.parametrize(
    "command",
    [
        *[(*IMATRIX, name) for name in ("other.gguf", "diary.txt")],
        *[(*PERPLEXITY, name) for name in ("other.gguf", "diary.txt")],
        *[(*RESULTS, name) for name in ("other.gguf", "diary.txt")],
        (*BATCHED, "-m", "model.gguf", "--output-file", "other.gguf"),
        ("quantize", "model.gguf", "diary.txt", "Q8_0"),
        ("convert", "model.gguf", "-o", "diary.txt"),
        ("convert", "model.gguf", "--vocab-only", "-o", "other.gguf"),
    ],
    ids=lambda command: f"{command[0]}-{command[-1]}",
)
def test_a_file_of_another_kind_only_with_force(command: tuple[str, ...], folder: Path, run: Run) -> None:
    before = contents(folder)
    result = run(*command)
    assert result.code in (1, 2) and "is there already and is not a" in result.err and result.out == ""
    assert "--force" in result.err and contents(folder) == before
    assert run(*command, "--force").code == 0
    name = next(name for name in ("other.gguf", "diary.txt") if name in command)
    assert contents(folder)[name] != before[name]
    assert run(*command).code == 0  # over its own output


def test_copies_of_an_importance_matrix_keep_the_rule(folder: Path, run: Run) -> None:
    Path("i.gguf.at_1").write_text("mine")
    result = run(*IMATRIX[:-1], "-o", "i.gguf", "--save-frequency", "1")
    assert result.code == 1 and "i.gguf.at_1: is there already" in result.err
    assert Path("i.gguf.at_1").read_text() == "mine" and not Path("i.gguf").exists()


def test_quantize_spares_what_it_reads_beside_the_model(folder: Path, run: Run) -> None:
    assert run(*IMATRIX, "i.gguf").code == 0
    before = contents(folder)
    for options, out in ((("--imatrix", "i.gguf"), "i.gguf"), (("--tensor-type-file", "types"), "types")):
        Path("types").write_text("ffn_down=q8_0")
        result = run("quantize", "--force", *options, "model.gguf", out, "Q8_0")
        assert result.code == 1 and "is an input too" in result.err
    assert contents(folder) == before | {"types": b"ffn_down=q8_0"}


def test_a_target_size_is_refused_before_the_work(folder: Path, run: Run) -> None:
    (folder / "out").mkdir()
    Path("new-report.md").write_text("# My own report")
    args = ("quantize", "--target-bpw", "16", "--report", "-f", "text.txt", "model.gguf")
    for out, says in (
        ("out", "is a folder"),
        ("diary.txt", "is not a GGUF model"),
        ("text.txt", "is an input too"),
        ("new.gguf", "new-report.md: is there already and is not a report"),
    ):
        result = run(*args, out)
        assert result.code == 1 and says in result.err and result.out == ""
    result = run("quantize", "model.gguf", "out", "Q8_0")
    assert result.code == 1 and "is a folder" in result.err and result.out == ""


@pytest.mark.parametrize("name", ["config.json", "README.md", "model.safetensors"])
def test_convert_spares_the_whole_checkpoint(name: str, tmp_path: Path, run: Run) -> None:
    source = write_checkpoint(tmp_path / "source", BY_NAME["gqa"])
    (source / "README.md").write_text("# A model")
    before = contents(source)
    result = run("convert", str(source), "-o", str(source / name), "--force")
    assert result.code == 1 and "is an input too" in result.err and contents(source) == before
    out = source / "model.gguf"  # beside it is where results are often put
    for _ in range(2):
        assert run("convert", str(source), "-o", str(out)).code == 0


# chat


def test_save_spares_adapters_that_were_loaded_later(tmp_path: Path) -> None:
    path = tmp_path / "adapter.gguf"
    path.write_bytes(b"GGUF")
    adapter = SimpleNamespace(name="adapter", rank=4, pairs={}, path=path)
    engine = SimpleNamespace(adapters=[], load_adapters=lambda files: engine.adapters.append((adapter, 1.0)))
    chat = ChatSession(engine, SimpleNamespace())  # type: ignore[arg-type]
    run_command(chat, f"/lora {path}")
    with pytest.raises(OutputError, match="is an input too"):
        run_command(chat, f"/save --force {path}")
    assert path.read_bytes() == b"GGUF"


def test_save_spares_files_that_are_no_conversation(tmp_path: Path) -> None:
    write_model(tmp_path / "model.gguf")
    (tmp_path / "diary.txt").write_text("Dear diary")
    (tmp_path / "data.json").write_text('{"messages": "of another program"}')
    os.link(tmp_path / "model.gguf", tmp_path / "hard.gguf")
    chat = ChatSession(None, SamplingOptions(), inputs=[tmp_path / "model.gguf"])  # type: ignore[arg-type]
    before = contents(tmp_path)
    for name in ("model.gguf", "hard.gguf"):
        for force in ("", "--force "):
            with pytest.raises(OutputError, match="is an input too"):
                run_command(chat, f"/save {force}{tmp_path / name}")
    for name in ("diary.txt", "data.json"):
        with pytest.raises(OutputError, match=r"is not a saved conversation.*--force"):
            run_command(chat, f"/save {tmp_path / name}")
    assert contents(tmp_path) == before
    with pytest.raises(OptionError, match="/save needs a file"):
        run_command(chat, "/save --force")
    run_command(chat, f"/save --force {tmp_path / 'diary.txt'}")
    run_command(chat, f"/save {tmp_path / 'diary.txt'}")  # its own file by now
    run_command(chat, f"/save {tmp_path / 'data.json'} --force")
    assert sorted(contents(tmp_path)) == sorted(before)
    assert (tmp_path / "diary.txt").read_text().startswith('{\n  "messages"')
    assert stat.S_IMODE((tmp_path / "diary.txt").stat().st_mode) == 0o600


def test_chat_knows_its_inputs(letters: type[LetterLlama], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ChatSession] = []
    monkeypatch.setattr("pyllamacpu.cli.chat._answer_once", lambda session, *rest: made.append(session))
    for name in ("prompt", "system", "format.jinja"):
        Path(name).write_text("{{ messages[0]['content'] }}")
    args = ("-f", "prompt", "-sysf", "system", "--chat-template", "format.jinja")
    assert run("chat", "-m", "m.gguf", *args, "-st").code == 0
    assert {path.name for path in made[0].inputs} == {"m.gguf", "prompt", "system", "format.jinja"}
    for path in made[0].inputs:
        with pytest.raises(OutputError, match="is an input too"):
            made[0].save(path, force=True)


# serve


def test_the_log_of_a_server_spares_files(folder: Path, run: Run) -> None:
    before = contents(folder)
    for name, says in (
        ("model.gguf", "is an input too"),
        ("hard.gguf", "is an input too"),
        ("diary.txt", "is not a log"),
    ):
        result = run("serve", "-m", "model.gguf", "--log-file", name)
        assert result.code == 1 and says in result.err and contents(folder) == before
    for beside in (
        ["--guard", "other.gguf"],
        ["--lora", "a=other.gguf:0.5"],
        ["--draft-model", "other.gguf"],
    ):
        result = run("serve", "-m", "model.gguf", "--log-file", "other.gguf", "--force", *beside)
        assert result.code == 1 and "is an input too" in result.err and contents(folder) == before
