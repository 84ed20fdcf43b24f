"""`pyllamacpu quantize`: a smaller GGUF file from a larger one."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllamacpu.cli.loading_options import expert_memory_option
from pyllamacpu.cli.options import existing_file, force_option, options, read_text
from pyllamacpu.cli.param_types import SIZE, Number
from pyllamacpu.errors import OptionError
from pyllamacpu.progress import is_terminal, one_line

if TYPE_CHECKING:
    from pyllamacpu.gguf.types import TensorType
    from pyllamacpu.quantize.file_types import FileType
    from pyllamacpu.quantize.plan import Settings


class _Command(click.Command):
    """A command whose help ends with the list of types."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from pyllamacpu.quantize.file_types import FILE_TYPES

        with formatter.section("Types"):
            formatter.write_dl([(kind.name, kind.about) for kind in FILE_TYPES.values()])
        formatter.write_paragraph()
        formatter.write_text("A type's number in `general.file_type` may stand for its name.")
        formatter.write_paragraph()
        with formatter.section("Examples"):
            for line in _EXAMPLES:
                formatter.write_text(line)


_EXAMPLES = (
    "pyllamacpu quantize model-f16.gguf Q4_K_M",
    "pyllamacpu quantize --imatrix imatrix.gguf model-f16.gguf small.gguf IQ2_M 8",
    "pyllamacpu quantize --tensor-type ffn_down=q6_k --dry-run model-f16.gguf Q4_K_S",
    "pyllamacpu quantize --target-size 4.5GB --report model-f16.gguf model-4.5GB.gguf",
)

_WEIGHTS = options(
    click.option("--imatrix", metavar="FILE", help="Importance matrix: how much each column's error counts."),
    click.option(
        "--include-weights",
        multiple=True,
        metavar="PART",
        help="Importance only where the name has PART.",
    ),
    click.option(
        "--exclude-weights", multiple=True, metavar="PART", help="No importance where the name has PART."
    ),
)
_TYPES = options(
    click.option("--pure", is_flag=True, help="One type throughout, instead of the mix."),
    click.option("--leave-output-tensor", is_flag=True, help="Leave output.weight as it is."),
    click.option("--output-tensor-type", metavar="TYPE", help="The type of output.weight."),
    click.option("--token-embedding-type", metavar="TYPE", help="The type of the token embeddings."),
    click.option(
        "--tensor-type",
        multiple=True,
        metavar="REGEX=TYPE",
        help="The type of the tensors whose name has REGEX; the first that fits counts.",
    ),
    click.option(
        "--tensor-type-file", multiple=True, metavar="FILE", help="A file of REGEX=TYPE, by spaces or lines."
    ),
)
_FILES = options(
    click.option("--allow-requantize", is_flag=True, help="Take tensors that are quantized already."),
    click.option("--keep-split", is_flag=True, help="Write as many files as the model came in."),
    click.option("--prune-layers", metavar="L,L…", help="Leave these layers out."),
    click.option(
        "--override-kv",
        multiple=True,
        metavar="KEY=TYPE:VALUE",
        help="Set metadata; TYPE is int, float, bool or str.",
    ),
    click.option("--max-buffer-size", type=click.IntRange(1), hidden=True),
)
_TARGET = options(
    click.option(
        "--target-size", type=SIZE, metavar="SIZE", help="Instead of a TYPE: the best file of 4.5GB, 900MiB …"
    ),
    click.option("--target-bpw", type=Number(1, 32), help="The same, in bits per weight."),
    click.option(
        "-f",
        "--file",
        type=click.Path(path_type=Path),
        callback=existing_file,
        help="For a target: the text to measure on, instead of one that the model writes.",
    ),
    click.option("--report", is_flag=True, help="For a target: write OUT-report.md, .json and .png."),
    click.option(
        "--calibration-tokens", type=click.IntRange(256), help="Tokens for the importance. [default: 4096]"
    ),
    click.option(
        "--probe-tokens", type=click.IntRange(256), help="Tokens for each measurement. [default: 512]"
    ),
    expert_memory_option,
)
_RUN = options(
    click.option("--dry-run", is_flag=True, help="Show types and sizes, write nothing."),
    force_option,
    click.option("-v", "--verbose", is_flag=True, help="A line per tensor, on terminals too."),
)


