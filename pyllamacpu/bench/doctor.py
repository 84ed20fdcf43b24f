"""What this machine offers, what this process gets of it, and what to change to make models faster."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pyllamacpu import __version__
from pyllamacpu.bench import system
from pyllamacpu.bench.machine import Limits, measure
from pyllamacpu.native import ISA_VARIABLE, isa_names, isa_selected
from pyllamacpu.store.paths import models_dir
from pyllamacpu.topology import CpuGroup, numa_strategy, placement, threads_usable

_SLOW_GOVERNORS = ("powersave", "conservative")
_ACTIVE_DRIVERS = ("intel_pstate", "amd-pstate-epp")  # whose "powersave" is an automatic mode
_LOW_MEMORY = 2 << 30  # bytes: less leaves no room for a 1B model and its cache
_MUCH_SWAP = 64 << 20  # bytes


@dataclass(frozen=True)
class Report:
    """The state of machine and process. `limits` is None when it was not measured. Sizes are bytes."""

    cpu: str
    machine: str  # x86_64, aarch64 …
    virtual: bool
    container: bool
    tiers: tuple[str, ...]  # that this CPU has, slowest first
    tiers_built: tuple[str, ...]
    tier: str
    tier_forced: str  # what the environment asks for, "" for nothing
    cores: tuple[system.Cores, ...]
    cpus: int  # online
    physical_cores: int
    numa_nodes: dict[int, tuple[int, ...]]  # CPUs of each memory node
    placement: tuple[CpuGroup, ...]  # where the threads run
    affinity: tuple[int, ...]
    cgroup_cpus: float | None
    cgroup_memory: int | None
    threads: int  # that are used without -t
    threads_reason: str
    caches: dict[str, int]
    memory: system.Memory
    huge_pages: str
    governors: tuple[str, ...]
    driver: str
    versions: dict[str, str]
    store: str
    store_writable: bool
    limits: Limits | None

    def json(self) -> dict[str, Any]:
        """Everything, with the advice, in the types of JSON."""
        return asdict(self) | {"advice": advice(self)}


def examine(root: Path = system.ROOT, measured: bool = True, seconds: float = 1.5) -> Report:
    """Looks at everything; with `measured` the machine's limits take `seconds`."""
    threads, cpus = threads_usable(root), len(system.online_cpus(root))
    store = models_dir()
    return Report(
        cpu=system.cpu_name(root),
        machine=platform.machine(),
        virtual=system.virtual(root),
        container=system.in_container(root),
        tiers=tuple(isa_names()),
        tiers_built=tuple(isa_names(available=False)),
        tier=isa_selected(),
        tier_forced=os.environ.get(ISA_VARIABLE, ""),
        cores=system.cores(root),
        cpus=cpus,
        physical_cores=system.physical_cores(root),
        numa_nodes=system.numa_nodes(root),
        placement=placement(threads, root),
        affinity=system.affinity(),
        cgroup_cpus=system.cgroup_cpus(root),
        cgroup_memory=system.cgroup_memory(root),
        threads=threads,
        threads_reason=_threads_reason(threads, cpus, system.affinity(), system.cgroup_cpus(root)),
        caches=system.caches(root),
        memory=system.memory(root),
        huge_pages=system.huge_pages(root),
        governors=system.governors(root),
        driver=system.read("sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", root),
        versions=versions(),
        store=str(store),
        store_writable=_writable(store),
        limits=measure(threads, seconds) if measured else None,
    )


def _threads_reason(threads: int, cpus: int, affinity: tuple[int, ...], quota: float | None) -> str:
    """Why this many."""
    allowed = len(affinity) or cpus
    if numa_strategy() == "isolate" and threads < allowed:
        return "one for each CPU of a memory node"
    if quota is not None and threads < allowed:
        return f"the CPU quota of {quota:g}, rounded up"
    return "one for each CPU" + (" of the affinity" if allowed < cpus else "")


