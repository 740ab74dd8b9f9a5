"""Checks of one machine: its GPUs, open ports, authentication and disks; and all checks of it, in order."""

from __future__ import annotations

import ipaddress
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import psutil

from workflows.config.schema import RunConfig
from workflows.deploy.doctor.auth import ray_token
from workflows.deploy.doctor.findings import Finding, note, ok, problem
from workflows.deploy.doctor.stores import check_storage, check_tracking_server
from workflows.deploy.doctor.versions import check_pairing, check_versions, installed
from workflows.tracking.store import tracking_uri

_PORTS: Final = {
    6379: "Ray's control store",
    8265: "Ray's dashboard",
    10001: "Ray's client server",
    52365: "Ray's dashboard agent",
    5000: "MLflow",
}
_LEAST_FREE: Final = 5 * 2**30
_LEAST_SHARED: Final = 256 * 2**20


def check_machine(config: RunConfig, num_gpus: int = 0) -> list[Finding]:
    """Everything that can be said of this machine; imports torch, not Ray."""
    return [
        *check_versions(installed()),
        check_pairing(installed()),
        check_gpus(num_gpus),
        *check_bindings(listening(), config),
        *check_authentication(config, os.environ),
        *check_disk({"storage.root": config.root_folder, "temporary files": Path(tempfile.gettempdir())}),
        *check_storage(config),
        *check_tracking_server(tracking_uri(config)),
    ]


def check_gpus(wanted: int) -> Finding:
    """GPUs that torch can use, and those that it should."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    driver = shutil.which("nvidia-smi") is not None
    if driver and not count:
        return problem(
            "gpus", f"a driver is there, torch {torch.__version__} sees no GPU", "install torch for its CUDA"
        )
    if count < wanted:
        return problem("gpus", f"{count}, wanted {wanted}", "choose a machine with GPUs, or leave --gpus out")
    return ok("gpus", ", ".join(torch.cuda.get_device_name(index) for index in range(count)) or "none, none wanted")


def listening() -> list[tuple[str, int]]:
    """Addresses and ports on which this machine listens (those of other users may stay hidden)."""
    connections = psutil.net_connections(kind="tcp")
    bound = {one.laddr for one in connections if one.status == psutil.CONN_LISTEN and one.laddr}
    return sorted((str(host), int(port)) for host, port in bound)


def check_bindings(bound: Iterable[tuple[str, int]], config: RunConfig) -> list[Finding]:
    """Known services that other machines can reach."""
    ports = _PORTS | {config.serve.port: "the service"}
    open_ones = [(host, port) for host, port in bound if port in ports and not ipaddress.ip_address(host).is_loopback]
    found = [
        note(
            "ports",
            f"{ports[port]} listens on {host}:{port}",
            "bind it to 127.0.0.1, or let a firewall and a password guard it",
        )
        for host, port in open_ones
    ]
    return found or [ok("ports", "Ray, MLflow and the service are reached from this machine only")]


def check_authentication(config: RunConfig, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Passwords and keys: whether they are asked for."""
    token = ray_token(environment)
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    if mode == "token" and not token:
        yield problem(
            "ray token", "RAY_AUTH_MODE=token, but no token", "`ray get-auth-token --generate`, or set RAY_AUTH_TOKEN"
        )
    elif mode == "disabled" or not token:
        yield note("ray token", "off: who reaches Ray's ports runs code", "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN")
    else:
        yield ok("ray token", "a token is there")
    loopback = config.serve.host in ("127.0.0.1", "localhost", "::1")
    if config.serve.api_keys_file or environment.get("RAVERSE_API_KEYS"):
        yield ok("api keys", "asked for")
    elif loopback:
        yield ok("api keys", "none; the service answers this machine only")
    else:
        yield problem(
            "api keys", f"none, and serve.host={config.serve.host}", "`raverse api-key NAME`, serve.api_keys_file"
        )


def check_disk(folders: Mapping[str, Path]) -> Iterator[Finding]:
    """Free space on disk and in shared memory."""
    for name, folder in folders.items():
        free = shutil.disk_usage(_existing(folder)).free
        found = f"{free / 2**30:.1f} GiB free at {folder}"
        yield ok(f"disk: {name}", found) if free >= _LEAST_FREE else note(f"disk: {name}", found, "make room there")
    shared = Path("/dev/shm")  # noqa: S108 - measured only
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        found = f"{free / 2**30:.1f} GiB free"
        few = free < _LEAST_SHARED
        yield (
            note("shared memory", found, "docker run --shm-size, or a tmpfs volume")
            if few
            else ok("shared memory", found)
        )


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())
