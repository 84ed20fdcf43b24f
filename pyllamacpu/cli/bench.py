"""`pyllamacpu bench`: tokens per second, with the machine's limits beside them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pyllamacpu.cli.adapter_options import adapter_files, lora_option
from pyllamacpu.cli.images import mmproj_option
from pyllamacpu.cli.loading_options import loading, loading_options, say_threads
from pyllamacpu.cli.options import CACHE_TYPES, force_option, option_files, options
from pyllamacpu.cli.param_types import MAX_THREADS, Number
from pyllamacpu.cli.wrapping import say, terminal_width
from pyllamacpu.engine.precision import PRECISIONS
from pyllamacpu.errors import OptionError
from pyllamacpu.files import write_whole
from pyllamacpu.progress import clear_line, count_bar, is_terminal, visible

if TYPE_CHECKING:
    from pyllamacpu.bench.batched import BatchedOptions
    from pyllamacpu.bench.cases import BenchOptions
    from pyllamacpu.bench.formats import HasRow, Writer
    from pyllamacpu.bench.runner import Progress

Item = TypeVar("Item")

_KV_USUAL = "f16; f32 with exact"
_FORMAT = click.Choice(("md", "csv", "json", "jsonl", "sql"), case_sensitive=False)
_NICE = {-1: 10, 0: 0, 1: -5, 2: -10, 3: -20}  # llama-bench's priorities as the system's nice values

EPILOG = """\b
Examples:
  pyllamacpu bench
  pyllamacpu bench -m model.gguf -d 0,4096,16384 -ctk f16,q8_0 --plot d.png
  pyllamacpu bench -m a.gguf -m b.gguf -t 1-8*2 -o json --output-file out.json
  pyllamacpu bench -m model.gguf --batched -npp 128 -ntg 64 -npl 1-16*2
  pyllamacpu bench -m model.gguf -p 512 -n 32 --profile
  pyllamacpu bench -m mmproj-model.gguf --image --profile

