"""The options that commands share, in llama-cli's spelling.

Covers cli/options.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from cli_letters import LetterLlama, Result, cli_home, letters, run  # noqa: F401
from click.testing import CliRunner

from pyllamacpu.cli import options
from pyllamacpu.cli.main import cli
from pyllamacpu.engine import precision
from pyllamacpu.errors import OptionError
from pyllamacpu.model.config import kv_types
from pyllamacpu.sampling.options import SamplingOptions

pytestmark = pytest.mark.usefixtures("cli_home")

# Options


def test_names_that_are_listed_without_loading_the_engine() -> None:
    assert options.PRECISIONS == precision.PRECISIONS
    assert tuple(kind.name.lower() for kind in kv_types()) == options.CACHE_TYPES


def parse(*args: str) -> dict[str, Any]:
    """The parameters that the chat command is given."""
    command = cli.get_command(click.Context(cli), "chat")
    assert command is not None
    return dict(command.make_context("chat", list(args)).params)


@pytest.mark.parametrize(
    "args, name, value",
    [
        ("-m x", "model", "x"),
        ("-c 4096", "ctx_size", 4096),
        ("-c4096", "ctx_size", 4096),
        ("--ctx-size=4096", "ctx_size", 4096),
        ("-t 3", "threads", 3),
        ("-b 64", "batch_size", 64),
        ("-ub 32", "ubatch_size", 32),
        ("-ctk q8_0", "cache_type_k", "q8_0"),
        ("-ctk Q8_0", "cache_type_k", "q8_0"),
        ("-ctv f32", "cache_type_v", "f32"),
        ("-n -1", "predict", -1),
        ("--n-predict 7", "predict", 7),
        ("-sys hello", "system_prompt", "hello"),
        ("-s 42", "seed", 42),
        ("-s -1", "seed", -1),
        ("-st", "single_turn", True),
        ("-e", "escape", True),
        ("--no-escape", "escape", False),
        ("-r A -r B", "reverse_prompt", ("A", "B")),
        ("--top-nsigma -1", "top_n_sigma", -1.0),
        ("-l 5-1 -l 6+2", "logit_bias", ("5-1", "6+2")),
        ("--temperature 0.1", "temperature", 0.1),
    ],
)
def test_llama_cli_spellings(args: str, name: str, value: object) -> None:
    assert parse(*args.split())[name] == value


def test_every_sampling_option_reaches_the_engine() -> None:
    given = {
        "--seed": 7, "--temp": 0.5, "--top-k": 9, "--top-p": 0.5, "--min-p": 0.2, "--typical": 0.7,
        "--top-nsigma": 1.5, "--xtc-probability": 0.3, "--xtc-threshold": 0.2, "--repeat-last-n": 11,
        "--repeat-penalty": 1.2, "--presence-penalty": 0.1, "--frequency-penalty": 0.2,
        "--dry-multiplier": 0.8,
        "--dry-base": 1.5, "--dry-allowed-length": 3, "--dry-penalty-last-n": 12, "--dynatemp-range": 0.3,
        "--dynatemp-exp": 1.4, "--mirostat": 2, "--mirostat-lr": 0.2, "--mirostat-ent": 4.0,
        "--adaptive-target": 0.5, "--adaptive-decay": 0.8,
    }  # fmt: skip
    parameters = parse(*(str(word) for pair in given.items() for word in pair))
    made = options.take_sampling(parameters)
    defaults = SamplingOptions()
    changed = [value for name, value in vars(made).items() if value != getattr(defaults, name)]
    assert sorted(changed) == sorted(given.values())
    assert "temperature" not in parameters


def test_sampling_lists() -> None:
    made = options.take_sampling(
        parse("--samplers", "top_k; temp", "-l", "5+1.5", "-l", "6-inf", "--dry-sequence-breaker", r"\n")
    )
    assert made.samplers == ("top_k", "temperature")
    assert made.logit_bias == ((5, 1.5), (6, float("-inf")))
    assert made.dry_sequence_breakers == ("\n",)
    assert options.take_sampling(parse("--dry-sequence-breaker", "none")).dry_sequence_breakers == ()
    assert options.take_sampling(parse("--sampling-seq", "kt")).samplers == ("top_k", "temperature")


def test_an_option_without_effect_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    options.take_sampling(parse("--temp", "0", "--top-k", "3"))
    assert capsys.readouterr().err == "warning: top_k does nothing at temperature 0\n"


@pytest.mark.parametrize(
    "text, meant",
    [
        (r"a\nb\tc\\n", "a\nb\tc\\n"),
        (r"\x41\xe2\x82\xac", "A€"),
        (r"\"q\' \q \z", "\"q' \\q \\z"),
        ("ends with \\", "ends with \\"),
        ("ü", "ü"),
    ],
)
def test_unescape(text: str, meant: str) -> None:
    assert options.unescape(text) == meant


def test_escapes_that_are_no_text() -> None:
    with pytest.raises(OptionError, match="0xff"):
        options.unescape(r"\xff")


def test_chat_template_argument(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    assert options.template_arguments("llama3") == {"chat_format": "llama3"}
    assert options.template_arguments(str(tmp_path / "t.jinja")) == {"chat_template": "{{ messages }}"}
    assert options.template_arguments("{% for m in messages %}") == {
        "chat_template": "{% for m in messages %}"
    }


def test_model_options_reach_the_model(letters: type[LetterLlama], run: Callable[..., Result]) -> None:
    line = "complete -m m.gguf -c 64 -t 2 -b 32 -ub 16 -ctk q8_0 -ctv f32 -p x"
    assert run(*line.split()).code == 0
    assert letters.made[0].model_path == "m.gguf"
    assert letters.made[0].arguments == {
        "n_ctx": 64, "n_threads": 2, "n_batch": 32, "n_ubatch": 16, "type_k": "q8_0", "type_v": "f32",
        "verbose": False,
    }  # fmt: skip


def test_draft_options() -> None:
    """Lookup or a model; llama.cpp's number of tokens does nothing, and that is said."""

    @click.command()
    @options.draft_options
    def command(draft: str | None, draft_model: str | None) -> None:
        click.echo(repr(options.draft_source(draft, draft_model)))

    def outcome(*args: str) -> tuple[str, str, int]:
        result = CliRunner().invoke(command, args)
        return result.stdout.strip(), result.stderr, result.exit_code

    assert outcome() == ("None", "", 0)
    assert outcome("--draft", "lookup") == ("'lookup'", "", 0)
    assert outcome("--draft", "16")[0] == "None" and "does nothing" in outcome("--draft", "16")[1]
    assert outcome("-md", __file__) == (repr(__file__), "", 0)
    assert "not both" in outcome("-md", __file__, "--draft", "lookup")[1]
    assert outcome("--draft", "x")[2] == 2
