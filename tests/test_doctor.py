"""What the system says, on made-up machines; the doctor's report, advice and command.

Covers cli/doctor.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cli_letters import ROOT, Result, cli_home, run  # noqa: F401

from pyllamacpu.bench import system
from pyllamacpu.bench.doctor import Report, advice, examine
from pyllamacpu.bench.system import Cores, Memory
from pyllamacpu.limits import cpus_usable
from pyllamacpu.native import isa_names, isa_selected

CPU = "sys/devices/system/cpu"
Run = Callable[..., Result]


def machine(root: Path, files: dict[str, str]) -> Path:
    """A root folder with these files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def cpus(n: int, **each: str) -> dict[str, str]:
    """Files of `n` CPUs; in names __ stands for /, in values {} for the CPU's number."""
    files = {f"{CPU}/online": f"0-{n - 1}"}
    for name, value in each.items():
        files |= {f"{CPU}/cpu{i}/{name.replace('__', '/')}": value.format(i) for i in range(n)}
    return files


# What the system says


@pytest.mark.parametrize(
    "text, expected",
    [("0-3,8", (0, 1, 2, 3, 8)), ("5", (5,)), ("", ()), ("x", ()), ("1-x", ()), ("2-1", ())],
)
def test_cpu_lists(text: str, expected: tuple[int, ...]) -> None:
    assert system.cpu_list(text) == expected


def test_an_empty_root_tells_nothing_and_breaks_nothing(tmp_path: Path) -> None:
    assert system.memory(tmp_path) == Memory()
    assert system.caches(tmp_path) == {} and system.cache_bytes(tmp_path) == 0
    assert system.huge_pages(tmp_path) == "" and system.governors(tmp_path) == ()
    assert system.cgroup_cpus(tmp_path) is None and system.cgroup_memory(tmp_path) is None
    assert system.numa_nodes(tmp_path) == {} and not system.virtual(tmp_path)
    assert system.cpu_name(tmp_path)
    report = examine(tmp_path, measured=False)
    assert isinstance(advice(report), list)


def test_hybrid_x86_by_the_kernels_types(tmp_path: Path) -> None:
    files = cpus(6, cpufreq__cpuinfo_max_freq="5000000")
    files |= {"sys/devices/cpu_core/cpus": "0-3", "sys/devices/cpu_atom/cpus": "4-5"}
    files[f"{CPU}/cpu4/cpufreq/cpuinfo_max_freq"] = files[f"{CPU}/cpu5/cpufreq/cpuinfo_max_freq"] = "3800000"
    found = system.cores(machine(tmp_path, files))
    assert found == (Cores("P", (0, 1, 2, 3), 5000.0), Cores("E", (4, 5), 3800.0))


def test_arm_by_capacity_has_three_kinds(tmp_path: Path) -> None:
    files = cpus(4)
    files |= {f"{CPU}/cpu{i}/cpu_capacity": str(value) for i, value in enumerate((400, 400, 800, 1024))}
    assert system.cores(machine(tmp_path, files)) == (
        Cores("P", (3,), capacity=1024),
        Cores("M", (2,), capacity=800),
        Cores("E", (0, 1), capacity=400),
    )


def test_turbo_bins_are_one_kind_of_core(tmp_path: Path) -> None:
    files = cpus(4, cpufreq__cpuinfo_max_freq="5000000")
    files[f"{CPU}/cpu1/cpufreq/cpuinfo_max_freq"] = "4800000"
    assert [c.name for c in system.cores(machine(tmp_path, files))] == [""]
    files[f"{CPU}/cpu1/cpufreq/cpuinfo_max_freq"] = "3000000"
    assert [c.name for c in system.cores(machine(tmp_path, files))] == ["P", "E"]


def test_second_threads_are_no_cores(tmp_path: Path) -> None:
    files = {f"{CPU}/online": "0-3"}
    files |= {f"{CPU}/cpu{i}/topology/thread_siblings_list": f"{i % 2},{i % 2 + 2}" for i in range(4)}
    assert system.physical_cores(machine(tmp_path, files)) == 2


