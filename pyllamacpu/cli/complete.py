"""`pyllamacpu complete`: continue a text, without a chat format."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllamacpu.cli.chat_engine import tokenizer_of, without_end
from pyllamacpu.cli.grammar_options import grammar_options, take_grammar
from pyllamacpu.cli.options import (
    ModelChoice,
    model_options,
    prompt_options,
    read_bytes,
    sampling_options,
    stop_texts,
    take_sampling,
    unescape_bytes,
)
from pyllamacpu.errors import OptionError

if TYPE_CHECKING:
    from pyllamacpu import Llama
    from pyllamacpu.sampling.sampler import SamplingOptions


@click.command()
@model_options
@prompt_options
@click.option(
    "--display-prompt/--no-display-prompt", default=True, help="Print the prompt before its continuation."
)
@click.option("--perf/--no-perf", default=False, help="Say on stderr how fast it was.")
@sampling_options
@grammar_options
def complete(**parameters: Any) -> None:
    """Continue a text as it stands, without a chat format.

    The prompt is -p, -f or stdin; one newline at the end of a file or of stdin is not part of it.
    Special tokens that are spelled in the prompt count as such.

    \b
    Examples:
      pyllamacpu complete -p "The capital of France is" -n 40 --temp 0
      pyllamacpu complete -p "A colour:" --grammar 'root ::= " red" | " blue"'
      pyllamacpu complete -m model.gguf -f story.txt -n 200 --no-display-prompt
    """
    choice, ignore_eos = ModelChoice.take(parameters), parameters.pop("ignore_eos")
    if parameters["stop_loops"] is None:
        parameters["stop_loops"] = not ignore_eos
    if parameters["perf"]:
        choice = replace(choice, verbose=False)  # one line with the speed is enough
    sampling, parameters["form"] = take_sampling(parameters), take_grammar(parameters)
    prompt = prompt_bytes(parameters["prompt"], parameters["file"], parameters["escape"])
    if not prompt:
        raise OptionError("the prompt is empty: give -p TEXT, -f FILE or something on stdin")
    llm = choice.load()
    if ignore_eos:
        sampling = without_end(sampling, tokenizer_of(llm))
    _continue(llm, prompt, sampling, parameters, perf=parameters["perf"])


def prompt_bytes(
    prompt: str | None, file: Path | None, escape: bool | None, keep_newline: bool = False
) -> bytes:
    """The prompt of -p, else of -f, else of stdin. Raises click.UsageError for two prompts, or none.

    Escapes are read in -p unless switched off, in files only when asked for.
    """
    if prompt is not None and file is not None:
        raise click.UsageError("give the prompt as -p or as -f, not both")
    if prompt is not None:
        content = prompt.encode("utf-8", "surrogateescape")
        return content if escape is False else unescape_bytes(content)
    if file is None and sys.stdin.isatty():
        raise click.UsageError("give a prompt: -p TEXT, -f FILE or text on stdin")
    content = read_bytes(file or Path("-"))
    if not keep_newline:
        content = content.removesuffix(b"\n").removesuffix(b"\r")
    return unescape_bytes(content) if escape else content


def _continue(
    llm: Llama, prompt: bytes, sampling: SamplingOptions, parameters: dict[str, Any], perf: bool
) -> None:
    """Print the prompt and its continuation as it comes."""
    from pyllamacpu.cli.commands import usage_text
    from pyllamacpu.cli.output import Screen
    from pyllamacpu.cli.session import Usage

    tokens = tokenizer_of(llm).encode(prompt, add_special=True, parse_special=True)
    screen, limit = Screen(), parameters["predict"]
    stop = stop_texts(parameters["reverse_prompt"], parameters["escape"])
    events = llm.stream(
        tokens,
        sampling,
        None if limit < 0 else limit,
        stop,
        screen.on_prompt,
        stop_loops=parameters["stop_loops"],
        grammar=parameters["form"],
    )
    if parameters["display_prompt"]:
        screen.text(prompt.decode("utf-8", "replace"))
    usage = Usage()
    for event in events:
        screen.text(event.text)
        if event.stats is not None:
            usage += event.stats
    screen.end_text()
    click.echo()
    if event.finish_reason == "loop":
        click.echo("[stopped: the text repeats itself; --no-stop-loops lets it]", err=True)
    if perf:
        click.echo(usage_text(usage), err=True)
