"""--lora of the commands, and the chat's /lora (cli/adapter_options.py, Llama.set_adapters)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
from test_batch_invariance import LOGITS, opened
from test_engine_adapters import write_adapter
from tiny_model import write_model

from pyllamacpu import Llama
from pyllamacpu.cli.adapter_options import adapter_files, lora_command
from pyllamacpu.cli.llama_cpp_options import translate
from pyllamacpu.cli.main import cli, main
from pyllamacpu.engine.engine import Engine
from pyllamacpu.errors import OptionError
from pyllamacpu.llama_cpp import LlamaCache

MODEL = LOGITS / "gqa3.gguf"


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two adapters; the second one's name has a colon and a comma."""
    engine = opened("gqa3")
    paths = [write_adapter(tmp_path / name, engine, 4, i) for i, name in enumerate(("a.gguf", "b,c:1.gguf"))]
    engine.close()
    return [str(path) for path in paths]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny.gguf")


def test_files_and_scales(files: list[str]) -> None:
    a, b = files
    assert adapter_files([a, f"{b}:-0.5"]) == ((a, 1.0), (b, -0.5))
    assert adapter_files([f"{a}:2,{a}"]) == ((a, 2.0), (a, 1.0))
    assert adapter_files([b]) == ((b, 1.0),)
    for text in ("no.gguf", f"{a}:x", f"{a}:nan", "no.gguf:2", ":1"):
        with pytest.raises(OptionError, match=r"no such file"):
            adapter_files([text])
    for text in ("", ","):
        with pytest.raises(OptionError, match=f"^--lora '{text}': names no file"):
            adapter_files([a, text])
    with pytest.raises(OptionError, match=r"^--lora .*a\.gguf:1e9: the scale of an adapter is"):
        adapter_files([f"{a}:1e9"])


def test_llama_cpps_name_is_read() -> None:
    command = cli.get_command(click.Context(cli), "complete")
    assert command is not None
    given = translate(command, "complete", ["--lora-scaled", "a.gguf:0.5"], click.Context(command))
    assert given.args == ["--lora", "a.gguf:0.5"]


def test_the_chats_command(files: list[str]) -> None:
    """Lists, sets scales by number or name, loads; the answers that follow are those of a fresh model."""
    tokens = list(range(1, 40))
    with Llama(MODEL, n_ctx=128, n_threads=1) as llm:
        assert "no adapter is loaded" in lora_command(llm, "")
        plain = llm.logits(tokens)
        assert "0  a  scale 0.5, rank 4" in lora_command(llm, f"{files[0]}:0.5")
        half = llm.logits(tokens)
        lora_command(llm, files[1])
        assert "1  b,c:1  scale -2, rank 4" in lora_command(llm, "b,c:1 -2")
        both = llm.logits(tokens)
        lora_command(llm, "0 off")
        lora_command(llm, "1 0")
        assert (llm.logits(tokens) == plain).all()
        for text, says in (
            ("2 1", "no adapter 2; there are: 0"),
            ("a nan", "must be a number"),
            ("x", "no such"),
        ):
            with pytest.raises(OptionError, match=says):
                lora_command(llm, text)
        assert [scale for _, scale in llm.adapters] == [0, 0]
    for given, wanted in (([(files[0], 0.5)], half), ([(files[0], 0.5), (files[1], -2)], both)):
        with Llama(MODEL, n_ctx=128, n_threads=1, lora_path=given) as other:
            assert (other.logits(tokens) == wanted).all()
            assert not (wanted == plain).all()


def test_scales_change_what_is_evaluated_by_hand_too(files: list[str]) -> None:
    with Llama(MODEL, n_ctx=128, n_threads=1, lora_path=files[0], logits_all=True) as llm:
        llm.eval([1, 2, 3])
        with_adapter = llm.scores[2].copy()
        llm.set_adapters({0: 0.0})
        assert llm.n_tokens == 0
        llm.eval([1, 2, 3])
        assert not (llm.scores[2] == with_adapter).all()


def test_a_cache_of_texts_that_other_scales_read_is_of_no_use(path: Path, tmp_path: Path) -> None:
    """Answers are those without a cache, whatever scale the texts in it were read with."""
    engine = Engine.open(path, n_threads=1)
    adapter = write_adapter(tmp_path / "a.gguf", engine, 4, 1)
    engine.close()
    prompt, cache = "hello the world " * 3, LlamaCache()
    with Llama(path, n_ctx=128, n_threads=1, lora_path=str(adapter)) as llm:

        def answer(scale: float) -> Any:
            llm.set_adapters({0: scale})
            return llm(prompt, max_tokens=8, temperature=0)["choices"]

        wanted = {scale: answer(scale) for scale in (0.0, 1.0)}
        llm.set_cache(cache)
        for scale in (0.0, 1.0, 0.0, 0.0):
            assert answer(scale) == wanted[scale]
    assert wanted[0.0] != wanted[1.0]


@pytest.mark.parametrize("command", ["bench -p 8 -n 2 -r 1 -m", "complete -n 2 -p x -m"])
def test_commands_apply_it(
    command: str, files: list[str], path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is not an adapter for the model is one line, and no more."""
    bad = files[0] if "complete" in command else str(MODEL)  # of another shape; not an adapter
    model = str(path) if "complete" in command else str(MODEL)
    assert run(*command.split(), model, "--lora", bad) == 1
    assert re.fullmatch(r"error: .*(do not fit the model's|is not an adapter).*\n", capfd.readouterr().err)
    if "bench" in command:
        assert run(*command.split(), model, "--lora", files[0]) == 0


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code
