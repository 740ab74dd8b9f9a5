"""Checks of a cluster from within: every node is asked, in one short task each.

A driver on the cluster (`RAY_ADDRESS`, or a submitted job) writes a file into the storage folder and asks each node
whether it sees it, reaches the tracking server, has the same versions and the same time.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from packaging.version import Version

from diffusion_core.errors import RaverseError
from workflows.config.schema import RunConfig
from workflows.deploy.doctor.findings import Finding, note, ok, problem
from workflows.deploy.doctor.stores import check_skew
from workflows.deploy.doctor.versions import installed
from workflows.errors import StorageUnwritable
from workflows.runtime.preflight import check_writable
from workflows.runtime.session import check_cluster, cluster_address, start_ray, stop_ray
from workflows.tracking.store import check_tracking, tracking_uri

_SECONDS: Final = 60.0
_MUST_AGREE: Final = ("ray", "torch", "mlflow", "pyarrow")


@final
@dataclass(frozen=True)
class NodeReport:
    """What a node says of itself.

    Attributes:
        host: its name.
        python: its version.
        versions: of packages, by name.
        clock: seconds since 1970, when it was asked.
        sees_file: whether the storage folder is the driver's.
        trouble: what kept it from writing or from reaching the tracking server; empty: nothing.
    """

    host: str
    python: str
    versions: Mapping[str, str]
    clock: float
    sees_file: bool
    trouble: str


def check_nodes(config: RunConfig, num_gpus: int = 0) -> list[Finding]:
    """Joins the cluster in `RAY_ADDRESS`, asks its nodes, and leaves it.

    Raises:
        ClusterUnreachable: there is none.
    """
    check_cluster()
    import ray

    logging.getLogger("ray").setLevel(logging.WARNING)
    start_ray(num_cpus=1)
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        own = ray.__version__
        found = [
            ok("cluster", f"{cluster_address()}: {len(nodes)} nodes"),
            *check_resources([node["Resources"] for node in nodes], num_gpus, config.denoiser.train.least_workers),
        ]
        return [*found, *judge(_ask_all(config, nodes), own)]
    except StorageUnwritable:
        # The checks of this machine have told it; without the driver's file there is nothing to ask the nodes.
        return [*found, note("nodes", "not asked, since the storage folder cannot be written here", "mend that first")]
    finally:
        stop_ray()


def check_ray_version(here: str, there: str) -> Finding:
    """Client and cluster must have the same major and minor version of Ray."""
    if Version(here).release[:2] != Version(there).release[:2]:
        return problem(
            "ray version", f"{here} here, {there} on the cluster", f"pip install 'ray=={there}' here, or update it"
        )
    return ok("ray version", there)


def check_resources(nodes: Sequence[Mapping[str, float]], num_gpus: int, num_cpus: int) -> Iterator[Finding]:
    """What the cluster has, against what the job asks for."""
    gpus, cpus = (int(sum(node.get(name, 0) for node in nodes)) for name in ("GPU", "CPU"))
    shown = f"{len(nodes)} nodes, {cpus} CPUs, {gpus} GPUs"
    if gpus < num_gpus:
        yield problem("cluster gpus", f"{shown}; wanted {num_gpus} GPUs", "add GPU nodes, or give a smaller --gpus")
    if cpus < num_cpus and gpus < num_cpus:
        yield problem(
            "cluster cpus", f"{shown}; wanted {num_cpus} workers", "add nodes, or --set denoiser.train.num_workers=N"
        )
    if gpus >= num_gpus and max(cpus, gpus) >= num_cpus:
        yield ok("cluster resources", shown)


def judge(reports: Sequence[tuple[NodeReport, float]], ray_version: str) -> Iterator[Finding]:
    """Findings over all nodes; those of the same kind share a line.

    Args:
        reports: of each node, with the driver's clock in the middle of the question.
        ray_version: the driver's.
    """
    first = reports[0][0]
    for report, asked in reports:
        for name in _MUST_AGREE:
            if report.versions.get(name) != first.versions.get(name):
                found = (
                    f"{name} {report.versions.get(name)} on {report.host}, {first.versions.get(name)} on {first.host}"
                )
                yield problem("node versions", found, "give all nodes one image or one environment")
        if report.python != first.python:
            yield problem(
                "node python", f"{report.python} on {report.host}, {first.python} on {first.host}", "one image"
            )
        if not report.sees_file:
            yield problem(
                "shared storage", f"{report.host} does not see it", "mount one folder on all nodes (NFS, a PVC)"
            )
        if report.trouble:
            yield problem(f"node {report.host}", report.trouble, "mend it there")
        if (skew := check_skew(report.host, report.clock - asked)).level != "ok":
            yield skew
    yield ok("nodes asked", ", ".join(f"{report.host} (ray {ray_version})" for report, _ in reports))


def probe(file: str, uri: str) -> NodeReport:
    """Runs on a node."""
    folder, trouble = Path(file).parent, ""
    try:
        check_writable(folder)
        check_tracking(uri)
    except RaverseError as error:
        trouble = str(error)
    return NodeReport(
        socket.gethostname(), platform.python_version(), installed(), time.time(), Path(file).is_file(), trouble
    )


def _ask_all(config: RunConfig, nodes: Sequence[Mapping[str, Any]]) -> list[tuple[NodeReport, float]]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(probe)
    with _marker(config.root_folder) as file:
        reports = []
        for node in nodes:
            where = remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            # The first call starts a worker; the second is short, so its middle is known well.
            ray.get(where.remote(str(file), tracking_uri(config)), timeout=_SECONDS)
            sent = time.time()
            report = ray.get(where.remote(str(file), tracking_uri(config)), timeout=_SECONDS)
            reports.append((report, (sent + time.time()) / 2))
        return reports


@contextlib.contextmanager
def _marker(folder: Path) -> Iterator[Path]:
    """A file that only nodes with the same storage see."""
    check_writable(folder)
    file = folder / f".doctor-{uuid.uuid4().hex}"
    file.write_text("raverse")
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)
