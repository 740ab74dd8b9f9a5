"""A cluster in small, without containers: PostgreSQL, MLflow, a Ray head, two Ray workers, the service.

The parts are those of a real deployment: MLflow is started by the script of the image, the service from a Serve config
file, and the job is `raverse run` with `RAY_ADDRESS`. All of it listens on the loopback interface. `stack/` in the
storage folder has the logs, the passwords and the list of processes.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, final

import httpx
import yaml

from workflows.config.schema import RunConfig
from workflows.deploy.kubernetes import serve_config
from workflows.deploy.secrets import secrets_file
from workflows.deploy.stack.postgres import binaries, start_postgres
from workflows.deploy.stack.processes import Processes, Started, wait_until
from workflows.errors import AddressInUse, ModelNotFound, PreflightFailed, StageFailed
from workflows.package.reference import find_version
from workflows.runtime.preflight import check_writable
from workflows.runtime.progress import Progress
from workflows.runtime.session import DOOR, LOOPBACK_ONLY
from workflows.serve.http.keys import VARIABLE
from workflows.serve.settings import ServeArgs

Preset = Literal["plain", "secure"]

HOST: Final = "127.0.0.1"
RAY_HOST: Final = "LOCALHOST"
"""Ray replaces 127.0.0.1 and localhost in an address by the machine's outer one, where nothing listens; not this."""
NUM_WORKERS: Final = 2
_MLFLOW: Final = Path(__file__).parents[3] / "deploy" / "image" / "mlflow.sh"
_SECONDS: Final = 300.0
_PROBE_SECONDS: Final = 3.0
_RAY: Final = "ray"
_MLFLOW_SECRETS: Final = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


@final
@dataclass(frozen=True)
class Ports:
    """Those that a user types; the others are whatever is free.

    Attributes:
        ray: of Ray's control store, for `RAY_ADDRESS`.
        dashboard: of Ray's dashboard.
        tracking: of MLflow.
    """

    ray: int = 6379
    dashboard: int = 8265
    tracking: int = 5000


