"""CPUs by memory node and kind of core, and which of them the threads of a pool keep to.

Every function reads below `root`, so that tests can describe other machines. Sources: the kernel's
documentation of /sys/devices/system/cpu and /sys/devices/system/node (ABI/stable/sysfs-devices-node), of
cpu_capacity, and of the types of hybrid x86 cores; llama.cpp's `--numa`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyllamacpu.errors import OptionError
from pyllamacpu.limits import cpus_usable

ROOT = Path("/")
NUMA = ("distribute", "isolate", "numactl")
_CPUS = "sys/devices/system/cpu"
_NODES = "sys/devices/system/node"
_SLOW = 0.5  # of a fast core, where nothing says how fast a slow one is

_strategy: list[str] = ["distribute"]


@dataclass(frozen=True)
class Cores:
    """Cores of one kind: `name` is "P", "E", or "" when all cores are alike."""

    name: str
    cpus: tuple[int, ...]
    max_mhz: float = 0.0  # 0: not known
    capacity: int = 0  # the kernel's measure, 1024 for the fastest; 0: not known


@dataclass(frozen=True)
class CpuGroup:
    """CPUs of one kind in one memory node, and how many threads keep to them. Nodes are numbered from 0,
    without those that have no thread. speed: of a core beside the fastest kind, a guess. cpus (): any.
    """

    n_threads: int
    node: int = 0
    speed: float = 1.0
    cpus: tuple[int, ...] = ()


def use_numa(strategy: str) -> None:
    """For pools made from now on. distribute: threads on all memory nodes, each with the rows of weights that
    it computes; isolate: on the node on which the process runs; numactl: wherever the process may run, with
    memory as it was told. Where there is one node, all are the same. Raises OptionError.
    """
    if strategy not in NUMA:
        raise OptionError(f"numa is {strategy!r:.40}: choose from {', '.join(NUMA)}")
    _strategy[0] = strategy


def numa_strategy() -> str:
    return _strategy[0]


def read(path: str, root: Path = ROOT) -> str:
    """The stripped text of a file below `root`, "" when it cannot be read."""
    try:
        return (root / path).read_text(errors="replace").strip()
    except OSError:
        return ""


def cpu_list(text: str) -> tuple[int, ...]:
    """`0-3,8` as numbers, the kernel's way to write sets of CPUs; () for what is none."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal() and (not last or last.isdecimal()):
            found += range(int(first), int(last or first) + 1)
    return tuple(found)


def cpu_ranges(cpus: Sequence[int]) -> str:
    """The other way round: `0-3,8`."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and cpu == parts[-1][-1] + 1:
            parts[-1][1:] = [cpu]
        else:
            parts.append([cpu])
    return ",".join("-".join(map(str, part)) for part in parts)


def online_cpus(root: Path = ROOT) -> tuple[int, ...]:
    found = cpu_list(read(f"{_CPUS}/online", root))
    return found or tuple(range(os.cpu_count() or 1))


def affinity() -> tuple[int, ...]:
    """CPUs that this process may run on; () where that is not known."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def numa_nodes(root: Path = ROOT) -> dict[int, tuple[int, ...]]:
    """CPUs of each memory node, by its number; of memory alone (CXL) none. {} where not known."""
    online = set(online_cpus(root))
    nodes = cpu_list(read(f"{_NODES}/online", root))
    return {
        node: tuple(cpu for cpu in cpu_list(read(f"{_NODES}/node{node}/cpulist", root)) if cpu in online)
        for node in nodes
    }


def cores(root: Path = ROOT) -> tuple[Cores, ...]:
    """The cores by kind, fastest first: by the kernel's cpu types, else by capacity, else by frequency."""
    online = online_cpus(root)
    fast, slow = (
        tuple(cpu for cpu in cpu_list(read(f"sys/devices/{kind}/cpus", root)) if cpu in online)
        for kind in ("cpu_core", "cpu_atom")
    )
    if fast and slow:
        return Cores("P", fast, _max_mhz(fast, root)), Cores("E", slow, _max_mhz(slow, root))
    kinds: dict[int, list[int]] = {}
    for cpu in online:
        kinds.setdefault(_capacity(cpu, root), []).append(cpu)
    ordered = [(tuple(kinds[capacity]), max(capacity, 0)) for capacity in sorted(kinds, reverse=True)]
    names = _kind_names(len(ordered))
    return tuple(
        Cores(name, cpus, _max_mhz(cpus, root), known)
        for name, (cpus, known) in zip(names, ordered, strict=True)
    )


def _kind_names(n: int) -> list[str]:
    return [""] if n == 1 else ["P", *["M"] * (n - 2), "E"]


