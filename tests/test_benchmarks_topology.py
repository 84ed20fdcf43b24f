"""The simulation of machines with many cores: the real work queue gives out every item, and divides well."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
from benchmark_scripts import needs_scripts

pytestmark = [
    needs_scripts,
    pytest.mark.skipif(
        shutil.which("cc") is None and not os.environ.get("CI"), reason="needs a C compiler (cc)"
    ),
]


@pytest.fixture
def topology(script: Any) -> Any:
    return script("topology")


def machine(topology: Any, name: str) -> Any:
    return next(one for one in topology.MACHINES if one.name == name)


def efficiencies(topology: Any, name: str, ops: int = 24) -> tuple[float, float]:
    one = machine(topology, name)
    equal, placed = (topology.Simulation(one, x).efficiency(ops, 512, 4e6) for x in (False, True))
    return equal, placed


@pytest.mark.parametrize("items", [0, 1, 2, 63, 64, 65, 511])
@pytest.mark.parametrize("placed", [False, True])
def test_every_item_is_taken_once(topology: Any, items: int, placed: bool) -> None:
    """`op_ns` asserts it, of threads of all kinds and of fewer items than threads."""
    for one in topology.MACHINES:
        for grain in (0, 1):
            assert topology.Simulation(one, placed).op_ns(max(items, 1), 1e6, grain) > 0


def test_rows_on_the_threads_own_node(topology: Any) -> None:
    equal, placed = efficiencies(topology, "2 x 32, two nodes")
    assert placed > 0.93 and equal < 0.85


@pytest.mark.parametrize("name", ["8 P + 16 E", "1 + 3 + 4 (Arm)"])
def test_slow_cores_hold_up_nobody(topology: Any, name: str) -> None:
    equal, placed = efficiencies(topology, name)
    assert placed > 0.91 and placed > equal


@pytest.mark.parametrize("name", ["2 cores", "64 far cores"])
def test_equal_cores_are_divided_as_they_were(topology: Any, name: str) -> None:
    equal, placed = efficiencies(topology, name, 4)
    assert placed == equal > 0.94


def test_parts_follow_what_threads_do(topology: Any) -> None:
    """The guess for E cores is 0.74 of a P core; they do 0.45."""
    simulation = topology.Simulation(machine(topology, "8 P + 16 E"), True)
    before = simulation.cuts()
    for _ in range(60):
        simulation.op_ns(512, 4e6)
    after = simulation.cuts()
    assert before[8] == pytest.approx(8 / (8 + 16 * 0.74), abs=0.01)
    assert after[8] == pytest.approx(8 / (8 + 16 * 0.45), abs=0.04)
    assert after == sorted(after) and after[-1] == 1
