"""Three hosts, of which one is cut off: training ends as if nothing had been, and no accepted request is lost."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy.hosts import Hosts, allowed, three_hosts
from tests.tools import need
from workflows.train.losslog import read_losses

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]

STEPS = 400
JOB = {
    "clip.steps": 20,
    "denoiser.train.steps": STEPS,
    "denoiser.train.num_workers": 2,
    "denoiser.train.checkpoint_every": 50,
    "denoiser.train.log_every": 10,
    "classifier.train.steps": 10,
    "evaluate.num_prompts": 10,
    "evaluate.num_prompts_per_scale": 10,
    "evaluate.num_steps": 2,
}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    need(allowed() or None, "the right to `ip netns add`", "run as root, with iproute2")
    with three_hosts(tmp_path_factory.mktemp("hosts")) as made:
        yield made


def options(root: Path) -> list[str]:
    return [word for key, value in (JOB | {"storage.root": root}).items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def storage(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole job with nothing cut."""
    root = tmp_path_factory.mktemp("whole")
    done = hosts.run(1, ["python", "-m", "workflows.cli", "run", "--config", "digits", *options(root)])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root


def weights(root: Path) -> dict[str, str]:
    files = (root / "artifacts" / "denoiser").rglob("*.safetensors")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.parent.name == "bundle"}


def wait_for_step(process: subprocess.Popen[bytes], root: Path, step: int, log: Path) -> None:
    give_up = time.monotonic() + 300
    while True:
        rows = [row for file in (root / "artifacts" / "denoiser").rglob("losses.csv") for row in read_losses(file)]
        if rows and rows[-1]["step"] >= step:
            return
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < give_up, log.read_text()[-3000:]
        time.sleep(0.1)


def test_training_goes_on_without_the_host_and_ends_the_same(hosts: Hosts, storage: Path, tmp_path: Path) -> None:
    shutil.copytree(storage, tmp_path / "cut", ignore=shutil.ignore_patterns(".lock"))
    shutil.rmtree(tmp_path / "cut" / "artifacts" / "denoiser")
    words = ["python", "-m", "workflows.cli", "denoiser", "--config", "digits", *options(tmp_path / "cut")]
    log = tmp_path / "log"
    process = hosts.popen(1, words, log)
    wait_for_step(process, tmp_path / "cut", 120, log)
    training = hosts.with_process("TrainWorker")
    assert len(training) == 2, "the workers are on different hosts"
    lost = max(training)
    hosts.cut(lost)
    try:
        assert process.wait(timeout=600) == 0, log.read_text()[-3000:]
        assert weights(tmp_path / "cut") == weights(storage) != {}
    finally:
        hosts.end(lost)
        hosts.mend(lost)
        hosts.start(lost)


def ask(hosts: Hosts, count: int, steps: int, log: Path) -> subprocess.Popen[bytes]:
    program = Path(__file__).parent / "programs" / "ask.py"
    return hosts.popen(1, ["python", str(program), "http://127.0.0.1:8000", str(count), str(steps)], log)


def test_no_accepted_request_is_lost_with_a_host(hosts: Hosts, storage: Path, tmp_path: Path) -> None:
    config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": 8000},
        "applications": [
            {
                "name": "raverse",
                "route_prefix": "/",
                "import_path": "workflows.serve.app:build",
                "args": {
                    "model": "raverse-digits@champion",
                    "tracking_uri": f"sqlite:///{storage}/mlflow.db",
                    "min_replicas": 2,
                    "max_replicas": 2,
                    "keep_seconds": 0.1,
                },
            }
        ],
    }
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    done = hosts.run(1, ["serve", "deploy", "--address", "http://127.0.0.1:8265", str(tmp_path / "serve.yaml")])
    assert done.returncode == 0, done.stderr
    wait_for = [str(Path(__file__).parent / "programs" / "wait_for.py"), "http://127.0.0.1:8000/healthz"]
    assert hosts.run(1, ["timeout", "240", "python", *wait_for]).returncode == 0
    samplers, front = (
        hosts.with_process("ServeReplica:raverse:sampler"),
        hosts.with_process("ServeReplica:raverse:ingress"),
    )
    assert len(samplers) == 2
    assert ask(hosts, 24, 300, tmp_path / "calm").wait(timeout=300) == 0, (tmp_path / "calm").read_text()
    process = ask(hosts, 24, 300, tmp_path / "cut")
    time.sleep(2.0)
    assert process.poll() is None
    # The front keeps the requests: without it there is nobody to answer. It moves with the head's host.
    (lost, *_) = sorted(samplers - front - {1})
    hosts.cut(lost)
    assert process.wait(timeout=400) == 0, (tmp_path / "cut").read_text()
    calm, cut = (json.loads((tmp_path / name).read_text().splitlines()[-1]) for name in ("calm", "cut"))
    assert {status for status, _ in calm + cut} == {200}
    assert calm == cut
