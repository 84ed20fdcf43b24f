"""What a process may use: affinity, cgroups of both versions, nested ones too; and models that do not fit."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tiny_model import write_model

from pyllamacpu.engine import engine, memory
from pyllamacpu.engine.engine import Engine
from pyllamacpu.errors import ContextError, ModelError
from pyllamacpu.gguf.reader import GGUFFile
from pyllamacpu.limits import _cpu_quotas, cpus_usable, memory_usable

V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 23 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def system(root: Path, own: str, mounts: str, files: dict[str, str]) -> Path:
    """A root folder with these files of a kernel in it."""
    texts = {"proc/self/cgroup": own, "proc/self/mountinfo": mounts}
    texts.update({f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_groups_the_machine_is_all_there_is(tmp_path: Path) -> None:
    if hasattr(os, "sched_getaffinity"):
        assert cpus_usable(tmp_path) == len(os.sched_getaffinity(0))
    assert memory_usable(tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_smallest_limit_of_nested_groups_counts(tmp_path: Path) -> None:
    files = {
        "a.slice/cpu.max": "250000 100000\n",
        "a.slice/memory.max": "3000000\n",
        "a.slice/b/cpu.max": "max 100000\n",
        "a.slice/b/memory.max": "5000000\n",
        "a.slice/b/c/memory.max": "max\n",
    }
    root = system(tmp_path, "0::/a.slice/b/c\n", V2, files)
    assert list(_cpu_quotas(root)) == [2.5]
    assert memory_usable(root) == 3000000


def test_a_quota_below_one_cpu_leaves_one(tmp_path: Path) -> None:
    assert cpus_usable(system(tmp_path, "0::/\n", V2, {"cpu.max": "1000 100000\n"})) == 1


def test_groups_of_version_one(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/docker/x/cpu.cfs_quota_us": "50000\n",
        "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
        "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/docker/memory.limit_in_bytes": "4000000\n",
    }
    root = system(tmp_path, "4:memory:/docker/x\n3:cpuacct,cpu:/docker/x\n", V1, files)
    assert cpus_usable(root) == 1
    assert memory_usable(root) == 4000000


def test_a_container_sees_its_own_group_at_the_mount(tmp_path: Path) -> None:
    mounts = "31 23 0:28 /docker/x /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n"
    assert memory_usable(system(tmp_path, "0::/docker/x\n", mounts, {"memory.max": "7000000\n"})) == 7000000
    assert memory_usable(system(tmp_path, "0::/../y\n", mounts, {"memory.max": "6000000\n"})) == 6000000


@pytest.mark.parametrize("text", ["", "max", "a b", "1", "-5 100000", "0 0", "100000 0"])
def test_strange_quotas_are_none(tmp_path: Path, text: str) -> None:
    assert list(_cpu_quotas(system(tmp_path, "0::/\n", V2, {"cpu.max": text}))) == []


def test_what_does_not_fit_in_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_model(tmp_path / "tiny.gguf")
    with GGUFFile.open(path) as file:
        weights = sum(info.n_bytes for info in file.tensors.values())
    loaded = [0]

    def load(*_: object) -> None:
        loaded[0] += 1

    monkeypatch.setattr(engine, "load", load)
    monkeypatch.setattr(memory, "held_bytes", lambda: 0)
    for usable, error, words in (
        (weights - 1, ModelError, "quantized to Q8_0 it would fit"),
        (weights // 20, ModelError, "a smaller model is needed"),
        (weights + 1, ContextError, "ask for at most 0"),
    ):
        monkeypatch.setattr(memory, "memory_usable", lambda usable=usable: usable)
        with pytest.raises(error, match=words):
            Engine.open(path)
    assert loaded == [0]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_large_blocks_that_threads_free_go_back_to_the_system() -> None:
    code = """
        import threading
        from pyllamacpu.limits import return_freed_memory
        return_freed_memory()
        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * 4096
        def work():
            for _ in range(3):
                text = ("x" * (12 << 20)).encode().decode()
                small = [bytes(1000) for _ in range(10_000)]
                del text, small
            done.wait()
        before, done = resident(), threading.Barrier(5)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        done.wait()
        assert resident() - before < 24 << 20, (resident() - before) >> 20
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=environment, timeout=60)
