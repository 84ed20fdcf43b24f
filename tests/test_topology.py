"""Where threads run: trees of /sys of real machines' shapes, and what pools make of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import plan_harness as harness
import pytest
from tiny_model import write_model

from pyllamacpu import topology
from pyllamacpu.engine import engine as engine_module
from pyllamacpu.engine import pages
from pyllamacpu.engine.engine import Engine
from pyllamacpu.engine.pages import KVCache
from pyllamacpu.errors import NativeError, OptionError
from pyllamacpu.graph.ops import Tensor
from pyllamacpu.graph.recorder import Recorder
from pyllamacpu.model.kv_space import KVSpace
from pyllamacpu.native import ffi, lib, thread_pool
from pyllamacpu.topology import CpuGroup, cores, cpu_ranges, numa_nodes, placement, use_numa

CPU, NODE = "sys/devices/system/cpu", "sys/devices/system/node"


def tree(root: Path, online: str, nodes: dict[int, str], files: dict[str, str] | None = None) -> Path:
    """A root folder with these CPUs and memory nodes."""
    texts = {f"{CPU}/online": online, **(files or {})}
    if nodes:
        texts[f"{NODE}/online"] = ",".join(map(str, nodes))
        texts |= {f"{NODE}/node{node}/cpulist": cpus for node, cpus in nodes.items()}
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def shape(groups: Sequence[CpuGroup]) -> list[tuple[int, int, str]]:
    return [(group.node, group.n_threads, cpu_ranges(group.cpus)) for group in groups]


@pytest.fixture(autouse=True)
def usual_strategy() -> Iterator[None]:
    yield
    use_numa("distribute")


@pytest.mark.parametrize(
    "cpus, text", [((0, 1, 2, 3, 8), "0-3,8"), ((5,), "5"), ((), ""), ((4, 1, 2), "1-2,4")]
)
def test_ranges_of_cpus(cpus: tuple[int, ...], text: str) -> None:
    assert cpu_ranges(cpus) == text


def test_one_node_of_equal_cores_asks_for_nothing(tmp_path: Path) -> None:
    assert placement(8, tree(tmp_path / "a", "0-15", {0: "0-15"}), range(16)) == (CpuGroup(8),)
    assert placement(8, tree(tmp_path / "b", "0-15", {}), range(16)) == (
        CpuGroup(8),
    )  # a kernel without NUMA


def test_two_sockets(tmp_path: Path) -> None:
    """The second threads of cores come after all first ones, so that a node's CPUs are two ranges."""
    root = tree(tmp_path, "0-127", {0: "0-31,64-95", 1: "32-63,96-127"})
    assert numa_nodes(root)[1] == (*range(32, 64), *range(96, 128))
    assert shape(placement(128, root, range(128))) == [(0, 64, "0-31,64-95"), (1, 64, "32-63,96-127")]
    assert [group.n_threads for group in placement(7, root, range(128))] == [4, 3]
    assert shape(placement(1, root, range(128))) in ([(0, 1, "0-31,64-95")], [(0, 1, "32-63,96-127")])


def test_the_affinity_is_kept(tmp_path: Path) -> None:
    root = tree(tmp_path, "0-15", {0: "0-7", 1: "8-15"})
    assert shape(placement(8, root, [0, 1, 8, 9, 10, 11])) == [(0, 2, "0-1"), (1, 4, "8-11")]
    assert placement(4, root, range(8, 12)) == (CpuGroup(4),)  # one node is left: nothing to place
    assert sum(group.n_threads for group in placement(64, root, range(16))) == 16  # no more run than CPUs


def test_sub_numa_clusters(tmp_path: Path) -> None:
    root = tree(tmp_path, "0-63", {k: f"{8 * k}-{8 * k + 7}" for k in range(8)})
    found = placement(64, root, range(64))
    assert [(group.node, group.n_threads) for group in found] == [(k, 8) for k in range(8)]
    found = placement(5, root, range(64))  # fewer threads than nodes: those with one, numbered without gaps
    assert [group.node for group in found] == list(range(len(found))) and sum(g.n_threads for g in found) == 5


