"""`pyllamacpu guard`: is what was said safe? Asked of a Llama Guard model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllamacpu.cli.images import mmproj_option
from pyllamacpu.cli.loading_options import loading, loading_options
from pyllamacpu.cli.options import read_bytes
from pyllamacpu.cli.param_types import MAX_THREADS, Whole
from pyllamacpu.cli.shield_options import categories_of
from pyllamacpu.errors import OptionError

if TYPE_CHECKING:
    from pyllamacpu.safety import Guard, Verdict


@click.command()
@click.option(
    "-m",
    "--model",
    metavar="MODEL",
    required=True,
    help="A Llama Guard model: a GGUF file, a name from `pyllamacpu list`, or hf.co/user/repo[:quant].",
)
@click.option("-p", "--prompt", help="What the user says.")
@click.option("-f", "--file", type=click.Path(path_type=Path), help="Read that from this file (- is stdin).")
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="FILE",
    help="An image beside what the user says, for guards that read them; several times for several.",
)
@mmproj_option
@click.option("--response", metavar="TEXT", help="What the agent answers.")
@click.option(
    "--messages",
    type=click.Path(path_type=Path),
    help="A conversation as JSON instead: a list of {role, content}, or an object with `messages`.",
)
@click.option(
    "--role", type=click.Choice(["user", "agent"]), help="Whose last message is judged.  [default: the last]"
)
@click.option(
    "--category",
    "categories",
    multiple=True,
    metavar="KEY[: TEXT]",
    help="Judge by this category only; several times for several. With a text it is your own policy, "
    '"S15: Name. What it means".',
)
@click.option("--exclude", multiple=True, metavar="KEY", help="Leave this category out; several times too.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.5,
    help="Probability from which it is unsafe.  [default: 0.5]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as a JSON object.")
@click.option("-c", "--ctx-size", type=Whole(min=0), help="Context in tokens.  [default: the model's]")
@loading_options
@click.option(
    "-t", "--threads", type=Whole(1, MAX_THREADS), help="CPU threads.  [default: the machine's cores]"
)
def guard(**parameters: Any) -> None:
    """Ask a Llama Guard model (1 to 4) whether what was said is safe.

    Prints "safe" or "unsafe" with the probability of unsafe, then the violated categories, one a line. The
    text is -p, -f or stdin.

    \b
    Examples:
      pyllamacpu guard -m llama-guard.gguf -p "How do I pick a lock?"
      pyllamacpu guard -m llama-guard.gguf -p "Hi" --response "Hello" --json
      pyllamacpu guard -m llama-guard.gguf -f chat.txt --category S1 --category S9
      pyllamacpu guard -m guard-vision.gguf -p "What is it?" --image photo.jpg
    """
    from pyllamacpu.safety import Guard
    from pyllamacpu.store import resolve_model

    conversation = _conversation(parameters)
    categories = categories_of(parameters["categories"])
    with Guard(
        str(resolve_model(parameters["model"])),
        categories=None if categories is None else dict(categories),
        exclude=parameters["exclude"],
        threshold=parameters["threshold"],
        n_ctx=parameters["ctx_size"] or 0,
        n_threads=parameters["threads"],
        mmproj=parameters["mmproj"],
        **loading(parameters),
    ) as judge:
        verdict = judge.check(conversation, parameters["role"])
        click.echo(
            json.dumps(_as_object(judge, verdict)) if parameters["as_json"] else _as_text(judge, verdict)
        )


def _conversation(parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of the options. Raises OptionError for JSON that is not a conversation."""
    from pyllamacpu.cli.complete import prompt_bytes

    if parameters["messages"] is not None:
        if parameters["images"] or any(
            parameters[name] is not None for name in ("prompt", "file", "response")
        ):
            raise click.UsageError(
                "give --messages alone, or the texts as -p or -f and --response, and --image"
            )
        where = parameters["messages"]
        content = read_bytes(where)
        try:
            read = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise OptionError(f"{where}: this is not JSON: {error}") from None
        messages = read.get("messages") if isinstance(read, dict) else read
        if not isinstance(messages, list):
            raise OptionError(f"{where}: give a list of messages, or an object with one as `messages`")
        return messages
    said = prompt_bytes(parameters["prompt"], parameters["file"], escape=False)
    messages = [{"role": "user", "content": _with_images(_text(said), parameters["images"])}]
    if parameters["response"] is not None:
        messages.append({"role": "assistant", "content": parameters["response"]})
    return messages


def _with_images(text: str, images: Sequence[str]) -> str | list[dict[str, Any]]:
    if not images:
        return text
    from pyllamacpu.images.sources import open_picture

    parts: list[dict[str, Any]] = [{"type": "image", "image": open_picture(path)} for path in images]
    return [*parts, {"type": "text", "text": text}]


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"the text is not UTF-8 (byte {error.start}): convert it first") from None


def _as_text(judge: Guard, verdict: Verdict) -> str:
    lines = [f"{verdict.verdict} ({verdict.probability:.4f})"]
    return "\n".join([*lines, *(f"{key}: {_name(judge, key)}" for key in verdict.categories)])


def _as_object(judge: Guard, verdict: Verdict) -> dict[str, Any]:
    names = {key: _name(judge, key) for key in verdict.categories}
    return {**verdict._asdict(), "names": names}


def _name(judge: Guard, key: str) -> str:
    """The first words of a category: what stands behind them says what it means."""
    return judge.categories[key].splitlines()[0].partition(". ")[0].removesuffix(".")
