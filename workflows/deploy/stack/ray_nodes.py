"""A Ray head and its workers on the loopback interface, until SIGTERM.

    python -m workflows.deploy.stack.ray_nodes PORT DASHBOARD_PORT WORKERS CPUS

`ray start` refuses a second node on that interface, and nodes elsewhere listen on all of them. The class that Ray's own
tests of several nodes use does neither, where `session.LOOPBACK_ONLY` is set. The nodes are whole ones, in processes of
their own.
"""

from __future__ import annotations

import signal
import sys
from typing import Final

from ray.cluster_utils import Cluster

OBJECTS: Final = 2**30
"""Bytes of each node's object store; by default each would take a third of the memory."""


def main(port: int, dashboard_port: int, workers: int, cpus: int) -> None:
    """Starts the nodes, says so, and waits for the signal."""
    head = {"num_cpus": 0, "gcs_server_port": port, "object_store_memory": OBJECTS}
    dashboard = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": dashboard_port}
    cluster = Cluster(initialize_head=True, head_node_args=head | dashboard)
    for _ in range(workers):
        cluster.add_node(num_cpus=cpus, object_store_memory=OBJECTS)
    print(f"{workers + 1} nodes at {cluster.address}", flush=True)  # noqa: T201
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        signal.pause()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
