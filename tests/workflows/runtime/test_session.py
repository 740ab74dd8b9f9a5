"""The Ray session around a job: in processes of their own, since it starts and ends Ray."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from workflows.errors import ClusterUnreachable, InvalidData
from workflows.runtime import session
from workflows.runtime.failure import explain

TOY_JOB = Path(__file__).parents[1] / "programs" / "toy_job.py"
PATIENCE_SECONDS = 120.0


def start_toy(kind: str, folder: Path) -> subprocess.Popen[str]:
    """Starts `raverse run` with the toy stages, its token in a home of its own."""
    clean = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    source = str(Path(session.__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, str(TOY_JOB), kind, "run", "--config", "digits"],
        cwd=folder,
        env=clean | {"HOME": str(folder), "PYTHONPATH": source},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"still waiting for {what}"
        time.sleep(0.1)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Everything that the process started, Ray's daemons and workers included."""
    return psutil.Process(process.pid).children(recursive=True)


def living(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; a zombie whose parent has not looked is gone."""
    return [one for one in processes if one.is_running() and not _is_zombie(one)]


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.ray
def test_a_job_keeps_its_output_clean_listens_on_loopback_and_leaves_nothing(tmp_path: Path) -> None:
    job = start_toy("finish", tmp_path)
    started: dict[int, psutil.Process] = {}
    names: set[str] = set()
    addresses: set[str] = set()
    while job.poll() is None:
        with contextlib.suppress(psutil.Error):  # a process may end while it is looked at
            for one in family(job):
                started[one.pid] = one
                names.add(one.name())
                addresses |= listening(one)
        time.sleep(0.1)
    out, err = job.communicate()
    assert (job.returncode, err) == (0, ""), out
    assert "first: 2/2 rows loss 0.5" in out
    assert "answer 42" in out
    assert "chatter" not in out
    assert "chatter of a worker" in (tmp_path / "runs" / "digits" / "ray.log").read_text()
    assert {"gcs_server", "raylet"} <= names
    assert addresses == {"127.0.0.1"}
    wait_for(lambda: not living(list(started.values())), "everything to end")


def listening(process: psutil.Process) -> set[str]:
    """Addresses on which a process accepts connections."""
    connections = process.net_connections(kind="tcp")
    return {one.laddr.ip.removeprefix("::ffff:") for one in connections if one.status == psutil.CONN_LISTEN}


@pytest.mark.ray
@pytest.mark.parametrize(
    ("kind", "number"),
    [
        ("sleep", signal.SIGINT),
        ("train", signal.SIGINT),
        # Ray's two agents notice a killed driver after 50 s.
        pytest.param("sleep", signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_leaves_finished_stages_and_no_process(tmp_path: Path, kind: str, number: signal.Signals) -> None:
    job = start_toy(kind, tmp_path)
    artifacts = tmp_path / "runs" / "artifacts"
    wait_for(lambda: list(artifacts.glob("last/*/*ing")) or job.poll() is not None, "the workers")
    started = family(job)
    assert any("raylet" in one.name() for one in started)
    if number == signal.SIGKILL:
        job.kill()
    else:  # a terminal sends Ctrl-C to the whole group
        os.killpg(job.pid, number)
    _, err = job.communicate(timeout=PATIENCE_SECONDS)
    wait_for(lambda: not living(started), f"{living(started)} to end")
    assert len(list(artifacts.glob("first/*/artifact.json"))) == 1
    assert list(artifacts.glob("last/*/artifact.json")) == []
    if number == signal.SIGINT:
        assert job.returncode == 130
        assert err == "raverse: stopped; finished stages are kept, and the same command goes on from there\n"


def test_errors_of_workers_are_told_in_one_sentence(ray_session: None) -> None:
    import ray

    @ray.remote
    def refuse() -> None:
        raise InvalidData("row 3 has no caption")

    @ray.remote
    def fill_disk() -> None:
        Path("/dev/full").write_text("x" * 100_000)

    with pytest.raises(InvalidData) as refused:
        ray.get(refuse.remote())
    assert explain(refused.value) == "row 3 has no caption"
    with pytest.raises(OSError, match="No space left") as full:
        ray.get(fill_disk.remote())
    assert "no space is left" in str(explain(full.value))


@pytest.mark.parametrize("address", ["", "  ", "local"])
def test_no_address_means_embedded(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert session.cluster_address() is None
    session.check_cluster()


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265"])
def test_addresses_of_other_servers_are_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterUnreachable, match="ray job submit"):
        session.cluster_address()


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "7")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    session.set_environment()
    assert os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "7"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
