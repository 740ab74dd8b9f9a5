"""The Ray session of a job: an embedded one, or the cluster that `RAY_ADDRESS` names.

`RAY_ADDRESS` alone decides, and `ray job submit` sets it. A Ray that happens to run on the machine is
never joined by accident. An embedded session listens on loopback only and ends with the job.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from workflows.config.schema import RunConfig
from workflows.errors import ClusterUnreachable
from workflows.runtime.log_file import bounded

_PROBE_SECONDS: Final = 3.0
_HEALTH_SECONDS: Final = 15.0
_LONGEST_REASON: Final = 160

# Read by the daemons and workers that inherit the driver's environment, or passed on by Ray Train.
_ENVIRONMENT: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TQDM": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DEDUP_LOGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

# The name is historical: off means that every port of an embedded Ray is bound to 127.0.0.1 only, on Linux too
# (`ray.init` takes `_node_ip_address="127.0.0.1"` back). Ray reads it when it is imported.
LOOPBACK_ONLY: Final = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


# Ray Serve's proxy loads the service's door, where a burst is refused. A cluster of one's own sets it for its nodes.
DOOR: Final = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "workflows.serve.http.door:middleware"}


def set_environment() -> None:
    """Sets the variables that Ray, its workers and MLflow read; what the user has set stays.

    To be called before Ray is imported.
    """
    embedded = cluster_address() is None
    for name, value in (_ENVIRONMENT | (LOOPBACK_ONLY | DOOR if embedded else {})).items():
        os.environ.setdefault(name, value)


def cluster_address() -> str | None:
    """The address in `RAY_ADDRESS`, or None for an embedded session.

    Raises:
        ClusterUnreachable: an address that a driver cannot join.
    """
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if not address or address == "local":
        return None
    if "://" in address:
        raise ClusterUnreachable(
            f"RAY_ADDRESS={address} is the address of Ray's dashboard or client server: give HOST:PORT of the "
            f"cluster's head (`ray start --head` prints it), or submit the job with `ray job submit`"
        )
    return address


def check_cluster() -> None:
    """Fails within seconds when `RAY_ADDRESS` names no living cluster.

    Raises:
        ClusterUnreachable: nothing, or something that is not Ray, answers there.
    """
    address = cluster_address()
    if address is None:
        return
    if address != "auto":
        _check_port(address)
    _check_health(address)


@contextlib.contextmanager
def ray_session(config: RunConfig, metrics_port: int | None = None) -> Iterator[None]:
    """Ray for the length of the block; its chatter goes to `ray.log` in the run folder.

    Args:
        config: of the job.
        metrics_port: port of an embedded Ray's metrics; None: any that is free.

    Raises:
        ClusterUnreachable: `RAY_ADDRESS` names no living cluster.
    """
    check_cluster()
    config.run_folder.mkdir(parents=True, exist_ok=True)
    log_file = config.run_folder / "ray.log"
    with _output_to(log_file), bounded(log_file):
        start_ray(num_cpus=max(os.cpu_count() or 1, config.most_workers), metrics_port=metrics_port)
        try:
            yield
        finally:
            _stop_undisturbed()


def start_ray(num_cpus: int, metrics_port: int | None = None) -> None:
    """Starts an embedded Ray with this many CPUs, or joins the cluster in `RAY_ADDRESS`."""
    set_environment()
    import ray

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    address = cluster_address()
    if address is not None:
        ray.init(address=address)
    else:
        ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, _metrics_export_port=metrics_port)
    # Ray answers SIGTERM with an exit of its own; ours leaves the finished stages in order.
    for number, handler in handlers.items():
        signal.signal(number, handler)


def stop_ray() -> None:
    """Ends the session: an embedded Ray's processes are gone when it returns."""
    import ray

    ray.shutdown()


def _stop_undisturbed() -> None:
    """A second Ctrl-C must not stop the stopping, which takes about two seconds."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop_ray()
    finally:
        signal.signal(signal.SIGINT, handler)


def _check_port(address: str) -> None:
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit():
        raise ClusterUnreachable(f"RAY_ADDRESS={address}: wanted HOST:PORT, or unset it for an embedded Ray")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterUnreachable(_unreachable(address, str(error))) from None


def _check_health(address: str) -> None:
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_HEALTH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ClusterUnreachable(_unreachable(address, f"no answer within {_HEALTH_SECONDS:.0f} s")) from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["it is not healthy"]
        raise ClusterUnreachable(_unreachable(address, lines[-1][:_LONGEST_REASON]))


def _unreachable(address: str, why: str) -> str:
    return f"no Ray cluster at RAY_ADDRESS={address} ({why}): start it, or unset RAY_ADDRESS for an embedded Ray"


@contextlib.contextmanager
def _output_to(log_file: Path) -> Iterator[None]:
    """Sends file descriptors 1 and 2 to a file: Ray's C++ and its log printers write there directly."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log_file.open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)
