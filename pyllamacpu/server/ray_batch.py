"""A batch over a Ray cluster: an engine on each node, the lines and the output with the one who asks.

An engine is an actor that holds its node's CPUs. It is given as many lines as keep it busy; each answer is
written as it comes. Lines of a node that is lost go to the others, and nodes that join take part. Lines of an
engine that crashes on a node which lives are asked again one at a time: one of them may be the reason.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyllamacpu import __version__
from pyllamacpu.errors import PyllamacpuError
from pyllamacpu.progress import OnCount, clear_line, notify
from pyllamacpu.safety.shield import ShieldOptions
from pyllamacpu.server.batch import BatchCounts, BatchOptions, BatchRun, open_run
from pyllamacpu.server.batch_engine import BatchEngine, batch_engine
from pyllamacpu.server.batch_file import Line
from pyllamacpu.server.errors import HTTPError
from pyllamacpu.server.images import ImageAccess
from pyllamacpu.server.models import PoolOptions
from pyllamacpu.server.ray_cluster import (
    ClusterModel,
    Node,
    connected,
    files_on_this_node,
    import_ray,
    live_nodes,
    node_options,
)

_LOOK_EVERY = 1.0  # seconds between two looks for nodes
_NODE_PATIENCE = 60.0  # seconds without any node
_MAX_STARTS = 3  # of an engine on one node
_MAX_CRASHES = 2  # of engines that had nothing but one line


class _Notes(logging.Handler):
    """Keeps the warnings until they are fetched: a node's log is not seen by who asks."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._texts.append(self.format(record))

    def fetch(self) -> list[str]:
        texts, self._texts = self._texts, []
        return texts


class NodeEngine:
    """The actor: the engine of one node. Its methods also give the warnings since the last call."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self._engine: BatchEngine | None = None
        self._notes = _Notes()
        logging.getLogger("pyllamacpu").addHandler(self._notes)

    async def start(
        self,
        models: Sequence[ClusterModel],
        options: PoolOptions,
        strict: bool,
        shield: ShieldOptions | None,
        images: ImageAccess,
        version: str,
    ) -> tuple[str | None, list[str]]:
        """Loads the default model. Why that cannot be, or None."""
        try:
            files = await asyncio.to_thread(files_on_this_node, models, version)
            engine = await self._stack.enter_async_context(
                batch_engine(files, options, strict, shield, images)
            )
            await engine.load()
        except PyllamacpuError as error:
            return str(error), self._notes.fetch()
        self._engine = engine
        return None, self._notes.fetch()

    async def answer(self, url: str, body: Any) -> tuple[int, bytes, list[str]]:
        assert self._engine is not None
        status, answer = await self._engine.answer(url, body)
        return status, answer, self._notes.fetch()


@dataclass(eq=False)
class _Member:
    """A node's engine as the dispatcher sees it. alone: it has a line beside which no other may be asked."""

    node: Node
    actor: Any
    ready: bool = False
    alone: bool = False
    lines: set[str] = field(default_factory=set)  # ids of those that it is answering


