"""`pyllamacpu chat`: talk to a model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllamacpu.cli.grammar_options import grammar_options, take_grammar
from pyllamacpu.cli.images import ImageFile, image_option, mmproj_option, read_images
from pyllamacpu.cli.options import (
    ModelChoice,
    checked_argument,
    model_options,
    option_files,
    prompt_options,
    read_text,
    sampling_options,
    stop_texts,
    take_sampling,
    template_options,
    unchosen_options,
    unescape,
)
from pyllamacpu.cli.shield_options import BLOCKED, open_shield, say_not_scanned, shield_options
from pyllamacpu.cli.tool_options import take_tools, tool_options
from pyllamacpu.cli.wrapping import say
from pyllamacpu.errors import OptionError
from pyllamacpu.progress import one_line

if TYPE_CHECKING:
    from pyllamacpu.api.llama import Llama
    from pyllamacpu.cli.first_start import BetterModelOffer
    from pyllamacpu.cli.session import ChatSession
    from pyllamacpu.sampling.options import SamplingOptions


@click.command()
@click.argument("name", required=False, metavar="[MODEL]")
@model_options
@template_options
@click.option("-sys", "--system-prompt", help="The system prompt.")
@click.option(
    "-sysf",
    "--system-prompt-file",
    type=click.Path(path_type=Path),
    help="Read the system prompt from this file.",
)
@prompt_options
@image_option
@mmproj_option
@click.option("-st", "--single-turn", is_flag=True, help="Answer the prompt and end.")
@click.option(
    "--show-timings/--no-show-timings",
    default=True,
    help="The line with the speed behind each answer (/set show_timings).",
)
@click.option("--markdown", is_flag=True, help="On a terminal, draw answers as Markdown.")
@sampling_options
@grammar_options
@tool_options
@shield_options
@click.pass_context
def chat(context: click.Context, /, **parameters: Any) -> None:
    """Talk to a model.

    On a terminal this is a conversation; /help lists its commands. Without a terminal it reads all of
    stdin, answers once and prints only the answer. The starter model has defaults of its own:
    temperature 0.2 (0 for one answer), top-p 0.9, repeat penalty 1.12; /set shows them. What --guard or
    --shield block is told, and the turn is not kept; a single answer that is blocked ends with code 3.

    \b
    Examples:
      pyllamacpu chat
      pyllamacpu chat llama3.2:1b
      pyllamacpu chat -m model.gguf -sys "You are terse." --temp 0.5
      echo "What is the capital of France?" | pyllamacpu chat
      pyllamacpu chat llama3.2:3b --tools weather.py
      pyllamacpu chat -m vision.gguf --image photo.jpg -p "What is this?"
    """
    name = parameters.pop("name")
    if name is not None and parameters["model"] is not None:
        raise click.UsageError(f"give one model: {name} or -m {parameters['model']}")
    if parameters["model"] is None:
        parameters["model"] = name
    choice, ignore_eos = ModelChoice.take(parameters), parameters.pop("ignore_eos")
    system = _system_prompt(parameters)
    interactive = sys.stdin.isatty() and not parameters["single_turn"]
    own = _own_sampling(choice, parameters, interactive)
    unchosen = unchosen_options(own, parameters)
    sampling, parameters["form"] = take_sampling(parameters, own), take_grammar(parameters)
    parameters["toolbox"] = take_tools(parameters)
    if (form := parameters["form"]) and (toolbox := parameters["toolbox"]):
        if form.kind != "json_schema":
            raise click.UsageError("--tools goes with a JSON schema, not with a grammar")
        toolbox.answers_in(form)
    choice.check_name()
    message = _first_message(parameters, interactive)
    timings, choice = choice.verbose, replace(choice, verbose=False)  # one line, behind the answer
    offer = _better_model_offer(choice) if interactive else None
    shield = open_shield(parameters)
    session = _session(choice, sampling, ignore_eos, system, parameters)
    session.unchosen, session.shield = unchosen, shield
    say_not_scanned(shield, with_images=session.engine.reads_images if interactive else bool(session.images))
    if interactive:
        context.exit(_converse(session, message, parameters["markdown"], offer))
    assert message is not None
    _answer_once(session, message, parameters["markdown"], timings)
    if session.last_reason == "content_filter":
        context.exit(BLOCKED)


def _own_sampling(choice: ModelChoice, parameters: dict[str, Any], interactive: bool) -> dict[str, float]:
    """The model's own sampling defaults; who asks for other temperatures or seeds gets variety."""
    varied = any(parameters[name] is not None for name in ("seed", "temperature", "top_p", "top_k", "min_p"))
    return choice.own_sampling(once=not interactive and not varied)


