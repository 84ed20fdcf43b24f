"""How well an op's work is divided on machines that are not at hand: a simulation with the real work queue.

    python benchmarks/topology.py [--ops 60] [--items 512] [--work-us 4000]

What threads take, and from whom, is decided by csrc/platform/work_queue.h and placement.c themselves, which
this script compiles (cc); what is modelled is time. A thread needs work-us / items / its speed for an item,
up to 5 % more by chance, one and a half times that where the item's rows lie in another node's memory (half
of them where threads are not placed), and `line_ns` for a cache line that another thread wrote last (57 ns
were measured between near cores, 255 ns between far ones; ten reads go on at once). An op ends when its last
item is done. Efficiency: the time that the cores' speeds in sum would need, over that.

equal: parts as if all threads were alike, no pinning, as it was until 2026-11-29. placed: by node and kind.
"""

from __future__ import annotations

import argparse
import heapq
import random
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cffi import FFI

CSRC = Path(__file__).resolve().parent.parent / "csrc"
READS_AT_ONCE = 10
JITTER = 0.05  # at most, of a piece's time
FAR = 1.5  # times as long, with rows in another node's memory
SHIM = """
#include "platform/placement.h"
#include "platform/os.h"
#include <string.h>
typedef struct {
    pl_placement *placement;
    pl_cursor cursors[PL_MAX_THREADS];
    pl_work_queue queues[PL_MAX_THREADS];
    pl_division division;
    uint64_t epoch;
} simulation;
simulation *sim_new(const pl_cpu_group *groups, int n_groups, int threads)
{
    simulation *s = pl_alloc(sizeof *s, 1);
    memset(s, 0, sizeof *s);
    s->placement = pl_placement_new(groups, n_groups, threads);
    return s->placement ? s : NULL;
}
void sim_free(simulation *s) { pl_placement_free(s->placement); pl_release(s, sizeof *s); }
void sim_op(simulation *s, int threads)
{
    s->division = *pl_placement_divide(s->placement, threads, PL_FEW_TOKENS);
    s->epoch++;
    for (int t = 0; t < threads; t++)
        s->queues[t] = (pl_work_queue){
            .cursors = s->cursors, .division = &s->division, .epoch = s->epoch, .thread = t};
}
int sim_take(simulation *s, int thread, int64_t n, int64_t grain, int64_t *begin, int64_t *end, int *looked,
             int *victim)
{
    pl_work_queue *queue = &s->queues[thread];
    int before = queue->victim, took = pl_queue_take(queue, n, 1, grain, begin, end);
    *looked = queue->victim - before;
    *victim = took ? pl_victim(&s->division, thread, queue->victim) : -1;
    if (took)
        pl_placement_worked(s->placement, thread, PL_FEW_TOKENS, *end - *begin);
    return took;
}
int64_t sim_node_cut(const simulation *s, int64_t n, int node) { return pl_node_cut(&s->division, n, node); }
double sim_cut(const simulation *s, int thread) { return (double)s->division.cut[thread] / PL_WHOLE; }
"""
DECLARED = """
typedef struct { int32_t n_threads, node; double speed; uint64_t cpus[128]; } pl_cpu_group;
typedef struct simulation simulation;
simulation *sim_new(const pl_cpu_group *groups, int n_groups, int threads);
void sim_free(simulation *s);
void sim_op(simulation *s, int threads);
int sim_take(simulation *s, int thread, int64_t n, int64_t grain, int64_t *begin, int64_t *end, int *looked,
             int *victim);
int64_t sim_node_cut(const simulation *s, int64_t n, int node);
double sim_cut(const simulation *s, int thread);
"""
SOURCES = ("platform/placement.c", "platform/os_posix.c")


@dataclass(frozen=True)
class Group:
    """Threads of one kind on one node; `speed` is what they do, `guess` what the topology says of it."""

    threads: int
    node: int = 0
    speed: float = 1.0
    guess: float = 1.0


@dataclass(frozen=True)
class Machine:
    name: str
    groups: tuple[Group, ...]
    line_ns: float = 57.0

    @property
    def threads(self) -> int:
        return sum(group.threads for group in self.groups)


MACHINES = (
    Machine("2 cores", (Group(2),)),
    Machine("8 P + 16 E", (Group(8), Group(16, 0, 0.45, 0.74))),
    Machine("8 P (2 threads each) + 16 E", (Group(16, 0, 0.6), Group(16, 0, 0.45, 0.74))),
    Machine("1 + 3 + 4 (Arm)", (Group(1), Group(3, 0, 0.7, 0.7), Group(4, 0, 0.2, 0.25))),
    Machine("2 x 32, two nodes", (Group(32, 0), Group(32, 1)), 255.0),
    Machine("64 far cores", (Group(64),), 255.0),
)


