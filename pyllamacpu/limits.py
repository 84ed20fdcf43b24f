"""What of the machine this process may use: CPUs and memory, within its control groups (cgroups).

A quota may be set on any group from the process's own up to the root, and the smallest one counts. Sources:
the kernel's documentation of cgroup v1 and v2, cgroups(7), proc_pid_mountinfo(5).
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")

# mallopt's parameters (malloc.h) and our values.
_MALLOC = {"M_MMAP_THRESHOLD": (-3, 1 << 18), "M_TRIM_THRESHOLD": (-1, 1 << 18), "M_ARENA_MAX": (-8, 1)}


def cpus_usable(root: Path = ROOT) -> int:
    """CPUs of the affinity mask, within the cgroups' quotas (of which a part of a CPU counts as one)."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = cpu_quota(root)
    return max(1, cpus if quota is None else min(cpus, math.ceil(quota)))


def cpu_quota(root: Path = ROOT) -> float | None:
    """CPUs' time that the cgroups allow at most, None without a quota."""
    return min(_cpu_quotas(root), default=None)


def memory_usable(root: Path = ROOT) -> int:
    """Bytes of physical memory, within the cgroups' limits; 0 where it cannot be told."""
    if sys.platform == "win32":
        return 0
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([memory, *_memory_limits(root)])


def memory_limit(root: Path = ROOT) -> int | None:
    """Bytes that the cgroups allow at most, None without a limit."""
    return min(_memory_limits(root), default=None)


def _cpu_quotas(root: Path) -> Iterator[float]:
    for group in _groups(root, ""):  # "150000 100000": microseconds in each period, or "max 100000"
        words = (_read(group / "cpu.max") or "").split()
        if len(words) == 2:
            yield from _ratio(words[0], words[1])
    for group in _groups(root, "cpu"):
        yield from _ratio(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _ratio(quota: str | None, period: str | None) -> Iterator[float]:
    if quota and period and quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
        yield int(quota) / int(period)


def _memory_limits(root: Path) -> Iterator[int]:
    for controller, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        for group in _groups(root, controller):
            limit = _read(group / name)
            if limit and limit.isdecimal():
                yield int(limit)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's group and of those above it; controller "": of version 2."""
    own = _own_group(root, controller)
    mount = _mount(root, controller)
    if own is None or mount is None:
        return
    top, point = mount
    inside = own.relative_to(top) if own.is_relative_to(top) and ".." not in own.parts else PurePosixPath()
    folder = root / point.relative_to("/")
    for level in range(len(inside.parts), -1, -1):
        yield folder.joinpath(*inside.parts[:level])


def _own_group(root: Path, controller: str) -> PurePosixPath | None:
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        words = line.split(":", 2)  # hierarchy, controllers, path
        if len(words) == 3 and controller in words[1].split(",") and words[2].startswith("/"):
            return PurePosixPath(words[2])
    return None


def _mount(root: Path, controller: str) -> tuple[PurePosixPath, PurePosixPath] | None:
    """Where the hierarchy is mounted: the group at its top, and the folder."""
    for line in (_read(root / "proc/self/mountinfo") or "").splitlines():
        fields, _, rest = line.partition(" - ")
        words, kind = fields.split(" "), rest.split(" ")
        if len(words) < 5 or len(kind) < 3 or not words[4].startswith("/"):
            continue
        if kind[0] == ("cgroup" if controller else "cgroup2") and (
            not controller or controller in kind[2].split(",")
        ):
            return PurePosixPath(words[3]), PurePosixPath(words[4])
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def trim_memory() -> None:
    """Gives free pages inside the C library's heap back to the system (glibc, malloc_trim(3))."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def return_freed_memory() -> None:
    """Makes the C library give freed blocks of 256 KiB and more back to the system, and keep one heap only:
    it would hold the largest that there ever was, for each thread (glibc, mallopt(3); others do not).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in _MALLOC.values():
            mallopt(parameter, value)
