"""`pyllamacpu doctor`: what this machine can do, and what to change."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from pyllamacpu.progress import is_terminal
from pyllamacpu.topology import cpu_ranges
from pyllamacpu.units import binary_bytes

if TYPE_CHECKING:
    from pyllamacpu.bench.doctor import Report
    from pyllamacpu.bench.machine import Limits
    from pyllamacpu.bench.system import Cores
    from pyllamacpu.topology import CpuGroup

Section = tuple[str, list[tuple[str, str]]]

EPILOG = """\b
Examples:
  pyllamacpu doctor
  pyllamacpu doctor --json | jq .advice
"""


@click.command(epilog=EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON object. Sizes are bytes.")
@click.option("--measure/--no-measure", default=True, help="Measure memory and arithmetic (2 s).")
def doctor(as_json: bool, measure: bool) -> None:
    """Show CPU, memory and limits of this machine, and what to change to make models faster."""
    from pyllamacpu.bench.doctor import advice, examine

    report = examine(measured=measure)
    if as_json:
        click.echo(json.dumps(report.json(), indent=2))
        return
    sections = [_cpu(report), _process(report), _memory(report), _speed(report), _software(report)]
    _print([section for section in sections if section[1]], advice(report))


def _cpu(report: Report) -> Section:
    kind = [report.machine, *(["virtual machine"] if report.virtual else [])]
    rows = [("CPU", f"{report.cpu} ({', '.join(kind)})")]
    absent = [name for name in report.tiers_built if name not in report.tiers]
    rows.append(("tier", report.tier + (f" (forced: {report.tier_forced})" if report.tier_forced else "")))
    rows.append(
        ("tiers", ", ".join(report.tiers) + (f"; not on this CPU: {', '.join(absent)}" if absent else ""))
    )
    rows.append(("cores", _cores(report)))
    if len(report.numa_nodes) > 1:
        rows.append(("memory nodes", "; ".join(_node(*node) for node in report.numa_nodes.items())))
    caches = ", ".join(f"{name} {binary_bytes(n)}" for name, n in report.caches.items())
    if caches:
        rows.append(("caches", caches))
    if report.governors:
        rows.append(
            ("governor", ", ".join(report.governors) + (f" ({report.driver})" if report.driver else ""))
        )
    return "Processor", rows


def _cores(report: Report) -> str:
    parts = [f"{report.physical_cores} cores, {report.cpus} CPUs"]
    if len(report.cores) > 1:
        parts += [_kind(cores) for cores in report.cores]
    elif report.cores and report.cores[0].max_mhz:
        parts.append(f"up to {report.cores[0].max_mhz / 1000:.1f} GHz")
    parts.append("two threads per core" if report.cpus > report.physical_cores else "one thread per core")
    return ", ".join(parts)


def _node(number: int, cpus: tuple[int, ...]) -> str:
    return f"{number} with {len(cpus)} CPUs ({cpu_ranges(cpus)})" if cpus else f"{number} without CPUs"


def _group(group: CpuGroup) -> str:
    return f"{group.n_threads} on CPUs {cpu_ranges(group.cpus)}"


def _kind(cores: Cores) -> str:
    speed = f" up to {cores.max_mhz / 1000:.1f} GHz" if cores.max_mhz else ""
    return f"{len(cores.cpus)} {cores.name}{speed}"


def _process(report: Report) -> Section:
    rows = [("threads", f"{report.threads} by default: {report.threads_reason}")]
    if any(group.cpus for group in report.placement):
        rows.append(("kept to", ", ".join(map(_group, report.placement))))
    if report.affinity and len(report.affinity) < report.cpus:
        rows.append(("affinity", f"CPUs {cpu_ranges(report.affinity)}"))
    if report.cgroup_cpus is not None:
        rows.append(("CPU quota", f"{report.cgroup_cpus:g} CPUs"))
    if report.cgroup_memory is not None:
        rows.append(("memory limit", binary_bytes(report.cgroup_memory)))
    if report.container:
        rows.append(("container", "yes"))
    return "This process", rows


def _memory(report: Report) -> Section:
    memory = report.memory
    rows = (
        [("memory", f"{binary_bytes(memory.total)}, {binary_bytes(memory.available)} free")]
        if memory.total
        else []
    )
    if memory.total:
        swap = (
            f"{binary_bytes(memory.swap_used)} of {binary_bytes(memory.swap_total)} used"
            if memory.swap_total
            else "none"
        )
        rows.append(("swap", swap))
    if report.huge_pages:
        rows.append(("huge pages", report.huge_pages))
    return "Memory", rows


def _integer_rates(limits: Limits) -> str:
    """That of 8-bit codes, and of others where they are faster."""
    from pyllamacpu.bench.machine import CODE_WIDTHS

    rates = zip(CODE_WIDTHS, limits.code_ops, strict=True) if limits.code_ops else ()
    others = [f"{rate / 1e12:.2f} with {bits}-bit codes" for bits, rate in rates if rate and bits < 8]
    return f"{limits.int8_ops / 1e12:.2f} Top/s" + (f" ({', '.join(others)})" if others else "")


def _speed(report: Report) -> Section:
    limits = report.limits
    if limits is None:
        return "Measured", []
    return f"Measured with {limits.n_threads} threads", [
        ("reading memory", f"{limits.read_bytes / 1e9:.1f} GB/s"),
        ("int8", _integer_rates(limits)),
        ("float32", f"{limits.fp32_ops / 1e12:.2f} Tflop/s"),
        ("meaning", f"a model of 1 GB can generate at most {limits.read_bytes / 1e9:.0f} tokens/s"),
    ]


def _software(report: Report) -> Section:
    rows = list(report.versions.items())
    return "Software", [
        *rows,
        ("model store", report.store + ("" if report.store_writable else " (read-only)")),
    ]


def _print(sections: list[Section], advice: list[str]) -> None:
    """Tables on a terminal, aligned lines elsewhere; the advice at the end."""
    width = max(len(name) for _, rows in sections for name, _ in rows)
    if is_terminal(sys.stdout):
        _print_rich(sections, advice, width)
        return
    for title, rows in sections:
        click.echo(title)
        for name, value in rows:
            click.echo(f"  {name.ljust(width)}  {value}")
        click.echo()
    click.echo("Advice")
    for line in advice or ["nothing to change"]:
        click.echo(f"  - {line}")


def _print_rich(sections: list[Section], advice: list[str], width: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for title, rows in sections:
        table = Table(title=title, title_justify="left", box=None, show_header=False, pad_edge=False)
        table.add_column(width=width + 2, no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(Text(f"  {name}", style="dim"), Text(value))
        console.print(table)
        console.print()
    table = Table(title="Advice", title_justify="left", box=None, show_header=False, pad_edge=False)
    table.add_column(width=4)
    table.add_column(overflow="fold")
    for line in advice or ["nothing to change"]:
        table.add_row(Text("  •", style="yellow" if advice else "green"), Text(line))
    console.print(table)
