"""The stack of this machine: what it starts answers on the loopback interface only, and all of it ends."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from workflows.config.load import load_config
from workflows.deploy.secrets import secrets_file
from workflows.deploy.stack.postgres import binaries
from workflows.deploy.stack.processes import Processes
from workflows.deploy.stack.stack import NUM_WORKERS, Ports, Stack, serve_on_loopback
from workflows.errors import AddressInUse, PreflightFailed
from workflows.runtime.progress import Progress
from workflows.serve.settings import ServeArgs

ROOT = Path(__file__).parents[2]
TINY = {
    "clip.steps": 20,
    "denoiser.train.steps": 10,
    "classifier.train.steps": 10,
    "evaluate.num_prompts": 10,
    "evaluate.num_prompts_per_scale": 10,
    "evaluate.num_steps": 2,
}


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


@pytest.mark.parametrize(("secure", "require"), [(True, "always"), (False, "unless_loopback")])
def test_the_serve_config_is_that_of_the_pods_on_loopback(secure: bool, require: str) -> None:
    config = load_config(
        "shapes", ["serve.port=8123", "serve.max_rows=7", "storage.tracking_uri=http://127.0.0.1:5000"]
    )
    made = ServeDeploySchema.model_validate(serve_on_loopback(config, secure))
    assert (made.http_options.host, made.http_options.port) == ("127.0.0.1", 8123)
    args = ServeArgs.read(made.applications[0].args)
    assert (args.model, args.max_rows, args.require_key) == ("raverse-shapes@champion", 7, require)


def test_a_taken_port_and_a_running_stack_are_told_before_anything_starts(tmp_path: Path) -> None:
    config = load_config("digits", [f"storage.root={tmp_path}"])
    ray, dashboard, tracking, service = free_ports(4)
    config = config.model_copy(update={"serve": config.serve.model_copy(update={"port": service})})
    stack = Stack(config, Ports(ray, dashboard, tracking), "plain")
    with (
        socket.create_server(("127.0.0.1", dashboard)),
        pytest.raises(AddressInUse, match=f"port {dashboard} .*give --dashboard-port"),
    ):
        stack.start([], Progress.silent())
    assert not stack.processes.listed()
    stack.processes.start("mlflow", [sys.executable, "-c", "import time; time.sleep(600)"], os.environ)
    with pytest.raises(PreflightFailed, match="mlflow run already: `raverse stack stop`"):
        stack.start([], Progress.silent())
    assert stack.processes.stop_all() == ["mlflow"]


def test_only_the_secure_preset_hands_out_passwords(tmp_path: Path) -> None:
    config = load_config("digits", [f"storage.root={tmp_path}"])
    plain, secure = (Stack(config, Ports(), preset) for preset in ("plain", "secure"))
    secrets = secrets_file(plain.folder / "secrets.env")
    assert plain.environment()["RAY_AUTH_MODE"] == "disabled"
    assert not set(secrets.values()) & set(plain.environment().values()) - {"admin"}
    found = secure.environment()
    assert (found["RAY_AUTH_MODE"], found["RAY_AUTH_TOKEN"]) == ("token", secrets["RAY_AUTH_TOKEN"])
    assert secrets["RAVERSE_API_KEY"] not in found.values()
    assert secrets["RAVERSE_API_KEY"] not in secure.summary()


@dataclass
class Running:
    """A started stack."""

    root: Path
    ports: list[int]
    preset: str
    said: str = ""
    secrets: dict[str, str] = field(default_factory=dict)

    def command(self, action: str, *options: str) -> subprocess.CompletedProcess[str]:
        values = TINY | {"storage.root": self.root, "serve.port": self.ports[3]}
        words = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return subprocess.run(
            [sys.executable, "-m", "workflows.cli", "stack", action, "--config", "digits", *words, *options],
            cwd=ROOT,
            env=clean | {"HOME": str(self.root)},
            capture_output=True,
            text=True,
            timeout=1500,
        )

    def start(self) -> None:
        names = ("--ray-port", "--dashboard-port", "--mlflow-port")
        options = [word for pair in zip(names, map(str, self.ports), strict=False) for word in pair]
        done = self.command("start", "--preset", self.preset, *options)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        self.said = done.stdout
        self.secrets = secrets_file(self.root / "stack" / "secrets.env")

    def url(self, index: int) -> str:
        return f"http://127.0.0.1:{self.ports[index]}"

    def family(self) -> list[psutil.Process]:
        roots = [one.find() for one in Processes(self.root / "stack").listed()]
        assert None not in roots
        return [one for root in roots if root for one in (root, *root.children(recursive=True))]


@pytest.fixture(params=["plain", "secure"])
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    """The whole stack; the folder may be entered by all, since PostgreSQL runs as another than root."""
    binaries()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        made = Running(Path(folder), free_ports(4), request.param)
        try:
            made.start()
            yield made
        finally:
            made.command("stop")


def get(url: str, **options: Any) -> int:
    return httpx.get(url, timeout=60, follow_redirects=True, **options).status_code


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_stack_answers_and_ends_without_a_trace(running: Running) -> None:
    family = running.family()
    names = [one.name for one in Processes(running.root / "stack").listed()]
    assert names == ["postgres", "mlflow", "ray"]
    assert sum("raylet/raylet" in " ".join(one.cmdline()) for one in family) == 1 + NUM_WORKERS
    # Ray 2.60 binds the port by which a replica is reached from another to every interface.
    inside = [one for one in family if not one.name().startswith("ray::ServeRep")]
    bound = {one.laddr.ip for process in inside for one in listeners(process)}
    assert bound <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, bound

    secure = running.preset == "secure"
    key = {"Authorization": f"Bearer {running.secrets['RAVERSE_API_KEY']}"}
    token = {"Authorization": f"Bearer {running.secrets['RAY_AUTH_TOKEN']}"}
    name, password = (running.secrets[f"MLFLOW_TRACKING_{word}"] for word in ("USERNAME", "PASSWORD"))
    ray, mlflow = f"{running.url(1)}/api/version", f"{running.url(2)}/api/2.0/mlflow/registered-models/search"
    assert get(ray) == (401 if secure else 200)
    assert get(mlflow) == (401 if secure else 200)
    assert get(mlflow, auth=(name, "password1234")) == (401 if secure else 200)
    assert get(ray, headers=token) == get(mlflow, auth=(name, password)) == 200
    assert "raverse-digits" in httpx.get(mlflow, auth=(name, password)).text

    ask = {"prompt": "a handwritten seven", "num_inference_steps": 2}
    images = f"{running.url(3)}/v1/images/generations"
    assert httpx.post(images, json=ask, timeout=120).status_code == (401 if secure else 200)
    answer = httpx.post(images, json=ask, headers=key, timeout=120)
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["b64_json"]
    assert yaml.safe_load((running.root / "stack" / "serve.yaml").read_text())["proxy_location"] == "HeadOnly"

    family = running.family()
    done = running.command("stop")
    assert re.search("ended ray, mlflow, postgres", done.stdout), done.stdout
    left = [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert not left
    assert "nothing was running" in running.command("stop").stdout
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(running.root) in str(process.info)]


def listeners(process: psutil.Process) -> list[Any]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [one for one in process.net_connections(kind="tcp") if one.status == psutil.CONN_LISTEN]
    return []
