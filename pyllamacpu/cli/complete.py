"""`pyllamacpu complete`: continue a text, without a chat format."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllamacpu.cli.chat_engine import tokenizer_of, without_end
from pyllamacpu.cli.grammar_options import grammar_options, take_grammar
from pyllamacpu.cli.images import image_option, mmproj_option, read_images
from pyllamacpu.cli.options import (
    ModelChoice,
    model_options,
    prompt_options,
    read_bytes,
    sampling_options,
    stop_texts,
    take_sampling,
    unescape,
    unescape_bytes,
)
from pyllamacpu.cli.shield_options import BLOCKED, blocked_text, open_shield, say_not_scanned, shield_options
from pyllamacpu.errors import OptionError

if TYPE_CHECKING:
    from pyllamacpu import Llama
    from pyllamacpu.safety.shield import Conversation, Shield
    from pyllamacpu.sampling.sampler import SamplingOptions


@click.command()
@model_options
@prompt_options
@image_option
@mmproj_option
@click.option(
    "--display-prompt/--no-display-prompt", default=True, help="Print the prompt before its continuation."
)
@click.option(
    "--suffix",
    metavar="TEXT",
    help="What comes behind: a model that fills in the middle (Code Llama) writes what is between. "
    "Or one <FILL_ME> in the prompt.",
)
@click.option(
    "--spm-infill", is_flag=True, help="Give the model the suffix first (for a hole inside a word)."
)
@click.option("--perf/--no-perf", default=False, help="Say on stderr how fast it was.")
@sampling_options
@grammar_options
@shield_options
@click.pass_context
def complete(context: click.Context, /, **parameters: Any) -> None:
    """Continue a text as it stands, without a chat format.

    The prompt is -p, -f or stdin; one newline at the end of a file or of stdin is not part of it.
    Special tokens that are spelled in the prompt count as such. Images stand where it has <__media__> or the
    model's own token for one, else before it. What --guard or --shield block is told, with exit code 3.

    \b
    Examples:
      pyllamacpu complete -p "The capital of France is" -n 40 --temp 0
      pyllamacpu complete -p "A colour:" --grammar 'root ::= " red" | " blue"'
      pyllamacpu complete -m model.gguf -f story.txt -n 200 --no-display-prompt
      pyllamacpu complete -m code.gguf -p "def add(a, b):" --suffix "  return c"
    """
    choice, ignore_eos = ModelChoice.take(parameters), parameters.pop("ignore_eos")
    if parameters["stop_loops"] is None:
        parameters["stop_loops"] = not ignore_eos
    parameters["perf"] = parameters["perf"] or choice.verbose  # one line with the speed, behind the text
    choice = replace(choice, verbose=False)
    sampling, parameters["form"] = take_sampling(parameters), take_grammar(parameters)
    choice.check_name()
    prompt = prompt_bytes(parameters["prompt"], parameters["file"], parameters["escape"])
    if not prompt and parameters["suffix"] is None:
        raise OptionError("the prompt is empty: give -p TEXT, -f FILE or something on stdin")
    shield = open_shield(parameters)
    say_not_scanned(shield, with_images=bool(parameters["images"]))
    llm = choice.load()
    if ignore_eos:
        sampling = without_end(sampling, tokenizer_of(llm))
    if not _continue(llm, prompt, sampling, parameters, shield):
        context.exit(BLOCKED)


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
    llm: Llama, prompt: bytes, sampling: SamplingOptions, parameters: dict[str, Any], shield: Shield | None
) -> bool:
    """Print the prompt and its continuation as it comes. False when the shield blocked it."""
    from pyllamacpu.cli.commands import usage_text
    from pyllamacpu.cli.usage import context_full
    from pyllamacpu.engine.token_ids import check_length

    check_length(tokenizer_of(llm).fewest_tokens(prompt), llm.n_ctx())  # before it takes minutes
    images: tuple[Any, ...] = ()
    if parameters["images"]:
        tokens, images = _with_images(llm, prompt, parameters)
        before, behind = prompt.decode("utf-8", "replace"), ""
    else:
        tokens, before, behind = _prompt_ids(llm, prompt, parameters)
    shown = _Shown(before if parameters["display_prompt"] else "", parameters["predict"])
    limit = shown.limit
    stop = stop_texts(parameters["reverse_prompt"], parameters["escape"])
    more: dict[str, Any] = {"images": images} if images else {}
    start = partial(
        llm.stream,
        tokens,
        sampling,
        limit,
        stop,
        shown.on_prompt,
        stop_loops=parameters["stop_loops"],
        grammar=parameters["form"],
        **more,
    )
    if shield is None:
        last = shown.events(start())
    else:
        last = shown.events(shield.answer(_said(before + behind, parameters), len(tokens), start))
    shown.end(behind if parameters["display_prompt"] else "")
    if last.finish_reason == "loop":
        click.echo("[stopped: the text repeats itself; --no-stop-loops lets it]", err=True)
    if last.finish_reason == "length" and shown.usage.n_generated != limit:
        click.echo(f"[{context_full(llm.n_ctx())}]", err=True)
    if is_blocked := last.finish_reason == "content_filter":
        click.echo(f"[{blocked_text(getattr(last, 'findings', ()))}]", err=True)
    if parameters["perf"]:
        click.echo(usage_text(shown.usage), err=True)
    return not is_blocked


class _Shown:
    """The text on stdout: the prompt as soon as it is being read, so not before what was asked for has been
    checked, and then what continues it. limit: tokens at most, None for as many as there is room for.
    """

    def __init__(self, prompt: str, limit: int) -> None:
        from pyllamacpu.cli.output import Screen
        from pyllamacpu.cli.usage import Usage

        self.limit, self.usage = None if limit < 0 else limit, Usage()
        self._screen, self._prompt, self._began = Screen(), prompt, False

    def on_prompt(self, done: int, total: int) -> None:
        self._begin()
        self._screen.on_prompt(done, total)

    def events(self, events: Iterator[Any]) -> Any:
        """Shows the text as it comes -> the last event. Whatever ends it, what follows is on a new line."""
        try:
            for event in events:
                self._begin()
                self._screen.text(event.text)
                if event.stats is not None:
                    self.usage += event.stats
        except BaseException:
            if self._began and self._screen.seen:
                self.end()
            raise
        return event

    def end(self, text: str = "") -> None:
        """Shows `text` and ends the line."""
        self._screen.text(text)
        self._screen.end_text()
        click.echo()

    def _begin(self) -> None:
        if not self._began:
            self._began = True
            self._screen.text(self._prompt)


def _said(text: str, parameters: dict[str, Any]) -> Conversation:
    """What is to be continued is the user's."""
    from pyllamacpu.cli.images import image_content
    from pyllamacpu.safety.shield import Conversation

    return Conversation([{"role": "user", "content": image_content(text, read_images(parameters["images"]))}])


