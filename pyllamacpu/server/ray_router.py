"""Ray Serve's router of the engines' replicas: by the prompt's beginning, then by load."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from pyllamacpu.server.prefix_routing import PrefixMemory, choose


class PrefixRouter(RequestRouter):  # type: ignore[misc]  # Ray is an extra: its classes are not known here
    """A request's keys are its keyword argument `keys` (`prompt_keys`)."""

    def initialize_state(self, **_: Any) -> None:
        self._memory: PrefixMemory[Any] = PrefixMemory()
        self._loads: Counter[Any] = Counter()  # requests of this router, by replica

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Each in a group of its own, best first: a group is asked when those before it are full."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        by_id = {replica.replica_id: replica for replica in candidate_replicas}
        loads = {replica_id: self._loads[replica_id] for replica_id in by_id}
        return [[by_id[replica_id]] for replica_id in choose(_keys(pending_request), self._memory, loads)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        self._loads[replica_id] += 1
        self._memory.add(_keys(pending_request), replica_id)
        loop = asyncio.get_running_loop()

        def end() -> None:
            self._loads[replica_id] -= 1

        result.add_done_callback(lambda _: loop.call_soon_threadsafe(end))


def _keys(request: PendingRequest | None) -> tuple[bytes, ...]:
    return () if request is None else request.kwargs.get("keys", ())
