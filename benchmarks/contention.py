"""What the counters of an op cost on many cores: a model, for machines that are not at hand.

    python benchmarks/contention.py [--work-us 2000] [--items 512] [--ops 150]

A cache line that another core wrote last takes `line_ns` to come over, one requester after the other (57 ns
were measured between neighbouring cores, 255 ns between far chiplets); a core has ten reads under way at
once. Threads start together, take what is left of their own part by quarters, look at all other parts, and
report what they have done; the op is over when the last report has come and the waiting threads have read
it. "each piece": every piece is reported, on one line for all threads, as it was until 2026-11-29. "once":
as csrc/platform/work_queue.h does it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

OWN_NS = 5.0  # an atomic addition to a line at hand
READS_AT_ONCE = 10
LINE_THREADS = 16  # PL_LINE_THREADS
THREADS = (1, 2, 4, 8, 16, 32, 64, 128)
LINE_NS = (57.0, 255.0)


@dataclass
class Line:
    """A cache line: who has it, and until when it is under way."""

    owner: int | None = None
    free: float = 0.0

    def add(self, thread: int, now: float, line_ns: float) -> float:
        """When `thread`'s addition is done."""
        self.free = max(self.free, now) + (OWN_NS if self.owner in (thread, None) else line_ns)
        self.owner = thread
        return self.free


@dataclass
class Counters:
    """The lines that the threads of an op add to."""

    line_ns: float
    per_line: int
    lines: dict[int, Line] = field(default_factory=dict)

    def report(self, thread: int, now: float) -> float:
        return self.lines.setdefault(thread // self.per_line, Line()).add(thread, now, self.line_ns)


def pieces(items: int) -> list[int]:
    """What a thread takes of its part, one after the other (PL_QUARTER)."""
    found = []
    while items:
        found.append((items + 3) // 4)
        items -= found[-1]
    return found


def op_ns(threads: int, items: int, work_ns: float, line_ns: float, once: bool) -> float:
    """From the start of an op of `items` equal items, `work_ns` in all, until all know that it is done."""
    counters = Counters(line_ns, LINE_THREADS if once else threads)
    parts = [pieces(items * (t + 1) // threads - items * t // threads) for t in range(threads)]
    waiting = [(0.0, t) for t in range(threads)]
    scan = (threads - 1) * line_ns / READS_AT_ONCE
    over = 0.0
    while waiting:
        now, t = min(waiting)  # additions reach a line in the order of their times
        waiting.remove((now, t))
        if not parts[t]:
            over = max(over, counters.report(t, now + scan) if once else now + scan)
            continue
        now += parts[t].pop(0) * work_ns / items + OWN_NS
        waiting.append((now if once else counters.report(t, now), t))
    lines = -(-threads // counters.per_line)
    return over + (line_ns * (1 + (lines - 1) / READS_AT_ONCE) if threads > 1 else 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work-us", type=float, default=2000.0, help="one core's time for an op")
    parser.add_argument("--items", type=int, default=512, help="work items of an op")
    parser.add_argument("--ops", type=int, default=150, help="ops of a step")
    given = parser.parse_args()
    print("threads  line   each piece          once")
    for line_ns in LINE_NS:
        for threads in THREADS:
            alone = given.work_us * 1e3 / threads
            lost = [
                op_ns(threads, given.items, given.work_us * 1e3, line_ns, once) - alone
                for once in (False, True)
            ]
            shown = "   ".join(f"{ns / 1e3:7.2f} us, {given.ops * ns / 1e6:6.2f} ms a step" for ns in lost)
            print(f"{threads:7d} {line_ns:5.0f}   {shown}")


if __name__ == "__main__":
    main()