@click.command(cls=_Command)
@click.argument("words", nargs=-1, metavar="IN.gguf [OUT.gguf] TYPE [THREADS]")
@_WEIGHTS
@_TYPES
@_FILES
@_TARGET
@_RUN
def quantize(**given: Any) -> None:
    """Write a model with smaller tensor types.

    Options, types and the mix of each type are llama-quantize's; OUT is ggml-model-TYPE.gguf beside IN unless
    it is given. The output appears when it is whole, and IN is only read. A split model is read whole from
    any of its parts.

    With --target-size or --target-bpw there is no TYPE: each tensor gets its own, so that the model's
    predictions change as little as that size allows. For that they are measured, on a text that the model
    writes itself or the one of -f.
    """
    from pyllamacpu.cli.quantize_output import show_plan, write_plan
    from pyllamacpu.cli.quantize_target import read_beside, run_target, target_of
    from pyllamacpu.gguf.reader import GGUFFile
    from pyllamacpu.quantize.driver import quantized_output
    from pyllamacpu.quantize.plan import make_plan
    from pyllamacpu.quantize.source import check_kind, check_path

    try:
        target = target_of(given)
        parse = _arguments if target is None else _target_arguments
        source, out, file_type, threads = parse(given["words"], given)
        settings = _settings(file_type, given)
    except OptionError as error:
        raise click.UsageError(str(error)) from error
    if given["max_buffer_size"]:
        click.echo("note: --max-buffer-size has no effect: buffers are some megabytes at most", err=True)
    check_path(source)
    with GGUFFile.open(source) as file:
        check_kind(file)
        if target is not None:
            run_target(file, out, settings, target, given, threads)
            return
        plan = make_plan(file, settings)
        output = quantized_output(plan, out, read_beside(given), given["force"])
        if not given["dry_run"]:
            output.check_paths()
        for note in (*plan.notes, *output.notes):
            click.echo(f"note: {one_line(note)}", err=True)
        for warning in plan.warnings:
            click.echo(f"warning: {one_line(warning)}", err=True)
        if given["dry_run"]:
            show_plan(plan)
        else:
            lines = given["verbose"] or not is_terminal(sys.stderr)
            write_plan(plan, out, threads, lines, read_beside(given), given["force"])


def _arguments(words: tuple[str, ...], given: dict[str, Any]) -> tuple[Path, Path, FileType, int | None]:
    """Input, output, type and threads, as llama-quantize understands its words."""
    from pyllamacpu.quantize.file_types import find_file_type, parse_file_type

    if len(words) < 2:
        raise click.UsageError("an input and a type are needed: IN.gguf [OUT.gguf] TYPE [THREADS]")
    source, rest = Path(words[0]), list(words[1:])
    file_type = find_file_type(rest[0])
    if file_type is not None:
        out = source.parent / f"ggml-model-{file_type.name}{'' if given['keep_split'] else '.gguf'}"
        rest = rest[1:]
    elif len(rest) < 2:
        raise click.UsageError(f"{rest[0]!r} is not a type, and none follows it")
    else:
        out = Path(rest[0])
        try:
            file_type = parse_file_type(rest[1])
        except OptionError as error:
            raise click.UsageError(str(error)) from error
        rest = rest[2:]
    return source, out, file_type, _threads(rest)


