"""Work that several wait for: done once, and as long as anybody waits. Covers engine/leaving.py, and
`ImageCache.embedded` of engine/images.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from pyllamacpu.engine.images import EmbeddedImage, ImageCache
from pyllamacpu.engine.leaving import Leaving, check_wanted
from pyllamacpu.errors import Abandoned, ModelError

ROWS = np.ones((2, 4), np.float32)


class SlowTower:
    """Makes rows when it is told to; counts its runs."""

    def __init__(self) -> None:
        self.runs = 0
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self) -> np.ndarray:
        self.runs += 1
        self.begun.set()
        while not self.go_on.wait(0.01):
            check_wanted()
        return ROWS


class Callers:
    """Threads that ask a cache for the same image, each for somebody who may leave."""

    def __init__(self, make: Callable[[], np.ndarray]) -> None:
        self.cache, self.make = ImageCache(), make
        self._threads = ThreadPoolExecutor(4)

    def ask(self) -> tuple[Leaving, Future[EmbeddedImage]]:
        leaving = Leaving()

        def embedded() -> EmbeddedImage:
            with leaving.watched():
                found = self.cache.embedded(b"image", self.make)
                check_wanted()
                return found

        return leaving, self._threads.submit(embedded)

    def wait_for(self, n: int) -> None:
        """Until so many wait for the image."""
        flights = self.cache._flights
        while sum(len(run._waiting) for run in list(flights._runs.values())) < n:
            threading.Event().wait(0.005)


def test_two_who_ask_at_once_get_one_run() -> None:
    tower = SlowTower()
    callers = Callers(tower)
    asked = [callers.ask() for _ in range(3)]
    callers.wait_for(3)
    tower.go_on.set()
    images = [future.result(30) for _, future in asked]
    assert tower.runs == 1 and all(image is images[0] for image in images)
    assert sum(image.take_seconds() > 0 for image in images) == 1  # only one of them pays for it
    assert not callers.cache._flights._runs


@pytest.mark.parametrize("leaves", [0, 1])
def test_who_leaves_does_not_end_the_run_of_another(leaves: int) -> None:
    tower = SlowTower()
    callers = Callers(tower)
    asked = [callers.ask()]
    assert tower.begun.wait(30)
    asked.append(callers.ask())
    callers.wait_for(2)
    asked[leaves][0].leave()
    if leaves == 1:  # who waits notices at once; who works goes on for the other
        with pytest.raises(Abandoned):
            asked[1][1].result(30)
    tower.go_on.set()
    assert np.array_equal(asked[1 - leaves][1].result(30).rows, ROWS)
    with pytest.raises(Abandoned):
        asked[leaves][1].result(30)
    assert tower.runs == 1


def test_the_run_ends_when_all_have_left_and_begins_anew_for_the_next() -> None:
    tower = SlowTower()
    callers = Callers(tower)
    asked = [callers.ask(), callers.ask()]
    callers.wait_for(2)
    for leaving, _ in asked:
        leaving.leave()
    for _, future in asked:
        with pytest.raises(Abandoned):
            future.result(30)
    assert tower.runs == 1
    tower.go_on.set()
    assert callers.ask()[1].result(30) is not None and tower.runs == 2


def test_who_waits_for_a_run_that_fails_tries_it_again() -> None:
    tower, first = SlowTower(), threading.Event()

    def make() -> np.ndarray:
        rows = tower()
        if not first.is_set():
            first.set()
            raise ModelError("numbers that are not finite")
        return rows

    callers = Callers(make)
    asked = [callers.ask(), callers.ask()]
    callers.wait_for(2)
    tower.go_on.set()
    errors = [future.exception(30) for _, future in asked]
    assert sorted(error is None for error in errors) == [False, True] and tower.runs == 2