\b
Numbers may be lists (16,32) and ranges: first-last, first-last+step,
first-last*factor.
"""


def _many(*names: str, default: str | None = None, metavar: str = "N", text: str) -> Any:
    shown = f"{text} [default: {default}]" if default is not None else text
    return click.option(*names, multiple=True, metavar=metavar, help=shown)


_TESTS = options(
    click.option(
        "-m", "--model", "models", multiple=True, metavar="MODEL", help="A model; the starter model if none."
    ),
    lora_option,
    loading_options,
    _many("-p", "--n-prompt", default="512", text="Tokens of a prompt; 0 for none."),
    _many("-n", "--n-gen", default="128", text="Tokens to generate; 0 for none."),
    _many(
        "-pg",
        "n_pg",
        metavar="PP,TG",
        text="A prompt of PP tokens and then TG generated ones, timed together.",
    ),
    _many("-d", "--n-depth", default="0", text="Tokens that stand before the test, not timed."),
    _many("-b", "--batch-size", "n_batch", default="2048", text="Tokens of a step at most."),
    _many("-ub", "--ubatch-size", "n_ubatch", default="512", text="The same; the smaller of the two counts."),
    _many("-ctk", "--cache-type-k", "type_k", default=_KV_USUAL, metavar="TYPE", text="Type of cached keys."),
    _many("-ctv", "--cache-type-v", "type_v", default=_KV_USUAL, metavar="TYPE", text="Of cached values."),
    _many("--precision", "precision", default="fast", metavar="NAME", text="Of activations: fast, exact."),
    _many(
        "-t",
        "--threads",
        "n_threads",
        default="all cores",
        text="CPU threads; never more run than CPUs are allowed.",
    ),
)
_RUNS = options(
    click.option(
        "-r",
        "--repetitions",
        type=click.IntRange(1, 10_000),
        help="Runs of each test [default: 5; 1 for --batched].",
    ),
    click.option("--no-warmup", is_flag=True, help="No untimed run before each test."),
    click.option("--delay", type=Number(0, 3600), default=0.0, help="Seconds of rest before each test."),
    click.option(
        "--prio", type=click.IntRange(-1, 3), default=0, help="Priority of the process; above 0 needs rights."
    ),
    click.option("--limits/--no-limits", default=True, help="Measure the machine's limits first (1 s)."),
    click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the random tokens."),
)
_OUTPUT = options(
    click.option(
        "-o", "--output", "form", type=_FORMAT, default="md", show_default=True, help="Format on stdout."
    ),
    click.option("-oe", "--output-err", "form_err", type=_FORMAT, help="Format on stderr, beside the other."),
    click.option(
        "--output-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Save what stdout gets here too.",
    ),
    click.option(
        "--plot",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Draw tokens/s to this .png, .svg or .pdf.",
    ),
    force_option,
    click.option(
        "--profile", is_flag=True, help="Time per op of the plan, with bytes and operations, after each test."
    ),
    click.option(
        "--progress/--no-progress", default=None, help="Progress on stderr; without it on terminals only."
    ),
)
_BATCHED = options(
    click.option("--batched", is_flag=True, help="Many sequences at once, as llama-batched-bench."),
    _many("-npp", "batched_pp", default="128", text="--batched: tokens of each prompt."),
    _many("-ntg", "batched_tg", default="128", text="--batched: tokens generated by each sequence."),
    _many("-npl", "batched_pl", default="1,2,4,8", text="--batched: sequences at once."),
    click.option("-pps", "batched_shared", is_flag=True, help="--batched: one prompt for all sequences."),
    click.option(
        "--image",
        is_flag=True,
        help="A vision tower (a model that has one, or an mmproj file), and what the text model does for an "
        "image: its prompt, or keys and values (Llama 3.2 Vision).",
    ),
    mmproj_option,
)


@click.command(epilog=EPILOG)
@_TESTS
@_RUNS
@_OUTPUT
@_BATCHED
def bench(**given: Any) -> None:
    """Measure tokens per second of prompts (pp) and of generation (tg).

    Options, columns and JSON keys are llama-bench's. Beside each result stands its share of what this machine
    can do at best: memory read per second for generation, operations per second for prompts. Tokens are
    random.
    """
    from pyllamacpu.bench.batched import check
    from pyllamacpu.bench.cases import cases
    from pyllamacpu.bench.plot import check_library

    try:
        if given["image"] and (given["batched"] or given["plot"]):
            raise OptionError("--image goes neither with --batched nor with --plot")
        if given["mmproj"] is not None and not given["image"]:
            raise OptionError("--mmproj is the tower that --image measures: add that")
        if given["batched"]:
            batched = _batched_options(given)
            check(batched)
            models: Sequence[Path] = [batched.setup.model]
        else:
            _refuse_batched(given)
            if given["image"]:
                _refuse_several(given, "--image")
                if unused := _own_sizes(given):
                    raise OptionError(f"--image takes no {', '.join(unused)}: an image has its own sizes")
            plain = _bench_options(given)
            cases(plain)
            models = plain.models
        _check_files(given, models)
    except OptionError as error:
        raise click.UsageError(str(error)) from error
    if given["plot"]:
        check_library()
    _set_priority(given["prio"])
    say_threads(_settings(given)["n_threads"])
    if given["batched"]:
        _run_batched(batched, given)
    elif given["image"]:
        _run_images(plain, given)
    else:
        _run(plain, given)


def _check_files(given: dict[str, Any], models: Sequence[Path]) -> None:
    """Raises OptionError, OutputError when a file must not be written: before the work."""
    from pyllamacpu.bench.formats import RESULTS_FILE
    from pyllamacpu.bench.plot import check_path
    from pyllamacpu.files import check_output
    from pyllamacpu.store import model_files

    inputs = [file for model in models for file in model_files(model)] + option_files("output_file", "plot")
    if given["plot"]:
        check_path(given["plot"], inputs, given["force"])
    if given["output_file"]:
        if not given["output_file"].absolute().parent.is_dir():
            raise OptionError(f"--output-file {given['output_file']}: there is no folder of that name")
        check_output(given["output_file"], inputs, RESULTS_FILE, given["force"])
    if given["plot"] and given["output_file"] and given["plot"].resolve() == given["output_file"].resolve():
        raise OptionError("--plot and --output-file are the same file")


def _bench_options(given: dict[str, Any]) -> BenchOptions:
    from pyllamacpu.bench.cases import BenchOptions
    from pyllamacpu.bench.ranges import pairs
    from pyllamacpu.store.resolve import resolve_model

    values: dict[str, Any] = _settings(given)
    values |= {"n_prompt": _numbers(given, "n_prompt", "-p"), "n_gen": _numbers(given, "n_gen", "-n")}
    values |= {"n_depth": _numbers(given, "n_depth", "-d"), "n_pg": pairs(given["n_pg"], "-pg")}
    return BenchOptions(
        models=tuple(resolve_model(name) for name in _names(given["models"]) or (None,)),
        adapters=adapter_files(given["lora"]),
        **_loading(given),
        **{key: value for key, value in values.items() if value},  # the others have defaults
        repetitions=given["repetitions"] or 5,
        warmup=not given["no_warmup"],
        delay=given["delay"],
        limits=given["limits"],
        profile=given["profile"],
        seed=given["seed"],
        mmproj=given["mmproj"],
    )


def _names(given: Sequence[str]) -> list[str]:
    """The models of -m, which may be several with commas between, as llama-bench takes them."""
    return [name for text in given for name in ([text] if os.path.exists(text) else text.split(","))]


def _loading(given: dict[str, Any]) -> dict[str, Any]:
    """How models are opened; overrides as pairs, since setups are compared."""
    chosen = loading(given)
    return {**chosen, "kv_overrides": tuple((chosen["kv_overrides"] or {}).items())}


def _settings(given: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    from pyllamacpu.bench.ranges import numbers, words

    return {
        "n_batch": _numbers(given, "n_batch", "-b", 1),
        "n_ubatch": _numbers(given, "n_ubatch", "-ub", 1),
        "type_k": words(given["type_k"], "-ctk", CACHE_TYPES),
        "type_v": words(given["type_v"], "-ctv", CACHE_TYPES),
        "n_threads": numbers(given["n_threads"], "-t", 1, MAX_THREADS),
        "precision": words(given["precision"], "--precision", PRECISIONS),
    }


def _refuse_several(given: dict[str, Any], option: str) -> dict[str, tuple[Any, ...]]:
    """The settings, where `option` takes one value of each. Raises OptionError."""
    settings = _settings(given)
    several = [key for key, values in settings.items() if len(values) > 1]
    if several:
        raise OptionError(f"{option} takes one value of {', '.join(several)}; run it once for each")
    return settings


def _numbers(given: dict[str, Any], key: str, option: str, minimum: int = 0) -> tuple[int, ...]:
    from pyllamacpu.bench.ranges import numbers

    return numbers(given[key], option, minimum)


def _batched_options(given: dict[str, Any]) -> BatchedOptions:
    from pyllamacpu.bench.batched import BatchedOptions
    from pyllamacpu.bench.cases import Setup
    from pyllamacpu.engine.precision import kv_types_of
    from pyllamacpu.store.resolve import resolve_model

    models = _names(given["models"])
    unused = _own_sizes(given)
    unused += [name for name in ("--profile", "--delay") if given[name[2:]]]
    if unused or len(models) > 1:
        raise OptionError(
            f"--batched takes one model and no {', '.join(unused) or 'second -m'}; use -npp, -ntg and -npl"
        )
    settings = _refuse_several(given, "--batched")
    precision = settings["precision"][0] if settings["precision"] else "fast"
    usual = {"n_batch": 2048, "n_ubatch": 512, "n_threads": 0, "precision": precision}
    usual["type_k"], usual["type_v"] = kv_types_of(precision)
    chosen: dict[str, Any] = {
        key: settings[key][0] if settings[key] else value for key, value in usual.items()
    }
    sizes: dict[str, Any] = {
        "n_prompt": _numbers(given, "batched_pp", "-npp"),
        "n_gen": _numbers(given, "batched_tg", "-ntg"),
        "n_sequences": _numbers(given, "batched_pl", "-npl", 1),
    }
    return BatchedOptions(
        Setup(
            resolve_model(models[0] if models else None),
            **chosen,
            adapters=adapter_files(given["lora"]),
            **_loading(given),
        ),
        **{key: value for key, value in sizes.items() if value},
        shared=given["batched_shared"],
        repetitions=given["repetitions"] or 1,
        warmup=not given["no_warmup"],
        limits=given["limits"],
        seed=given["seed"],
    )


def _own_sizes(given: dict[str, Any]) -> list[str]:
    """The options of sizes that were given, which --batched and --image do not take."""
    sizes = (("-p", "n_prompt"), ("-n", "n_gen"), ("-pg", "n_pg"), ("-d", "n_depth"))
    return [name for name, key in sizes if given[key]]


def _refuse_batched(given: dict[str, Any]) -> None:
    for option, key in (
        ("-npp", "batched_pp"),
        ("-ntg", "batched_tg"),
        ("-npl", "batched_pl"),
        ("-pps", "batched_shared"),
    ):
        if given[key]:
            raise OptionError(f"{option} is an option of --batched; add that, or use -p, -n and -d")


def _run(chosen: BenchOptions, given: dict[str, Any]) -> None:
    from pyllamacpu.bench.formats import profile_table, result_columns, writer
    from pyllamacpu.bench.plot import plot
    from pyllamacpu.bench.runner import run

    varied = [
        key
        for key in ("n_batch", "n_ubatch", "type_k", "type_v", "precision")
        if len(getattr(chosen, key)) > 1
    ]
    done: list[Any] = []
    with _progress(given["progress"]) as progress:
        make = partial(writer, table="llama_bench", columns=partial(result_columns, varied=varied))
        _write(_noting(run(chosen, progress), done), make, given)
    for result in done if chosen.profile else ():
        click.echo("\n" + profile_table(result), nl=False, err=given["form"] != "md")
    if given["plot"] and done:
        plot([result.row() for result in done], given["plot"], f"{done[0].cpu}, {done[0].isa}")


def _run_images(chosen: BenchOptions, given: dict[str, Any]) -> None:
    from pyllamacpu.bench.formats import profile_table, writer
    from pyllamacpu.bench.image import TABLE, image_columns, run_images

    done: list[Any] = []
    with _progress(given["progress"]) as progress:
        make = partial(writer, table=TABLE, columns=image_columns)
        _write(_noting(run_images(chosen, progress), done), make, given)
    for result in done if chosen.profile else ():
        if result.profile:
            click.echo("\n" + profile_table(result), nl=False, err=given["form"] != "md")


def _run_batched(chosen: BatchedOptions, given: dict[str, Any]) -> None:
    from pyllamacpu.bench.batched import TABLE, batched_columns, run_batched
    from pyllamacpu.bench.formats import writer
    from pyllamacpu.bench.plot import plot

    done: list[Any] = []
    with _progress(given["progress"]) as progress:
        make = partial(writer, table=TABLE, columns=batched_columns)
        _write(_noting(run_batched(chosen, progress), done), make, given)
    if given["plot"] and done:
        plot([result.row() for result in done], given["plot"], chosen.setup.model.name)


def _noting(results: Iterable[Item], done: list[Any]) -> Iterator[Item]:
    for result in results:
        done.append(result)
        yield result


def _write(results: Iterable[HasRow], make: Callable[..., Writer], given: dict[str, Any]) -> None:
    """Prints results as they come; what there is by then is whole and saved even when an error ends them.

    On a terminal the table fits it; what is saved has all columns.
    """
    width = terminal_width(sys.stdout) if given["form"] == "md" and sys.stdout.isatty() else None
    out, whole = make(given["form"], width=width), make(given["form"])
    err = make(given["form_err"]) if given["form_err"] else None
    saved = []
    try:
        for result in results:
            saved.append(whole.add(result))
            clear_line()
            click.echo(visible(out.add(result), sys.stdout), nl=False)
            if err:
                click.echo(visible(err.add(result), sys.stderr), nl=False, err=True)
    finally:
        saved.append(whole.end())
        clear_line()
        click.echo(visible(out.end(), sys.stdout), nl=False)
        if left_out := getattr(out, "left_out", []):
            say(
                f"note: left out to fit {width} columns: {', '.join(left_out)}; a wider terminal, -o json or "
                "--output-file FILE has them"
            )
        if err:
            click.echo(err.end(), nl=False, err=True)
        if given["output_file"] and len(saved) > 1:
            write_whole(given["output_file"], "".join(saved))


def _set_priority(level: int) -> None:
    if level and hasattr(os, "setpriority"):
        try:
            os.setpriority(os.PRIO_PROCESS, 0, _NICE[level])
        except OSError as error:
            click.echo(f"warning: --prio {level} has no effect: {error.strerror}", err=True)
    elif level:
        click.echo(f"warning: --prio {level} has no effect on this system", err=True)


@contextlib.contextmanager
def _progress(wanted: bool | None) -> Iterator[Progress | None]:
    """A bar on stderr when that is a terminal; lines when it is none and progress is asked for."""
    terminal = is_terminal(sys.stderr)
    if wanted is False or (wanted is None and not terminal):
        yield None
    elif not terminal:
        yield lambda text, done, total: click.echo(f"{done}/{total} {text}", err=True)
    else:
        with count_bar() as progress:
            yield progress