def _with_images(llm: Llama, prompt: bytes, parameters: dict[str, Any]) -> tuple[list[int], tuple[Any, ...]]:
    """(ids of the prompt, its images)."""
    if parameters["suffix"] is not None or parameters["spm_infill"]:
        raise click.UsageError("--image does not go with --suffix")
    tiles = [image.tiles(llm.vision) for image in read_images(parameters["images"])]
    return llm.vision.text_prompt(tokenizer_of(llm), prompt, tiles)


def _prompt_ids(llm: Llama, prompt: bytes, parameters: dict[str, Any]) -> tuple[list[int], str, str]:
    """(ids of the prompt, text before the answer, text behind it). Raises OptionError for a model that
    fills in nothing.
    """
    from pyllamacpu.text.infill import HOLE, infill_prompt, prompt_with_hole

    tokenizer, suffix_first = tokenizer_of(llm), parameters["spm_infill"]
    shown = prompt.decode("utf-8", "replace")
    if (suffix := parameters["suffix"]) is not None:
        if parameters["escape"] is not False:
            suffix = unescape(suffix)
        filled = infill_prompt(tokenizer, prompt, suffix, suffix_first)
        if filled is None:
            raise OptionError(
                "--suffix: this model was not trained to fill in the middle; Code Llama 7B and 13B were"
            )
        return filled, shown, suffix
    if (filled := prompt_with_hole(tokenizer, prompt, suffix_first)) is not None:
        before, _, behind = shown.partition(HOLE)
        return filled, before, behind
    if suffix_first:
        raise OptionError(f"--spm-infill: give --suffix, or {HOLE} in the prompt of a model that fills in")
    return tokenizer.encode(prompt, add_special=True, parse_special=True), shown, ""