def _capacity(cpu: int, root: Path) -> int:
    """A number that is higher for faster kinds of cores. Turbo bins, a few percent apart, are not kinds."""
    capacity = read(f"{_CPUS}/cpu{cpu}/cpu_capacity", root)
    if capacity.isdecimal():
        return int(capacity)
    top = max((_khz(other, root) for other in online_cpus(root)), default=0)
    return 0 if not top or _khz(cpu, root) >= 0.9 * top else -1


def _khz(cpu: int, root: Path) -> int:
    text = read(f"{_CPUS}/cpu{cpu}/cpufreq/cpuinfo_max_freq", root)
    return int(text) if text.isdecimal() else 0


def _max_mhz(cpus: tuple[int, ...], root: Path) -> float:
    return max((_khz(cpu, root) for cpu in cpus), default=0) / 1000


def _speed(kind: Cores, fastest: Cores) -> float:
    """What threads do soon says it better."""
    if kind == fastest:
        return 1.0
    if kind.capacity and fastest.capacity:
        return kind.capacity / fastest.capacity
    known = kind.max_mhz / fastest.max_mhz if kind.max_mhz and fastest.max_mhz else 1.0
    return min(known, _SLOW) if known == 1.0 else known


# ---- where threads run ----


def threads_usable(root: Path = ROOT) -> int:
    """Threads without -t: as many as CPUs that the process may use, with `isolate` of its node."""
    if numa_strategy() != "isolate":
        return cpus_usable(root)
    own = _own_node(root)
    return min(cpus_usable(root), len(own)) if own else cpus_usable(root)


def threads_running(n_threads: int) -> int:
    """Of a pool's threads those that run: no more than CPUs that the process may use (platform/threads.c)."""
    return min(n_threads, len(affinity()) or n_threads)


def placement(
    n_threads: int, root: Path = ROOT, allowed: Sequence[int] | None = None
) -> tuple[CpuGroup, ...]:
    """Groups for `n_threads` threads on the CPUs of `allowed` (those of the process), node after node and the
    fastest cores of each first. One group without CPUs where no memory node and no kind of core is another's.
    """
    usable = set(affinity() if allowed is None else allowed)
    nodes = [tuple(cpu for cpu in cpus if cpu in usable) for cpus in numa_nodes(root).values()]
    nodes = [cpus for cpus in nodes if cpus] or [tuple(sorted(usable))]
    anywhere = (CpuGroup(n_threads),)
    if numa_strategy() == "numactl" or not usable:
        return anywhere
    isolated = numa_strategy() == "isolate" and len(nodes) > 1
    if isolated:
        nodes = [_own_node(root, usable)]
    kinds = [kind for kind in cores(root) if any(not set(kind.cpus).isdisjoint(cpus) for cpus in nodes)]
    if len(nodes) == 1 and len(kinds) <= 1 and not isolated:
        return anywhere
    return _groups(min(n_threads, sum(map(len, nodes))), nodes, kinds)


def shared_nodes(root: Path = ROOT, allowed: Sequence[int] | None = None) -> tuple[int, ...]:
    """The kernel's numbers of the memory nodes that share what all threads read; () where there is one."""
    usable = set(affinity() if allowed is None else allowed)
    nodes = tuple(
        node for node, cpus in numa_nodes(root).items() if node < 1024 and not usable.isdisjoint(cpus)
    )
    return nodes if len(nodes) > 1 and numa_strategy() == "distribute" else ()


def _groups(n_threads: int, nodes: list[tuple[int, ...]], kinds: list[Cores]) -> tuple[CpuGroup, ...]:
    found: list[CpuGroup] = []
    numbered = 0
    for cpus, n in zip(nodes, _shared_out(n_threads, [len(cpus) for cpus in nodes]), strict=True):
        for kind in kinds:
            own = tuple(cpu for cpu in cpus if cpu in kind.cpus)
            threads = min(n, len(own))
            if threads:
                found.append(CpuGroup(threads, numbered, _speed(kind, kinds[0]), own))
                n -= threads
        numbered += bool(found) and found[-1].node == numbered
    return tuple(found)


def _shared_out(n: int, sizes: Sequence[int]) -> list[int]:
    """`n` in proportion to `sizes`, never more than one of them."""
    total, given, seen = sum(sizes), 0, 0
    parts = []
    for size in sizes:
        seen += size
        parts.append(min(size, round(n * seen / total) - given))
        given += parts[-1]
    return parts


def _own_node(root: Path, usable: set[int] | None = None) -> tuple[int, ...]:
    """CPUs of the memory node on which this thread runs, of those that the process may use."""
    usable = set(affinity()) if usable is None else usable
    nodes = [tuple(c for c in cpus if c in usable) for cpus in numa_nodes(root).values()]
    now = _current_cpu()
    return next((cpus for cpus in nodes if now in cpus), next(filter(None, nodes), ()))


def _current_cpu() -> int:
    get = getattr(ctypes.CDLL(None), "sched_getcpu", None) if os.name == "posix" else None
    return int(get()) if get is not None else -1
