"""`pyllamacpu quantize --target-size`: from a size to a file, with what that cost."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyllamacpu.errors import OptionError
from pyllamacpu.progress import is_terminal, notify, one_line, progress_line

if TYPE_CHECKING:
    from pyllamacpu.engine.engine import Engine
    from pyllamacpu.gguf.reader import GGUFFile
    from pyllamacpu.progress import OnCount
    from pyllamacpu.quantize.plan import Settings
    from pyllamacpu.quantize.report import Report
    from pyllamacpu.quantize.target import Measured, Target

_TYPES = ("pure", "keep_split", "prune_layers", "dry_run", "leave_output_tensor")


def target_of(given: dict[str, Any]) -> Target | None:
    """The size that is asked for; None without one. Raises OptionError for what does not go with it."""
    from pyllamacpu.quantize.target import Target

    size, bits = given["target_size"], given["target_bpw"]
    if size is None and bits is None:
        for name in ("file", "report", "calibration_tokens", "probe_tokens", "expert_memory"):
            if given[name]:
                option = {"file": "-f"}.get(name, "--" + name.replace("_", "-"))
                raise OptionError(f"{option} goes with --target-size or --target-bpw only")
        return None
    if size is not None and bits is not None:
        raise OptionError("--target-size and --target-bpw are two ways to say the same; give one")
    for name in _TYPES:
        if given[name]:
            raise OptionError(f"--{name.replace('_', '-')} does not go with a target: types are chosen")
    return Target(n_bytes=size) if size is not None else Target(bits=bits)


def run_target(
    file: GGUFFile, out: Path, settings: Settings, target: Target, given: dict[str, Any], threads: int | None
) -> None:
    """Measures, chooses, writes, measures again, and says what came of it."""
    from pyllamacpu.cli.quantize_output import write_plan
    from pyllamacpu.quantize.driver import quantized_output
    from pyllamacpu.quantize.report import Report
    from pyllamacpu.quantize.source import check_measurable
    from pyllamacpu.quantize.target import (
        budget,
        check,
        check_room,
        choose,
        chosen_plan,
        open_engine,
        runnable,
    )

    _check_outputs(file, out, given)
    check_measurable(file, settings.allow_requantize)
    room = budget(file, target)
    check_room(file, room, settings.types)
    elements = sum(info.n_elements for info in file.tensors.values())
    with runnable(file, out, given["expert_memory"]) as small:
        engine = open_engine(small, given["expert_memory"])
        try:
            settings, measured, text = _measure(file, engine, settings, 8 * room / elements, given)
        finally:
            engine.close()
    chosen = choose(measured, room, settings.types)
    plan = chosen_plan(file, settings, chosen)
    for note in quantized_output(plan, out).notes:
        click.echo(f"note: {one_line(note)}", err=True)
    for warning in plan.warnings:
        click.echo(f"warning: {one_line(warning)}", err=True)
    write_plan(plan, out, threads, given["verbose"], read_beside(given), given["force"])
    found = check(out, measured.base, given["expert_memory"])
    _tell(Report(str(file.paths[0]), str(out), out.stat().st_size, text, chosen, measured, found), given)


def read_beside(given: dict[str, Any]) -> list[Path]:
    """What is read beside the model: never written to."""
    names = [given["imatrix"], given["file"], *given["tensor_type_file"]]
    return [Path(name) for name in names if name]


def _check_outputs(file: GGUFFile, out: Path, given: dict[str, Any]) -> None:
    """Raises OutputError when the model or its report must not be written: before the work."""
    from pyllamacpu.files import check_output
    from pyllamacpu.gguf.file_kinds import MODEL, gguf_kind
    from pyllamacpu.quantize.report import check_reports

    inputs = [*file.paths, *read_beside(given)]
    check_output(out, inputs, gguf_kind(MODEL), given["force"])
    if given["report"]:
        check_reports(_report_stem(out), inputs, given["force"])


def _report_stem(out: Path) -> Path:
    return out.with_name(out.name.removesuffix(".gguf") + "-report")


def _measure(
    file: GGUFFile, engine: Engine, settings: Settings, bits: float, given: dict[str, Any]
) -> tuple[Settings, Measured, str]:
    from pyllamacpu.quantize.target import calibration, gather, measure, some_windows

    began = time.monotonic()
    with progress_line() as line:
        show = line if is_terminal(sys.stderr) else _stages()
        tokens = given["calibration_tokens"] or 4096
        cut = calibration(engine, given["file"], tokens, 0, show)
        text = str(given["file"] or "a text that the model wrote")
        if settings.imatrix is None:
            matrix = gather(engine.file, cut, text, show, given["expert_memory"])
            settings = replace(settings, imatrix=matrix, imatrix_name=f"collected on {text}")
        some = some_windows(cut, given["probe_tokens"] or 512)
        measured = measure(file, engine, some, settings, bits, show)
    click.echo(f"measured {len(measured.errors)} tensors in {time.monotonic() - began:.0f} s", err=True)
    return settings, measured, text


def _stages() -> OnCount:
    """A line at the beginning of each stage."""
    seen: set[str] = set()

    def show(text: str, done: int, total: int) -> None:
        if text not in seen:
            seen.add(text)
            notify(f"{text} …")

    return show


def _tell(report: Report, given: dict[str, Any]) -> None:
    from pyllamacpu.cli.tables import print_table
    from pyllamacpu.quantize.report import KIND_HEAD, by_kind, write

    print_table("Chosen", KIND_HEAD, by_kind(report), right=(2, 3, 4))
    found = report.found
    click.echo(f"file        {report.n_bytes / 1e9:.4f} GB, {report.bits:.2f} bits per weight")
    kld, ratio = found.mean_kld, found.ln_ppl_ratio.exp()
    click.echo(f"mean KLD    {kld.value:.6f} ± {kld.error:.6f} nats, {report.chosen.predicted:.6f} predicted")
    click.echo(f"same top    {100 * found.same_top_share.value:.2f} %")
    click.echo(f"perplexity  {found.ppl.value:.4f}, {ratio.value:.4f} times the original's")
    if given["report"]:
        paths = write(report, _report_stem(Path(report.output)))
        click.echo(f"report      {', '.join(str(path) for path in paths)}")
        if len(paths) < 3:
            click.echo("note: no picture was drawn: pip install 'pyllamacpu[plot]'", err=True)