@pytest.mark.parametrize(
    "files, expected",
    [
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            2.0,
        ),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_cgroup_quota(files: dict[str, str], expected: float | None, tmp_path: Path) -> None:
    assert system.cgroup_cpus(machine(tmp_path, files)) == expected


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="has no affinity")
@pytest.mark.parametrize(
    "allowed, quota, threads, reason",
    [
        (64, "150000 100000", 2, "the CPU quota of 1.5, rounded up"),
        (64, "max 100000", 64, "one for each CPU"),
        (8, "max 100000", 8, "one for each CPU of the affinity"),
        (1, "150000 100000", 1, "one for each CPU of the affinity"),
    ],
)
def test_threads_of_a_container_on_a_large_machine(
    allowed: int, quota: str, threads: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    files = {
        f"{CPU}/online": "0-63",
        "proc/self/cgroup": "0::/kubepods/pod1",
        "proc/self/mountinfo": "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
        "sys/fs/cgroup/kubepods/cpu.max": "max 100000",
        "sys/fs/cgroup/kubepods/pod1/cpu.max": quota,
    }
    report = examine(machine(tmp_path, files), measured=False)
    assert (report.threads, report.threads_reason) == (threads, reason)
    assert report.cgroup_cpus == (None if quota.startswith("max") else 1.5)


def test_cgroup_memory(tmp_path: Path) -> None:
    assert system.cgroup_memory(machine(tmp_path, {"sys/fs/cgroup/memory.max": "1073741824"})) == 1 << 30
    assert system.cgroup_memory(machine(tmp_path, {"sys/fs/cgroup/memory.max": "max"})) is None


def test_memory_caches_pages_and_governors(tmp_path: Path) -> None:
    index = f"{CPU}/cpu0/cache/index"
    files = cpus(2, cpufreq__scaling_governor="powersave") | {
        "proc/meminfo": "MemTotal: 2000 kB\nMemAvailable: 500 kB\nSwapTotal: 100 kB\nSwapFree: 40 kB",
        "sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]",
        "sys/devices/system/node/online": "0-1",
        **{f"{index}0/{key}": value for key, value in (("type", "Data"), ("size", "48K"), ("level", "1"))},
        **{
            f"{index}1/{key}": value
            for key, value in (("type", "Instruction"), ("size", "32K"), ("level", "1"))
        },
        **{f"{index}3/{key}": value for key, value in (("type", "Unified"), ("size", "32M"), ("level", "3"))},
    }
    root = machine(tmp_path, files)
    assert system.memory(root) == Memory(2000 * 1024, 500 * 1024, 100 * 1024, 60 * 1024)
    assert system.caches(root) == {"L1d": 48 << 10, "L3": 32 << 20} and system.cache_bytes(root) == 32 << 20
    assert system.huge_pages(root) == "never" and system.governors(root) == ("powersave",)
    assert list(system.numa_nodes(root)) == [0, 1]


@pytest.mark.parametrize(
    "text, name",
    [
        ("processor: 0\nmodel name\t: Zippy 9000\nflags : fpu hypervisor", "Zippy 9000"),
        ("processor: 0\nCPU implementer: 0x41\nCPU part: 0xd40", "implementer 0x41 part 0xd40"),
    ],
)
def test_cpu_name(text: str, name: str, tmp_path: Path) -> None:
    root = machine(tmp_path, {"proc/cpuinfo": text})
    assert system.cpu_name(root).endswith(name)
    assert system.virtual(root) == ("hypervisor" in text)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_peak_memory_sees_a_large_array() -> None:
    system.reset_peak_memory()
    before = system.peak_memory()
    block = bytearray(64 << 20)
    block[::4096] = b"x" * len(range(0, len(block), 4096))
    assert system.peak_memory() >= before + (48 << 20)


# Advice


@pytest.fixture(scope="module")
def healthy() -> Report:
    """A machine with which nothing is wrong."""
    return replace(
        examine(measured=False),
        machine="x86_64",
        virtual=False,
        tiers=("scalar", "avx2"),
        tier="avx2",
        tier_forced="",
        cores=(Cores("", (0, 1, 2, 3)),),
        cpus=4,
        physical_cores=4,
        numa_nodes={0: (0, 1, 2, 3)},
        placement=(),
        affinity=(0, 1, 2, 3),
        cgroup_cpus=None,
        cgroup_memory=None,
        threads=4,
        memory=Memory(16 << 30, 12 << 30, 0, 0),
        huge_pages="madvise",
        governors=("performance",),
        driver="acpi-cpufreq",
        store_writable=True,
    )


def test_a_healthy_machine_gets_no_advice(healthy: Report) -> None:
    assert advice(healthy) == []


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"tier": "scalar", "tier_forced": "scalar"}, "PYLLAMACPU_ISA=scalar is set"),
        ({"tiers": ("scalar",), "tier": "scalar"}, "no AVX2"),
        ({"tiers": ("scalar",), "tier": "scalar", "machine": "riscv64"}, "no vector code for riscv64"),
        ({"virtual": True}, "'host'"),
        ({"affinity": (0,)}, "1 of 4 CPUs"),
        ({"cgroup_cpus": 1.5}, "1.5 of 4 CPUs"),
        ({"physical_cores": 2}, "-t 2"),
        ({"governors": ("powersave",)}, "governor is powersave"),
        ({"governors": ("conservative", "performance"), "driver": "intel_pstate"}, "conservative"),
        ({"cores": (Cores("P", (0, 1)), Cores("E", (2, 3)))}, "-t 2,4"),
        ({"numa_nodes": {0: (0, 1), 1: (2, 3), 2: ()}}, "2 memory nodes with CPUs"),
        ({"huge_pages": "never"}, "transparent_hugepage"),
        ({"memory": Memory(16 << 30, 12 << 30, 4 << 30, 1 << 30)}, "1024 MiB are swapped out"),
        ({"memory": Memory(16 << 30, 1 << 29, 0, 0)}, "Only 512 MiB"),
        ({"cgroup_memory": 4 << 30}, "4.0 GiB"),
        ({"store_writable": False}, "PYLLAMACPU_HOME"),
    ],
)
def test_one_thing_wrong_is_one_piece_of_advice(
    healthy: Report, changes: dict[str, object], says: str
) -> None:
    found = advice(replace(healthy, **changes))  # type: ignore[arg-type]
    assert len(found) == 1 and says in found[0]


