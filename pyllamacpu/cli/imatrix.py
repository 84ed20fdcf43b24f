"""`pyllamacpu imatrix`: collect the importance matrix of a model."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllamacpu.cli.evaluation import (
    engine_options,
    model_and_text,
    run_options,
    text_tokens,
    tokenizer_of,
    window_bos,
)
from pyllamacpu.cli.options import force_option, option_files, options, read_bytes
from pyllamacpu.cli.param_types import Whole
from pyllamacpu.errors import OptionError
from pyllamacpu.progress import progress_line

if TYPE_CHECKING:
    from pyllamacpu.evaluate.windows import Windows
    from pyllamacpu.quantize.collect import Collector
    from pyllamacpu.quantize.imatrix import Imatrix

EPILOG = """\b
Examples:
  pyllamacpu imatrix -m model-F16.gguf -f calibration.txt -o imatrix.gguf
  pyllamacpu imatrix -m model-F16.gguf -f more.txt --in-file a.gguf -o b.gguf
  pyllamacpu imatrix --in-file a.gguf --in-file b.dat -o merged.gguf
"""

_number = Whole(min=0)
_COLLECTING = options(
    click.option(
        "-o",
        "--output",
        "--output-file",
        "target",
        type=click.Path(path_type=Path, dir_okay=False),
        default=Path("imatrix.gguf"),
        show_default=True,
        help="The file to write.",
    ),
    click.option(
        "--output-format",
        type=click.Choice(("gguf", "dat")),
        default="gguf",
        show_default=True,
        help="dat is llama.cpp's older format.",
    ),
    click.option(
        "--in-file", "in_files", type=click.Path(path_type=Path), multiple=True, help="Added (repeatable)."
    ),
    click.option("--process-output", is_flag=True, help="Also for the output matrix."),
    click.option("--ppl/--no-ppl", default=True, help="Measure the perplexity as well.  [default: ppl]"),
    click.option(
        "--chunk", "--from-chunk", "from_chunk", type=_number, default=0, help="Leave out the first windows."
    ),
    click.option(
        "--parse-special", is_flag=True, help="Special tokens spelled in the text are those tokens."
    ),
    click.option(
        "-ofreq",
        "--output-frequency",
        type=_number,
        default=10,
        show_default=True,
        help="Save the file after so many windows; 0 is only at the end.",
    ),
    click.option(
        "--save-frequency",
        type=_number,
        default=0,
        show_default=True,
        help="Keep a copy (FILE.at_N) after so many windows; 0 is none.",
    ),
    force_option,
)


@click.command(epilog=EPILOG)
@model_and_text("The text (- is stdin).")
@run_options
@_COLLECTING
def imatrix(**given: Any) -> None:
    """Collect an importance matrix: how much each input of each weight matters on a text.

    `pyllamacpu quantize --imatrix FILE` and llama-quantize use it. Options as llama-imatrix has them; without
    -f the files of --in-file are only merged.
    """
    from pyllamacpu.quantize.imatrix import read_imatrix
    from pyllamacpu.store import resolve_model

    model = None if given["file"] is None else resolve_model(given["model"])
    _check_outputs(given, model)
    if given["output_format"] == "gguf" and given["target"].suffix != ".gguf":
        click.echo(
            f"warning: {given['target']} is written as GGUF (--output-format dat is the other)", err=True
        )
    known = [read_imatrix(path) for path in given["in_files"]]
    if model is None:
        if not known:
            raise OptionError("there is no text: give one with -f FILE, or files to merge with --in-file")
        _save({**given, "ctx_size": _size_of(known, given)}, known, given["target"])
        return
    _collect(given, model, known)


def _check_outputs(given: dict[str, Any], model: Path | None) -> None:
    """Raises OutputError when the file, or a copy of it that is there, must not be written."""
    from pyllamacpu.files import check_output
    from pyllamacpu.quantize.imatrix import IMATRIX_FILE
    from pyllamacpu.store import model_files

    target: Path = given["target"]
    copies = target.parent.glob(f"{glob.escape(target.name)}.at_*") if given["save_frequency"] else ()
    inputs = [*option_files("target"), *(model_files(model) if model else ())]
    for path in (target, *copies):
        check_output(path, inputs, IMATRIX_FILE, given["force"])


def _collect(given: dict[str, Any], model: Path, known: list[Imatrix]) -> None:
    from pyllamacpu.quantize.collect import Collector

    content = read_bytes(given["file"])
    collector = Collector(
        model,
        process_output=given["process_output"],
        **engine_options(given, given["ctx_size"]),
    )
    cut = _windows(collector, content, given)
    with progress_line() as show:

        def on_window(done: int, total: int, ppl: float | None) -> None:
            if ppl is None:
                show("reading", done, total)
            else:
                click.echo(f"[{done}]{ppl:.4f},", nl=False)
            if done < total:
                _save_meanwhile(given, known, collector, done)

        nll = collector.read(cut, with_perplexity=given["ppl"], on_window=on_window)
    if nll is not None:
        ppl = nll.exp()
        click.echo(f"\nFinal estimate: PPL = {ppl.value:.4f} +/- {ppl.error:.5f}")
    _save(given, [*known, _own(given, collector)], given["target"])
    collector.close()


def _windows(collector: Collector, content: bytes, given: dict[str, Any]) -> Windows:
    from pyllamacpu.evaluate.windows import check_context, windows

    tokenizer, n_ctx = tokenizer_of(collector.engine), given["ctx_size"]
    tokens = text_tokens(tokenizer, content, given["parse_special"])
    if (first := given["from_chunk"]) and len(tokens) < (first + 1) * n_ctx:
        raise OptionError(
            f"--chunk {first}: the text has {len(tokens) // n_ctx} windows of {n_ctx} tokens, and none would "
            "be left; give a smaller number, or a longer text"
        )
    tokens = tokens[first * n_ctx :]
    cut = windows(tokens, n_ctx, bos=window_bos(tokenizer), n_chunks=given["chunks"])
    check_context(collector.engine, n_ctx)
    click.echo(f"{cut.n_windows} windows of {n_ctx} tokens, {len(collector.names)} weights", err=True)
    return cut


def _size_of(known: list[Imatrix], given: dict[str, Any]) -> int:
    """Tokens of a window when files are merged without more: as the files say, unless -c does."""
    sizes = {matrix.chunk_size for matrix in known if matrix.chunk_size}
    source = click.get_current_context().get_parameter_source("ctx_size")
    if len(sizes) != 1 or source is not click.core.ParameterSource.DEFAULT:
        return int(given["ctx_size"])
    return sizes.pop()


def _own(given: dict[str, Any], collector: Collector) -> Imatrix:
    return collector.imatrix(given["ctx_size"], [str(given["file"])])


def _save_meanwhile(given: dict[str, Any], known: list[Imatrix], collector: Collector, done: int) -> None:
    """What has been collected so far, when it is time for that."""
    target: Path = given["target"]
    if given["output_frequency"] and done % given["output_frequency"] == 0:
        _save(given, [*known, _own(given, collector)], target, say=False)
    if given["save_frequency"] and done % given["save_frequency"] == 0:
        _save(
            given, [*known, _own(given, collector)], target.with_name(f"{target.name}.at_{done}"), say=False
        )


def _save(given: dict[str, Any], parts: list[Imatrix], target: Path, say: bool = True) -> None:
    from pyllamacpu.quantize.collect import merged
    from pyllamacpu.quantize.imatrix import write_imatrix

    result = merged(parts, given["ctx_size"])
    write_imatrix(target, result, legacy=given["output_format"] == "dat", force=given["force"])
    if say:
        click.echo(f"{target}: {len(result.entries)} weights, {result.chunk_count} windows", err=True)
