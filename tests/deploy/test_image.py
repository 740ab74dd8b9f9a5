"""The image without a container engine: its file is linted, and its steps, which are scripts, are run."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "deploy" / "image"
BIN = Path(sys.executable).parent
TEXT = (IMAGE / "Dockerfile").read_text()
STEPS = " ".join(re.sub(r"^\s*#.*\n", "", TEXT, flags=re.MULTILINE).replace("\\\n", " ").split("\n"))


def hadolint(file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(BIN / "hadolint"), "--no-color", str(file)], capture_output=True, text=True)


def test_the_linter_finds_nothing(tmp_path: Path) -> None:
    done = hadolint(IMAGE / "Dockerfile")
    assert done.returncode == 0, done.stdout
    (tmp_path / "Dockerfile").write_text(TEXT.replace("USER 1000", "USER root"))
    assert hadolint(tmp_path / "Dockerfile").returncode != 0


def test_the_last_word_on_the_user_is_not_root() -> None:
    stages = re.split(r"^FROM ", TEXT, flags=re.MULTILINE)[1:]
    named = {re.search(r"^\S+ AS (\S+)", stage)[1]: stage for stage in stages}  # type: ignore[index]
    for target in ("cpu", "cuda"):
        users: list[str] = []
        stage: str | None = target
        while stage in named:
            users = re.findall(r"^USER (\S+)", named[stage], re.MULTILINE) + users
            stage = named[stage].split(" AS ")[0]
        assert users[-1] == "1000"
        assert f"COPY --from={target}-packages" in named[target]


def test_scripts_that_the_files_name_are_there_and_parse() -> None:
    pods = "".join(file.read_text() for file in (ROOT / "deploy" / "kubernetes").rglob("*.yaml"))
    named = set(re.findall(r"deploy/image/(\w+\.sh)", TEXT + pods))
    assert named == {file.name for file in IMAGE.glob("*.sh")} == {"check.sh", "health.sh", "install.sh", "mlflow.sh"}
    for name in named:
        assert os.access(IMAGE / name, os.X_OK)
        assert subprocess.run(["bash", "-n", str(IMAGE / name)]).returncode == 0


def test_what_travels_is_named_and_passwords_are_not() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert lines[-1] == "**/secrets.env"
    for name in (line.removeprefix("!") for line in lines if line.startswith("!")):
        assert (ROOT / name).exists()


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1), (None, 1)])
def test_health_is_that_of_the_service(status: int | None, expected: int) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status or 0)
            self.end_headers()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_port if status else 1
        environment = os.environ | {"HEALTH_URL": f"http://127.0.0.1:{port}/healthz"}
        assert subprocess.run([str(IMAGE / "health.sh")], env=environment).returncode == expected
        server.shutdown()


def test_the_image_asks_for_the_health_of_the_port_that_it_serves() -> None:
    assert "HEALTHCHECK" in STEPS
    assert "http://127.0.0.1:8000/healthz" in (IMAGE / "health.sh").read_text()
    assert "EXPOSE 8000" in STEPS


def test_mlflow_does_not_start_without_its_passwords() -> None:
    clean = {"PATH": os.environ["PATH"]}
    done = subprocess.run([str(IMAGE / "mlflow.sh")], env=clean, capture_output=True, text=True)
    assert done.returncode != 0
    assert "POSTGRES_PASSWORD: is not set" in done.stderr
    given = clean | {"POSTGRES_PASSWORD": "x", "ARTIFACTS": "/nowhere", "AUTHENTICATION": "basic-auth"}
    done = subprocess.run([str(IMAGE / "mlflow.sh")], env=given, capture_output=True, text=True)
    assert "MLFLOW_TRACKING_USERNAME: is not set" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_fresh_installation_fits_together_and_a_spoilt_one_does_not(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for name in ("deploy", "diffusion_core", "workflows"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("constraints.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout / name)
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    place = tmp_path / "environment"
    # As in the image: a python3 that is not an environment's.
    clean["PATH"] = f"{Path(sys.base_prefix) / 'bin'}:/usr/local/bin:/usr/bin:/bin"

    def run(name: str) -> subprocess.CompletedProcess[str]:
        script = checkout / "deploy" / "image" / name
        return subprocess.run([str(script), str(place)], env=clean, cwd=tmp_path, capture_output=True, text=True)

    installed = run("install.sh")
    assert installed.returncode == 0, installed.stderr[-3000:]
    checked = run("check.sh")
    assert checked.returncode == 0, checked.stdout[-3000:] + checked.stderr[-3000:]
    assert "0 problems" in checked.stdout
    subprocess.run([str(place / "bin" / "python"), "-m", "pip", "uninstall", "--yes", "--quiet", "mmh3", "torchvision"])
    assert run("check.sh").returncode != 0
