"""A job on somebody's cluster: looked at first, submitted, followed, stopped.

`raverse submit` sends the same line as `ray job submit`, after questions to the dashboard that take seconds. On
the cluster the job begins with `raverse doctor`, so what cannot be seen from here is found there before any work.
"""

from __future__ import annotations

import asyncio
import shlex
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final
from urllib.parse import urlsplit

import httpx
import yaml

from workflows.config.load import builtin_configs
from workflows.config.schema import RunConfig
from workflows.deploy.doctor.auth import ray_headers
from workflows.deploy.doctor.findings import refuse_problems
from workflows.errors import ClusterUnreachable, InvalidConfig, ModelNotFound, PreflightFailed

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_SECONDS: Final = 5.0
_PORTS: Final = {"http": 80, "https": 443}
_RUNTIME_ENV: Final = "deploy/runtime_env.yaml"


@final
class Cluster:
    """A Ray cluster, seen through its dashboard.

    Args:
        address: URL of the dashboard, `http://HOST:8265`.

    Raises:
        ClusterUnreachable: nothing answers there, it is not Ray, or it wants another token.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        _check_address(self.address)
        self.ray_version = str(self._ask("/api/version")["ray_version"])

    def check(self, num_gpus: int, num_cpus: int) -> None:
        """Compares versions, and what the job wants with what there is.

        Raises:
            PreflightFailed: the job cannot run there; says why.
        """
        import ray

        from workflows.deploy.doctor.cluster import check_ray_version, check_resources

        answer = self._ask(
            "/api/v0/nodes?detail=1&limit=10000&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
        )
        nodes = [node["resources_total"] for node in answer["data"]["result"]["result"]]
        refuse_problems(
            [check_ray_version(ray.__version__, self.ray_version), *check_resources(nodes, num_gpus, num_cpus)]
        )

    def client(self) -> JobSubmissionClient:
        """Ray's own client of this cluster."""
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(self.address)

    def _ask(self, path: str) -> Any:
        try:
            answer = httpx.get(f"{self.address}{path}", headers=ray_headers(), timeout=_SECONDS)
        except httpx.HTTPError as error:
            raise ClusterUnreachable(f"{self.address} does not answer as Ray's dashboard ({error})") from None
        if answer.status_code in (401, 403):
            which = "a" if answer.status_code == 401 else "another"
            raise ClusterUnreachable(
                f"{self.address} wants {which} token: set RAY_AUTH_MODE=token "
                "and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's"
            )
        try:
            return answer.raise_for_status().json()
        except (httpx.HTTPError, ValueError):
            raise ClusterUnreachable(
                f"{self.address} is not Ray's dashboard (it answers {answer.status_code} to {path.partition('?')[0]}): "
                "give http://HOST:8265"
            ) from None


def submit(cluster: Cluster, entrypoint: str, runtime_env: dict[str, Any]) -> str:
    """Uploads the working directory and starts the job.

    Returns:
        its id.

    Raises:
        PreflightFailed: the working directory or the runtime environment is refused.
    """
    try:
        return str(cluster.client().submit_job(entrypoint=entrypoint, runtime_env=runtime_env))
    except (RuntimeError, ValueError, TypeError) as error:
        raise PreflightFailed(
            f"the cluster refused the job ({_first_line(error)}): mend the runtime environment"
        ) from error


def follow(cluster: Cluster, job: str, show: Callable[[str], None]) -> int:
    """Shows the log of a job until it ends.

    Returns:
        its exit status: 0, or what its driver left with.

    Raises:
        ModelNotFound: there is no such job.
    """
    client = cluster.client()
    state(cluster, job)
    asyncio.run(_tail(client, job, show))
    info = client.get_job_info(job)
    if str(info.status) == "SUCCEEDED":
        return 0
    show(f"job {job} {str(info.status).lower()}: {info.message}\n")
    return info.driver_exit_code or 1


def state(cluster: Cluster, job: str) -> str:
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.

    Raises:
        ModelNotFound: there is no such job.
    """
    try:
        return str(cluster.client().get_job_info(job).status)
    except RuntimeError:
        raise ModelNotFound(f"{cluster.address} knows no job {job!r}: `ray job list` shows them") from None


def stop(cluster: Cluster, job: str) -> bool:
    """Asks a job to end; False: it had ended already.

    Raises:
        ModelNotFound: there is no such job.
    """
    state(cluster, job)
    return bool(cluster.client().stop_job(job))


def entrypoint(config: str, overrides: Sequence[str], num_gpus: int) -> str:
    """What runs on the cluster: the doctor, then the job."""
    options = " ".join(shlex.quote(word) for word in ("--config", config, *_pairs(overrides)))
    gpus = f" --gpus {num_gpus}" if num_gpus else ""
    return f"python -m workflows.cli doctor {options}{gpus} && python -m workflows.cli run {options}"


def runtime_env(working_dir: Path, file: Path | None) -> dict[str, Any]:
    """What the job brings along.

    Args:
        working_dir: uploaded, less what its `.rayignore` names.
        file: YAML of further fields; default: `deploy/runtime_env.yaml`, where it is.

    Raises:
        InvalidConfig: the file is no YAML mapping.
    """
    place = file or working_dir / _RUNTIME_ENV
    if file is None and not place.is_file():
        return {"working_dir": str(working_dir)}
    try:
        fields = yaml.safe_load(place.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise InvalidConfig(
            f"{place} cannot be used ({_first_line(error)}): give a runtime environment in YAML"
        ) from None
    if not isinstance(fields, dict):
        raise InvalidConfig(f"{place} holds {type(fields).__name__}, wanted the fields of a runtime environment")
    return fields | {"working_dir": str(working_dir)}


def check_travels(config: RunConfig, name_or_file: str, working_dir: Path) -> None:
    """What is written relative to this machine's folders would be lost on the cluster.

    Raises:
        InvalidConfig: the configuration file stays at home, or artifacts would go into the uploaded copy.
    """
    if name_or_file not in builtin_configs() and Path(name_or_file).is_absolute():
        raise InvalidConfig(f"--config {name_or_file} stays on this machine: give a path relative to {working_dir}")
    if name_or_file not in builtin_configs() and not (working_dir / name_or_file).is_file():
        raise InvalidConfig(
            f"--config {name_or_file} is not in {working_dir}, which travels with the job: copy it there"
        )
    if config.root_folder.is_relative_to(working_dir):
        raise InvalidConfig(
            f"storage.root={config.root_folder} is in the folder that travels with the job, and would go away with it: "
            "give --set storage.root=FOLDER that all nodes of the cluster share"
        )


def _check_address(address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ClusterUnreachable(
            f"--address {address}: wanted the URL of Ray's dashboard, such as http://127.0.0.1:8265"
        )
    try:
        port = parts.port or _PORTS[parts.scheme]
        socket.create_connection((parts.hostname, port), timeout=_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ClusterUnreachable(
            f"nothing answers at {address} ({error}): is the cluster up, and its dashboard's port forwarded?"
        ) from None


async def _tail(client: JobSubmissionClient, job: str, show: Callable[[str], None]) -> None:
    async for lines in client.tail_job_logs(job):
        show(lines)


def _pairs(overrides: Sequence[str]) -> list[str]:
    return [word for item in overrides for word in ("--set", item)]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
