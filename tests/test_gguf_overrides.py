"""Metadata that is changed while a model is opened: the same as a file that says it, or an error.

Covers gguf/overrides.py, cli/loading_options.py.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from tiny_model import write_model

from pyllamacpu import Llama
from pyllamacpu.cli.main import cli
from pyllamacpu.engine.engine import Engine
from pyllamacpu.errors import ModelError, OptionError
from pyllamacpu.gguf.overrides import parse_overrides
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.gguf.values import ValueType
from pyllamacpu.text.load import load_tokenizer

EPS = "llama.attention.layer_norm_rms_epsilon"
BOS = "tokenizer.ggml.add_bos_token"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny.gguf")


def logits(engine: Engine) -> Any:
    found = engine.eval(engine.sequence(), list(range(6, 40)))
    engine.close()
    return found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (EPS, 0.05),
        ("llama.rope.freq_base", 500.0),  # not in the file
        ("llama.rope.dimension_count", 8),
        ("llama.attention.scale", 0.5),
    ],
)
def test_an_override_is_what_a_file_that_says_so_is(
    path: Path, tmp_path: Path, key: str, value: float | int
) -> None:
    said = write_model(tmp_path / "said.gguf", **{key.replace(".", "__"): value})
    found = logits(Engine.open(path, kv_overrides={key: value}, n_ctx=64))
    np.testing.assert_array_equal(found, logits(Engine.open(said, n_ctx=64)))
    assert not np.array_equal(found, logits(Engine.open(path, n_ctx=64)))


def test_the_file_says_it_everywhere(path: Path) -> None:
    given = {EPS: 0.05, BOS: False, "general.name": "näme", "tokenizer.chat_template": "{{ bos_token }}"}
    with GGUFFile.open(path, given) as file:
        assert {key: file.metadata[key] for key in given} == given
        assert set(given) <= set(file.metadata) and len(file.metadata) == len(set(file.metadata))
        assert file.metadata.value_type(EPS) == ValueType.FLOAT32
        assert file.metadata.raw("general.name") == "näme".encode()
        assert file.metadata.raw("general.architecture") == b"llama"
        assert file.metadata.describe(BOS) == "bool" and file.metadata.element_type(BOS) is None
        tokenizer = load_tokenizer(file.metadata)
        assert tokenizer is not None and not tokenizer.add_bos


def test_of_the_python_api(path: Path) -> None:
    with Llama(path, verbose=False, kv_overrides={BOS: False, "tokenizer.ggml.eos_token_id": 3}) as llm:
        assert llm.tokenize(b"hello") == Llama(path, verbose=False).tokenize(b"hello")[1:]
        assert llm.token_eos() == 3 and llm.metadata[BOS] == "false"
        with pickle.loads(pickle.dumps(llm)) as again:
            assert again.metadata[BOS] == "false"


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (EPS, 1, "it is float32 in the file, so give float:VALUE"),
        ("llama.block_count", 2.0, "so give int:VALUE"),
        ("llama.block_count", True, "so give int:VALUE"),
        ("llama.block_count", -1, "does not fit in uint32"),
        ("llama.rope.freq_base", 1 << 63, "is not a whole number"),
        ("llama.rope.freq_base", float("nan"), "is not a whole number"),
        ("llama.rope.freq_base", [1.0], "is not a whole number"),
        ("tokenizer.ggml.scores", 1.0, "it is array of"),
        ("general.architecture", "llama4", "the file is read by it"),
        ("general.alignment", 64, "the file is read by it"),
        ("split.count", 2, "the file is read by it"),
        ("llama.vision.block_count", 2, "vision tower"),
        ("llama4.expert_count", 2, "begin with llama"),
        ("llama.rope.freq_bsae", 2.0, "nothing reads it"),
        ("llama.attention.layer_norm_rms_epsilom", 2.0, f"did you mean {EPS}"),
        ("tokenizer.ggml.add_bos_tokn", True, "nothing reads it"),
        (3, 2, "give a key's name"),
        ("", 2, "give a key's name"),
    ],
)
def test_what_cannot_be_honoured_is_an_error(path: Path, key: Any, value: Any, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        Llama(path, verbose=False, kv_overrides={key: value})
    with pytest.raises(OptionError, match="give a dictionary"):
        Llama(path, verbose=False, kv_overrides=[(key, value)])


def test_values_that_the_tensors_do_not_fit_are_errors(path: Path) -> None:
    for key, value in (("llama.block_count", 3), ("llama.block_count", 1), ("llama.embedding_length", 64)):
        with pytest.raises(ModelError):
            Engine.open(path, kv_overrides={key: value})


def test_a_value_out_of_range_is_not_the_files_fault(path: Path) -> None:
    with pytest.raises(ModelError, match=r"must be a number from 0 to 0\.1; it was overridden"):
        Engine.open(path, kv_overrides={EPS: 0.5})


def test_texts_of_the_option() -> None:
    given = ["a=int:-3", "b=float:1e-5", "c=bool:true", "d=str:x=y:z", "e=str:", "a=int:4"]
    assert parse_overrides(given) == {"a": 4, "b": 1e-5, "c": True, "d": "x=y:z", "e": ""}
    for text in ("a", "a=3", "=int:3", "a=u32:3", "a=INT:3", ""):
        with pytest.raises(OptionError, match="is not KEY=TYPE:VALUE"):
            parse_overrides([text])
    for text in ("a=int:x", "a=int:1.5", "a=float:", "a=bool:1", "a=bool:True"):
        with pytest.raises(OptionError, match=r"is not (a|true)"):
            parse_overrides([text])


COMMANDS = (
    "batch", "bench", "chat", "complete", "guard", "imatrix", "perplexity", "prompt-guard", "serve", "show",
    "tokenize",
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_opens_a_model_has_the_option(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    option = next(o for o in command.params if "--override-kv" in o.opts)
    assert option.name == "kv_overrides" and getattr(option, "multiple", False)


def test_on_the_command_line(path: Path, tmp_path: Path) -> None:
    def output(*words: str, code: int = 0) -> str:
        found = CliRunner().invoke(cli, [*words])
        assert found.exit_code == code, found.output
        return found.output

    plain = ["tokenize", "-m", str(path), "-p", "hello", "--ids"]
    without = output(*plain, "--override-kv", f"{BOS}=bool:false")
    assert output(*plain) == without.replace("[", "[1, ")
    assert "0.05" in output("show", str(path), "--metadata", "--override-kv", f"{EPS}=float:0.05")
    assert "KEY=TYPE:VALUE" in output(*plain, "--override-kv", "x", code=2)
    bench = ["bench", "-m", str(path), "-p", "4", "-n", "0", "-r", "1", "--no-limits", "-o", "csv"]
    output(*bench, "--override-kv", f"{EPS}=float:0.05")
    text = tmp_path / "text.txt"
    text.write_text("the hello world " * 200)
    said = write_model(tmp_path / "said.gguf", **{EPS.replace(".", "__"): 0.05})
    measure = ["-f", str(text), "-c", "64", "--chunks", "2"]
    estimates = [
        re.findall(r"PPL = \S+", output("perplexity", "-m", str(model), *measure, *more))
        for model, more in ((path, ["--override-kv", f"{EPS}=float:0.05"]), (said, []), (path, []))
    ]
    assert len(estimates[0]) == 1 and estimates[0] == estimates[1] != estimates[2]
