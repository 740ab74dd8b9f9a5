"""The lines of deploy/README.md, run on a cluster on this machine: the submitted job, then the service."""

from __future__ import annotations

import base64
import io
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from PIL import Image

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TOKEN = "a-token-for-tests"
TINY = {
    "clip.steps": 20,
    "clip.num_workers": 1,
    "denoiser.train.steps": 10,
    "denoiser.train.num_workers": 1,
    "classifier.train.steps": 10,
    "classifier.train.num_workers": 1,
    "evaluate.num_prompts": 10,
    "evaluate.num_prompts_per_scale": 10,
    "evaluate.num_steps": 2,
}


@dataclass(frozen=True)
class Cluster:
    """A running head node."""

    address: str
    dashboard: str
    environment: dict[str, str]

    def run(self, words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs one of this environment's programs from the checkout."""
        program, *rest = words
        command = [str(BIN / program), *rest]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=800, **options
        )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """`ray start --head`, in the foreground so that it ends with the test."""
    port, dashboard, agent = free_port(), free_port(), free_port()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = inherited | {
        "HOME": str(tmp_path_factory.mktemp("home")),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
    }
    options = f"--head --block --num-cpus=2 --port={port} --ray-client-server-port={free_port()}"
    options += f" --dashboard-agent-listen-port={agent} --metrics-export-port={free_port()}"
    options += f" --dashboard-host=127.0.0.1 --dashboard-port={dashboard} --disable-usage-stats"
    log = tmp_path_factory.mktemp("cluster") / "head.log"
    with log.open("w") as output:
        head = subprocess.Popen(
            [str(BIN / "ray"), "start", *options.split()], env=environment, stdout=output, stderr=output
        )
    try:
        url = f"http://127.0.0.1:{dashboard}"
        wait_for_answer(f"{url}/api/version", head, log)
        wait_for_answer(f"http://127.0.0.1:{agent}/api/local_raylet_healthz", head, log)
        yield Cluster(f"127.0.0.1:{port}", url, environment)
    finally:
        head.terminate()
        head.wait(timeout=60)


def wait_for_answer(url: str, head: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(900):
        assert head.poll() is None, log.read_text()
        try:
            if httpx.get(url, timeout=5, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    pytest.fail(f"no answer from {url}: {log.read_text()}")


def documented(program: str) -> list[str]:
    """The line of deploy/README.md that starts with this program."""
    text = (ROOT / "deploy" / "README.md").read_text().replace("\\\n", " ")
    (line,) = re.findall(rf"^{program} .*$", text, re.MULTILINE)
    return shlex.split(line)


@pytest.fixture(scope="module")
def storage(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job of the page, at a tiny size; its storage."""
    root = tmp_path_factory.mktemp("shared")
    places = {"http://127.0.0.1:8265": cluster.dashboard, "storage.root=/shared/raverse": f"storage.root={root}"}
    words = [places.get(word, word) for word in documented("ray job submit")]
    assert set(places.values()) <= set(words)
    sizes = [
        word for key, value in (TINY | {"serve.port": free_port()}).items() for word in ("--set", f"{key}={value}")
    ]
    done = cluster.run([*words, *sizes])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "serve-check: done" in done.stdout
    return root


def test_the_submitted_job_leaves_its_report_and_ran_on_the_cluster(storage: Path, cluster: Cluster) -> None:
    assert (storage / "digits" / "report.json").is_file()
    assert (storage / "digits" / "samples.png").is_file()
    assert (
        f"Connecting to existing Ray cluster at address: {cluster.address}"
        in (storage / "digits" / "ray.log").read_text()
    )


def test_a_second_submission_from_a_node_skips_everything(storage: Path, cluster: Cluster) -> None:
    sizes = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    words = ["raverse", "embed", "--config", "digits", "--set", f"storage.root={storage}", *sizes]
    done = cluster.run(words)
    assert done.returncode == 0, done.stderr
    assert "embed: already done, skipped" in done.stdout


def submit(cluster: Cluster, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "raverse"), "submit", "--address", cluster.dashboard, "--config", "digits", *options]
    return subprocess.run(
        command, cwd=ROOT, env=cluster.environment | environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_submit_looks_at_the_cluster_runs_the_job_and_ends_as_it_does(storage: Path, cluster: Cluster) -> None:
    sizes = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    done = submit(cluster, "--set", f"storage.root={storage}", *sizes, "--set", f"serve.port={free_port()}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "nodes asked" in done.stdout, "the doctor runs on the cluster first"
    assert "skipped" in done.stdout
    (job,) = re.findall(r"--stop (\S+)`", done.stderr)
    assert submit(cluster, "--status", job).stdout == "SUCCEEDED\n"
    assert submit(cluster, "--stop", job).stdout == "it had ended already\n"
    assert "nodes asked" in submit(cluster, "--logs", job).stdout


@pytest.mark.slow
def test_a_job_that_fails_on_the_cluster_fails_here(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    done = submit(cluster, "--set", f"storage.root={tmp_path}/file")
    assert done.returncode == 1
    assert "PROBLEM" in done.stdout
    assert "or give --set storage.root=FOLDER\n" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "environment", "parts"),
    [
        (("--gpus", "2"), {}, ("0 GPUs; wanted 2 GPUs", "add GPU nodes")),
        (("--set", "denoiser.train.num_workers=64"), {}, ("wanted 64 workers",)),
        ((), {"RAY_AUTH_TOKEN": "wrong"}, ("wants another token", "RAY_AUTH_TOKEN")),
        ((), {"RAY_AUTH_MODE": "disabled"}, ("wants a token",)),
        (("--status", "raysubmit_none"), {}, ("knows no job", "ray job list")),
    ],
)
def test_what_would_fail_later_is_told_now(
    cluster: Cluster, options: tuple[str, ...], environment: dict[str, str], parts: tuple[str, ...]
) -> None:
    done = submit(cluster, "--set", "storage.root=/nowhere/shared", *options, **environment)
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("raverse: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def test_the_config_file_serves_what_the_job_registered(storage: Path, cluster: Cluster, tmp_path: Path) -> None:
    port = free_port()
    config = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text())
    config["http_options"]["port"] = port
    config["applications"][0]["args"]["tracking_uri"] = f"sqlite:///{storage}/mlflow.db"
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    program, deploy, file = documented("serve deploy")
    assert file == "deploy/serve.yaml"
    done = cluster.run([program, deploy, "--address", cluster.dashboard, str(tmp_path / "serve.yaml")])
    assert done.returncode == 0, done.stderr
    answer = ask(f"http://127.0.0.1:{port}", {"prompt": "a handwritten seven", "num_inference_steps": 2})
    picture = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
    assert picture.size == (8, 8)
    assert answer["settings"]["version"] == "1"
    assert cluster.run(["serve", "shutdown", "--address", cluster.dashboard, "-y"]).returncode == 0


def ask(url: str, body: dict[str, Any]) -> Any:
    """The answer to a request, once the application is up."""
    for _ in range(300):
        try:
            if httpx.get(f"{url}/healthz", timeout=5).status_code == 200:
                break
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    answer = httpx.post(f"{url}/v1/images/generations", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()