def test_an_automatic_powersave_is_no_fault(healthy: Report) -> None:
    assert advice(replace(healthy, governors=("powersave",), driver="intel_pstate")) == []


# The command


def test_json_is_whole_and_true(run: Run, cli_home: Path) -> None:
    result = run("doctor", "--json")
    found = json.loads(result.out)
    assert result.code == 0 and result.err == ""
    assert found["tier"] == isa_selected() and found["tiers"] == isa_names()
    assert found["threads"] == found["limits"]["n_threads"] == cpus_usable()
    assert found["limits"]["read_bytes"] > 1e7
    assert found["store"].startswith(str(cli_home)) and found["store_writable"] is True
    assert isinstance(found["advice"], list) and found["versions"]["python"]


def test_a_file_is_no_place_for_the_store(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("PYLLAMACPU_HOME", str(home))
        found = json.loads(run("doctor", "--json", "--no-measure").out)
        assert found["store_writable"] is False
        assert any("cannot be written; set PYLLAMACPU_HOME" in line for line in found["advice"])


def test_text_is_plain_when_piped(run: Run, cli_home: Path) -> None:
    out = run("doctor", "--no-measure").out
    assert "\x1b" not in out and "Measured" not in out
    assert f"  tier           {isa_selected()}" in out or f" {isa_selected()}" in out
    assert "Advice\n  - " in out and str(cli_home) in out


def test_measured_values_are_shown(run: Run, cli_home: Path) -> None:
    out = run("doctor").out
    assert "GB/s" in out and "Top/s" in out and "Tflop/s" in out


@pytest.mark.skipif(len(isa_names()) < 2, reason="needs two tiers")
def test_a_forced_tier_is_reported() -> None:
    environment = {**os.environ, "PYLLAMACPU_ISA": "scalar", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pyllamacpu", "doctor", "--json", "--no-measure"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found = json.loads(done.stdout)
    assert found["tier"] == found["tier_forced"] == "scalar"
    assert any("PYLLAMACPU_ISA=scalar" in line for line in found["advice"])