def test_nodes_without_cpus_and_cpus_that_are_off(tmp_path: Path) -> None:
    """Node 2 is memory behind CXL; node numbers have gaps; CPUs 6 and 7 are off, though it names them."""
    root = tree(tmp_path, "0-5,8-15", {0: "0-7", 2: "", 4: "8-15"})
    assert numa_nodes(root) == {0: (0, 1, 2, 3, 4, 5), 2: (), 4: tuple(range(8, 16))}
    assert shape(placement(14, root, [*range(6), *range(8, 16)])) == [(0, 6, "0-5"), (1, 8, "8-15")]


def test_hybrid_x86(tmp_path: Path) -> None:
    """8 P cores of two threads and 16 E cores; the kernel numbers the P cores' threads first."""
    files = {"sys/devices/cpu_core/cpus": "0-15", "sys/devices/cpu_atom/cpus": "16-31"}
    files |= {f"{CPU}/cpu{i}/cpufreq/cpuinfo_max_freq": "5800000" if i < 16 else "4300000" for i in range(32)}
    root = tree(tmp_path, "0-31", {0: "0-31"}, files)
    found = placement(32, root, range(32))
    assert shape(found) == [(0, 16, "0-15"), (0, 16, "16-31")]
    assert found[0].speed == 1 and found[1].speed == pytest.approx(4.3 / 5.8)
    assert shape(placement(8, root, range(32))) == [(0, 8, "0-15")]  # the fast ones first
    assert placement(16, root, range(16, 32)) == (CpuGroup(16),)  # all that is allowed is alike


def test_hybrid_arm_by_capacity(tmp_path: Path) -> None:
    capacities = [250, 250, 250, 250, 720, 720, 720, 1024]
    files = {f"{CPU}/cpu{i}/cpu_capacity": str(c) for i, c in enumerate(capacities)}
    found = placement(8, tree(tmp_path, "0-7", {}, files), range(8))
    assert shape(found) == [(0, 1, "7"), (0, 3, "4-6"), (0, 4, "0-3")]
    assert [group.speed for group in found] == pytest.approx([1, 720 / 1024, 250 / 1024])
    assert [kind.capacity for kind in cores(tmp_path)] == [1024, 720, 250]


def test_isolate_and_numactl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path, "0-15", {0: "0-7", 1: "8-15"})
    monkeypatch.setattr(topology, "_current_cpu", lambda: 9)
    monkeypatch.setattr(topology, "affinity", lambda: tuple(range(16)))
    monkeypatch.setattr(topology, "cpus_usable", lambda _: 16)
    use_numa("isolate")
    assert shape(placement(16, root)) == [(0, 8, "8-15")] and topology.threads_usable(root) == 8
    use_numa("numactl")
    assert placement(16, root) == (CpuGroup(16),) and topology.threads_usable(root) == 16
    with pytest.raises(OptionError, match=r"'mirror': choose from distribute, isolate, numactl"):
        use_numa("mirror")


def test_nodes_that_share_what_all_threads_read(tmp_path: Path) -> None:
    root = tree(tmp_path, "0-15", {0: "0-7", 1: "", 3: "8-15"})
    assert topology.shared_nodes(root, range(16)) == (0, 3)
    assert topology.shared_nodes(root, range(8)) == ()
    use_numa("numactl")
    assert topology.shared_nodes(root, range(16)) == ()


@pytest.mark.skipif(not Path("/proc/self/numa_maps").exists(), reason="this kernel has no memory nodes")
def test_pages_are_spread_over_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the one node that this machine has: what counts is that the kernel takes the policy."""
    space = KVSpace("all", 32, 8, 128, 128)

    def policies() -> int:
        return Path("/proc/self/numa_maps").read_text().count(" interleave:0")

    plain = KVCache([space], "f16", "f16")
    plain.new_page(0)
    assert policies() == 0
    monkeypatch.setattr(pages, "shared_nodes", lambda: (0,))
    spread = KVCache([space], "f16", "f16")
    spread.new_page(0)
    assert policies() == 1


# Pools


def own_cpus() -> tuple[int, ...]:
    return topology.affinity() or (0,)


PLACES = {
    "two nodes": [CpuGroup(2, 0, 1.0, own_cpus()), CpuGroup(3, 1, 1.0, own_cpus()[:1])],
    "three nodes": [CpuGroup(1, 0), CpuGroup(1, 1), CpuGroup(1, 2)],
    "two kinds": [CpuGroup(2, 0, 1.0, own_cpus()), CpuGroup(2, 0, 0.3, own_cpus()[-1:])],
    "two kinds on two nodes": [
        CpuGroup(1, 0, 1.0),
        CpuGroup(2, 0, 0.5),
        CpuGroup(1, 1, 1.0),
        CpuGroup(1, 1, 0.5),
    ],
}


def logits(path: Path, groups: Sequence[CpuGroup], monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Of a prompt, of tokens after it, and of both once more, when what threads did was looked at."""
    monkeypatch.setattr(engine_module, "thread_pool", lambda n: thread_pool(n, groups))
    engine = Engine.open(path, n_threads=sum(group.n_threads for group in groups))
    found = []
    for _ in range(2):
        sequence = engine.sequence()
        found.append(engine.eval(sequence, [3 + i % 50 for i in range(90)]).copy())
        found += [engine.eval(sequence, [token]).copy() for token in range(3, 11)]
        sequence.close()
    engine.close()
    return found


