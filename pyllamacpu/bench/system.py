"""What the operating system says about this machine and this process: CPU, cores, caches, limits, memory.

Every function reads below `root`, so that tests can describe other machines. What is not known is empty,
0 or None.
Sources: the kernel's documentation of /proc, /sys/devices/system/cpu and /sys/fs/cgroup.
"""

from __future__ import annotations

import contextlib
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from pyllamacpu.limits import cpu_quota, memory_limit
from pyllamacpu.topology import Cores, affinity, cores, cpu_list, numa_nodes, online_cpus, read

__all__ = ["Cores", "affinity", "cores", "cpu_list", "numa_nodes", "online_cpus", "read"]  # and its own

ROOT = Path("/")
_CPUS = "sys/devices/system/cpu"


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    total: int = 0
    available: int = 0
    swap_total: int = 0
    swap_used: int = 0


def cpu_name(root: Path = ROOT) -> str:
    """The CPU's name, such as `AMD EPYC 9654 96-Core Processor`."""
    fields = _cpuinfo(root)
    for key in ("model name", "Model", "Hardware", "cpu model"):
        if fields.get(key):
            return fields[key]
    if "CPU part" in fields:
        return f"{platform.machine()} implementer {fields.get('CPU implementer')} part {fields['CPU part']}"
    return platform.processor() or platform.machine() or "unknown"


def _cpuinfo(root: Path) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in read("proc/cpuinfo", root).splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def physical_cores(root: Path = ROOT) -> int:
    """Cores without their second threads."""
    siblings = {
        read(f"{_CPUS}/cpu{cpu}/topology/thread_siblings_list", root) or cpu for cpu in online_cpus(root)
    }
    return len(siblings)


def cgroup_cpus(root: Path = ROOT) -> float | None:
    """The smallest CPU quota of this process's cgroups in CPUs, None without one."""
    return min((x for x in (cpu_quota(root), _top_quota(root)) if x is not None), default=None)


def _top_quota(root: Path) -> float | None:
    parts = read("sys/fs/cgroup/cpu.max", root).split()
    if not parts:
        quota = read("sys/fs/cgroup/cpu/cpu.cfs_quota_us", root)
        parts = [quota, read("sys/fs/cgroup/cpu/cpu.cfs_period_us", root)]
    if len(parts) == 2 and all(part.isdecimal() for part in parts) and int(parts[1]):
        return int(parts[0]) / int(parts[1])
    return None


def cgroup_memory(root: Path = ROOT) -> int | None:
    """The smallest memory limit of this process's cgroups in bytes, None without one."""
    return min(
        (x for x in (memory_limit(root), _top_memory(root)) if x is not None and x < 1 << 60), default=None
    )


def _top_memory(root: Path) -> int | None:
    text = read("sys/fs/cgroup/memory.max", root) or read("sys/fs/cgroup/memory/memory.limit_in_bytes", root)
    return int(text) if text.isdecimal() else None


def memory(root: Path = ROOT) -> Memory:
    fields: dict[str, int] = {}
    for line in read("proc/meminfo", root).splitlines():
        parts = line.replace(":", " ").split()
        if len(parts) >= 2 and parts[1].isdecimal():
            fields[parts[0]] = int(parts[1]) * 1024
    swap = fields.get("SwapTotal", 0)
    return Memory(
        fields.get("MemTotal", 0), fields.get("MemAvailable", 0), swap, swap - fields.get("SwapFree", swap)
    )


def huge_pages(root: Path = ROOT) -> str:
    """The mode of transparent huge pages: "always", "madvise" or "never"; "" when not known."""
    text = read("sys/kernel/mm/transparent_hugepage/enabled", root)
    return text.partition("[")[2].partition("]")[0]


def governors(root: Path = ROOT) -> tuple[str, ...]:
    """The frequency governors in use."""
    found = {read(f"{_CPUS}/cpu{cpu}/cpufreq/scaling_governor", root) for cpu in online_cpus(root)}
    return tuple(sorted(found - {""}))


def caches(root: Path = ROOT) -> dict[str, int]:
    """Bytes of the caches that one core sees: {"L1d": …, "L2": …, "L3": …}."""
    found: dict[str, int] = {}
    for index in range(8):
        folder = f"{_CPUS}/cpu0/cache/index{index}"
        kind, size = read(f"{folder}/type", root), read(f"{folder}/size", root)
        if kind in ("Data", "Unified") and size[:-1].isdecimal():
            scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(size[-1], 1)
            level = read(f"{folder}/level", root)
            found["L1d" if level == "1" else f"L{level}"] = int(size[:-1]) * scale
    return found


def cache_bytes(root: Path = ROOT) -> int:
    """Bytes of the largest cache."""
    return max(caches(root).values(), default=0)


def in_container(root: Path = ROOT) -> bool:
    return (root / ".dockerenv").exists() or (root / "run/.containerenv").exists()


def virtual(root: Path = ROOT) -> bool:
    """True on a virtual machine (x86 has a CPU flag for it)."""
    return "hypervisor" in _cpuinfo(root).get("flags", "").split()


def reset_peak_memory() -> None:
    """Lets `peak_memory` begin anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The largest resident memory of this process in bytes, since `reset_peak_memory` where that works."""
    for line in read("proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