def versions() -> dict[str, str]:
    import numpy

    return {
        "pyllamacpu": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "numpy": numpy.__version__,
        "system": f"{platform.system()} {platform.release()}",
    }


def _writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, which need not exist."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def advice(report: Report) -> list[str]:
    """What to change, one sentence or two each; [] when all is well."""
    return [*_tier_advice(report), *_cpu_advice(report), *_memory_advice(report), *_store_advice(report)]


def _tier_advice(report: Report) -> Iterator[str]:
    fastest = report.tiers[-1]
    if report.tier_forced and report.tier != fastest:
        yield f"{ISA_VARIABLE}={report.tier_forced} is set; without it the faster {fastest} would be used."
    if fastest == "scalar":
        reason = f"this build has no vector code for {report.machine}"
        if report.machine.lower() in ("x86_64", "amd64"):
            reason = "this CPU (or the virtual machine's model of one) has no AVX2 with FMA and F16C"
        yield f"Only the slow portable code can run: {reason}."
    elif report.virtual and fastest in ("avx2", "neon"):
        yield (
            f"The fastest tier is {fastest}. If the host's CPU has more (AVX-512, AVX-VNNI, dot products), "
            "let the virtual machine see it (CPU model 'host')."
        )


def _cpu_advice(report: Report) -> Iterator[str]:
    if report.affinity and len(report.affinity) < report.cpus:
        yield f"This process may use {len(report.affinity)} of {report.cpus} CPUs (affinity; see taskset)."
    if report.cgroup_cpus is not None and report.cgroup_cpus < report.cpus:
        yield f"The container may use {report.cgroup_cpus:g} of {report.cpus} CPUs."
    elif report.threads > report.physical_cores:
        yield (
            f"{report.threads} threads run on {report.physical_cores} cores, two of a core share its units: "
            f"compare with -t {report.physical_cores}."
        )
    slow = [name for name in report.governors if name in _SLOW_GOVERNORS]
    if slow and not (report.driver in _ACTIVE_DRIVERS and slow == ["powersave"]):
        yield (
            f"The frequency governor is {', '.join(slow)}; `cpupower frequency-set -g performance` (as root) "
            "lets the cores run faster."
        )
    if len(report.cores) > 1 and report.threads > (fast := len(report.cores[0].cpus)):
        yield (
            "There are fast and slow cores, and the fast ones alone can be quicker: compare "
            f"`pyllamacpu bench -t {fast},{report.threads}`."
        )
    if (nodes := sum(bool(cpus) for cpus in report.numa_nodes.values())) > 1:
        yield (
            f"There are {nodes} memory nodes with CPUs, and each keeps the weights that its threads use. "
            "A small model can be quicker on one: compare with --numa isolate."
        )


def _memory_advice(report: Report) -> Iterator[str]:
    if report.huge_pages == "never":
        yield (
            "Huge pages are off, which makes reading weights slower; "
            "`echo madvise > /sys/kernel/mm/transparent_hugepage/enabled` (as root) turns them on."
        )
    memory = report.memory
    if memory.swap_used > _MUCH_SWAP:
        yield (
            f"{memory.swap_used / 2**20:.0f} MiB are swapped out, and a model that is swapped is very slow: "
            "close something or take a smaller model."
        )
    if memory.total and memory.available < min(_LOW_MEMORY, memory.total // 4):
        yield f"Only {memory.available / 2**20:.0f} MiB of memory are free; take a small model."
    if report.cgroup_memory is not None and memory.total and report.cgroup_memory < memory.total:
        yield f"The container may use {report.cgroup_memory / 2**30:.1f} GiB of memory for all."


def _store_advice(report: Report) -> Iterator[str]:
    if not report.store_writable:
        yield f"The model store {report.store} cannot be written; set PYLLAMACPU_HOME to a folder of yours."
    if sys.maxsize < 1 << 32:
        yield "This Python has 32 bits, so models above 2 GB cannot be opened; install a 64-bit one."
