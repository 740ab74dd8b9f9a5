"""`raverse serve` as a user meets it: a process, two lines to copy, and Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import yaml
from PIL import Image
from ray import serve
from typer.testing import CliRunner

from workflows.cli import job
from workflows.cli.app import app
from workflows.config.schema import RunConfig


@pytest.fixture
def config_file(tiny_config: RunConfig, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_config.model_dump(mode="json", by_alias=True)))
    return path


@pytest.fixture
def environment(ray_session: None) -> dict[str, str]:
    return os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


@pytest.fixture
def serving(config_file: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "workflows.cli", "serve", "--config", str(config_file)]
    with subprocess.Popen(
        command, cwd=config_file.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        yield process
        process.kill()


def test_it_prints_a_command_that_draws_and_ends_on_ctrl_c(
    serving: subprocess.Popen[str], tiny_config: RunConfig, tmp_path: Path
) -> None:
    assert serving.stdout is not None
    url = f"http://127.0.0.1:{tiny_config.serve.port}"
    lines: list[str] = []
    while not lines or not lines[-1].startswith("curl"):
        lines.append(serving.stdout.readline().strip())
    assert re.fullmatch(r"starting Ray; its log is .*ray\.log", lines[0])
    assert lines[1] == "loading tiny version 1 into 1 sampler(s)"
    assert all(line.startswith("starting since") for line in lines[2:-4])
    assert lines[-4] == f"serving tiny version 1 at {url} until Ctrl-C"
    assert re.fullmatch(rf"page: {url}/ +reference: {url}/docs +log: .*", lines[-3])
    assert lines[-2] == "a picture from it:"
    subprocess.run(["bash", "-c", lines[-1]], cwd=tmp_path, timeout=60, check=True)
    assert Image.open(tmp_path / "picture.png").size == (8, 8)
    serving.send_signal(signal.SIGINT)
    rest, _ = serving.communicate(timeout=60)
    assert (serving.returncode, rest) == (0, "stopping\n")
    assert not serve.status().proxies


def test_an_unknown_model_is_one_sentence(
    config_file: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told before Ray is started."""
    monkeypatch.setattr(job, "ray_session", lambda *_, **__: pytest.fail("Ray was started"))
    done = CliRunner().invoke(app, ["serve", "--config", str(config_file), "--model", "tiny@nobody"])
    assert done.exit_code == 1
    assert re.fullmatch(r"raverse: no model 'tiny@nobody' in sqlite:.*\n", done.stderr), done.stderr
    assert not serve.status().proxies
