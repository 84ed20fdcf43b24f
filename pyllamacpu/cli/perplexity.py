"""`pyllamacpu perplexity`: how well a model predicts a text, and how far it is from another model."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pyllamacpu.cli.adapter_options import lora_option
from pyllamacpu.cli.evaluation import (
    model_and_text,
    open_engine,
    required,
    run_options,
    text_tokens,
    tokenizer_of,
    window_bos,
)
from pyllamacpu.cli.loading_options import say_threads
from pyllamacpu.cli.options import force_option, option_files, options, read_bytes
from pyllamacpu.cli.param_types import Whole
from pyllamacpu.progress import one_line, progress_line
from pyllamacpu.topology import threads_running
from pyllamacpu.units import duration

if TYPE_CHECKING:
    from pyllamacpu.engine.engine import Engine
    from pyllamacpu.evaluate.choices import Answered, Choices
    from pyllamacpu.evaluate.divergence import Divergence
    from pyllamacpu.evaluate.tasks import Task
    from pyllamacpu.evaluate.windows import Windows

EPILOG = """\b
Examples:
  pyllamacpu perplexity -m a.gguf -f wiki.test.raw
  pyllamacpu perplexity -m a.gguf -f w.txt --kl-divergence --base-model b.gguf
  pyllamacpu perplexity -m a.gguf -f tasks.txt --hellaswag --hellaswag-tasks 9
  pyllamacpu perplexity -m a.gguf -f w.txt --chunks 20 -o json | jq .ppl
"""

TASK_WINDOWS = 4  # a task may be as long as so many windows, as in llama-perplexity
_AS_IT_IS = {"lora": (), "kv_overrides": None}  # of the model that another one is compared with
_CHOICES = ("hellaswag", "winogrande", "multiple_choice")

_DIVERGENCE = options(
    click.option("--kl-divergence", is_flag=True, help="Compare with a base model on the same text."),
    click.option("--base-model", metavar="MODEL", help="The base model, run side by side."),
    click.option(
        "--kl-divergence-base",
        "--save-all-logits",
        "logits_file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="A file of the base model's logits: written without --kl-divergence, read with it.",
    ),
    force_option,
)
_TASKS = options(
    click.option("--hellaswag", is_flag=True, help="HellaSwag score over the tasks in -f."),
    click.option("--hellaswag-tasks", type=Whole(min=0), default=400, show_default=True, help="0 is all."),
    click.option("--winogrande", is_flag=True, help="Winogrande score over the tasks in -f."),
    click.option("--winogrande-tasks", type=Whole(min=0), default=0, show_default=True, help="0 is all."),
    click.option("--multiple-choice", is_flag=True, help="Score over the tasks in a binary file (-bf)."),
    click.option(
        "--multiple-choice-tasks", type=Whole(min=0), default=0, show_default=True, help="0 is all."
    ),
    click.option(
        "-bf", "--binary-file", type=click.Path(path_type=Path), help="The file of --multiple-choice tasks."
    ),
)


@click.command(epilog=EPILOG)
@model_and_text("The text (- is stdin), or the tasks of --hellaswag and --winogrande.")
@lora_option
@run_options
@click.option(
    "--ppl-stride",
    type=Whole(min=0),
    default=0,
    help="Windows overlap, and this many tokens of each are scored; 0: side by side, their second halves.",
)
@_DIVERGENCE
@_TASKS
@click.option(
    "-o", "--output", "form", type=click.Choice(("text", "json")), default="text", help="Form of the result."
)
def perplexity(**given: Any) -> None:
    """Measure how well a model predicts a text (perplexity), by llama-perplexity's method.

    With --kl-divergence also how far its predictions are from a base model's; with --hellaswag, --winogrande
    or --multiple-choice how many tasks it answers right.
    """
    modes = [name for name in (*_CHOICES, "kl_divergence") if given[name]]
    if len(modes) > 1:
        names = " and ".join("--" + name.replace("_", "-") for name in modes)
        raise click.UsageError(f"{names} are measured one at a time")
    _check(given)
    say_threads([given["threads"]])
    if modes and modes[0] in _CHOICES:
        _answer(modes[0], given)
    elif modes:
        _compare(given)
    else:
        _measure(given)


def _check(given: dict[str, Any]) -> None:
    """Raises click.UsageError for options that would have no effect."""
    if given["base_model"] is not None and not given["kl_divergence"]:
        raise click.UsageError("--base-model is for --kl-divergence; add that")
    if given["kl_divergence"] and bool(given["base_model"]) == bool(given["logits_file"]):
        raise click.UsageError("--kl-divergence compares with one of --base-model and --kl-divergence-base")
    if given["logits_file"] and any(given[name] for name in _CHOICES):
        raise click.UsageError("--kl-divergence-base is not for multiple-choice tasks")
    context = click.get_current_context()
    for name, option, why in _no_effect(given):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option} {why}")


def _no_effect(given: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Parameters that mean nothing to what is measured: name, option, and why."""
    has_tasks = any(given[name] for name in _CHOICES)
    is_stored = given["kl_divergence"] and given["logits_file"] is not None
    writes = given["logits_file"] is not None and not given["kl_divergence"]
    if has_tasks or given["kl_divergence"] or given["logits_file"] is not None:
        yield "ppl_stride", "--ppl-stride", "is for perplexity alone"
    if has_tasks:
        yield "chunks", "--chunks", "is for windows of a text; --hellaswag-tasks and the like limit tasks"
    if is_stored:
        for name, option in (("file", "-f"), ("ctx_size", "-c"), ("chunks", "--chunks")):
            yield name, option, "goes with no --kl-divergence-base, whose windows are compared; leave it out"
    for kind in _CHOICES:
        if not given[kind]:
            mode = "--" + kind.replace("_", "-")
            yield f"{kind}_tasks", f"{mode}-tasks", f"is for {mode}; add that"
    if not has_tasks:
        yield "binary_file", "-bf", "is for --multiple-choice; add that"
    if given["file"] is not None:
        yield "binary_file", "-bf", "and -f are both the file of tasks; give one"
    if not writes:
        yield "force", "--force", "is for the file of --kl-divergence-base that is written"