def _system_prompt(parameters: dict[str, Any]) -> str | None:
    """The system prompt of -sys or -sysf. Raises click.UsageError for both."""
    if parameters["system_prompt"] is not None and parameters["system_prompt_file"] is not None:
        raise click.UsageError("-sys and -sysf are two ways to give the system prompt; give one")
    if (file := parameters["system_prompt_file"]) is not None:
        return read_text(file).removesuffix("\n")
    if (text := parameters["system_prompt"]) is None:
        return None
    return checked_argument(text, "-sys") if parameters["escape"] is False else unescape(text)


def _first_message(parameters: dict[str, Any], interactive: bool) -> str | None:
    """The message of -p, -f and (without a terminal) stdin; None to let the person begin.

    Raises OptionError when there must be one and is none.
    """
    pieces: list[str] = []
    if (
        not sys.stdin.isatty()
        and str(parameters["file"]) != "-"
        and not (parameters["single_turn"] and _given(parameters))
    ):
        pieces.append(read_text(Path("-")))
    if parameters["file"] is not None:
        text = read_text(parameters["file"])
        pieces.append(unescape(text) if parameters["escape"] else text)
    if (prompt := parameters["prompt"]) is not None:
        pieces.append(checked_argument(prompt, "-p") if parameters["escape"] is False else unescape(prompt))
    message = "\n\n".join(piece.strip("\r\n") for piece in pieces if piece.strip())
    if not message and not interactive:
        raise OptionError("there is nothing to answer: stdin and the prompt are empty; give -p TEXT")
    return message or None


def _given(parameters: dict[str, Any]) -> bool:
    return parameters["prompt"] is not None or parameters["file"] is not None


def _session(
    choice: ModelChoice,
    sampling: SamplingOptions,
    ignore_eos: bool,
    system: str | None,
    parameters: dict[str, Any],
) -> ChatSession:
    """Load the model and begin a conversation with it."""
    from pyllamacpu.cli.chat_engine import ChatEngine, without_end
    from pyllamacpu.cli.saved_chat import conversation
    from pyllamacpu.cli.session import ChatSession

    engine, limit = ChatEngine(choice.load()), parameters["predict"]
    if engine.warning:
        say(f"warning: {one_line(engine.warning)}")
    looping = parameters["stop_loops"]
    engine.stop_loops = not ignore_eos if looping is None else looping
    card, stop = choice.card, stop_texts(parameters["reverse_prompt"], parameters["escape"])
    session = ChatSession(
        engine,
        without_end(sampling, engine.tokenizer) if ignore_eos else sampling,
        system=system if card is None or system is not None else card.system,
        max_tokens=limit if limit >= 0 else card.max_tokens if card else None,
        stop=stop or (card.stop if card else ()),
    )
    if card and card.messages:
        session.turns = conversation({"messages": list(card.messages)}, Path(engine.llm.model_path))[1]
    engine.form = parameters["form"]
    session.has_form = engine.form is not None
    session.tools = parameters["toolbox"]
    if session.tools:
        session.tools.written_in(engine.template)
    engine.offered = session.tools.first.offered if session.tools else ()
    session.show_timings = parameters["show_timings"]
    session.images = read_images(parameters["images"])
    for image in session.images:
        engine.describe(image)  # what cannot be read is an error now
    session.inputs = tuple(_inputs(engine.llm, session.images))
    return session


def _inputs(llm: Llama, images: Sequence[ImageFile]) -> list[Path]:
    """What this chat reads, which /save does not write over."""
    from pyllamacpu.store import model_files

    own = [Path(image.where) for image in images]  # which options may name by file:// URLs
    own += [Path(llm.vision.path)] if llm.reads_images else []  # also one that was found beside the model
    return [*model_files(Path(llm.model_path)), *option_files(), *own]


def _better_model_offer(choice: ModelChoice) -> BetterModelOffer | None:
    """Begins to look for the hub, for those who chat with the starter model."""
    from pyllamacpu.cli.first_start import BetterModelOffer
    from pyllamacpu.store.resolve import is_starter

    return BetterModelOffer() if is_starter(choice.model) else None


def _converse(
    session: ChatSession, message: str | None, markdown: bool, offer: BetterModelOffer | None
) -> int:
    """The interactive chat; its exit code."""
    from pyllamacpu.cli.line_reader import line_reader
    from pyllamacpu.cli.output import Screen
    from pyllamacpu.cli.repl import Repl

    screen = Screen(markdown=markdown)
    engine = session.engine
    engine.on_image = screen.on_image
    screen.note(f"{engine.title()}, context {engine.n_ctx()} tokens. /help lists the commands.")
    if offer and (better := offer.text()):
        screen.note(better)
    read_line, remember = line_reader()
    return Repl(session, read_line, screen, remember).run(message)


def _answer_once(session: ChatSession, message: str, markdown: bool, timings: bool) -> None:
    """Answer one message on stdout; nothing else goes there. timings: say how fast it was, too."""
    from pyllamacpu.cli.output import Screen

    screen = Screen(markdown=markdown)
    session.engine.on_image = screen.on_image
    screen.answer(session.ask(message, screen.on_prompt), stats=timings)
