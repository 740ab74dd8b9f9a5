"""Started processes are found again and ended, others never; a real PostgreSQL among them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.tools import need
from workflows.deploy.stack import postgres
from workflows.deploy.stack.postgres import binaries, start_postgres
from workflows.deploy.stack.processes import Processes, wait_until
from workflows.errors import PreflightFailed, StageFailed

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
# Becomes a parent whose child ignores the request to end.
STUBBORN = """
import signal, subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child])
time.sleep(600)
"""


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Of a folder that every user may enter, since PostgreSQL runs as another than root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    made = Processes(folder)
    yield made
    made.stop_all()
    shutil.rmtree(folder)


def test_another_object_finds_and_ends_them_last_first(processes: Processes) -> None:
    started = [processes.start(name, SLEEP, os.environ) for name in ("one", "two")]
    again = Processes(processes.folder)
    assert again.listed() == started
    assert again.stop_all() == ["two", "one"]
    assert not any(one.find() for one in started)
    assert again.listed() == []
    assert again.stop_all() == []


def test_a_child_that_will_not_end_is_ended(processes: Processes) -> None:
    started = processes.start("parent", [sys.executable, "-c", STUBBORN], os.environ)
    wait_until(lambda: "up" in Path(started.log).read_text(), started, 20)
    (child,) = psutil.Process(started.pid).children()
    assert processes.stop_all() == ["parent"]
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_number_that_is_now_another_process_is_left_alone(processes: Processes) -> None:
    with subprocess.Popen(SLEEP) as other:
        started = processes.start("one", SLEEP, os.environ)
        file = processes.folder / "processes.json"
        (fields,) = json.loads(file.read_text())
        file.write_text(json.dumps([fields, fields | {"name": "old", "pid": other.pid, "began": started.began - 60}]))
        assert processes.stop_all() == ["one"]
        assert other.poll() is None
        other.kill()


def test_one_that_ends_at_once_is_told_with_its_last_words(processes: Processes) -> None:
    started = processes.start("one", [sys.executable, "-c", "print('no room'); raise SystemExit(3)"], os.environ)
    with pytest.raises(StageFailed, match=r"one has ended: .*no room"):
        wait_until(lambda: False, started, 20)
    alive = processes.start("two", SLEEP, os.environ)
    with pytest.raises(StageFailed, match="two is not ready after 0 s"):
        wait_until(lambda: False, alive, 0.0)
    assert replace(alive, began=alive.began - 60).find() is None


def test_without_postgresql_its_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_DEBIAN", tmp_path)
    with pytest.raises(PreflightFailed, match="apt-get install postgresql"):
        binaries(path=str(tmp_path))


def postgres_programs() -> Path:
    try:
        found = binaries()
    except PreflightFailed:
        found = None
    return need(found, "PostgreSQL", "apt-get install postgresql", in_ci=False)


def test_postgresql_keeps_its_data_and_asks_for_its_password(processes: Processes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    programs = postgres_programs()

    def query(text: str, password: str = "right") -> subprocess.CompletedProcess[str]:
        command = [str(programs / "psql"), "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "-tAc", text, "mlflow"]
        return subprocess.run(command, env=os.environ | {"PGPASSWORD": password}, capture_output=True, text=True)

    started = start_postgres(processes, port, "right")
    assert query("create table kept as select 7 as number").returncode == 0
    assert query("select 1", "wrong").returncode != 0
    listens = [one.laddr.ip for one in psutil.Process(started.pid).net_connections() if one.status == "LISTEN"]
    assert listens == ["127.0.0.1"]
    assert processes.stop_all() == ["postgres"]
    start_postgres(processes, port, "right")
    assert query("select number from kept").stdout == "7\n"
    assert not (processes.folder / "postgres" / "password").exists()