# ---- perplexity ----


def _measure(given: dict[str, Any]) -> None:
    from pyllamacpu.evaluate.logits_file import save_logits
    from pyllamacpu.evaluate.perplexity import perplexity
    from pyllamacpu.evaluate.windows import strided_width

    stride = given["ppl_stride"]
    width = strided_width(given["ctx_size"], stride) if stride else given["ctx_size"]
    _check_output(given)
    content = read_bytes(required(given["file"]))
    engine = open_engine(given["model"], given, width)
    cut = _windows(engine, content, given)
    text = given["form"] == "text"
    start = time.monotonic()
    with progress_line() as show:

        def on_window(done: int, total: int, ppl: float) -> None:
            if text:
                if done == 1:
                    together = min(max(1, engine.n_batch // cut.n_ctx), total)
                    _say_time((time.monotonic() - start) / together, total)
                click.echo(f"[{done}]{ppl:.4f},", nl=False)
            else:
                show(f"perplexity {ppl:.4f}", done, total)

        if given["logits_file"]:
            result = save_logits(given["logits_file"], engine, cut, on_window, given["force"])
        else:
            result = perplexity(engine, cut, on_window=on_window)
    if text:
        click.echo(f"\nFinal estimate: PPL = {result.ppl.value:.4f} +/- {result.ppl.error:.5f}")
        _say_speed(result.n_tokens, result.seconds)
    else:
        _print_json(engine, result.row() | {"stride": stride})


def _check_output(given: dict[str, Any]) -> None:
    """Raises OutputError when the file of logits must not be written: before the work."""
    from pyllamacpu.evaluate.logits_file import LOGITS_FILE
    from pyllamacpu.files import check_output
    from pyllamacpu.store import model_files, resolve_model

    if given["logits_file"]:
        inputs = [*model_files(resolve_model(given["model"])), *option_files("logits_file")]
        check_output(given["logits_file"], inputs, LOGITS_FILE, given["force"])


def _windows(engine: Engine, content: bytes, given: dict[str, Any]) -> Windows:
    from pyllamacpu.evaluate.windows import check_context, windows

    tokenizer = tokenizer_of(engine)
    cut = windows(
        text_tokens(tokenizer, content),
        given["ctx_size"],
        bos=window_bos(tokenizer),
        n_chunks=given["chunks"],
        stride=given["ppl_stride"],
    )
    check_context(engine, cut.n_ctx)
    types = " and ".join(name.lower() for name in (engine.cache.type_k.name, engine.cache.type_v.name))
    click.echo(
        f"{cut.n_windows} windows of {cut.n_ctx} tokens, {cut.n_scored} of each scored, {engine.precision}, "
        f"{types} keys and values",
        err=True,
    )
    return cut


def _print_json(engine: Engine, row: dict[str, Any], **more: Any) -> None:
    from pyllamacpu.native import isa_selected

    facts = {
        "model": str(engine.file.paths[0]),
        "n_threads": threads_running(engine.n_threads),
        "isa": isa_selected(),
    }
    facts |= {"precision": engine.precision}
    facts |= {"type_k": engine.cache.type_k.name.lower(), "type_v": engine.cache.type_v.name.lower()}
    click.echo(json.dumps(_finite(facts | more | row), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    """`value` with null for what JSON cannot say: NaN and infinities."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _say_speed(n_tokens: int, seconds: float) -> None:
    rate = n_tokens / seconds if seconds else 0.0
    click.echo(f"{n_tokens} tokens in {seconds:.1f} s, {rate:.1f} tokens/s", err=True)


def _say_time(seconds: float, total: int) -> None:
    """How long it will take, from the seconds of one window."""
    click.echo(f"{seconds:.2f} s a window, {duration(seconds * total)} in all", err=True)


# ---- divergence ----


def _compare(given: dict[str, Any]) -> None:
    from pyllamacpu.cli.divergence_report import HEADER, progress_row, report
    from pyllamacpu.evaluate.divergence import check_vocabulary, kl_divergence
    from pyllamacpu.evaluate.logits_file import LogitsFile

    text = given["form"] == "text"
    with progress_line() as show:

        def on_window(done: int, total: int, so_far: Divergence) -> None:
            if not text:
                return show(f"KL divergence {so_far.mean_kld.value:.6f}", done, total)
            if done == 1:
                click.echo(HEADER)
            return click.echo(progress_row(done, so_far))

        if given["logits_file"]:
            stored = LogitsFile.open(given["logits_file"])
            engine = open_engine(given["model"], given, stored.n_ctx)
            result = stored.divergence(engine, window_bos(tokenizer_of(engine)), on_window)
            base = str(given["logits_file"])
        else:
            content = read_bytes(required(given["file"]))
            engine = open_engine(given["model"], given, given["ctx_size"])
            other = open_engine(given["base_model"], {**given, **_AS_IT_IS}, given["ctx_size"])
            check_vocabulary(other, engine)
            result = kl_divergence(other, engine, _windows(engine, content, given), on_window=on_window)
            base = str(other.file.paths[0])
    if text:
        click.echo(report(result))
        _say_speed(result.n_tokens, result.seconds)
    else:
        _print_json(engine, result.row(), base_model=base)


# ---- multiple choice ----


def _answer(kind: str, given: dict[str, Any]) -> None:
    from pyllamacpu.evaluate.choices import answer

    path = required(given["binary_file"] or given["file"])
    content = read_bytes(path)
    engine = open_engine(given["model"], given, TASK_WINDOWS * given["ctx_size"])
    tasks = _tasks(kind, engine, content, str(path), given[f"{kind}_tasks"])
    text = given["form"] == "text"
    correct = 0
    with progress_line() as show:

        def on_task(done: int, answered: Answered) -> None:
            nonlocal correct
            correct += answered.correct
            if text:
                click.echo(_task_line(kind, done, correct, answered))
            else:
                show(f"accuracy {100 * correct / done:.2f} %", done, len(tasks))

        result = answer(engine, tasks, on_task)
    if text:
        click.echo(_summary(kind, result))
    else:
        _print_json(engine, result.row(), tasks=kind, file=str(path))


def _tasks(kind: str, engine: Engine, content: bytes, source: str, n: int) -> list[Task]:
    from pyllamacpu.evaluate import tasks

    tokenizer = tokenizer_of(engine)
    if kind == "winogrande":
        found, warnings = tasks.winogrande(content, tokenizer, n, source)
        for warning in warnings:
            click.echo(f"warning: {one_line(warning)}", err=True)
        return found
    read = tasks.hellaswag if kind == "hellaswag" else tasks.multiple_choice
    return read(content, tokenizer, n, source)


def _task_line(kind: str, done: int, correct: int, answered: Answered) -> str:
    """One task and the accuracy so far, as llama-perplexity shows it."""
    from pyllamacpu.evaluate.statistics import wilson

    share = 100.0 * correct / done
    if kind == "hellaswag":
        low, high = wilson(correct, done)
        return f"{done}\t{share:.8f}%\t[{100 * low:.4f}%, {100 * high:.4f}%]"
    if kind == "winogrande":
        scores = "  ".join(f"{score:10.6f}" for score in answered.scores)
        return f"{done}\t{share:.4f}\t{scores}  {answered.choice + 1}  {min(answered.right) + 1}"
    return f"{done}\t{share:.8f}"


def _summary(kind: str, result: Choices) -> str:
    accuracy, (low, high) = result.accuracy.times(100.0), result.interval
    chance = result.chance.times(100.0)
    return (
        f"\nFinal {kind.replace('_', ' ')} score ({len(result.answered)} tasks): {accuracy.value:.4f} +/- "
        f"{accuracy.error:.4f} %, 95 % within [{100 * low:.4f}, {100 * high:.4f}]\n"
        f"Random chance: {chance.value:.4f} %"
    )
