"""What `perplexity` and `imatrix` have in common: their options, opening model and text, and progress."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllamacpu.cli.adapter_options import adapter_files
from pyllamacpu.cli.loading_options import loading, loading_options
from pyllamacpu.cli.options import CACHE_TYPES, Decorator, model_option, options, precision_option
from pyllamacpu.cli.param_types import LARGEST, THREADS, Whole
from pyllamacpu.errors import ModelError, OptionError
from pyllamacpu.progress import one_line

if TYPE_CHECKING:
    from pyllamacpu.engine.engine import Engine
    from pyllamacpu.text import Tokenizer

_positive = Whole(min=1)


def _chunks(_context: click.Context, _option: click.Parameter, given: int) -> int:
    """A click callback."""
    if given != -1 and not 1 <= given <= LARGEST:
        raise click.BadParameter(f"{given}: give a positive number, or -1 for all")
    return given


def model_and_text(text: str) -> Decorator[Any]:
    """The options -m, and -f with this help."""
    return options(model_option, click.option("-f", "--file", type=click.Path(path_type=Path), help=text))


run_options = options(
    click.option(
        "-c", "--ctx-size", type=_positive, default=512, show_default=True, help="Tokens of a window."
    ),
    click.option(
        "--chunks", type=int, default=-1, callback=_chunks, help="Windows at most; -1 is all of the text."
    ),
    click.option(
        "-b",
        "--batch-size",
        type=_positive,
        default=2048,
        show_default=True,
        help="Tokens of a step at most.",
    ),
    click.option(
        "-ub",
        "--ubatch-size",
        type=_positive,
        default=512,
        show_default=True,
        help="The same; the smaller counts.",
    ),
    click.option("-t", "--threads", type=THREADS, help="CPU threads; else all cores."),
    click.option(
        "-ctk",
        "--cache-type-k",
        type=click.Choice(CACHE_TYPES, False),
        help="Type of the cached keys.  [default: f16; f32 with --precision exact]",
    ),
    click.option(
        "-ctv",
        "--cache-type-v",
        type=click.Choice(CACHE_TYPES, False),
        help="Type of the cached values.  [default: f16; f32 with --precision exact]",
    ),
    loading_options,
    precision_option,
)


def engine_options(given: dict[str, Any], width: int) -> dict[str, Any]:
    """The engine's options, with room for windows of `width` tokens and for several of them in a step."""
    step = min(given["batch_size"], given["ubatch_size"], 1 << 16)
    return {
        "n_ctx": max(width, step),
        "n_batch": step,
        "n_threads": None if given["threads"] in (None, 0, -1) else given["threads"],
        "type_k": (given["cache_type_k"] or "").lower() or None,
        "type_v": (given["cache_type_v"] or "").lower() or None,
        **loading(given),
        "precision": (given["precision"] or "fast").lower(),
    }


def open_engine(model: str | None, given: dict[str, Any], width: int) -> Engine:
    """The engine of a model for windows of `width` tokens."""
    from pyllamacpu.engine.engine import Engine
    from pyllamacpu.store import resolve_model

    files = adapter_files(given.get("lora", ()))
    engine = Engine.open(resolve_model(model), **engine_options(given, width))
    try:
        engine.load_adapters(files)
    except BaseException:
        engine.close()
        raise
    return engine


def tokenizer_of(engine: Engine) -> Tokenizer:
    """The model's tokenizer. Raises ModelError for a file that has none."""
    from pyllamacpu.text import load_tokenizer

    path = str(engine.file.paths[0])
    tokenizer = load_tokenizer(engine.file.metadata, path)
    if tokenizer is None:
        raise ModelError(f"{path}: this file has no tokenizer, so it cannot be measured on a text")
    for warning in tokenizer.warnings:
        click.echo(f"warning: {path}: {one_line(warning)}", err=True)
    return tokenizer


def text_tokens(tokenizer: Tokenizer, content: bytes, parse_special: bool = False) -> list[int]:
    """The text's tokens with a BOS where the model wants one; one newline at its end does not count."""
    ids = tokenizer.encode(content.removesuffix(b"\n"), add_special=False, parse_special=parse_special)
    bos = window_bos(tokenizer)
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def window_bos(tokenizer: Tokenizer) -> int | None:
    """The token that begins each window, None for a model without."""
    return tokenizer.bos if tokenizer.add_bos else None


def required(path: Path | None) -> Path:
    """The file of -f. Raises OptionError without one."""
    if path is None:
        raise OptionError("there is no text: give one with -f FILE")
    return path
