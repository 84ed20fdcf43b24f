"""The thread pool (platform/threads.c): how many threads run, and that who waits gives its core away."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import plan_harness as harness
import pytest

from pyllamacpu.errors import NativeError
from pyllamacpu.graph.ops import Tensor
from pyllamacpu.graph.recorder import Recorder
from pyllamacpu.native import lib, thread_pool

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, sets an affinity")


def slow_plan(n_threads: int, ops: int, pairs: int) -> harness.Plan:
    """Of `ops` ops that one thread alone can compute, `pairs` cosines and sines each."""

    def record(recorder: Recorder, x: Tensor) -> Tensor:
        for _ in range(ops):
            recorder.rope_table(harness.vector(np.ones(pairs, np.float32)), 1.0)
        return x

    return harness.Plan(record, [32], n_threads=n_threads, max_tokens=1)


def sleeps() -> int:
    """How often threads of this process have given up a core to wait."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                total += int(line.split()[1])
    return total


@needs_linux
def test_who_waits_long_for_another_thread_sleeps() -> None:
    ops = 12
    plan = slow_plan(2, ops, 1 << 18)  # some 10 ms each
    x = harness.random(1, 1, 32)
    found = []
    while (
        max(found, default=0) < ops // 2 and len(found) < 20
    ):  # beside busy programs the second is often late
        before = sleeps()
        harness.assert_same_bits(plan.run(x), x)
        found.append(sleeps() - before)
    assert max(found) >= ops // 2


@pytest.mark.parametrize("n_threads", [2, 5, 16])
def test_many_short_runs_end_with_more_threads_than_cores(n_threads: int) -> None:
    plan, x = slow_plan(n_threads, 6, 64), harness.random(2, 1, 32)
    for _ in range(400):
        harness.assert_same_bits(plan.run(x), x)


def test_a_pool_made_for_itself_runs_all_its_threads() -> None:
    assert lib.pl_pool_running(harness.pool(7)) == 7


@pytest.mark.parametrize("n", [0, -1, lib.PL_MAX_THREADS + 1])
def test_numbers_of_threads_that_there_are_not(n: int) -> None:
    with pytest.raises(NativeError, match=f"{n} threads"):
        thread_pool(n)


@needs_linux
@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2 if hasattr(os, "sched_getaffinity") else True, reason="needs two CPUs"
)
def test_a_pool_has_no_more_threads_than_the_process_has_cpus() -> None:
    code = """
        import os, time
        from pyllamacpu.native import lib, thread_pool
        def threads():
            return len(os.listdir("/proc/self/task"))
        def running():  # as the next job finds it
            time.sleep(0.1)
            lib.pl_probe_fma(pool, 0.001)
            return lib.pl_pool_running(pool)
        cpus = sorted(os.sched_getaffinity(0))
        before = threads()
        pool = thread_pool(len(cpus) + 6)
        assert running() == len(cpus) and threads() == before + len(cpus) - 1
        os.sched_setaffinity(0, cpus[:1])
        assert running() == 1 and threads() == before
        os.sched_setaffinity(0, cpus)
        assert running() == len(cpus) and threads() == before + len(cpus) - 1
        child = os.fork()
        if child == 0:
            os._exit(0 if running() == len(cpus) == threads() else 1)
        assert os.waitpid(child, 0)[1] == 0
        del pool
        assert threads() == before
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    environment |= {"OPENBLAS_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], check=True, env=environment, timeout=60
    )