def _target_arguments(
    words: tuple[str, ...], given: dict[str, Any]
) -> tuple[Path, Path, FileType, int | None]:
    """Input, output and threads, where a size takes the place of the type."""
    from pyllamacpu.quantize.file_types import find_file_type, parse_file_type

    if not words:
        raise click.UsageError("an input is needed: IN.gguf [OUT.gguf] [THREADS]")
    source, rest = Path(words[0]), list(words[1:])
    out = source.parent / f"ggml-model-{given['target_size'] or str(given['target_bpw']) + 'bpw'}.gguf"
    if rest and not rest[0].isdigit():
        out = Path(rest.pop(0))
    if find_file_type(str(out)) is not None:
        raise click.UsageError(f"a target and the type {out} exclude each other; give one")
    return source, out, parse_file_type("COPY"), _threads(rest)


def _threads(rest: list[str]) -> int | None:
    """The number after the type; none, or one below 1, is all cores."""
    if not rest:
        return None
    if len(rest) > 1 or not re.fullmatch(r"-?\d{1,4}", rest[0]):
        raise click.UsageError(f"{' '.join(rest)!r} is not a number of threads")
    return int(rest[0]) if int(rest[0]) > 0 else None


def _settings(file_type: FileType, given: dict[str, Any]) -> Settings:
    from pyllamacpu.gguf.types import parse_type
    from pyllamacpu.quantize.plan import Settings, parse_override
    from pyllamacpu.quantize.recipes import TypeOptions

    types = TypeOptions(
        pure=given["pure"],
        leave_output=given["leave_output_tensor"],
        output=parse_type(given["output_tensor_type"]) if given["output_tensor_type"] else None,
        embedding=parse_type(given["token_embedding_type"]) if given["token_embedding_type"] else None,
        by_name=tuple(_named_type(text) for text in _named_texts(given)),
    )
    return Settings(
        file_type,
        types,
        imatrix=_imatrix(given),
        imatrix_name=given["imatrix"] or "",
        part_of_imatrix=bool(given["include_weights"] or given["exclude_weights"]),
        overrides=tuple(parse_override(text) for text in given["override_kv"]),
        prune=_layers(given["prune_layers"]),
        allow_requantize=given["allow_requantize"],
        keep_split=given["keep_split"],
    )


def _named_texts(given: dict[str, Any]) -> Iterator[str]:
    yield from given["tensor_type"]
    for name in given["tensor_type_file"]:
        yield from read_text(Path(name)).split()


def _named_type(text: str) -> tuple[re.Pattern[str], TensorType]:
    from pyllamacpu.gguf.types import parse_type

    pattern, equals, kind = text.rpartition("=")
    if not (pattern and equals and kind):
        raise OptionError(f"--tensor-type {text!r} is not REGEX=TYPE, such as ffn_down=q6_k")
    try:
        return re.compile(pattern, re.IGNORECASE), parse_type(kind)
    except re.error as error:
        raise OptionError(
            f"--tensor-type {text!r}: {pattern!r} is not a regular expression: {error}"
        ) from error


def _layers(text: str | None) -> frozenset[int]:
    words = text.split(",") if text else []
    if not all(re.fullmatch(r"\d{1,6}", word.strip()) for word in words):
        raise OptionError(f"--prune-layers {text!r} is not a list of layers, such as 3,17")
    return frozenset(int(word) for word in words)


def _imatrix(given: dict[str, Any]) -> Any:
    from pyllamacpu.quantize.imatrix import read_imatrix

    included, excluded = given["include_weights"], given["exclude_weights"]
    if included and excluded:
        raise OptionError("--include-weights and --exclude-weights cannot be used together")
    if not given["imatrix"]:
        if included or excluded:
            raise OptionError("--include-weights and --exclude-weights choose from --imatrix; give one")
        return None
    matrix = read_imatrix(given["imatrix"])
    if included:
        matrix = matrix.select(lambda name: any(part in name for part in included))
    matrix = matrix.select(lambda name: not any(part in name for part in excluded))
    if not matrix.entries:
        raise OptionError("--include-weights and --exclude-weights leave nothing of the importance matrix")
    datasets = f", from {one_line(', '.join(matrix.datasets))}" if matrix.datasets else ""
    click.echo(
        f"importance of {len(matrix.entries)} tensors, {matrix.chunk_count} chunks{datasets}", err=True
    )
    return matrix