@final
class Stack:
    """The stack of a storage folder.

    Args:
        config: what to run, and where the service listens.
        ports: of the rest.
        preset: `secure`: Ray and MLflow ask for passwords, the service for an API key.
    """

    def __init__(self, config: RunConfig, ports: Ports, preset: Preset) -> None:
        self.folder = stack_folder(config)
        self.processes = Processes(self.folder)
        self.ports = ports
        self.address = f"{RAY_HOST}:{ports.ray}"
        self.tracking = f"http://{HOST}:{ports.tracking}"
        self.dashboard = f"http://{HOST}:{ports.dashboard}"
        self.service = f"http://{HOST}:{config.serve.port}"
        self._secure = preset == "secure"
        storage = config.storage.model_copy(update={"tracking_uri": self.tracking})
        serve = config.serve.model_copy(update={"host": HOST})
        self.config = config.model_copy(update={"storage": storage, "serve": serve})

    def start(self, job: list[str], progress: Progress) -> None:
        """Starts everything; runs the job first where the registry has no model yet. Undone if a part fails.

        Args:
            job: the options of `raverse run`.
            progress: told about each part.

        Raises:
            PreflightFailed: PostgreSQL or the checkout is missing, or the stack runs already.
            AddressInUse: another process has a port.
            StageFailed: a part did not start; says why.
        """
        self._check()
        try:
            self._start_parts(progress)
            self._make_model(job, progress)
            self._deploy(progress)
        except BaseException:
            self.processes.stop_all()
            raise

    def environment(self) -> dict[str, str]:
        """What a process needs to work with the stack."""
        secrets = secrets_file(self.folder / "secrets.env")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "RAVERSE_"))}
        # `mlflow`, `ray` and `serve` are those of this environment.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        always = (
            {
                "PATH": path,
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
            }
            | LOOPBACK_ONLY
            | DOOR
        )
        if not self._secure:
            return clean | always | {"RAY_AUTH_MODE": "disabled"}
        asked = {name: secrets[name] for name in (VARIABLE, "RAY_AUTH_TOKEN", *_MLFLOW_SECRETS)}
        return clean | always | {"RAY_AUTH_MODE": "token"} | asked

    def summary(self) -> str:
        """Where the pages are, and how to get in."""
        pages = {"service": self.service, "MLflow": self.tracking, "Ray": self.dashboard}
        lines = [f"{name:8} {url}" for name, url in pages.items()]
        if self._secure:
            key, token = "RAVERSE_API_KEY for the service", "RAY_AUTH_TOKEN for Ray's dashboard"
            lines.append(f"{self.folder / 'secrets.env'} has {key}, {token}, and MLflow's name and password")
        lines.append(f"RAY_ADDRESS={self.address} for jobs of your own")
        return "\n".join([*lines, f"logs     {self.folder}", "`raverse stack stop` ends it"])

    def _check(self) -> None:
        if running := [one.name for one in self.processes.listed() if one.find()]:
            raise PreflightFailed(f"{self.folder}: {', '.join(running)} run already: `raverse stack stop` ends them")
        binaries()
        if not _MLFLOW.is_file():
            raise PreflightFailed(f"no {_MLFLOW}: the stack is started from a checkout of raverse")
        check_writable(self.folder)
        for name, port in (
            ("ray", self.ports.ray),
            ("dashboard", self.ports.dashboard),
            ("mlflow", self.ports.tracking),
        ):
            _check_free(port, f"--{name}-port")
        _check_free(self.config.serve.port, "--set serve.port=")

    def _start_parts(self, progress: Progress) -> None:
        secrets = secrets_file(self.folder / "secrets.env")
        database = _free_port()
        start_postgres(self.processes, database, secrets["POSTGRES_PASSWORD"])
        progress.log(f"PostgreSQL at {HOST}:{database}")
        # MLflow makes its tables while Ray starts.
        mlflow = self._start_mlflow(database, secrets)
        ray = self._start_ray()
        wait_until(lambda: "nodes at" in Path(ray.log).read_text(), ray, _SECONDS)
        wait_until(lambda: _answers(f"{self.dashboard}/api/version"), ray, _SECONDS)
        progress.log(f"Ray at {self.address}, with {NUM_WORKERS} workers; dashboard at {self.dashboard}")
        wait_until(lambda: _answers(f"{self.tracking}/health"), mlflow, _SECONDS)
        progress.log(f"MLflow at {self.tracking}")

    def _start_mlflow(self, database: int, secrets: Mapping[str, str]) -> Started:
        asked = {"POSTGRES_PASSWORD": secrets["POSTGRES_PASSWORD"], "DATABASE_PORT": str(database)}
        place = {"ARTIFACTS": str(self.folder / "artifacts"), "HOST": HOST, "PORT": str(self.ports.tracking)}
        if self._secure:
            asked |= {name: secrets[name] for name in (*_MLFLOW_SECRETS, "MLFLOW_FLASK_SERVER_SECRET_KEY")}
            asked["AUTHENTICATION"] = "basic-auth"
        return self.processes.start("mlflow", [str(_MLFLOW)], self.environment() | asked | place | {"WORKERS": "1"})

    def _start_ray(self) -> Started:
        # Each worker takes at least a training worker and an actor of a data pass.
        cpus = max(2, (os.cpu_count() or 1) // NUM_WORKERS)
        numbers = (self.ports.ray, self.ports.dashboard, NUM_WORKERS, cpus)
        command = [sys.executable, "-m", "workflows.deploy.stack.ray_nodes", *map(str, numbers)]
        return self.processes.start(_RAY, command, self.environment())

    def _make_model(self, job: list[str], progress: Progress) -> None:
        model = ServeArgs.of(self.config).model
        if self._has(model):
            return
        progress.log(f"{model} is not there yet: running the job on the stack")
        storage = [f"storage.root={self.config.root_folder}", f"storage.tracking_uri={self.tracking}"]
        options = [word for pair in (*storage, f"serve.host={HOST}") for word in ("--set", pair)]
        command = [sys.executable, "-m", "workflows.cli", "run", *job, *options]
        address = {"RAY_ADDRESS": self.address}
        if subprocess.run(command, env=self.environment() | address, check=False).returncode != 0:
            raise StageFailed("the job failed; its own message says why")

    def _has(self, model: str) -> bool:
        if self._secure:
            # MLflow's client takes its password from the environment only.
            os.environ.update({name: self.environment()[name] for name in _MLFLOW_SECRETS})
        try:
            find_version(self.tracking, model)
        except ModelNotFound:
            return False
        return True

    def _deploy(self, progress: Progress) -> None:
        file = self.folder / "serve.yaml"
        file.write_text(yaml.safe_dump(serve_on_loopback(self.config, self._secure), sort_keys=False))
        command = ["serve", "deploy", "--address", self.dashboard, str(file)]
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise StageFailed(f"{' '.join(command)} failed: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
        (ray,) = [one for one in self.processes.listed() if one.name == _RAY]
        wait_until(lambda: _answers(f"{self.service}/healthz"), ray, _SECONDS)
        progress.log(f"the service at {self.service}")


def stack_folder(config: RunConfig) -> Path:
    """Logs, passwords, database and the list of processes."""
    return config.root_folder / "stack"


def serve_on_loopback(config: RunConfig, secure: bool) -> dict[str, object]:
    """The Serve config file of a stack: that of the pods, but for its address and who needs a key."""
    made = serve_config(config, num_gpus=0.0)
    args = made["applications"][0]["args"] | {"require_key": "always" if secure else "unless_loopback"}
    applications = [made["applications"][0] | {"args": args}]
    listens = {"host": HOST, "port": config.serve.port}
    # All nodes share one address, so one proxy only.
    return made | {"proxy_location": "HeadOnly", "http_options": listens, "applications": applications}


def _answers(url: str) -> bool:
    """Whether something answers; that it wants a password is an answer."""
    try:
        return httpx.get(url, timeout=_PROBE_SECONDS).status_code in (200, 401, 403)
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])


def _check_free(port: int, option: str) -> None:
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise AddressInUse(
            f"port {port} is taken ({error.strerror}): end what listens there, or give {option}PORT"
        ) from None