@pytest.mark.parametrize("name", PLACES)
def test_bits_do_not_depend_on_where_threads_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_model(tmp_path / "tiny.gguf")
    alone = logits(path, [CpuGroup(1)], monkeypatch)
    for a, b in zip(alone, logits(path, PLACES[name], monkeypatch), strict=True):
        harness.assert_same_bits(a, b)


@pytest.mark.skipif(sys.platform != "linux", reason="threads keep to CPUs on Linux only")
def test_threads_keep_to_their_cpus_and_the_caller_is_let_go() -> None:
    cpus = own_cpus()
    pool = thread_pool(3, [CpuGroup(1, 0, 1.0, cpus[:1]), CpuGroup(2, 1, 1.0, cpus[-1:])])
    before = {int(task) for task in os.listdir("/proc/self/task")}
    lib.pl_probe_fma(pool, 0.05)
    assert tuple(sorted(os.sched_getaffinity(0))) == cpus
    masks = [set(os.sched_getaffinity(task)) for task in before]
    assert len(cpus) == 1 or masks.count({cpus[-1]}) >= 2


@pytest.mark.parametrize(
    "groups",
    [
        [],
        [CpuGroup(0)],
        [CpuGroup(1, 1)],
        [CpuGroup(1, 0), CpuGroup(1, 2)],
        [CpuGroup(1, 0), CpuGroup(1, 1), CpuGroup(1, 0)],
        [CpuGroup(1, 0, 0.0)],
        [CpuGroup(1, 0, float("nan"))],
        [CpuGroup(1, -1)],
        [CpuGroup(lib.PL_MAX_THREADS), CpuGroup(1)],
    ],
)
def test_groups_that_make_no_sense(groups: list[CpuGroup]) -> None:
    with pytest.raises(NativeError, match="3 threads"):
        thread_pool(3, groups)
    assert lib.pl_pool_new(ffi.NULL, 0, 0) == ffi.NULL


def test_parts_change_between_runs_and_bits_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores that are said to be slow and are not: parts are learned, of few rows and of many, in turn."""
    groups = [CpuGroup(2, 0, 1.0), CpuGroup(1, 0, 0.1), CpuGroup(2, 1, 0.5)]
    monkeypatch.setattr(harness, "pool", lambda n: thread_pool(n, groups[: n if n == 1 else None]))
    wide, narrow = (harness.matrix(harness.random(9, *shape)) for shape in ((2048, 64), (64, 2048)))

    def record(recorder: Recorder, x: Tensor) -> Tensor:
        return recorder.linear(recorder.linear(x, wide), narrow)

    plan = harness.Plan(record, [64], n_threads=5)
    rows = [harness.random(3, n, 64) for n in (1, 40, 7)]
    first = [plan.run(x) for x in rows]
    for _ in range(150):
        for x, expected in zip(rows, first, strict=True):
            harness.assert_same_bits(plan.run(x), expected)


def test_the_probe_reads_all_of_the_memory_of_several_nodes() -> None:
    """It gives a rate only when the sums say that every piece was read once."""
    pool = thread_pool(5, [CpuGroup(2, 0), CpuGroup(2, 1), CpuGroup(1, 2)])
    for mib in (1, 2, 7):
        assert 1e6 < lib.pl_probe_read(pool, mib << 20, 0.01) < 1e13