class _Dispatcher:
    """Gives the lines of a run to the engines of the cluster."""

    def __init__(self, run: BatchRun, models: Sequence[ClusterModel], options: BatchOptions) -> None:
        self._ray = import_ray()
        self._run, self._models, self._options = run, models, options
        self._members: dict[str, _Member] = {}  # by the node's id
        self._refused: dict[str, str] = {}  # nodes that take no part, and why
        self._n_starts: Counter[str] = Counter()  # that failed, by node
        self._returned: deque[Line] = deque()  # of lost nodes
        self._suspects: deque[Line] = deque()  # of crashed engines
        self._n_crashes: Counter[str] = Counter()  # by the line's id
        self._exhausted = False  # the input has no more lines
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_look = self._last_seen = asyncio.get_running_loop().time()

    async def answer_all(self) -> None:
        """Raises PyllamacpuError when no node can take part."""
        try:
            while True:
                self._look_for_nodes()
                self._hand_out()
                if self._is_done:
                    return
                await self._wait()
        finally:
            for task in self._tasks:
                task.cancel()
            for member in list(self._members.values()):
                self._drop(member)

    @property
    def _is_done(self) -> bool:
        waiting = self._returned or self._suspects or not self._exhausted
        return not waiting and not any(member.lines for member in self._members.values())

    async def _wait(self) -> None:
        """Until something has come to an end, or it is time for a look."""
        if not self._tasks:
            await asyncio.sleep(_LOOK_EVERY)
            return
        done, self._tasks = await asyncio.wait(
            self._tasks, timeout=_LOOK_EVERY, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            task.result()

    def _spawn(self, work: Any) -> None:
        self._tasks.add(asyncio.ensure_future(work))

    def _look_for_nodes(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY
        nodes = live_nodes()
        for node_id, member in list(self._members.items()):
            if node_id not in nodes and not member.lines:
                self._drop(member)
        for node in nodes.values():
            if node.id not in self._members and node.id not in self._refused:
                self._add(node)
        if self._members:
            self._last_seen = now
        elif nodes and nodes.keys() <= self._refused.keys():
            raise PyllamacpuError("no node of the cluster can take part: the reasons are above")
        elif now - self._last_seen > _NODE_PATIENCE:
            raise PyllamacpuError("the cluster has no node with a CPU; the same command goes on later")

    def _add(self, node: Node) -> None:
        options = node_options(self._options.pool, node.n_cpus)
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.id, soft=False)
        actor = (
            self._ray.remote(NodeEngine)
            .options(
                num_cpus=options.load.n_threads,
                scheduling_strategy=strategy,
                max_concurrency=2 * options.parallel + 8,
            )
            .remote()
        )
        member = self._members[node.id] = _Member(node, actor)
        self._spawn(self._start(member, options))

    async def _start(self, member: _Member, options: PoolOptions) -> None:
        try:
            problem, notes = await member.actor.start.remote(
                self._models,
                options,
                self._options.strict,
                self._options.shield,
                self._options.images,
                __version__,
            )
        except self._ray.exceptions.RayError as error:
            self._drop(member)
            self._n_starts[member.node.id] += 1
            if self._n_starts[member.node.id] < _MAX_STARTS:
                return  # and the next look tries again, if the node lives
            problem, notes = f"its engine cannot start: {error}", []
        self._say(member, *notes)
        if problem is None:
            member.ready = True
            self._say(member, f"ready, {options.load.n_threads} threads")
        else:
            self._drop(member)
            self._refused[member.node.id] = problem
            self._say(member, f"takes no part: {problem}")

    def _say(self, member: _Member, *texts: str) -> None:
        for text in texts:
            clear_line()
            notify(f"node {member.node.address}: {text}")

    def _drop(self, member: _Member) -> None:
        if self._members.get(member.node.id) is member:
            del self._members[member.node.id]
            self._ray.kill(member.actor)

    def _hand_out(self) -> None:
        """Gives each engine what keeps it busy: the next prompts are ready when an answer ends."""
        ready = [member for member in self._members.values() if member.ready]
        limit = 2 * self._options.pool.parallel
        while room := [m for m in ready if not m.alone and len(m.lines) < limit]:
            if (line := self._next_line()) is None:
                break
            self._ask(min(room, key=lambda member: len(member.lines)), line)
        for member in ready:
            if self._suspects and not member.lines:
                member.alone = True
                self._ask(member, self._suspects.popleft())

    def _next_line(self) -> Line | None:
        if self._returned:
            return self._returned.popleft()
        line = None if self._exhausted else self._run.next_request()
        self._exhausted = line is None
        return line

    def _ask(self, member: _Member, line: Line) -> None:
        member.lines.add(line.id)
        self._spawn(self._answer(member, line))

    async def _answer(self, member: _Member, line: Line) -> None:
        exceptions = self._ray.exceptions
        try:
            status, body, notes = await member.actor.answer.remote(line.url, line.body)
        except exceptions.RayTaskError:
            raise  # a fault of this program: an engine answers every request
        except exceptions.RayError:
            self._take_back(member, line)
        else:
            self._run.write_answer(line, status, body)
            self._say(member, *notes)
        member.lines.discard(line.id)
        member.alone = False

    def _take_back(self, member: _Member, line: Line) -> None:
        """The engine was lost while it had `line`."""
        if self._members.get(member.node.id) is member:
            self._say(member, f"lost; its {len(member.lines)} unfinished requests are asked again")
            self._drop(member)
        if member.node.id not in live_nodes():
            self._returned.append(line)
            return
        self._n_crashes[line.id] += member.alone
        if self._n_crashes[line.id] < _MAX_CRASHES:
            self._suspects.append(line)
            return
        message = f"the engine ended {_MAX_CRASHES} times while it answered this request alone"
        self._run.refuse(line, HTTPError(message, code="engine_lost"))


def run_on_ray(
    address: str, source: Path, target: Path, inputs: Sequence[Path], options: BatchOptions, show: OnCount
) -> BatchCounts:
    """`run_batch` over the cluster at `address`. Raises what `open_run` raises, and PyllamacpuError for a
    cluster that cannot be used.
    """
    models = [ClusterModel.of(file) for file in options.models]
    with open_run(source, target, inputs, options.force, show) as run:
        if run.total:
            with connected(address) as ray:
                try:
                    asyncio.run(_answer_all(run, models, options))
                except ray.exceptions.RayError as error:
                    raise PyllamacpuError(f"--ray {address}: {error}; the same command goes on") from error
        return run.counts


async def _answer_all(run: BatchRun, models: Sequence[ClusterModel], options: BatchOptions) -> None:
    await _Dispatcher(run, models, options).answer_all()