@cache
def library() -> tuple[FFI, Any]:
    """The queue, compiled. Raises CalledProcessError or FileNotFoundError without a C compiler."""
    ffi = FFI()
    ffi.cdef(DECLARED)
    with tempfile.TemporaryDirectory() as folder:
        shim, made = Path(folder) / "shim.c", Path(folder) / "queue.so"
        shim.write_text(SHIM)
        files = [str(shim), *(str(CSRC / name) for name in SOURCES)]
        flags = ["-std=c11", "-O2", "-shared", "-fPIC", f"-I{CSRC}", "-Wall", "-Wextra", "-Werror"]
        subprocess.run(["cc", *flags, *files, "-o", str(made), "-lm", "-lpthread"], check=True)
        return ffi, ffi.dlopen(str(made))


class Simulation:
    """Ops one after the other on a machine; `placed`: with its groups, else as if its threads were alike."""

    def __init__(self, machine: Machine, placed: bool) -> None:
        self.machine, self.placed = machine, placed
        self.ffi, self.lib = library()
        groups: Sequence[Group] = machine.groups if placed else [Group(machine.threads)]
        native = self.ffi.new("pl_cpu_group[]", len(groups))
        for group, at in zip(groups, native, strict=True):
            at.n_threads, at.node, at.speed = group.threads, group.node, group.guess
        self.handle = self.ffi.gc(self.lib.sim_new(native, len(groups), machine.threads), self.lib.sim_free)
        self.speeds = [group.speed for group in machine.groups for _ in range(group.threads)]
        self.nodes = [group.node for group in machine.groups for _ in range(group.threads)]
        self.random = random.Random(1)
        self.taken = self.ffi.new("int64_t[2]")
        self.facts = self.ffi.new("int[2]")

    def cuts(self) -> list[float]:
        """Where each thread's part of the next op begins, and 1: what was done so far is looked at."""
        self.lib.sim_op(self.handle, self.machine.threads)
        return [float(self.lib.sim_cut(self.handle, t)) for t in range(self.machine.threads + 1)]

    def _far(self, thread: int, begin: int, end: int, items: int) -> float:
        """The part of these items whose rows lie in another node's memory."""
        n_nodes = self.nodes[-1] + 1
        if not self.placed or n_nodes == 1:
            return 1 - 1 / n_nodes
        first, last = (self.lib.sim_node_cut(self.handle, items, self.nodes[thread] + i) for i in (0, 1))
        return 1 - max(0, min(end, last) - max(begin, first)) / (end - begin)

    def op_ns(self, items: int, work_ns: float, grain: int = 0) -> float:
        """From the start of an op until its last item is done. grain 0: quarters of what is left."""
        machine, lib = self.machine, self.lib
        lib.sim_op(self.handle, machine.threads)
        waiting = [(0.0, t) for t in range(machine.threads)]
        owner = list(range(machine.threads))
        free = [0.0] * machine.threads
        over, done = 0.0, 0
        begin, end = self.taken, self.taken + 1
        while waiting:
            now, t = heapq.heappop(waiting)
            took = lib.sim_take(self.handle, t, items, grain, begin, end, self.facts, self.facts + 1)
            now += self.facts[0] * machine.line_ns / READS_AT_ONCE
            if not took:
                continue
            line, n = self.facts[1], end[0] - begin[0]
            if owner[line] != t:
                now = max(now, free[line]) + machine.line_ns
                owner[line] = t
            free[line] = now
            far = self._far(t, begin[0], end[0], items)
            jitter = 1 + JITTER * self.random.random()
            now += n * work_ns / items / self.speeds[t] * (1 + (FAR - 1) * far) * jitter
            over, done = max(over, now), done + n
            heapq.heappush(waiting, (now, t))
        assert done == items
        return over

    def efficiency(self, ops: int, items: int, work_ns: float, grain: int = 0) -> float:
        """Of the ops after the first quarter, in which speeds are learned."""
        times = [self.op_ns(items, work_ns, grain) for _ in range(ops)][ops // 4 :]
        return work_ns / sum(self.speeds) / (sum(times) / len(times))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work-us", type=float, default=4000.0, help="a core of speed 1's time for an op")
    parser.add_argument("--items", type=int, default=512, help="work items of an op")
    parser.add_argument("--ops", type=int, default=60)
    given = parser.parse_args()
    print(f"{'machine':30} {'equal':>8} {'placed':>8}   (single items: equal, placed)")
    for machine in MACHINES:
        found = [
            Simulation(machine, placed).efficiency(given.ops, given.items, given.work_us * 1e3, grain)
            for grain in (0, 1)
            for placed in (False, True)
        ]
        print(f"{machine.name:30} {found[0]:8.3f} {found[1]:8.3f}   {found[2]:8.3f} {found[3]:8.3f}")


if __name__ == "__main__":
    main()
