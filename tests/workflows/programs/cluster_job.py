"""Trains on three nodes, of which one is lost: python cluster_job.py CACHE FOLDER STEPS (calm | lost | preempted).

The nodes are Ray's own (`ray.cluster_utils`), each with one CPU; the head has none. Two train, one is to spare.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION

from tests.workflows.programs.train_job import job
from workflows.train.losslog import read_losses

STEP = 60
NOTICE_SECONDS = 30.0


def host_of_a_worker(nodes: list[Any]) -> Any:
    """A node on which a worker trains: its processes are children of the node's raylet."""
    for node in nodes:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        if any("TrainWorker" in " ".join(child.cmdline()) for child in raylet.children()):
            return node
    raise SystemExit("no node has a worker")


def lose_one(cluster: Cluster, nodes: list[Any], folder: Path, with_notice: bool) -> None:
    """Takes a node away once training has come so far: at once, or after a notice and a checkpoint."""
    while not (rows := read_losses(folder / "losses.csv")) or rows[-1]["step"] < STEP:
        time.sleep(0.05)
    node = host_of_a_worker(nodes)
    if with_notice:
        deadline = int((time.time() + NOTICE_SECONDS) * 1000)
        client = GcsClient(address=cluster.address)
        accepted, why = client.drain_node(node.node_id, DRAIN_NODE_REASON_PREEMPTION, "taken back", deadline)
        assert accepted, why
        while not list(folder.glob("checkpoints/*/step-*")):
            time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)
    (folder / "lost").write_text(str(read_losses(folder / "losses.csv")[-1]["step"]))


def main() -> None:
    cache, folder, steps, how = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=2**27) for _ in range(3)]
    ray.init(address=cluster.address, logging_level="error")
    if how != "calm":
        threading.Thread(target=lose_one, args=(cluster, nodes, folder, how == "preempted"), daemon=True).start()
    job(cache, folder, steps, checkpoint_every=10 * steps if how == "preempted" else 50)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="0.5")
    main()
