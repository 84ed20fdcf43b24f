"""A Ray cluster of two nodes on this machine for tests: one raylet each, all on loopback."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

STORE = 80 << 20  # bytes of a node's object store: the least that Ray takes


class Cluster:
    """address: of the head. `kill` ends a node without a warning."""

    def __init__(self, n_nodes: int) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        # Ray takes 127.0.0.1 for another name of the machine's own address; 127.0.0.2 is only loopback.
        head = {"num_cpus": 1, "node_ip_address": "127.0.0.2", "include_dashboard": False}
        self._cluster: Any = RayCluster(
            initialize_head=True, head_node_args={**head, "object_store_memory": STORE}
        )
        self._nodes = [self.add_node() for _ in range(n_nodes - 1)]

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add_node(self) -> Any:
        return self._cluster.add_node(
            num_cpus=1, node_ip_address="127.0.0.3", object_store_memory=STORE, wait=True
        )

    def kill(self) -> None:
        """Ends the node that is not the head, with all that runs there."""
        self._cluster.remove_node(self._nodes.pop(), allow_graceful=False)

    def stop(self) -> None:
        self._cluster.shutdown()


@contextlib.contextmanager
def ray_cluster(n_nodes: int = 2) -> Iterator[Cluster]:
    pytest.importorskip("ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(n_nodes)
    try:
        yield cluster
    finally:
        cluster.stop()
